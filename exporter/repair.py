"""Repairing a journal that is damaged while the exporter runs: one attempt at a time, for whoever finds the damage."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from exporter.journal.salvage import BEFORE_VACUUM, DAMAGED, Salvage, Salvaged, SalvageError
from exporter.journal.store import Journal
from exporter.telemetry import Telemetry
from exporter.worker import Worker

AGAIN_SECONDS: Final = 60.0

log = structlog.get_logger()


class Repairs:
    """Has the journal salvaged; transactions go on meanwhile, but for the end.

    Attributes:
        done: how many repairs are done.
        error: why the last one failed; empty if it did not.
    """

    def __init__(self, journal: Journal, thread: Worker, telemetry: Telemetry, monotonic: Callable[[], float]) -> None:
        """Take the parts.

        Args:
            journal: what is repaired.
            thread: the journal's own.
            telemetry: where repairs are counted.
            monotonic: seconds that never go back.
        """
        self.done = 0
        self._journal = journal
        self._thread = thread
        self._telemetry = telemetry
        self._monotonic = monotonic
        self._task: asyncio.Task[bool] | None = None
        self._salvage: Salvage | None = None
        self._not_before = -AGAIN_SECONDS
        self._is_stopping = False
        self._is_adopting = False
        self._seen_steps = -1
        self.error = ""

    async def run(self, known: int) -> bool:
        """Repair the journal, or wait for the repair that is under way; tells whether it is done.

        It is not when it failed, now or less than a minute ago.

        Args:
            known: how many were done before the damage was found; what another has mended since is not repaired again.
        """
        if self.done > known:
            return True
        if self._task is None:
            if self._is_stopping or self._monotonic() < self._not_before:
                return False
            self._task = asyncio.create_task(self._repair())
            self._task.add_done_callback(self._end)
        return await asyncio.shield(self._task)

    async def vacuum(self) -> bool:
        """Put what the journal holds into a new file, so that it takes no more room than it needs.

        Returns:
            Whether it is done; `error` says why not.
        """
        if self._task is not None or self._is_stopping:
            self.error = "the journal is being repaired, or the exporter stops"
            return False
        self._task = asyncio.create_task(self._repair(is_asked_for=True))
        self._task.add_done_callback(self._end)
        return await asyncio.shield(self._task)

    def stop(self) -> None:
        """Give up the repair that is under way, unless it is nearly done; no other begins."""
        self._is_stopping = True
        if self._salvage is not None:
            self._salvage.stopping.set()

    async def wait(self) -> None:
        """Wait until no repair is under way, after `stop`."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def gets_on(self) -> bool:
        """Tell whether the journal's thread is busy with a repair that has got on since this was last asked."""
        if self._salvage is None or not self._is_adopting:
            return False
        steps = self._salvage.steps
        before, self._seen_steps = self._seen_steps, steps
        return steps != before

    def _end(self, _: object) -> None:
        self._task = None

    async def _repair(self, *, is_asked_for: bool = False) -> bool:
        self._salvage = salvage = Salvage(self._journal.path, BEFORE_VACUUM if is_asked_for else DAMAGED)
        started = self._monotonic()
        try:
            until = await self._thread.run(self._journal.begin_salvage)
            await asyncio.to_thread(_copy, salvage, until)
            self._is_adopting = True
            salvaged = await self._thread.run(self._journal.adopt, salvage)
        except (sqlite3.Error, OSError, SalvageError) as error:
            if not is_asked_for:
                self._not_before = self._monotonic() + AGAIN_SECONDS
            if str(error) != self.error and not self._is_stopping and not is_asked_for:
                log.error("the damaged journal cannot be repaired now; it is tried again", error=str(error))  # noqa: TRY400 -- no trace for people
            self.error = str(error)
            await self._thread.run(self._journal.end_salvage)
            return False
        finally:
            self._is_adopting = False
            self._salvage = None
            with contextlib.suppress(OSError, sqlite3.Error):
                await asyncio.to_thread(salvage.discard)
        self.error = ""
        self.done += 1
        if not is_asked_for or salvaged.lost_points or salvaged.lost_dead_letter_points:
            report_repair(self._telemetry, salvaged, seconds=round(self._monotonic() - started, 3))
        elif salvaged.kept is not None:
            await asyncio.to_thread(salvaged.kept.unlink, missing_ok=True)  # gibibytes take a while
        return True


def report_repair(telemetry: Telemetry, salvaged: Salvaged, **values: object) -> None:
    """Count a repair, and tell of it."""
    telemetry.journal_repairs.inc()
    telemetry.journal_lost_points.inc(salvaged.lost_points + salvaged.lost_dead_letter_points)
    log.error(
        "the journal was damaged; what could be read of its points goes on in a new file, and counters are unharmed",
        lost_points=salvaged.lost_points,
        lost_dead_letter_points=salvaged.lost_dead_letter_points,
        damaged_file=_text(salvaged.kept),
        **values,
    )


def _copy(salvage: Salvage, until: int) -> None:
    salvage.begin()
    salvage.copy_points(until)


def _text(path: Path | None) -> str:
    return "removed: no room for it" if path is None else str(path)
