"""What each stage of an event's way costs: CPU nanoseconds per event, for bodies of 1 and of 200 events.

The exporter's own parts, in this process, one stage after the other over the same events; every round has new devices,
after one round that makes the series. The least of all rounds is printed, which a busy machine disturbs least. HTTP is
not in it: `bench.py` measures that.

Usage: python -m benchmarks.stages [--rounds 15] [--batches 1,200] [--load queue].
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from copy import copy
from pathlib import Path
from typing import Final

from benchmarks import report
from benchmarks.loads import LOADS, PLACEHOLDER, bodies
from benchmarks.machine import describe
from exporter.app import make_derivation, make_intake
from exporter.clock import Clock
from exporter.commit import Committer
from exporter.counters import Cell
from exporter.events import Batch, Event, decode
from exporter.exposition import Page
from exporter.group import Group
from exporter.identity import identities
from exporter.journal.codec import compress
from exporter.labels import Labels, environment, split_version
from exporter.points import PointEncoder
from exporter.privacy import IdPolicy
from exporter.settings import Settings
from exporter.state import State

EVENTS_A_ROUND: Final = 12_000
REQUESTS_A_GROUP: Final = 8
SETTLED_AFTER_NS: Final = 11 * 10**9
STAGES: Final = (
    *("decode", "identity", "dedupe", "cells", "line protocol", "derive", "settle", "commit", "compress"),
    *("all of intake", "exposition (ns per series)"),
)
_ALL: Final = "all of intake"
_PAGE: Final = "exposition (ns per series)"


class Stopwatch:
    """Keeps the least CPU time of each stage, all threads together."""

    def __init__(self) -> None:
        """Know nothing."""
        self.least: dict[str, float] = {}

    def run(self, stage: str, work: Callable[[], object], per: int) -> None:
        """Measure work of which there are so many."""
        began = time.process_time_ns()
        work()
        self.note(stage, time.process_time_ns() - began, per)

    async def wait(self, stage: str, work: Callable[[], Awaitable[object]], per: int) -> None:
        """Measure work that has to be awaited."""
        began = time.process_time_ns()
        await work()
        self.note(stage, time.process_time_ns() - began, per)

    def note(self, stage: str, nanoseconds: int, per: int) -> None:
        """Keep a measurement if it is the least."""
        self.least[stage] = min(nanoseconds / per, self.least.get(stage, float("inf")))


class Stages:
    """The exporter's parts, put together as in `app`, with the stages taken apart."""

    def __init__(self, directory: Path, batch: int, load: str) -> None:
        """Open an exporter's state in a directory."""
        settings = Settings(data_dir=directory)
        # It is put forward after each round, so that what the round began is settled then, and not in real time.
        self._ahead_ns = 0
        clock = Clock(lambda: time.time_ns() + self._ahead_ns, lambda: time.monotonic() + self._ahead_ns / 1e9)
        self._clock = clock
        self._load = load
        self._batch = batch
        self._templates = bodies(load, batch)
        self._devices = 0
        self._origin: tuple[object, ...] = ()
        self._cells: dict[str, Cell] = {}
        self.state = State(settings, clock)
        derivation = make_derivation(settings, self.state, clock)
        if derivation is None:
            raise AssertionError
        self._derivation = derivation
        self.intake = make_intake(settings, self.state, derivation, b"k" * 32, clock)
        self._points = PointEncoder(
            device_ids=IdPolicy("keep", b"k" * 32),
            custom_ids=IdPolicy("hash", b"k" * 32),
            max_event_age_seconds=settings.max_event_age,
            clock=clock,
            telemetry=self.state.telemetry,
        )
        self._page = Page(self.state.telemetry.registry, self.state.counters, self.state.figures)

    @property
    def committer(self) -> Committer:
        """What commits."""
        return self.state.committer

    async def warm_up(self) -> None:
        """Send one body of each kind, so that every series is there."""
        for body in self.bodies(len(self._templates)):
            await self.intake.accept(decode(body))

    def bodies(self, count: int = 0) -> list[bytes]:
        """Make so many bodies, by default a round's, each of a device that was never there."""
        made = []
        for _ in range(count or max(EVENTS_A_ROUND // self._batch, 1)):
            self._devices += 1
            template = self._templates[self._devices % len(self._templates)]
            made.append(template.replace(PLACEHOLDER, f"{self._devices:012d}").encode())
        return made

    async def round(self, watch: Stopwatch) -> None:
        """Measure each stage once."""
        await self._whole_way(watch)
        made = self.bodies()
        per = len(made) * self._batch
        batches: list[Batch] = []
        watch.run("decode", lambda: batches.extend([decode(body) for body in made]), per)
        events = [event for batch in batches for event in batch.events if isinstance(event, Event)]
        ids: list[int | None] = []
        watch.run("identity", lambda: ids.extend(identities(events)), per)
        known = [event_id for event_id in ids if event_id is not None]
        watch.run("dedupe", lambda: self._dedupe(known), per)
        cells: list[Cell] = []
        watch.run("cells", lambda: cells.extend([self._cell(event) for event in events]), per)
        sent = [copy(event) for event in events]
        lines: list[str] = []
        watch.run("line protocol", lambda: self._lines(events, cells, ids, lines), per)
        groups = self._groups(per)
        watch.run("derive", lambda: self._derive(sent, cells, groups), per)
        size = self._batch * REQUESTS_A_GROUP
        parts = [lines[start : start + size] for start in range(0, per, size)]
        watch.run("compress", lambda: [compress(part) for part in parts], per)
        self._fill(groups, known, lines)
        # With nothing to compress: the row of points is there, and nearly empty.
        for group in groups:
            group.lines = group.lines[:1]
        await watch.wait("commit", lambda: self._commit(groups), per)
        series = len(self.state.counters) + len(self.state.figures)
        self._ahead_ns += SETTLED_AFTER_NS
        # The whole way was the first time that so many events went; the stages were the second.
        await watch.wait("settle", self._derivation.settle, 2 * per)
        self._templates = bodies(self._load, self._batch, now_ms=self._clock.wall_ms())
        watch.run(_PAGE, lambda: self._page.render(openmetrics=False, to_scraper=False), series)

    async def _whole_way(self, watch: Stopwatch) -> None:
        """Take a round's bodies from bytes to the reply's moment, several requests at a time."""
        made = self.bodies()

        async def request(body: bytes) -> None:
            await self.intake.accept(decode(body))

        async def way() -> None:
            for start in range(0, len(made), REQUESTS_A_GROUP):
                await asyncio.gather(*map(request, made[start : start + REQUESTS_A_GROUP]))

        await watch.wait(_ALL, way, len(made) * self._batch)

    def _dedupe(self, known: list[int]) -> None:
        """Look for ids and remember them as intake does: a request's together, then a group's."""
        window = self.state.dedupe
        group = self._batch * REQUESTS_A_GROUP
        for start in range(0, len(known), group):
            for first in range(start, min(start + group, len(known)), self._batch):
                if window.known(known[first : first + self._batch]):
                    raise AssertionError
            window.add(known[start : start + group], 0)

    def _cell(self, event: Event) -> Cell:
        """Find a cell as intake does for a series that it met before."""
        origin = (event.app_id, event.platform, event.version_name, event.is_prod, event.is_emulator)
        if origin != self._origin:
            self._origin = origin
            self._cells = self.intake._cells.get(origin, {})  # noqa: SLF001 -- the very lookup is what is measured
        cell = self._cells.get(event.action)
        if cell is None:  # a text that is no label itself
            version, _ = split_version(event.version_name or "")
            labels = Labels(event.app_id, event.platform or "", event.action, version, environment(event))
            cell = self.state.counters.find(labels, 0)
        return cell

    def _lines(self, events: list[Event], cells: list[Cell], ids: list[int | None], lines: list[str]) -> None:
        prefixes = [f"{cell.head}{cell.tags}" for cell in cells]
        lines += self._points.encode(events, prefixes, ids, {}, time.time_ns() // 1_000_000)

    def _groups(self, events: int) -> list[Group]:
        return [Group() for _ in range(0, events, self._batch * REQUESTS_A_GROUP)]

    def _derive(self, events: list[Event], cells: list[Cell], groups: list[Group]) -> None:
        derivation = self._derivation
        now_ms = self._clock.wall_ms()
        size = self._batch * REQUESTS_A_GROUP
        for index, group in enumerate(groups):
            part = slice(index * size, (index + 1) * size)
            derivation.observe(events[part], cells[part], group, now_ms)
        for group, start in zip(groups, range(0, len(events), size), strict=True):
            for cell in cells[start : start + size]:
                group.deltas[cell] = group.deltas.get(cell, 0) + 1

    def _fill(self, groups: list[Group], ids: list[int], lines: list[str]) -> None:
        size = self._batch * REQUESTS_A_GROUP
        for index, group in enumerate(groups):
            part = slice(index * size, (index + 1) * size)
            group.event_ids = dict.fromkeys(ids[part])
            group.lines = lines[part]
            group.events = len(group.lines)

    async def _commit(self, groups: list[Group]) -> None:
        for group in groups:
            self.committer.group = group
            await self.committer.wait(group)


async def measure(batch: int, load: str, rounds: int) -> dict[str, float]:
    """Measure all stages for one size of bodies; nanoseconds per event."""
    with tempfile.TemporaryDirectory(prefix="stages-") as directory:
        stages = Stages(Path(directory), batch, load)
        running = asyncio.create_task(stages.committer.run())
        try:
            await stages.warm_up()
            await stages.round(Stopwatch())
            watch = Stopwatch()
            for _ in range(rounds):
                await stages.round(watch)
        finally:
            stages.committer.stop()
            await running
            stages.committer.close()
    return watch.least


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help=f"rounds of {EVENTS_A_ROUND} events")
    parser.add_argument("--batches", default="1,200", help="sizes of bodies")
    parser.add_argument("--load", choices=LOADS, default="queue", help="what is sent")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/performance.md")
    arguments = parser.parse_args()
    batches = [int(size) for size in arguments.batches.split(",")]
    found = {batch: asyncio.run(measure(batch, arguments.load, arguments.rounds)) for batch in batches}
    rows = [[stage, *(f"{found[batch][stage]:,.0f}" for batch in batches)] for stage in STAGES]
    table = report.table(["stage, CPU ns per event", *(f"bodies of {batch}" for batch in batches)], rows)
    print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.docs:
        report.write("stages", f"{describe()}; load `{arguments.load}`.\n\n{table}")


if __name__ == "__main__":
    main()
