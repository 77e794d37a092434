"""The exporter's own parts on a virtual clock: no server, no waiting, and all of its rules."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from prometheus_client import CollectorRegistry

from exporter.app import make_derivation, make_intake
from exporter.births import Births
from exporter.clock import Clock
from exporter.derived.marks import line as mark_line
from exporter.events import decode
from exporter.expiry import Expiry
from exporter.exposition import Page
from exporter.group import Write
from exporter.journal.codec import decompress
from exporter.journal.derived_records import MarkRow
from exporter.journal.opening import FILE_NAME
from exporter.journal.reader import JournalReader
from exporter.settings import Settings
from exporter.simulate.outbox import Delivery
from exporter.simulate.pagetext import EOF, openmetrics
from exporter.state import State

_POINTS_AT_ONCE = 1 << 20
_HASH_KEY = b"the same in each run, so that it gives the same points"


class VirtualClock:
    """A clock that is set; the monotonic one also goes on by itself, so that work takes time.

    Attributes:
        now_ms: milliseconds since 1970.
    """

    def __init__(self, now_ms: int) -> None:
        """Set the clock."""
        self.now_ms = now_ms
        self._set_at = time.perf_counter()

    def set(self, now_ms: int) -> None:
        """Set the clock."""
        self.now_ms = now_ms
        self._set_at = time.perf_counter()

    @property
    def clock(self) -> Clock:
        """The clock to pass on."""
        return Clock(wall_ns=lambda: self.now_ms * 1_000_000, monotonic=self._monotonic)

    @property
    def exact(self) -> Clock:
        """The same, but the monotonic clock stands still too: what depends on it is the same in each run."""
        return Clock(wall_ns=lambda: self.now_ms * 1_000_000, monotonic=lambda: self.now_ms / 1000)

    def _monotonic(self) -> float:
        return self.now_ms / 1000 + time.perf_counter() - self._set_at


class _Scraper(asyncio.BaseTransport):
    """The connection of a scraper that is always there."""

    def is_closing(self) -> bool:
        """Tell whether the connection ends."""
        return False


class VirtualExporter:
    """A running exporter without servers.

    Attributes:
        clock: its time.
        state: what it keeps.
        expiry: removes silent series.
    """

    def __init__(self, settings: Settings, clock: VirtualClock) -> None:
        """Open the journal and make the parts; they are joined as `exporter.app` does it.

        Raises:
            ValueError: if derived figures are switched off.
        """
        self.clock = clock
        self.state = State(settings, clock.clock)
        derivation = make_derivation(settings, self.state, clock.clock)
        if derivation is None:
            msg = "EXPORTER_DERIVED is off"
            raise ValueError(msg)
        self._derivation = derivation
        self._intake = make_intake(settings, self.state, derivation, _HASH_KEY, clock.clock)
        self.expiry = Expiry(
            self.state,
            ttl_seconds=settings.series_ttl,
            clock=clock.clock,
            on_release=self._derivation.forget_channels,
        )
        self._reader = JournalReader(settings.data_dir / FILE_NAME)
        self._taken_until = 0
        self._scraper = _Scraper()
        self.scrape_every(settings.scrape_interval)
        derived = CollectorRegistry(auto_describe=False)
        if self.state.derived is not None:
            derived.register(self.state.derived)
        self._derived = derived
        self._stored = Page(CollectorRegistry(), self.state.counters, self.state.figures)
        self._whole_page = Page(self.state.telemetry.registry, self.state.counters, self.state.figures)

    async def accept(self, deliveries: list[Delivery]) -> list[str]:
        """Store deliveries at their own times, in one transaction, and give the lines of the one before."""
        rows = self._reader.read(self._taken_until, _POINTS_AT_ONCE)
        stored = Write(delivered=[row.number for row in rows])
        writing = [self.state.committer.write(stored)] if rows else []
        began = time.perf_counter()
        await asyncio.gather(*(self._accept(delivery) for delivery in deliveries), *writing)
        self._note_requests(len(deliveries), time.perf_counter() - began)
        if not rows:
            return []
        self._taken_until = rows[-1].number
        lines = [line for row in rows for line in decompress(row.lines)]
        self._note_delivered(len(lines))
        return lines

    async def settle(self) -> None:
        """Count what has to wait for stragglers, as a running exporter does once a second."""
        await self._derivation.settle()

    async def mark(self, mark: MarkRow) -> None:
        """Mark a release, as `POST /releases` does."""
        await self.state.committer.write(Write(marks=[mark], lines=[mark_line(mark)]))

    async def scrape(self) -> str:
        """Give what a scraper is shown of the fleet, in OpenMetrics."""
        async with self._births.scrape(self._scraper):
            page = self._stored.render(openmetrics=True, to_scraper=True)
        return f"{openmetrics(self._derived)}{page.decode()}"

    def scrape_own(self) -> str:
        """Give what the exporter tells about itself, in OpenMetrics; that takes as long as all the rest."""
        return f"{openmetrics(self.state.telemetry.registry)}{EOF}"

    def everything(self) -> str:
        """Give the whole page as everyone but a scraper sees it, in the text format."""
        return self._whole_page.render(openmetrics=False, to_scraper=False).decode()

    def close(self) -> None:
        """Close the reader of the journal."""
        self._reader.close()

    def scrape_every(self, seconds: float) -> None:
        """Expect scrapes at another interval from now on."""
        state = self.state
        self._births = Births(state.lifecycle, state.committer, seconds, state.telemetry, self.clock.exact)

    async def _accept(self, delivery: Delivery) -> None:
        self._intake.stage_arrivals()  # at their own time
        self.clock.now_ms = delivery.at_ms
        await self._intake.accept(decode(delivery.encode()))

    def _note_requests(self, count: int, seconds: float) -> None:
        telemetry = self.state.telemetry
        telemetry.requests.labels("stats", "200").inc(count)
        duration = telemetry.request_duration.labels("stats")
        for _ in range(count):
            duration.observe(seconds)

    def _note_delivered(self, points: int) -> None:
        telemetry = self.state.telemetry
        telemetry.delivered_points.inc(points)
        telemetry.delivery_requests.labels("204").inc()
        telemetry.delivery_last_success.set(self.clock.now_ms / 1000)


@contextlib.asynccontextmanager
async def virtual_exporter(settings: Settings, clock: VirtualClock) -> AsyncIterator[VirtualExporter]:
    """Run the exporter's parts.

    Args:
        settings: of the exporter; its data directory must exist.
        clock: its time.
    """
    exporter = VirtualExporter(settings, clock)
    committer = exporter.state.committer
    committing = asyncio.create_task(committer.run())
    try:
        yield exporter
    finally:
        exporter.close()
        committer.stop()
        await committing
        committer.close()
