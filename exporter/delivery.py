"""Delivery: takes points from the journal to InfluxDB, and off the journal once InfluxDB has them.

A point leaves the journal only when InfluxDB acknowledged it, refused it for good, or the journal overflowed; each is
counted. What is sent twice, because an answer was lost, overwrites itself: a point's series and time are its identity.
"""

import asyncio
import contextlib
import random
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import structlog

from exporter.commit import Committer
from exporter.group import NotStoredError, Write
from exporter.influx import Answer, Verdict
from exporter.journal.codec import decompress
from exporter.journal.reader import JournalReader
from exporter.journal.records import PointsRow
from exporter.pace import Backoff, Pace
from exporter.refusals import Report
from exporter.sender import GaveUpError, Sender, Writer, pause
from exporter.telemetry import Telemetry

SENDERS: Final = 2
_JOURNAL_RETRY_SECONDS: Final = 1.0
_Result = TypeVar("_Result")

log = structlog.get_logger()


class Delivery:
    """Delivers the journal's points, oldest first, with a few requests under way.

    Attributes:
        failure: why InfluxDB takes no points now; None while it does.
    """

    def __init__(
        self,
        reader: JournalReader,
        writer: Writer,
        committer: Committer,
        telemetry: Telemetry,
        *,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Take the parts; nothing is sent before `run`."""
        self._reader = reader
        self._writer = writer
        self._committer = committer
        self._telemetry = telemetry
        self._jitter = jitter
        self._pace = Pace(time.monotonic)
        self._thread = ThreadPoolExecutor(1, "delivery")
        self._stored = asyncio.Event()
        self._turn = asyncio.Lock()
        self._taken_until = 0
        self._draining = asyncio.Event()
        self._failing = ""
        self.failure: str | None = None
        committer.on_stored = self._stored.set

    async def run(self) -> None:
        """Deliver until cancelled, or until everything is delivered once `drain` was called."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(SENDERS):
                sender = Sender(
                    self._writer,
                    self._pace,
                    Backoff(self._jitter),
                    thread=self._thread,
                    draining=self._draining,
                    on_answer=self._note,
                )
                tasks.create_task(self._work(sender))

    def drain(self) -> None:
        """Let `run` return when nothing is left to send; a failing delivery makes one more attempt."""
        self._draining.set()
        self._stored.set()

    def close(self) -> None:
        """Close the reader, after `run` has ended."""
        self._thread.submit(self._reader.close).result()
        self._thread.shutdown()

    async def _work(self, sender: Sender) -> None:
        with contextlib.suppress(GaveUpError):
            while (rows := await self._take()) is not None:
                report = Report()
                await sender.send(await self._in_thread(_read_lines, rows, report), report)
                await self._remove(rows, report)
                self._count(report)

    async def _take(self) -> list[PointsRow] | None:
        """Take the next groups to send; wait until there are some. None: draining, and there are none."""
        async with self._turn:
            while True:
                self._stored.clear()
                try:
                    rows = await self._in_thread(self._reader.read, self._taken_until, self._pace.points)
                except sqlite3.Error as error:
                    self._telemetry.journal_read_failures.inc()
                    log.error("points cannot be read from the journal", error=str(error))  # noqa: TRY400 -- no trace for people
                    if self._draining.is_set():
                        return None
                    await pause(_JOURNAL_RETRY_SECONDS, self._draining)
                    continue
                if rows:
                    self._taken_until = rows[-1].number
                    return rows
                if self._draining.is_set():
                    return None
                await self._stored.wait()

    async def _remove(self, rows: list[PointsRow], report: Report) -> None:
        """Take off the journal what is done with; while that cannot be stored, this sender sends nothing more."""
        write = Write(delivered=[row.number for row in rows], dead_letters=report.dead_letters)
        while True:
            try:
                await self._committer.write(write)
            except NotStoredError as error:
                if self._draining.is_set():
                    log.warning("delivered points stay in the journal, and are sent again later", error=str(error))
                    raise GaveUpError from error
                await pause(_JOURNAL_RETRY_SECONDS, self._draining)
            else:
                return

    def _count(self, report: Report) -> None:
        self._telemetry.delivered_points.inc(report.delivered)
        for reason, points in report.rejected.items():
            self._telemetry.rejected_points[reason].inc(points)
        too_old = report.rejected["beyond_retention"]
        if too_old:
            log.warning("points older than the bucket's retention were refused", points=too_old)
        if report.dead_letters:
            log.error(
                "points were refused for good; they are kept as dead letters",
                points=report.rejected.total() - too_old,
                error=report.dead_letters[0].error,
            )

    def _note(self, answer: Answer) -> None:
        """Count an answer, show the state of the delivery, and log it when it changes."""
        self._telemetry.delivery_requests.labels(answer.status).inc()
        if answer.verdict is Verdict.STORED:
            self._telemetry.mark_delivered()
        failing = ""
        if answer.verdict is Verdict.RETRY:
            failing = answer.reason
            self._telemetry.delivery_retries[failing].inc()
        for reason, gauge in self._telemetry.delivery_failing.items():
            gauge.set(reason == failing)
        if failing and failing != self._failing:
            log.warning(
                "InfluxDB takes no points; they wait in the journal",
                reason=failing,
                status=answer.status,
                error=answer.error,
            )
        elif self._failing and not failing:
            log.info("InfluxDB takes points again")
        self._failing = failing
        self.failure = f"{failing}: {answer.status}: {answer.error}" if failing else None

    async def _in_thread(self, function: Callable[..., _Result], *args: object) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)


def _read_lines(rows: list[PointsRow], report: Report) -> list[str]:
    """Decompress groups; of a damaged one the bytes are kept, as text."""
    lines: list[str] = []
    for row in rows:
        try:
            lines += _lines_of(row)
        except ValueError as error:
            report.reject("damaged", str(error), [row.lines.hex()], points=row.points)
    return lines


def _lines_of(row: PointsRow) -> list[str]:
    lines = decompress(row.lines)
    if len(lines) != row.points or "" in lines:
        msg = f"damaged points: {len(lines)} lines where {row.points} should be"
        raise ValueError(msg)
    return lines
