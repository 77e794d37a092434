"""Natural group commit: whatever arrived while the last transaction ran goes into the next one.

There is no timer and no lock. The event loop fills a group; a task hands it to the journal's thread and, when the
COMMIT returned, makes it visible, answers its waiters and hands over the next.
"""

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
import structlog

from exporter.clock import Clock
from exporter.counters import EVENTS, Counters
from exporter.dedupe import DedupeWindow
from exporter.derived.figures import Figures
from exporter.derived.staged import Staged
from exporter.drops import Drops
from exporter.group import Group, NotStoredError, Write
from exporter.journal.derived_records import DerivedChanges, MarkRow, RestoredDerived
from exporter.journal.records import BirthRow, Committed, SeriesRow, Transaction
from exporter.journal.store import CommitFailedError, Journal
from exporter.repair import Repairs
from exporter.series import Lifecycle, Series, whole
from exporter.telemetry import Telemetry
from exporter.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

_PROBE_SECONDS: Final = 1.0
_CALM_SECONDS: Final = 60.0
"""A journal that fails again within it is still in the same trouble: a disk that is just full takes small writes."""

_LOOK_SECONDS: Final = 0.5
_QUIET_TURNS: Final = 3
"""A group is handed over once so many turns of the event loop have brought nothing more.

It takes as many from a connection that can be accepted, or data that can be read, to events that are staged. What is on
its way already saves a transaction of its own in this manner, and nothing is waited for: these turns do not sleep.
"""

_MOST_TURNS: Final = 30
"""After so many a group is handed over even if each brings more."""

_json = msgspec.json.Encoder()
_Waiting = list[tuple["Write", asyncio.Future[None]]]

log = structlog.get_logger()


class DerivedState(Protocol):
    """What the committer asks of the derived state."""

    def changes(self, staged: Staged, marks: list[MarkRow], number: int, now_ms: int) -> DerivedChanges:
        """Put together what a transaction has to store."""

    def show(self, staged: Staged, changes: DerivedChanges) -> None:
        """Make visible what is stored."""

    def restore(self, restored: RestoredDerived) -> None:
        """Take over what the journal holds, in place of everything there is."""


