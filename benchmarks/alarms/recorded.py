"""Histories from the simulated fleet: each event through the real exporter, on a virtual clock."""

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.alarms.series import Changes, History
from exporter.settings import Settings
from exporter.simulate.fleet import Fleet
from exporter.simulate.outbox import OK, Delivery, Reply
from exporter.simulate.scenario import HOUR_MS, Scenario
from exporter.simulate.virtual import VirtualClock, VirtualExporter, virtual_exporter

START_MS: Final = 1_699_920_000_000
"""A midnight."""

LABELS: Final = 'job="capgo-stats-exporter",instance="exporter:9747"'
UP: Final = "up 1\n"
_FAMILIES: Final = (
    "up ",
    "capgo_stats_events_total",
    "capgo_installs_total",
    "capgo_update_failures_total",
    "capgo_late_events_total",
    "capgo_download_attempts_total",
    "capgo_launch_duration_seconds_count",
    "capgo_version_",
    "capgo_devices",
)
_OWN_FAMILIES: Final = (
    "capgo_exporter_journal_writable",
    "capgo_exporter_clock_corrected_total",
    "capgo_exporter_events_total",
    "capgo_exporter_label_overflow_total",
    "capgo_exporter_bodies_rejected_total",
    "capgo_exporter_http_requests_total",
)


class Recording:
    """A real exporter that is scraped at even steps.

    Attributes:
        now_ms: the time of the next scrape.
    """

    def __init__(self, exporter: VirtualExporter, step_seconds: int) -> None:
        """Begin at the exporter's present."""
        self.now_ms = exporter.clock.now_ms
        self._exporter = exporter
        self._step_seconds = step_seconds
        self._changes = Changes()
        self._own = Changes()
        self._scrapes = 0

    async def take(self, deliveries: list[Delivery]) -> None:
        """Let the exporter take what came until now, and scrape it."""
        exporter = self._exporter
        await exporter.accept(deliveries)
        exporter.clock.set(self.now_ms)
        await exporter.settle()
        page = await exporter.scrape()
        self._changes.record(UP + page, self._scrapes, _FAMILIES)
        if self.now_ms % HOUR_MS == 0:
            self._own.record(exporter.scrape_own(), self._scrapes, _OWN_FAMILIES)
            await exporter.expiry.sweep()
        self._next()

    async def fail(self) -> None:
        """Scrape in vain: the exporter is down."""
        self._changes.record("up 0\n", self._scrapes, _FAMILIES)
        self._next()

    def history(self) -> History:
        """Give what was scraped."""
        history = self._changes.history(self._step_seconds, self._scrapes, LABELS)
        history.series.update(self._own.history(self._step_seconds, self._scrapes, LABELS).series)
        return history

    def _next(self) -> None:
        self._scrapes += 1
        self.now_ms += self._step_seconds * 1000


async def record(
    scenario: Scenario,
    *,
    days: float,
    step_seconds: int,
    start_ms: int = START_MS,
    reply: Callable[[int], Reply] = lambda _: OK,
) -> tuple[History, Fleet]:
    """Let a fleet live, and scrape the exporter that takes its events.

    Args:
        scenario: what the fleet lives through.
        days: how long.
        step_seconds: between two scrapes.
        start_ms: when it begins, in milliseconds since 1970.
        reply: says what a device gets at a time, in milliseconds; without status, the exporter is down.
    """
    with tempfile.TemporaryDirectory(prefix="alarms-") as directory:
        settings = Settings(data_dir=Path(directory), scrape_interval=float(step_seconds))
        fleet = Fleet(scenario, start_ms)
        async with virtual_exporter(settings, VirtualClock(start_ms)) as exporter:
            recording = Recording(exporter, step_seconds)
            end_ms = start_ms + int(days * 24 * HOUR_MS)
            while recording.now_ms <= end_ms:
                deliveries: list[Delivery] = []
                for delivery in fleet.deliveries(recording.now_ms):
                    answer = reply(delivery.at_ms)
                    fleet.answer(delivery, answer)
                    if answer.status is not None:
                        deliveries.append(delivery)
                if reply(recording.now_ms).status is None:
                    await recording.fail()
                else:
                    await recording.take(deliveries)
            return recording.history(), fleet


def record_now(scenario: Scenario, *, days: float, step_seconds: int) -> History:
    """Do the same without an event loop around."""
    return asyncio.run(record(scenario, days=days, step_seconds=step_seconds))[0]
