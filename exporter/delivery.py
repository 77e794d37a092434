"""Delivery: takes points from the journal to InfluxDB, and off the journal once InfluxDB has them.

A point leaves the journal only when InfluxDB acknowledged it, refused it for good, or the journal overflowed; each is
counted. What is sent twice, because an answer was lost, overwrites itself: a point's series and time are its identity.
"""

import asyncio
import contextlib
import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final, TypeVar

import structlog

from exporter.commit import Committer
from exporter.group import NotStoredError, Write
from exporter.influx import Answer, Verdict
from exporter.journal.codec import unpack
from exporter.journal.damage import is_damage
from exporter.journal.reader import JournalReader
from exporter.journal.records import PointsRow
from exporter.lines import Lines
from exporter.pace import MAX_POINTS, Backoff, Pace
from exporter.refusals import Report
from exporter.sender import GaveUpError, Sender, StuckError, Writer, pause
from exporter.shelf import Batch, Shelf
from exporter.telemetry import Telemetry

SENDERS: Final = 2
_JOURNAL_RETRY_SECONDS: Final = 1.0
_GATHER_SECONDS: Final = 0.1
"""Longer, and each delivery disturbs the requests meanwhile more; shorter, and there are too many."""

_FEW_POINTS: Final = 5000
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
        self._shelf = Shelf(time.monotonic, Backoff(jitter))
        self._was_on_shelf = False
        self._is_stuck = False
        self._read_error = ""
        self._thread = ThreadPoolExecutor(1, "delivery")
        self._stored = asyncio.Event()
        self._turn = asyncio.Lock()
        self._taken_until = 0
        self._not_before = 0.0
        self._draining = asyncio.Event()
        self._failing = ""
        self._under_way: dict[asyncio.Task[None] | None, asyncio.Event] = {}
        self.failure: str | None = None
        committer.on_stored = self._stored.set
        telemetry.delivery_set_aside.set_function(self._shelf.count_aside)

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

    async def answer(self) -> None:
        """Return once delivery's thread has answered; everything else that delivery waits for has a bound."""
        await self._in_thread(lambda: None)

    def drain(self) -> None:
        """Let `run` return when nothing is left to send; a failing delivery makes one more attempt."""
        self._draining.set()
        self._stored.set()

    async def settle(self) -> None:
        """Wait until everything that was read from the journal before now is delivered, refused or put back."""
        for done in list(self._under_way.values()):
            await done.wait()

    def close(self) -> None:
        """Close the reader, after `run` has ended."""
        self._thread.submit(self._reader.close).result()
        self._thread.shutdown()

    async def _work(self, sender: Sender) -> None:
        with contextlib.suppress(GaveUpError):
            while (taken := await self._take()) is not None:
                try:
                    await self._send(sender, *taken)
                finally:
                    self._shelf.end(taken[0])
                    self._end(taken[1])
                    if len(self._shelf):
                        self._stored.set()  # Whoever waits for points has to know when a batch is due.

    async def _send(self, sender: Sender, batch: Batch, rows: list[PointsRow]) -> None:
        report = Report()
        lines = await self._in_thread(_read_lines, rows, report)
        aside = None if batch.failures is None else self._shelf.backoff
        try:
            await sender.send(lines, report, start=batch.start, most=batch.points, aside=aside)
        except StuckError as stuck:
            self._shelve(batch, rows, stuck)
            return
        if not batch.start:
            await self._remove(rows, report)
            self._committer.drops.settle(rows)
            self._count(report)
        elif aside is None:
            self._shelf.put_back(replace(batch, start=0))
        else:
            self._shelf.put_aside(batch, rows, _points(rows))

    async def _read_noted(self, *, is_gathering: bool) -> tuple[Batch, list[PointsRow]] | None:
        """Read what is next, and note that this sender has it under way, for `settle`."""
        self._under_way[asyncio.current_task()] = asyncio.Event()
        taken = None
        try:
            taken = await self._read_next(is_gathering=is_gathering)
        finally:
            if taken is None:
                self._end()
        return taken

    def _end(self, rows: Sequence[PointsRow] = ()) -> None:
        """Note that this sender is done with what it read."""
        self._committer.drops.end(rows)
        self._under_way.pop(asyncio.current_task()).set()

    def _shelve(self, batch: Batch, rows: list[PointsRow], stuck: StuckError) -> None:
        """Let others have their turn before a batch that failed; its points stay in the journal."""
        answers = stuck.answers if batch.answers is None else batch.answers
        failed = replace(batch, answers=self._pace.answers)
        is_aside = batch.failures is not None
        if is_aside:
            self._shelf.hold()
        if self._pace.answers > answers:
            if not self._is_stuck:
                log.warning("InfluxDB fails on some points again and again; they wait, and the others go on")
            self._is_stuck = True
            self._shelf.put_aside(failed, rows, stuck.tried, stuck.retry_after_seconds)
        elif is_aside:
            self._shelf.put_off(failed, stuck.retry_after_seconds)
        else:
            # Where nothing else waits, only its own next request can show that InfluxDB takes others.
            self._shelf.put_back(replace(failed, start=stuck.tried % _points(rows)))

    async def _take(self) -> tuple[Batch, list[PointsRow]] | None:
        """Take the next groups to send; wait until there are some. None: draining, and there are none."""
        async with self._turn:
            while True:
                self._stored.clear()
                repairs = self._committer.repairs.done
                # Asked once: were it over between two questions, nobody would read, and nobody would wake who waits.
                gathering_seconds = self._gathering_seconds()
                try:
                    taken = await self._read_noted(is_gathering=gathering_seconds > 0)
                except sqlite3.Error as error:
                    self._telemetry.journal_read_failures.inc()
                    if str(error) != self._read_error:
                        log.error("points cannot be read from the journal", error=str(error))  # noqa: TRY400 -- no trace for people
                    self._read_error = str(error)
                    if self._draining.is_set():
                        return None
                    if is_damage(error) and await self._committer.repairs.run(repairs):
                        continue
                    await pause(_JOURNAL_RETRY_SECONDS, self._draining)
                    continue
                if taken is not None:
                    self._read_error = ""
                    return taken
                if self._draining.is_set() and not gathering_seconds:
                    return None
                shelf_seconds = self._shelf.wait_seconds()
                if gathering_seconds:
                    seconds = gathering_seconds if shelf_seconds is None else min(gathering_seconds, shelf_seconds)
                    await pause(seconds, self._draining)
                    continue
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stored.wait(), shelf_seconds)

    async def _read_next(self, *, is_gathering: bool) -> tuple[Batch, list[PointsRow]] | None:
        """Read a batch from the shelf and one from those that were never tried, by turns."""
        if not self._was_on_shelf and (taken := await self._read_shelved()) is not None:
            self._was_on_shelf = True
            return taken
        if not is_gathering and (rows := await self._read_new()):
            self._was_on_shelf = False
            return Batch(rows[0].number, rows[-1].number), rows
        return await self._read_shelved()

    async def _read_new(self) -> list[PointsRow]:
        """Read groups that were never tried; if they are few, the next ones have time to gather.

        A request for every few points would cost more than taking the events.
        """
        rows: list[PointsRow] = []
        while not rows and (read := await self._in_thread(self._reader.read, self._taken_until, self._pace.points)):
            self._taken_until = read[-1].number
            rows = self._committer.drops.begin(read)
        if rows:
            few = _points(rows) < _FEW_POINTS
            self._not_before = time.monotonic() + _GATHER_SECONDS if few else 0.0
        return rows

    def _gathering_seconds(self) -> float:
        """Give the seconds for which points are still to gather."""
        return 0.0 if self._draining.is_set() else max(0.0, self._not_before - time.monotonic())

    async def _read_shelved(self) -> tuple[Batch, list[PointsRow]] | None:
        """Read a batch from the shelf, unless its points were dropped meanwhile."""
        while (batch := self._shelf.take(is_last_chance=self._draining.is_set())) is not None:
            try:
                rows = await self._in_thread(self._reader.read, batch.first - 1, MAX_POINTS, batch.last)
            except sqlite3.Error:
                self._shelf.put_back(batch)
                raise
            if rows and rows[-1].number < batch.last:
                self._shelf.put_back(replace(batch, first=rows[-1].number + 1, start=0))
            if rows := self._committer.drops.begin(rows):
                self._shelf.begin(batch)
                return batch, rows
        self._is_stuck = self._is_stuck and self._shelf.count_aside() > 0
        return None

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


def _points(rows: list[PointsRow]) -> int:
    return sum(row.points for row in rows)


def _read_lines(rows: list[PointsRow], report: Report) -> Lines:
    """Decompress groups; of a damaged one the bytes are kept, as text."""
    texts: list[bytes] = []
    points = 0
    for row in rows:
        try:
            texts.append(_text_of(row))
            points += row.points
        except ValueError as error:
            report.reject("damaged", str(error), [row.lines.hex()], points=row.points)
    return Lines(texts, points)


def _text_of(row: PointsRow) -> bytes:
    """Give the lines of a group; its checksum has to be right, and their number."""
    text = unpack(row.lines)
    lines = text.count(b"\n") + 1 if text else 0
    if lines != row.points:
        msg = f"damaged points: {lines} lines where {row.points} should be"
        raise ValueError(msg)
    return text