class Committer:
    """Stores groups and other writes, one transaction at a time, and makes them visible."""

    def __init__(  # noqa: PLR0913 -- everything that a commit changes
        self,
        *,
        journal: Journal,
        lifecycle: Lifecycle,
        counters: Counters,
        figures: Figures,
        dedupe: DedupeWindow,
        derived: DerivedState | None,
        telemetry: Telemetry,
        clock: Clock,
    ) -> None:
        """Take over an opened journal and what was restored from it."""
        self._journal = journal
        self._lifecycle = lifecycle
        self._counters = counters
        self._figures = figures
        self._derived = derived
        self._dedupe = dedupe
        self._telemetry = telemetry
        self._clock = clock
        self._thread = Worker("journal")
        self.repairs = Repairs(journal, self._thread, telemetry, clock.monotonic)
        self.drops = Drops(telemetry.dropped_points.inc)
        self._work = asyncio.Event()
        self._stopping = asyncio.Event()
        self._writes: _Waiting = []
        self._in_trouble = False
        self._calm: asyncio.TimerHandle | None = None
        self.group = Group()
        self.in_flight: Group | None = None
        self.writable = True
        self.on_stored: Callable[[], None] = lambda: None
        self.on_expired: Callable[[], None] = lambda: None
        telemetry.journal_writable.set(1)

    @property
    def journal_bytes(self) -> int:
        """Give the size of the points that wait in the journal."""
        return self._journal.totals.bytes

    def wait(
        self, group: Group, waiter: asyncio.Future[NotStoredError | None] | None = None
    ) -> asyncio.Future[NotStoredError | None]:
        """Give a future of a group's outcome: None once it is stored, the reason if it is not.

        Args:
            group: the group.
            waiter: a future to resolve, in place of a new one.
        """
        waiter = waiter or asyncio.get_running_loop().create_future()
        group.waiters.append(waiter)
        self._work.set()
        return waiter

    async def write(self, write: Write) -> None:
        """Store something with the next transaction.

        What has to be stored exactly once, as dead letters and an operator's edits have, waits until it is known
        whether it is.

        Raises:
            NotStoredError: if it is not stored, or may not be.
        """
        if not self.writable:
            msg = "the journal cannot be written"
            raise NotStoredError(msg)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writes.append((write, done))
        self._work.set()
        await done

    async def run(self) -> None:
        """Commit until `stop`; on return everything that was staged is answered."""
        while True:
            await self._work.wait()
            self._work.clear()
            while self._writes or not self.group.is_empty:
                await self._gather()
                await self._commit_next()
            if self._stopping.is_set():
                break
        if self._calm is not None:
            self._calm.cancel()
        await self.repairs.wait()

    async def answer(self) -> None:
        """Return once the journal's thread has answered, or a repair has got on that keeps it busy.

        It never returns where that thread hangs, at a disk that does.
        """
        answer = self._thread.run(lambda: None)
        while not (await asyncio.wait([answer], timeout=_LOOK_SECONDS))[0]:
            if self.repairs.gets_on():
                return

    def stop(self) -> None:
        """Let `run` return once everything staged is stored."""
        self.repairs.stop()
        self._stopping.set()
        self._work.set()

    def close(self) -> None:
        """Close the journal, after `run` has returned."""
        self._thread.finish()
        self._journal.close()

    async def _gather(self) -> None:
        """Let in what is on its way."""
        waiting = len(self.group.waiters)
        quiet = turns = 0
        while quiet < _QUIET_TURNS and turns < _MOST_TURNS:
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self.group.waiters) == waiting else 0
            waiting = len(self.group.waiters)
            turns += 1

    async def _commit_next(self) -> None:
        group, self.group = self.group, Group()
        writes, self._writes = self._writes, []
        self.in_flight = group
        try:
            await self._commit(group, writes)
        except BaseException as error:
            # A fault of ours: this task ends, which `/healthz` reports, and whoever waits must not wait for ever.
            self._discard(group, [done for _, done in writes], error)
            raise

    async def _commit(self, group: Group, writes: _Waiting) -> None:
        transaction, expired = self._transaction(group, [write for write, _ in writes])
        started = self._clock.monotonic()
        repairs = self.repairs.done
        try:
            committed = await self._thread.run(self._journal.commit, transaction)
        except CommitFailedError as error:
            doubtful = [done for write, done in writes if (write.delivered or write.edits) and not error.is_certain]
            self._discard(group, [done for _, done in writes if done not in doubtful], error)
            is_stored = False
            try:
                is_stored = await self._mend(error, repairs) >= transaction.number
                if is_stored:
                    self._show(group, [write for write, _ in writes], transaction, expired)
                    if error.committed is not None:
                        self._count(error.committed)
            finally:
                _answer(doubtful, None if is_stored else NotStoredError(str(error)))
            return
        self._telemetry.commit_duration.observe(self._clock.monotonic() - started)
        self._show(group, [write for write, _ in writes], transaction, expired)
        self._count(committed)
        for waiter in group.waiters:
            if not waiter.done():
                waiter.set_result(None)
        _answer([done for _, done in writes], None)

    def _transaction(self, group: Group, writes: list[Write]) -> tuple[Transaction, list[Series]]:
        transaction = Transaction(self._journal.totals.last_transaction + 1, self._clock.wall_ms())
        now_ms = transaction.now_ms
        deltas = group.deltas
        for series in self._lifecycle.unstored:
            value = series.value + deltas.get(series, 0)
            labels = _json.encode(series.labels).decode()
            transaction.new_series.append(
                SeriesRow(series.series_id, series.family.name, labels, value, series.birth, now_ms)
            )
        transaction.values = [
            (series.value + delta, now_ms, series.series_id) for series, delta in deltas.items() if series.stored
        ]
        transaction.event_ids = list(group.event_ids)
        transaction.lines = group.lines
        expired: list[Series] = []
        marks: list[MarkRow] = []
        reached = set(map(whole, deltas)) if any(write.expired for write in writes) else set()
        for write in writes:
            transaction.births += [BirthRow(birth, series.series_id) for series, birth in write.births]
            expired += [series for series in write.expired if series.stored and whole(series) not in reached]
            transaction.delivered += write.delivered
            transaction.dead_letters += write.dead_letters
            transaction.lines = [*transaction.lines, *write.lines] if write.lines else transaction.lines
            marks += write.marks
            transaction.edits += write.edits
        transaction.expired_series = [series.series_id for series in expired]
        transaction.expired_events = sum(series.value for series in expired if series.family is EVENTS)
        if self._derived is not None:
            transaction.derived = self._derived.changes(group.derived, marks, transaction.number, now_ms)
        return transaction, expired

    def _show(self, group: Group, writes: list[Write], transaction: Transaction, expired: list[Series]) -> None:
        """Make visible what is stored: the one place where anything that `/metrics` shows changes."""
        self.in_flight = None
        stored_ids = {row.series_id for row in transaction.new_series}
        if stored_ids:
            self._lifecycle.mark_stored(stored_ids)
        for series, delta in group.deltas.items():
            series.change(series.value + delta)
            series.last_ms = transaction.now_ms
        for write in writes:
            for series, birth in write.births:
                series.show(birth)
        if expired:
            self._counters.note_expired(expired)
            gone = self._lifecycle.expire(expired, self.group.deltas)
            self._counters.remove(gone)
            self._figures.remove(gone)
            self.on_expired()
            self._telemetry.series_expired.inc(len(expired))
        self._dedupe.add(group.event_ids, transaction.now_ms)
        if self._derived is not None and transaction.derived is not None:
            self._derived.show(group.derived, transaction.derived)
        self._telemetry.events["accepted", ""].inc(group.events)
        if transaction.lines or transaction.edits:
            self.on_stored()

    def _discard(self, group: Group, writes: list[asyncio.Future[None]], error: BaseException) -> None:
        """Refuse everything that is staged, also what came in while the failed transaction ran."""
        self.writable = False
        self._telemetry.journal_writable.set(0)
        self._telemetry.commit_failures.inc()
        if self._calm is not None:
            self._calm.cancel()
        if not self._in_trouble:
            log.error("journal cannot be written; events are refused with 503 until it can", error=str(error))
        self._in_trouble = True
        refusal = NotStoredError(str(error))
        following, self.group = self.group, Group()
        pending, self._writes = self._writes, []
        self.in_flight = None
        for waiter in (*group.waiters, *following.waiters):
            if not waiter.done():
                waiter.set_result(refusal)
        _answer([*writes, *(done for _, done in pending)], refusal)

    async def _mend(self, error: CommitFailedError, repairs: int) -> int:
        """Try the journal once a second until it can be written again; one that is damaged is repaired before.

        Returns:
            The number of the last transaction that is stored; it decides about one whose outcome was not certain. 0
            when stopped before that was known.
        """
        latest = error
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _PROBE_SECONDS)
            if latest.is_damage:
                await self.repairs.run(repairs)
            repairs = self.repairs.done
            try:
                last_stored = await self._thread.run(self._journal.recover)
                if self._derived is not None:
                    self._derived.restore(await self._thread.run(self._journal.read_derived))
            except CommitFailedError as again:
                latest = again
                log.debug("journal still cannot be written", error=str(again), first_error=str(error))
                continue
            self.writable = True
            self._telemetry.journal_writable.set(1)
            self._calm = asyncio.get_running_loop().call_later(_CALM_SECONDS, self._calm_down)
            return last_stored
        return 0

    def _calm_down(self) -> None:
        """Take the trouble for over: it has not come back for a while."""
        self._in_trouble = False
        log.info("journal can be written again", for_seconds=_CALM_SECONDS)

    def _count(self, committed: Committed) -> None:
        if committed.dropped:
            self.drops.note(committed.dropped)
            self._telemetry.notices.warn("EXPORTER_JOURNAL_MAX_BYTES is reached; the oldest points are dropped")
        if committed.dropped_dead_letter_points:
            self._telemetry.dropped_dead_letters.inc(committed.dropped_dead_letter_points)
            self._telemetry.notices.warn("there are too many dead letters; the oldest are dropped")


def _answer(writes: list[asyncio.Future[None]], error: NotStoredError | None) -> None:
    """Tell those who wait for writes."""
    for done in writes:
        if done.done():
            continue
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)
