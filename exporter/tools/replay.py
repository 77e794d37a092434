"""The command `capgo-exporter replay`."""

import asyncio
import contextlib
import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Final

import click

from exporter import logs
from exporter.access import token_texts
from exporter.parameters import Duration, Url
from exporter.progress import Show, progress
from exporter.settings import Settings
from exporter.tools.options import data_option, ending, influx_options, read_settings
from exporter.tools.problems import ToolError, UsageError
from exporter.tools.replaying import Passage, Target, into_directory, into_influxdb, posting
from exporter.tools.source import Batch, read_batches

_INTERRUPTED: Final = 130


@click.command("replay")
@click.argument("file")
@click.option("--url", type=Url(), help="Post events to this stats URL, with EXPORTER_INGEST_TOKEN if it is set.")
@click.option("--influx", "to_influx", is_flag=True, help="Write straight into InfluxDB, and count nothing.")
@click.option("--batch", type=click.IntRange(1, 25_000), default=500, show_default=True, help="Lines at once.")
@click.option("--from-line", type=click.IntRange(1), default=1, show_default=True, help="The first line that counts.")
@click.option(
    "--patience", type=Duration(), default="1m", show_default=True, help="How long a server may take nothing."
)
@data_option
@influx_options
@ending
def replay(
    file: str,
    url: str | None,
    batch: int,
    from_line: int,
    patience: float,
    *,
    to_influx: bool,
    **options: str | None,
) -> None:
    """Replay FILE: events as JSON lines, or points as line protocol or as JSON lines of `journal export`.

    Events go to a running exporter (--url), through an exporter in this process into the data directory, or straight
    into InfluxDB (--influx). They are counted as of now; those with a timestamp are counted once, however often they
    are replayed within the window of remembered ones. Points go into the journal of the data directory, also while its
    exporter runs, or straight into InfluxDB (--influx); counters stay as they are.

    FILE may be gzip-compressed if it ends in .gz; - is standard input.

    Exit codes: 0 done, 2 wrong settings or a wrong line, 4 the data directory cannot be used, 5 a server cannot be
    reached or refuses, 130 interrupted. It then says with which --from-line to go on.
    """
    if url is not None and to_influx:
        msg = "--url and --influx: choose one"
        raise UsageError(msg)
    settings = read_settings(**options)
    logs.configure(settings.log_format, "error")
    run = Run(file, from_line)
    try:
        with progress("replay") as show:
            asyncio.run(run.replay(settings, url, batch, patience, show, to_influx=to_influx))
    except KeyboardInterrupt:
        run.tell()
        sys.exit(_INTERRUPTED)
    except ToolError:
        run.tell()
        raise
    run.tell()


class Run:
    """One replay, and how far it came."""

    def __init__(self, file: str, from_line: int) -> None:
        """Start before the first line."""
        self._file = file
        self._from_line = from_line
        self._done_until = from_line - 1
        self._is_done = False
        self._is_passage = False
        self._kind = "lines"
        self._counts: Counter[str] = Counter()

    async def replay(
        self, settings: Settings, url: str | None, size: int, patience_seconds: float, show: Show, *, to_influx: bool
    ) -> None:
        """Replay the file.

        Raises:
            ToolError: if it cannot go on.
        """
        batches = read_batches(self._file, size, self._from_line)
        first = next(batches, None)
        if first is None:
            self._is_done = True
            return
        self._kind = first.kind
        async with contextlib.AsyncExitStack() as stack:
            passage: Passage | None = None
            if to_influx:
                self._is_passage = True
                passage = await stack.enter_async_context(into_influxdb(settings, first.kind, patience_seconds))
                target: Target = passage
            elif url is not None:
                target = await stack.enter_async_context(posting(url, _token(settings), patience_seconds))
            else:
                target = await stack.enter_async_context(into_directory(settings, first.kind, patience_seconds))
            await self._take_all(target, itertools.chain([first], batches), show)
            if passage is not None:
                await passage.finish(show, patience_seconds)
            show(1.0, f"{self._counts.total()} {self._kind}")
        self._is_done = True

    async def _take_all(self, target: Target, batches: Iterator[Batch], show: Show) -> None:
        for batch in batches:
            self._counts += await target.take(batch)
            self._done_until = batch.last_line
            # The last of it is shown when all is stored.
            show(None if batch.share is None else min(batch.share, 0.999), f"{self._counts.total()} {batch.kind}")

    def tell(self) -> None:
        """Sum up, and say where to go on if not everything is done."""
        if self._kind == "lines" and not self._is_done:
            return  # not even begun
        if self._is_passage and not self._is_done:
            # What was accepted waited in a journal that is gone.
            click.echo(f"not all is in InfluxDB; begin again with --from-line {self._from_line}", err=True)
            return
        accepted = self._counts.pop("accepted", 0)
        refused = "".join(f", {count} rejected: {error}" for error, count in sorted(self._counts.items()))
        click.echo(f"{accepted} {self._kind} accepted{refused}")
        if not self._is_done:
            click.echo(f"go on with --from-line {self._done_until + 1}", err=True)


def _token(settings: Settings) -> str | None:
    return next(iter(token_texts(settings.ingest_token)), None)
