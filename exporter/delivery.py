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
from typing import Final, Protocol, TypeVar

import structlog

from exporter.commit import Committer, NotStoredError, Write
from exporter.influx import Answer, Verdict
from exporter.journal.reader import JournalReader
from exporter.journal.records import PointsRow
from exporter.journal.store import compress, decompress
from exporter.pace import Backoff, RequestSize
from exporter.refusals import Report, sort_out
from exporter.telemetry import Telemetry

REQUEST_BUDGET: Final = 200
WRITERS: Final = 2
_JOURNAL_RETRY_SECONDS: Final = 1.0
_OVERLOADED: Final = frozenset({"timeout", "server_error"})
_LEAST_WHEN_OVERLOADED: Final = 1000
_Result = TypeVar("_Result")

log = structlog.get_logger()


class Writer(Protocol):
    """What delivery needs of InfluxDB."""

    async def write(self, body: bytes) -> Answer:
        """Send lines, gzip-compressed into one member, and judge the answer; raises nothing."""


class Delivery:
    """Sends the journal's points, oldest first, with a few requests under way.

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
        self._backoff = Backoff(jitter, time.monotonic)
        self._size = RequestSize()
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
            for _ in range(WRITERS):
                tasks.create_task(self._work())

    def drain(self) -> None:
        """Let `run` return when nothing is left to send; a failing delivery makes one more attempt."""
        self._draining.set()
        self._stored.set()

    def close(self) -> None:
        """Close the reader, after `run` has ended."""
        self._thread.submit(self._reader.close).result()
        self._thread.shutdown()

    async def _work(self) -> None:
        with contextlib.suppress(_GaveUpError):
            while (rows := await self._take()) is not None:
                await self._deliver(rows)

    async def _take(self) -> list[PointsRow] | None:
        """Take the next groups to send; wait until there are some. None: draining, and there are none."""
        async with self._turn:
            while True:
                self._stored.clear()
                try:
                    rows = await self._in_thread(self._reader.read, self._taken_until, self._size.points)
                except sqlite3.Error as error:
                    self._telemetry.journal_read_failures.inc()
                    log.error("points cannot be read from the journal", error=str(error))  # noqa: TRY400 -- no trace for people
                    if self._draining.is_set():
                        return None
                    await self._pause(_JOURNAL_RETRY_SECONDS)
                    continue
                if rows:
                    self._taken_until = rows[-1].number
                    return rows
                if self._draining.is_set():
                    return None
                await self._stored.wait()

    async def _deliver(self, rows: list[PointsRow]) -> None:
        report = Report()
        await self._send(await self._in_thread(_read_lines, rows, report), report)
        await self._remove(rows, report)
        self._telemetry.delivered_points.inc(report.delivered)
        for reason, points in report.rejected.items():
            self._telemetry.rejected_points[reason].inc(points)
        if report.rejected["beyond_retention"]:
            log.warning(
                "points older than the bucket's retention were refused", points=report.rejected["beyond_retention"]
            )
        if report.dead_letters:
            log.error(
                "points were refused for good; they are kept as dead letters",
                points=report.rejected.total() - report.rejected["beyond_retention"],
                error=report.dead_letters[0].error,
            )

    async def _remove(self, rows: list[PointsRow], report: Report) -> None:
        """Take off the journal what is done with; while it cannot be written, this writer sends nothing more."""
        write = Write(delivered=[row.number for row in rows], dead_letters=report.dead_letters)
        while True:
            try:
                await self._committer.write(write)
            except NotStoredError as error:
                if self._draining.is_set():
                    log.warning("delivered points stay in the journal, and are sent again later", error=str(error))
                    raise _GaveUpError from error
                await self._pause(_JOURNAL_RETRY_SECONDS)
            else:
                return

    async def _send(self, lines: list[str], report: Report) -> None:
        """Send lines, in requests of a size that the server takes, until each is stored or refused for good."""
        start = 0
        while start < len(lines):
            part = lines[start : start + self._size.points]
            answer = await self._attempt(part)
            if answer.verdict is Verdict.RETRY:
                if answer.reason in _OVERLOADED:
                    self._size.shrink(len(part), _LEAST_WHEN_OVERLOADED)
            elif answer.verdict is Verdict.TOO_LARGE and len(part) > 1:
                self._size.shrink(len(part))
            else:
                if answer.verdict is Verdict.STORED:
                    self._size.grow(len(part))
                await self._settle(part, answer, report)
                start += len(part)

    async def _settle(self, part: list[str], answer: Answer, report: Report) -> None:
        """Take an answer about lines, and send again what it leaves open, until nothing is.

        Refused lines are found by their numbers or by halving, with a bounded number of requests; what is not resolved
        by then becomes dead letters as a block.
        """
        parts = sort_out(part, answer, report)
        error = answer.error
        requests = 1
        while parts and requests < REQUEST_BUDGET:
            part = parts.pop()
            while (answer := await self._attempt(part)).verdict is Verdict.RETRY:
                pass
            requests += 1
            error = answer.error or error
            parts += sort_out(part, answer, report)
        if parts:
            block = [line for part in reversed(parts) for line in part]
            report.reject("refused", f"{error} (not all tried one by one)", block)

    async def _attempt(self, lines: list[str]) -> Answer:
        """Send one request, when it is time for it.

        Raises:
            _GaveUpError: if it has to be sent again, while draining.
        """
        body = await self._in_thread(compress, lines)
        while (seconds := self._backoff.wait_seconds()) and not self._draining.is_set():
            await self._pause(seconds)
        answer = await self._writer.write(body)
        self._telemetry.delivery_requests.labels(answer.status).inc()
        self._note(answer)
        if answer.verdict is not Verdict.RETRY:
            self._backoff.succeeded()
            return answer
        self._backoff.failed(answer.retry_after_seconds)
        self._telemetry.delivery_retries[answer.reason].inc()
        if self._draining.is_set():
            raise _GaveUpError
        return answer

    def _note(self, answer: Answer) -> None:
        """Show the state of the delivery, and log it when it changes."""
        failing = answer.reason if answer.verdict is Verdict.RETRY else ""
        for reason, gauge in self._telemetry.delivery_failing.items():
            gauge.set(reason == failing)
        if answer.verdict is Verdict.STORED:
            self._telemetry.mark_delivered()
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

    async def _pause(self, seconds: float) -> None:
        """Wait, but not while draining."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._draining.wait(), seconds)

    async def _in_thread(self, function: Callable[..., _Result], *args: object) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)


class _GaveUpError(Exception):
    """The last attempt while draining failed; the points stay in the journal."""


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
