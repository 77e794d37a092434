"""The command `capgo-exporter dead-letters`."""

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click
import msgspec

from exporter.chores import Done
from exporter.journal.letters import Letter, list_letters, read_lines
from exporter.tools.inspection import reading
from exporter.tools.keeper import Keeper, journal_path, open_keeper
from exporter.tools.options import data_option, ending, read_settings, show_size, show_table, show_time
from exporter.tools.points import to_json
from exporter.tools.problems import DataError, UsageError

_HEADER = ("id", "stored", "points", "size", "reason", "error")


@click.group("dead-letters")
def dead_letters() -> None:
    """Look at points that InfluxDB refused for good, and try them again or delete them.

    All is safe while the exporter runs. Exit codes: 0 done, 2 wrong settings or no such letter, 4 the journal cannot be
    used, 5 the exporter that uses it refuses.
    """


@dead_letters.command("list")
@data_option
@click.option("--json", "as_json", is_flag=True, help="As JSON lines, for scripts.")
@ending
def list_command(data_dir: str | None, *, as_json: bool) -> None:
    """List the dead letters, oldest first; each holds points of one refusal."""
    letters = _letters(_path(data_dir))
    if as_json:
        for letter in letters:
            click.echo(msgspec.json.encode(letter._asdict()).decode())
        return
    if not letters:
        click.echo("no dead letters")
        return
    for line in show_table([_HEADER, *map(_row, letters)]):
        click.echo(line)


def _row(letter: Letter) -> tuple[str, ...]:
    return (
        str(letter.letter_id),
        show_time(letter.now_ms),
        str(letter.points),
        show_size(letter.size_bytes),
        letter.reason,
        letter.error,
    )


@dead_letters.command("show")
@click.argument("letter", type=int)
@data_option
@click.option("--format", "form", type=click.Choice(["lines", "json"]), default="lines", show_default=True)
@ending
def show_command(letter: int, data_dir: str | None, form: str) -> None:
    """Write the points of a dead letter; those of damaged ones are hexadecimal text."""
    path = _path(data_dir)
    found = next((each for each in _letters(path) if each.letter_id == letter), None)
    try:
        lines = None if found is None else read_lines(path, letter)
    except (ValueError, sqlite3.Error) as error:
        msg = f"dead letter {letter}: {error}"
        raise DataError(msg) from error
    if found is None or lines is None:
        msg = f"there is no dead letter {letter}; `capgo-exporter dead-letters list` lists them"
        raise UsageError(msg)
    for line in lines:
        click.echo(to_json(line) if form == "json" and found.is_readable else line)


@dead_letters.command("retry")
@click.argument("letters", type=int, nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All of them.")
@data_option
@ending
def retry_command(letters: tuple[int, ...], data_dir: str | None, *, everything: bool) -> None:
    """Let dead letters wait for InfluxDB once more, after what was wrong with them is mended there.

    What is refused again becomes a dead letter again.
    """
    ids = _ids(letters, everything=everything)
    done = _change(data_dir, lambda keeper: keeper.retry(ids))
    click.echo(f"{done.points} points of {done.letters} dead letters wait for InfluxDB again")
    _tell_of_left(done, "are not there, or are damaged and cannot be tried again")


@dead_letters.command("discard")
@click.argument("letters", type=int, nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All of them.")
@data_option
@ending
def discard_command(letters: tuple[int, ...], data_dir: str | None, *, everything: bool) -> None:
    """Delete dead letters."""
    ids = _ids(letters, everything=everything)
    done = _change(data_dir, lambda keeper: keeper.discard(ids))
    click.echo(f"{done.points} points of {done.letters} dead letters are deleted")
    _tell_of_left(done, "are not there")


def _ids(letters: tuple[int, ...], *, everything: bool) -> list[int] | None:
    if everything == bool(letters):
        msg = "name dead letters by their ids, or all of them by --all"
        raise UsageError(msg)
    return None if everything else list(letters)


def _change(data_dir: str | None, do: Callable[[Keeper], Coroutine[Any, Any, Done]]) -> Done:
    async def change() -> Done:
        async with open_keeper(_path(data_dir).parent) as keeper:
            return await do(keeper)

    return asyncio.run(change())


def _tell_of_left(done: Done, why: str) -> None:
    if done.left:
        msg = f"{done.left} of the dead letters {why}"
        raise UsageError(msg)


def _letters(path: Path) -> list[Letter]:
    with reading(path):
        return list_letters(path)


def _path(data_dir: str | None) -> Path:
    return journal_path(read_settings(data_dir=data_dir).data_dir)
