"""The command `capgo-exporter journal`."""

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Final, Literal

import click
import msgspec

from exporter.tools.inspection import Status, groups, status, verify
from exporter.tools.keeper import journal_path, open_keeper
from exporter.tools.options import data_option, ending, read_settings, show_size, show_time
from exporter.tools.points import to_json
from exporter.tools.problems import DataError

EXIT_FOUND: Final = 1

Format = Literal["lines", "json"]


@click.group("journal")
def journal() -> None:
    """Look into the journal of a data directory; all is safe while its exporter runs.

    Exit codes: 0 done, 1 `verify` found something, 2 wrong settings, 4 the journal cannot be used, 5 the exporter that
    uses it refuses.
    """


@journal.command("status")
@data_option
@click.option("--json", "as_json", is_flag=True, help="As JSON, for scripts.")
@ending
def status_command(data_dir: str | None, *, as_json: bool) -> None:
    """Say what the journal holds."""
    path = _path(data_dir)
    found = status(path)
    if as_json:
        click.echo(msgspec.json.encode(asdict(found)).decode())
        return
    for name, text in _rows(path, found):
        click.echo(f"{name:<18} {text}")


def _rows(path: Path, found: Status) -> Iterator[tuple[str, str]]:
    totals = found.totals
    since = "" if totals.oldest_point_ms is None else f"; the oldest since {show_time(totals.oldest_point_ms)}"
    sizes = f"{show_size(found.free_bytes)} of it empty pages; write-ahead log {show_size(found.log_bytes)}"
    yield "journal", str(path)
    yield "in use", "yes" if found.in_use else "no"
    yield "file", f"{show_size(found.file_bytes)}, {sizes}"
    yield "points waiting", f"{totals.points} in {found.groups} groups, {show_size(totals.bytes)}{since}"
    yield (
        "dead letters",
        f"{found.letters} with {totals.dead_letter_points} points, " + show_size(totals.dead_letter_bytes),
    )
    yield "events counted", f"{found.events} in {found.series} series, {totals.expired_events} of them expired"
    yield "events remembered", str(totals.event_ids)
    yield "transactions", str(totals.last_transaction)


@journal.command("peek")
@data_option
@click.option("-n", "--points", type=click.IntRange(1), default=10, show_default=True, help="How many.")
@click.option("--format", "form", type=click.Choice(["lines", "json"]), default="lines", show_default=True)
@ending
def peek_command(data_dir: str | None, points: int, form: Format) -> None:
    """Show the points that have waited longest."""
    shown = 0
    for number, lines in groups(_path(data_dir)):
        for line in _render(number, lines, form):
            click.echo(line)
            shown += 1
            if shown == points:
                return


@journal.command("export")
@data_option
@click.option("--format", "form", type=click.Choice(["lines", "json"]), default="lines", show_default=True)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A file; else standard output.")
@ending
def export_command(data_dir: str | None, form: Format, output: Path | None) -> None:
    """Write all points that wait, as line protocol or JSON lines; `capgo-exporter replay` reads both.

    They stay in the journal. What is delivered meanwhile may be missing, nothing comes twice.
    """
    path = _path(data_dir)
    if output is None:
        count = _export(path, form, sys.stdout)
    else:
        try:
            with output.open("w", encoding="utf-8") as file:
                count = _export(path, form, file)
        except OSError as error:
            msg = f"{output}: {error.strerror or error}"
            raise DataError(msg) from error
    click.echo(f"{count} points", err=True)


def _export(path: Path, form: Format, file: IO[str]) -> int:
    count = 0
    for number, lines in groups(path):
        for line in _render(number, lines, form):
            file.write(f"{line}\n")
            count += 1
    file.flush()
    return count


def _render(number: int, lines: list[str], form: Format) -> Iterator[str]:
    if not lines:
        click.echo(f"group {number} is damaged, and left out", err=True)
    return iter(lines) if form == "lines" else map(to_json, lines)


@journal.command("vacuum")
@data_option
@ending
def vacuum_command(data_dir: str | None) -> None:
    """Put the journal into a new file, without the empty pages that delivered points left.

    A running exporter does it meanwhile, and takes events. It needs as much room on the disk again for a moment.
    """
    path = _path(data_dir)
    before = path.stat().st_size
    asyncio.run(_vacuum(path.parent))
    click.echo(f"{show_size(before)} before, {show_size(path.stat().st_size)} now")


async def _vacuum(data_dir: Path) -> None:
    async with open_keeper(data_dir) as keeper:
        await keeper.vacuum()


@journal.command("verify")
@data_option
@ending
def verify_command(data_dir: str | None) -> None:
    """Check the journal from end to end: pages, points, dead letters, totals, what is known of devices."""
    path = _path(data_dir)
    problems = 0
    for problem in verify(path):
        click.echo(problem)
        problems += 1
    if problems:
        click.echo(f"{path}: {problems} problems; the exporter repairs what can be at its next start", err=True)
        sys.exit(EXIT_FOUND)
    click.echo(f"{path}: ok")


def _path(data_dir: str | None) -> Path:
    return journal_path(read_settings(data_dir=data_dir).data_dir)
