"""Delivery: takes points from the journal to InfluxDB, and off the journal once InfluxDB has them.

A point leaves the journal only when InfluxDB acknowledged it, refused it for good, or the journal overflowed; each is
counted. What is sent twice, because an answer was lost, overwrites itself: a point's series and time are its identity.
"""

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

import structlog

from exporter.commit import Committer, NotStoredError, Write
from exporter.influx import Answer, Verdict
from exporter.journal.reader import JournalReader
from exporter.journal.records import DeadLetter, PointsRow
from exporter.journal.store import compress, decompress
from exporter.telemetry import Telemetry

MAX_POINTS: Final = 25_000
REQUEST_BUDGET: Final = 200
WRITERS: Final = 2
_MIN_DELAY_SECONDS: Final = 0.5
_MAX_DELAY_SECONDS: Final = 60.0
_Result = TypeVar("_Result")

log = structlog.get_logger()


class Writer(Protocol):
    """What delivery needs of InfluxDB."""

    async def write(self, body: bytes) -> Answer:
        """Send lines, gzip-compressed into one member, and judge the answer; raises nothing."""


@dataclass(slots=True)
class _Report:
    """What became of the lines of a batch."""

    delivered: int = 0
    beyond_retention: int = 0
    dead_letters: list[DeadLetter] = field(default_factory=list)
    requests: int = 0


class Backoff:
    """Exponential delays with full jitter, shared by all writers: one server, one pace."""

    def __init__(self, jitter: Callable[[float, float], float]) -> None:
        """Start without a delay; `jitter(a, b)` picks a number between its arguments."""
        self._jitter = jitter
        self._failures = 0

    def succeeded(self) -> None:
        """Start anew from the shortest delay."""
        self._failures = 0

    def failed(self, retry_after_seconds: float) -> float:
        """Give the seconds to wait before the next attempt: never less than the server asks for."""
        ceiling = min(_MIN_DELAY_SECONDS * 2**self._failures, _MAX_DELAY_SECONDS)
        self._failures = min(self._failures + 1, 16)
        return max(retry_after_seconds, self._jitter(ceiling / 2, ceiling))


