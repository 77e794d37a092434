"""Backfill: weeks of a fleet's life, taken by a real exporter on a virtual clock, as files for the databases."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TextIO

from exporter.settings import Settings
from exporter.simulate.fleet import Fleet
from exporter.simulate.openmetrics import Recorder
from exporter.simulate.releases import marks
from exporter.simulate.scenario import HOUR_MS, Scenario
from exporter.simulate.virtual import VirtualClock, VirtualExporter, virtual_exporter

SCRAPE_LABELS: Final = {"job": "capgo-stats-exporter", "instance": "exporter:9747"}
"""What Prometheus adds to the exporter's series as prometheus/prometheus.yml and docker-compose.yml have it."""

_SETTLED_MS: Final = 15_000
_QUIET_SCRAPES: Final = 3
_KEPT_AROUND: Final = 3
_UP: Final = "# HELP up Whether the target could be scraped.\n# TYPE up gauge\nup 1\n"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to simulate, and how closely to look.

    Attributes:
        scenario: what the fleet lives through.
        end_ms: when it ends, in milliseconds since 1970; a multiple of `step_seconds`.
        days: how long it lasts.
        step_seconds: time between two scrapes.
        fine_hours: the last hours, in which scrapes come every `fine_step_seconds`.
        fine_step_seconds: time between two scrapes then.
        labels: what Prometheus adds to each series.
    """

    scenario: Scenario
    end_ms: int
    days: float = 30.0
    step_seconds: int = 300
    fine_hours: float = 3.0
    fine_step_seconds: int = 15
    labels: Mapping[str, str] = field(default_factory=lambda: SCRAPE_LABELS)

    @property
    def start_ms(self) -> int:
        """When it begins, in milliseconds since 1970."""
        step_ms = self.step_seconds * 1000
        return (self.end_ms - int(self.days * 24 * HOUR_MS)) // step_ms * step_ms

    @property
    def quiet_from_ms(self) -> int:
        """When the fleet falls silent, so that the last scrapes show everything."""
        last_step = self.fine_step_seconds if self.fine_hours else self.step_seconds
        return self.end_ms - max(_SETTLED_MS, _QUIET_SCRAPES * 1000 * last_step)

    def scrapes(self) -> Iterator[tuple[int, bool]]:
        """Give the times of the scrapes, and whether they are the close ones."""
        at_ms = self.start_ms
        fine_from_ms = self.end_ms - int(self.fine_hours * HOUR_MS)
        while at_ms < self.end_ms:
            is_fine = at_ms >= fine_from_ms
            at_ms += 1000 * (self.fine_step_seconds if is_fine else self.step_seconds)
            yield at_ms, is_fine


@dataclass(slots=True)
class Result:
    """What came of a backfill.

    Attributes:
        fleet: with the truth.
        deliveries: how often devices posted.
        events: how many events were in that.
        scrapes: how often the exporter was scraped.
        series: what Prometheus gets.
        samples: what is written of them.
        lines: what InfluxDB gets.
        page: the last page, as everyone but a scraper sees it, in the text format.
        seconds: how long it took.
    """

    fleet: Fleet
    deliveries: int = 0
    events: int = 0
    scrapes: int = 0
    series: int = 0
    samples: int = 0
    lines: int = 0
    page: str = ""
    seconds: float = 0.0


async def backfill(
    plan: Plan,
    openmetrics: Path | None = None,
    lines: Path | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> Result:
    """Simulate, and write the files.

    Args:
        plan: what to simulate.
        openmetrics: the file for `promtool tsdb create-blocks-from openmetrics`; None: none.
        lines: the file with line protocol for InfluxDB; None: none.
        progress: is told from time to time which share is done.

    Returns:
        What came of it, with the fleet and its truth.
    """
    began = time.perf_counter()
    result = Result(Fleet(plan.scenario, plan.start_ms))
    recorder = Recorder(plan.labels)
    clock = VirtualClock(plan.start_ms)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="backfill-")))
        line_file = stack.enter_context((lines or directory / "lines").open("w", encoding="utf-8"))
        settings = Settings(data_dir=directory, scrape_interval=float(plan.step_seconds))
        async with virtual_exporter(settings, clock) as exporter:
            run = _Run(plan, result, exporter, recorder, line_file)
            await run.run(progress)
    result.series = recorder.series
    if openmetrics is not None:
        with openmetrics.open("w", encoding="utf-8") as file:
            result.samples = recorder.write(file)
    result.seconds = time.perf_counter() - began
    return result


class _Run:
    """One backfill under way."""

    def __init__(
        self, plan: Plan, result: Result, exporter: VirtualExporter, recorder: Recorder, line_file: TextIO
    ) -> None:
        self._plan = plan
        self._result = result
        self._exporter = exporter
        self._recorder = recorder
        self._line_file = line_file
        self._marks = marks(plan.scenario, plan.start_ms)
        self._is_fine = False

    async def run(self, progress: Callable[[float], None]) -> None:
        """Go from scrape to scrape."""
        plan = self._plan
        exporter = self._exporter
        swept_ms = plan.start_ms
        for at_ms, is_fine in plan.scrapes():
            if is_fine and not self._is_fine:
                exporter.scrape_every(plan.fine_step_seconds)
            self._is_fine = is_fine
            await self._live_until(at_ms)
            if at_ms - swept_ms >= HOUR_MS:
                swept_ms = at_ms
                await exporter.expiry.sweep()
                progress((at_ms - plan.start_ms) / (plan.end_ms - plan.start_ms))
            await self._scrape(at_ms)
        self._write(await exporter.accept([]))
        self._result.page = exporter.everything()

    async def _live_until(self, at_ms: int) -> None:
        """Let the fleet live until the next scrape, and the exporter take what it sends."""
        fleet = self._result.fleet
        deliveries = []
        for delivery in fleet.deliveries(min(at_ms, self._plan.quiet_from_ms)):
            fleet.answer(delivery)
            deliveries.append(delivery)
            self._result.events += len(delivery.reports)
        self._result.deliveries += len(deliveries)
        self._write(await self._exporter.accept(deliveries))
        self._exporter.clock.set(at_ms)
        while self._marks and self._marks[0].marked_ms <= at_ms:
            await self._exporter.mark(self._marks.pop(0))
        await self._exporter.settle()

    async def _scrape(self, at_ms: int) -> None:
        self._result.scrapes += 1
        page = f"{_UP}{await self._exporter.scrape()}"
        self._recorder.record("all", page, at_ms, around=_KEPT_AROUND, is_fine=self._is_fine)
        if self._is_fine or at_ms % HOUR_MS == 0:
            page = self._exporter.scrape_own()
            self._recorder.record("own", page, at_ms, around=1, is_fine=self._is_fine)

    def _write(self, lines: list[str]) -> None:
        self._line_file.writelines(f"{line}\n" for line in lines)
        self._result.lines += len(lines)
