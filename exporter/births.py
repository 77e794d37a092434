"""Births: a new series is shown to Prometheus as 0 first, so that `increase()` and `rate()` see its first event.

Prometheus takes the first sample of a series as its start; a series that appears with the value 1 has, to `increase()`,
not grown. So a scraper is shown 0, and the value once every known scraper has been shown the 0 and a whole scrape
interval has passed. Each step is committed before it is shown: a restart neither hides a series again nor shows 0
again.

Only requests with `X-Prometheus-Scrape-Timeout-Seconds`, which Prometheus and vmagent send, count as scrapes; everyone
else sees the committed values at once.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

import structlog

from exporter.clock import Clock
from exporter.commit import Committer
from exporter.group import NotStoredError, Write
from exporter.journal.records import Birth
from exporter.series import Lifecycle, Series
from exporter.telemetry import Telemetry

SCRAPE_HEADER: Final = "X-Prometheus-Scrape-Timeout-Seconds"
_GAP_TOLERANCE: Final = 1.1
_FORGOTTEN_AFTER_INTERVALS: Final = 3
_LONGEST_WAIT_SECONDS: Final = 0.5
_STEPS_AT_ONCE: Final = 10_000

log = structlog.get_logger()


class Scrapers:
    """The Prometheus servers that scrape this exporter, each known by the connection it keeps open.

    One that connects anew for each scrape, as behind some proxies, is not known from one scrape to the next; only the
    interval then protects what it sees.
    """

    def __init__(self, interval_seconds: float, telemetry: Telemetry) -> None:
        """Set the longest interval expected of a scraper."""
        self._interval = interval_seconds
        self._telemetry = telemetry
        self._last: dict[asyncio.BaseTransport, float] = {}
        self._longest_gap = 0.0
        self._warned = False
        telemetry.scrape_interval.set(interval_seconds)

    def all_seen_until(self, now: float) -> float:
        """Give the moment until which every living scraper has scraped: a 0 shown by then is known to all.

        A scraper lives until its connection closes, or until it has been silent for some intervals: its host may have
        died without a word.
        """
        self._last = {connection: last for connection, last in self._last.items() if not connection.is_closing()}
        silent = now - self._interval * _FORGOTTEN_AFTER_INTERVALS
        return min((last for last in self._last.values() if last > silent), default=now)

    def note(self, connection: asyncio.BaseTransport, now: float) -> None:
        """Note a scrape; one that comes late is counted, because it may miss the 0 of a birth."""
        gap = now - self._last.get(connection, now)
        self._last[connection] = now
        if gap > self._longest_gap:
            self._longest_gap = gap
            self._telemetry.scrape_gap.set(gap)
        if gap > self._interval * _GAP_TOLERANCE:
            self._telemetry.slow_scrapes.inc()
            if not self._warned:
                self._warned = True
                log.warning(
                    "a scraper is slower than EXPORTER_SCRAPE_INTERVAL, and may miss first events; raise the setting",
                    gap_seconds=round(gap, 3),
                    scrape_interval_seconds=self._interval,
                )


class Births:
    """Decides how much of each series Prometheus may see."""

    def __init__(
        self, lifecycle: Lifecycle, committer: Committer, interval_seconds: float, telemetry: Telemetry, clock: Clock
    ) -> None:
        """Set the scrape interval that must pass between the 0 and the value."""
        self._lifecycle = lifecycle
        self._committer = committer
        self._interval = interval_seconds
        self._clock = clock
        self._scrapers = Scrapers(interval_seconds, telemetry)
        self._storing: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def scrape(self, connection: asyncio.BaseTransport | None) -> AsyncIterator[None]:
        """Move series on, and let the page be rendered within.

        What the page shows counts as shown if the scraper is still there when it is ready: one that gave up takes no
        sample.
        """
        await self._move_on()
        begun = self._clock.monotonic()
        unborn = self._lifecycle.unborn
        zeros = [cell for cell, zero_since in unborn.items() if zero_since is None and cell.birth is Birth.ZERO]
        yield
        if connection is None or connection.is_closing():
            return
        unborn = self._lifecycle.unborn
        for cell in zeros:
            # Another scrape may have shown it meanwhile, and expiry may have taken it out.
            if cell.birth is Birth.ZERO and unborn.get(cell, begun) is None:
                unborn[cell] = begun
        self._scrapers.note(connection, begun)

    async def _move_on(self) -> None:
        """Store what is due; a disk that is slow or fails holds back births, but not the page."""
        now = self._clock.monotonic()
        steps = self._due(now, self._scrapers.all_seen_until(now))
        if not steps:
            return
        if self._storing is None or self._storing.done():
            self._storing = asyncio.create_task(self._store(steps))
        await asyncio.wait([self._storing], timeout=_LONGEST_WAIT_SECONDS)

    def _due(self, now: float, all_seen_until: float) -> list[tuple[Series, Birth]]:
        """Find the series to move on, and forget those that are born."""
        steps: list[tuple[Series, Birth]] = []
        unborn = self._lifecycle.unborn
        if any(cell.birth is Birth.FULL for cell in unborn):
            # A dictionary that had a hundred thousand series keeps its size when they are taken out.
            unborn = {cell: zero_since for cell, zero_since in unborn.items() if cell.birth is not Birth.FULL}
            self._lifecycle.unborn = unborn
        for cell, zero_since in unborn.items():
            if cell.birth is Birth.HIDDEN:
                steps.append((cell, Birth.ZERO))
            elif zero_since is not None and zero_since <= all_seen_until and now - zero_since >= self._interval:
                steps.append((cell, Birth.FULL))
        return steps

    async def _store(self, steps: list[tuple[Series, Birth]]) -> None:
        """Store steps, some at a time, so that no event waits for a hundred thousand of them."""
        try:
            for start in range(0, len(steps), _STEPS_AT_ONCE):
                part = steps[start : start + _STEPS_AT_ONCE]
                # One that expired meanwhile, and came back, begins anew.
                births = [(series, birth) for series, birth in part if series.birth == birth - 1]
                await self._committer.write(Write(births=births))
        except NotStoredError as error:
            log.warning("new series are not shown, because that could not be stored", error=str(error))