class Delivery:
    """Sends the journal's points, oldest first, with a few requests under way."""

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
        self._backoff = Backoff(jitter)
        self._thread = ThreadPoolExecutor(1, "delivery")
        self._stored = asyncio.Event()
        self._turn = asyncio.Lock()
        self._sent_until = 0
        self._draining = asyncio.Event()
        self._max_points = MAX_POINTS
        self.failure: str | None = None
        committer.on_stored = self._stored.set
        self._stored.set()

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
        while (rows := await self._take()) is not None:
            try:
                await self._deliver(rows)
            except NotStoredError as error:
                # The points are still in the journal, and are sent again: they overwrite themselves.
                log.warning(
                    "delivered points stay in the journal, because their removal could not be stored", error=str(error)
                )
                if self._draining.is_set():
                    return
                self._sent_until = min(self._sent_until, rows[0].number - 1)
                await self._pause(self._backoff.failed(0.0))
            except _GaveUpError:
                return

    async def _take(self) -> list[PointsRow] | None:
        """Take the next groups to send; wait until there are some. None: draining, and there are none."""
        async with self._turn:
            while True:
                self._stored.clear()
                try:
                    rows = await self._in_thread(self._reader.read, self._sent_until, self._max_points)
                except sqlite3.Error as error:
                    self._telemetry.journal_read_failures.inc()
                    log.error("points cannot be read from the journal", error=str(error))  # noqa: TRY400 -- no trace for people
                    if self._draining.is_set():
                        return None
                    await self._pause(self._backoff.failed(0.0))
                    continue
                if rows:
                    self._sent_until = rows[-1].number
                    return rows
                if self._draining.is_set():
                    return None
                await self._stored.wait()

    async def _deliver(self, rows: list[PointsRow]) -> None:
        report = _Report()
        lines, damaged = await self._in_thread(_read_lines, rows)
        if damaged:
            report.dead_letters.append(DeadLetter("damaged", "the journal's points cannot be decompressed", damaged))
        size = self._max_points
        for start in range(0, len(lines), size):
            await self._send(lines[start : start + size], report)
        await self._committer.write(Write(delivered=[row.number for row in rows], dead_letters=report.dead_letters))
        self._telemetry.delivered_points.inc(report.delivered)
        if report.beyond_retention:
            self._telemetry.rejected_points["beyond_retention"].inc(report.beyond_retention)
            log.warning("points older than the bucket's retention were refused", points=report.beyond_retention)
        for letter in report.dead_letters:
            self._telemetry.rejected_points[letter.reason].inc(len(letter.lines))
        if report.dead_letters:
            points = sum(len(letter.lines) for letter in report.dead_letters)
            log.error(
                "InfluxDB refused points; they are kept as dead letters",
                points=points,
                error=report.dead_letters[0].error,
            )

    async def _send(self, lines: list[str], report: _Report) -> None:
        """Send lines until each is stored, or refused for good.

        Refused lines are found by halving what was refused, with a bounded number of requests; what is not resolved by
        then becomes dead letters as a block.
        """
        budget = report.requests + REQUEST_BUDGET
        parts = [lines]
        error = ""
        while parts and report.requests < budget:
            part = parts.pop()
            answer = await self._write(part, report)
            error = answer.error or error
            if answer.verdict is Verdict.STORED:
                refused = min(answer.beyond_retention, len(part))
                report.beyond_retention += refused
                report.delivered += len(part) - refused
            elif answer.verdict is Verdict.REFUSED and any(1 <= number <= len(part) for number in answer.bad_lines):
                if rest := _set_aside(part, answer, report):
                    parts.append(rest)
            elif len(part) > 1:
                if answer.verdict is Verdict.TOO_LARGE:
                    self._max_points = max(len(part) // 2, 1)
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]
            else:
                reason = "too_large" if answer.verdict is Verdict.TOO_LARGE else "refused"
                report.dead_letters.append(DeadLetter(reason, answer.error, part))
        if parts:
            block = [line for part in reversed(parts) for line in part]
            report.dead_letters.append(DeadLetter("refused", f"{error} (not all tried one by one)", block))

    async def _write(self, lines: list[str], report: _Report) -> Answer:
        """Send one request, again and again until there is an answer about its lines."""
        body = await self._in_thread(compress, lines)
        while True:
            report.requests += 1
            answer = await self._writer.write(body)
            self._telemetry.delivery_requests.labels(answer.status).inc()
            self._note(answer)
            if answer.verdict is not Verdict.RETRY:
                return answer
            report.requests -= 1
            self._telemetry.delivery_retries[answer.reason].inc()
            if self._draining.is_set():
                raise _GaveUpError
            await self._pause(self._backoff.failed(answer.retry_after_seconds))

    def _note(self, answer: Answer) -> None:
        """Show the state of the delivery, and log it when it changes."""
        failing = answer.reason if answer.verdict is Verdict.RETRY else ""
        for reason, gauge in self._telemetry.delivery_failing.items():
            gauge.set(reason == failing)
        failure = f"{answer.reason}: {answer.status}: {answer.error}" if failing else None
        if failure is None:
            self._backoff.succeeded()
            self._telemetry.mark_delivered()
            if self.failure is not None:
                log.info("InfluxDB takes points again")
        elif self.failure is None or self.failure.split(":")[0] != answer.reason:
            log.warning(
                "InfluxDB takes no points; they wait in the journal",
                reason=answer.reason,
                status=answer.status,
                error=answer.error,
            )
        self.failure = failure

    async def _pause(self, seconds: float) -> None:
        """Wait, but not while draining."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._draining.wait(), seconds)

    async def _in_thread(self, function: Callable[..., _Result], *args: object) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)


class _GaveUpError(Exception):
    """The last attempt while draining failed; the points stay in the journal."""


def _set_aside(part: list[str], answer: Answer, report: _Report) -> list[str]:
    """Make dead letters of the lines that the server named, and give the rest, which is sent again.

    Numbers outside the part count for nothing.
    """
    bad = {number: error for number, error in answer.bad_lines.items() if 1 <= number <= len(part)}
    by_error: dict[str, list[str]] = {}
    for number, error in bad.items():
        by_error.setdefault(error, []).append(part[number - 1])
    report.dead_letters += [DeadLetter("refused", error, lines) for error, lines in by_error.items()]
    return [line for number, line in enumerate(part, 1) if number not in bad]


def _read_lines(rows: list[PointsRow]) -> tuple[list[str], list[str]]:
    """Decompress groups; what is damaged comes back as text of its bytes."""
    lines: list[str] = []
    damaged: list[str] = []
    for row in rows:
        try:
            lines += decompress(row.lines)
        except ValueError:
            damaged.append(row.lines.hex())
    return lines, damaged
