"""Group commit: what is not on disk is neither shown nor acknowledged, whatever goes wrong."""

import asyncio
import contextlib
import hashlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

import exporter.commit
import exporter.intake
import exporter.journal.schema
import exporter.journal.store
from exporter.commit import Committer
from exporter.derived.state import DerivedState
from exporter.expiry import Expiry
from exporter.group import Group, NotStoredError, Write
from exporter.journal.opening import FILE_NAME, open_journal
from exporter.journal.records import Committed, DeadLetter, Transaction
from exporter.journal.salvage import Salvage
from exporter.journal.store import CommitFailedError, Journal
from tests.support.exporter import CounterKey, Reply
from tests.support.inprocess import ManualClock, Running, running
from tests.support.ports import wait_for

APP = "com.example.commit"
MANY = 1 << 30
KEY = CounterKey(APP, "ios", "get", "1.0.0", "prod")


def event(number: int, **fields: Any) -> dict[str, Any]:
    """Make an event of its own."""
    return {
        "app_id": APP,
        "device_id": "d",
        "platform": "ios",
        "action": "get",
        "version_name": "1.0.0",
        "timestamp": 1_795_140_000_000 + number,
        **fields,
    }


def noise(number: int) -> str:
    """Make a text that does not compress well."""
    return hashlib.sha512(str(number).encode()).hexdigest()


class Gate:
    """Holds every commit until it is opened, and counts them."""

    def __init__(self) -> None:
        """Start closed."""
        self.open = threading.Event()
        self.entered = threading.Event()
        self.commits = 0

    def close(self) -> None:
        """Hold the commits that come from now on."""
        self.open.clear()
        self.entered.clear()

    def wrap(self, commit: Callable[[Journal, Transaction], Committed]) -> Callable[[Journal, Transaction], Committed]:
        """Put the gate before the real commit."""

        def held(journal: Journal, transaction: Transaction) -> Committed:
            self.commits += 1
            self.entered.set()
            assert self.open.wait(30)
            return commit(journal, transaction)

        return held


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Every journal commits through a gate, which is closed."""
    gate = Gate()
    monkeypatch.setattr(Journal, "commit", gate.wrap(Journal.commit))
    yield gate
    gate.open.set()


@pytest.fixture(autouse=True)
def fast_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken journal is tried again at once."""
    monkeypatch.setattr(exporter.commit, "_PROBE_SECONDS", 0.02)


async def entered(gate: Gate) -> None:
    """Wait until a commit is at the gate."""

    async def is_there() -> bool:
        return gate.entered.is_set()

    await wait_for(is_there, "no commit came to the gate")


@pytest.fixture
def sweeps(monkeypatch: pytest.MonkeyPatch) -> list[Expiry]:
    """The expiry of every exporter, which sweeps only when it is told to."""
    found: list[Expiry] = []

    async def never(expiry: Expiry) -> None:
        found.append(expiry)
        await asyncio.Event().wait()

    monkeypatch.setattr(Expiry, "run", never)
    return found


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> list[Group]:
    """The groups that requests wait for, one entry a request, in the order of staging."""
    groups: list[Group] = []
    wait = Committer.wait

    def noted(
        committer: Committer, group: Group, waiter: asyncio.Future[NotStoredError | None] | None = None
    ) -> asyncio.Future[NotStoredError | None]:
        groups.append(group)
        return wait(committer, group, waiter)

    monkeypatch.setattr(Committer, "wait", noted)
    return groups


async def staged(waiting: list[Group], requests: int) -> None:
    """Wait until so many requests are staged."""
    await wait_for(lambda: len(waiting) == requests, f"{requests} staged requests")


async def test_nothing_is_shown_or_answered_before_the_commit(gate: Gate) -> None:
    """While the commit runs neither class of reader sees the event, and the reply does not leave."""
    async with running() as server:
        reply = asyncio.create_task(server.post(event(1)))
        await entered(gate)
        assert {} == await server.counters(zeros=True)
        assert {} == await server.counters(scraper=True, zeros=True)
        shown = ("capgo_exporter_dedupe_events", "capgo_exporter_journal_points", "capgo_exporter_journal_bytes")
        assert [0, 0, 0] == [await server.sample(name) for name in shown]
        assert 0 == await server.sample("capgo_exporter_events_total", outcome="accepted", reason="")
        assert [] == server.lines()
        assert not reply.done()
        gate.open.set()
        assert 200 == (await reply).status
        assert {KEY: 1} == await server.counters()


async def test_a_series_keeps_its_old_value_until_the_commit(gate: Gate) -> None:
    """Of a series that is shown already, and of its events, nothing moves before the next ones are on disk."""
    gate.open.set()
    async with running() as server:
        assert 200 == (await server.post(event(0))).status
        gate.close()
        reply = asyncio.create_task(server.post([event(1), event(2)]))
        await entered(gate)
        assert {KEY: 1} == await server.counters()
        shown = ("capgo_exporter_dedupe_events", "capgo_exporter_journal_points")
        assert [1, 1] == [await server.sample(name) for name in shown]
        assert not reply.done()
        gate.open.set()
        assert 200 == (await reply).status
        assert {KEY: 3} == await server.counters()
        assert [3, 3] == [await server.sample(name) for name in shown]


async def test_what_arrives_during_a_commit_is_one_group(gate: Gate, waiting: list[Group]) -> None:
    """Forty requests that come while a commit runs are stored by one more transaction, without any timer."""
    async with running() as server:
        first = asyncio.create_task(server.post(event(0)))
        await entered(gate)
        others = [asyncio.create_task(server.post([event(number)])) for number in range(1, 41)]
        await staged(waiting, 1 + len(others))
        gate.open.set()
        assert {200} == {reply.status for reply in await asyncio.gather(first, *others)}
        assert {KEY: 41} == await server.counters()
        assert 2 == gate.commits


async def test_a_duplicate_of_a_pending_event_waits_for_its_outcome(gate: Gate, waiting: list[Group]) -> None:
    """It is answered only when the first one is on disk, and is counted once."""
    async with running() as server:
        first = asyncio.create_task(server.post(event(1)))
        await entered(gate)
        second = asyncio.create_task(server.post(event(1)))
        await staged(waiting, 2)
        probe = await server.request("GET", "/stats")
        assert (200, False, False) == (probe.status, first.done(), second.done())
        gate.open.set()
        assert [200, 200] == [reply.status for reply in await asyncio.gather(first, second)]
        assert {KEY: 1} == await server.counters()
        assert 1 == await server.sample("capgo_exporter_events_total", outcome="duplicate", reason="")


class Faulty:
    """A connection that fails at one statement, before or after the real one did it."""

    def __init__(self, real: sqlite3.Connection, faults: "Faults") -> None:
        """Stand before a real connection."""
        self._real = real
        self._faults = faults

    def execute(self, statement: str, *args: Any) -> sqlite3.Cursor:
        """Do as the real one, or fail."""
        if statement.startswith("UPDATE") and not self._faults.takes_writes:
            message = "database or disk is full"
            raise sqlite3.OperationalError(message)
        if statement == "COMMIT" and self._faults.commits_to_fail:
            self._faults.commits_to_fail -= 1
            if self._faults.does_it:
                self._real.execute(statement)
            message = "disk I/O error"
            raise sqlite3.OperationalError(message)
        return self._real.execute(statement, *args)

    def __getattr__(self, name: str) -> Any:
        """Leave everything else to the real one."""
        return getattr(self._real, name)


class Faults:
    """What goes wrong next.

    Attributes:
        commits_to_fail: how many COMMITs fail.
        does_it: whether a failing COMMIT is on disk nevertheless.
        opens_to_fail: how often the file cannot be opened anew.
        takes_writes: whether an update does anything but fail.
        opens: how often the file was opened.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.commits_to_fail = 0
        self.does_it = False
        self.opens_to_fail = 0
        self.takes_writes = True
        self.opens = 0

    def connect(self, real: Callable[..., sqlite3.Connection]) -> Callable[..., Any]:
        """Stand before the function that opens the file."""

        def connect(*args: Any) -> Any:
            if self.opens_to_fail:
                self.opens_to_fail -= 1
                message = "unable to open database file"
                raise sqlite3.OperationalError(message)
            self.opens += 1
            return Faulty(real(*args), self)

        return connect


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """Faults for every journal that is opened from now on."""
    faults = Faults()
    for module in ("exporter.journal.store", "exporter.journal.opening"):
        monkeypatch.setattr(f"{module}.connect", faults.connect(exporter.journal.schema.connect))
    return faults


async def post_all(server: Running, numbers: range) -> list[Reply]:
    """Post events in requests of their own, at once."""
    return await asyncio.gather(*(server.post([event(number)]) for number in numbers))


async def until_writable(server: Running) -> None:
    """Wait until the exporter takes events again."""

    async def is_ready() -> bool:
        return (await server.request("GET", "/readyz")).status == 200

    await wait_for(is_ready, "the journal cannot be written")


@pytest.mark.parametrize("opens_to_fail", [0, 3], ids=["reopened at once", "reopened later"])
@pytest.mark.parametrize("does_it", [False, True], ids=["not on disk", "on disk"])
async def test_a_failing_commit_is_decided_by_what_the_disk_holds(
    faults: Faults, *, does_it: bool, opens_to_fail: int
) -> None:
    """Whatever is answered, each event is counted once after it was sent again, and is one point."""
    async with running() as server:
        assert 200 == (await server.post(event(0))).status
        faults.does_it, faults.opens_to_fail, faults.commits_to_fail = does_it, opens_to_fail, 1
        replies = await post_all(server, range(1, 6))
        refused = [reply for reply in replies if reply.status != 200]
        assert {503} >= {reply.status for reply in refused}
        assert bool(refused) is (not does_it or opens_to_fail > 0)
        assert all(int(reply.headers["Retry-After"]) > 0 for reply in refused)
        await until_writable(server)
        assert {200} == {reply.status for reply in await post_all(server, range(6))}
        assert {KEY: 6} == await server.counters()
        assert 6 == len(set(server.lines()))
        assert 6 == len(server.lines())


async def test_a_duplicate_of_a_pending_event_shares_its_failure(
    gate: Gate, waiting: list[Group], faults: Faults
) -> None:
    """A duplicate of what is not stored is refused too, in either group, so that no device drops what is lost."""
    async with running() as server:
        posts = []
        for requests, number in enumerate((1, 1, 2, 2), 1):
            posts.append(asyncio.create_task(server.post([event(number)])))
            await staged(waiting, requests)
        assert [waiting[0], waiting[0], waiting[2], waiting[2]] == waiting
        faults.commits_to_fail = 1
        gate.open.set()
        replies = await asyncio.gather(*posts)
        assert [503] * 4 == [reply.status for reply in replies]
        assert all(int(reply.headers["Retry-After"]) > 0 for reply in replies)
        assert 0 == await server.sample("capgo_exporter_events_total", outcome="duplicate", reason="")
        await until_writable(server)
        assert [200, 200] == [(await server.post([event(number)])).status for number in (1, 2)]
        assert {KEY: 2} == await server.counters()
        assert 2 == len(server.lines())


async def memory(server: Running) -> tuple[dict[CounterKey, int], int, float, float]:
    """Give the counters, the points on disk and as counted, and the remembered ids."""
    return (
        await server.counters(),
        len(server.lines()),
        await server.sample("capgo_exporter_journal_points"),
        await server.sample("capgo_exporter_dedupe_events"),
    )


@pytest.mark.parametrize("does_it", [False, True], ids=["not on disk", "on disk"])
async def test_after_a_recovery_memory_is_what_the_disk_holds(faults: Faults, tmp_path: Path, *, does_it: bool) -> None:
    """Counters, ids and points agree with the file before anything is sent again, and a restart changes nothing."""
    async with running({"data_dir": tmp_path}) as server:
        assert 200 == (await server.post(event(0))).status
        faults.does_it, faults.opens_to_fail, faults.commits_to_fail = does_it, 3, 1
        assert 503 == (await server.post([event(1), event(2)])).status
        await until_writable(server)
        stored = 3 if does_it else 1
        assert ({KEY: stored}, stored, stored, stored) == await memory(server)
    async with running({"data_dir": tmp_path}) as server:
        assert ({KEY: stored}, stored, stored, stored) == await memory(server)
        assert 200 == (await server.post([event(number) for number in range(3)])).status
        assert ({KEY: 3}, 3, 3, 3) == await memory(server)


@pytest.mark.parametrize("does_it", [False, True], ids=["not on disk", "on disk"])
async def test_a_broken_journal_does_not_keep_the_exporter_from_ending(
    faults: Faults, tmp_path: Path, *, does_it: bool
) -> None:
    """It ends with the outcome unknown; the next start reads it from the disk."""
    async with running({"data_dir": tmp_path}) as server:
        faults.does_it, faults.opens_to_fail, faults.commits_to_fail = does_it, MANY, 1
        assert 503 == (await server.post([event(1), event(2)])).status
    faults.opens_to_fail = 0
    async with running({"data_dir": tmp_path}) as server:
        stored = 2 if does_it else 0
        assert ({KEY: stored} if stored else {}, stored, stored, stored) == await memory(server)
        assert 200 == (await server.post([event(1), event(2)])).status
        assert ({KEY: 2}, 2, 2, 2) == await memory(server)


async def test_while_the_journal_cannot_be_written_nothing_staged_is_shown(faults: Faults) -> None:
    """Events are refused with 503, `/readyz` and a metric say why, and counters stay as they are on disk."""
    async with running() as server:
        assert 200 == (await server.post(event(0))).status
        faults.opens_to_fail, faults.commits_to_fail = MANY, 1
        first = await server.post(event(1))
        second = await server.post(event(2))
        assert [503, 503] == [first.status, second.status]
        assert {KEY: 1} == await server.counters()
        ready = await server.request("GET", "/readyz")
        assert (503, "events cannot be stored") == (ready.status, ready.json()["status"])
        assert 0 == await server.sample("capgo_exporter_journal_writable")
        assert 1 == await server.sample("capgo_exporter_journal_commit_failures_total")
        assert 200 == (await server.request("GET", "/healthz")).status
        faults.opens_to_fail = 0
        await until_writable(server)
        assert 1 == await server.sample("capgo_exporter_journal_writable")
        assert 200 == (await server.post([event(0), event(1), event(2)])).status
        assert {KEY: 3} == await server.counters()


class Disk:
    """Sets a pragma of SQLite on every connection for writing, and notes which commits failed.

    Attributes:
        pragma: what is set on connections that are opened from now on.
        connections: those that were opened.
        failures: why commits failed.
    """

    def __init__(self) -> None:
        """Start with a disk that takes everything."""
        self.pragma = "query_only = OFF"
        self.connections: list[sqlite3.Connection] = []
        self.failures: list[str] = []

    def connect(self, real: Callable[..., sqlite3.Connection]) -> Callable[..., sqlite3.Connection]:
        """Stand before the function that opens the file."""

        def connect(*args: Any) -> sqlite3.Connection:
            self.connections.append(real(*args))
            self.connections[-1].execute(f"PRAGMA {self.pragma}")
            return self.connections[-1]

        return connect

    def noting(
        self, commit: Callable[[Journal, Transaction], Committed]
    ) -> Callable[[Journal, Transaction], Committed]:
        """Stand before the real commit."""

        def noted(journal: Journal, transaction: Transaction) -> Committed:
            try:
                return commit(journal, transaction)
            except CommitFailedError as failure:
                self.failures.append(str(failure))
                raise

        return noted

    def change(self, pragma: str) -> None:
        """Set a pragma on the open connection, which nobody uses now, and on later ones."""
        self.pragma = pragma
        self.connections[-1].execute(f"PRAGMA {pragma}")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """The disk of every journal that is opened from now on."""
    disk = Disk()
    for module in ("exporter.journal.store", "exporter.journal.opening"):
        monkeypatch.setattr(f"{module}.connect", disk.connect(exporter.journal.schema.connect))
    monkeypatch.setattr(Journal, "commit", disk.noting(Journal.commit))
    return disk


@pytest.mark.parametrize(
    ("trouble", "relief", "error"),
    [
        ("max_page_count = 1", "max_page_count = 1073741823", "database or disk is full"),
        ("query_only = ON", "query_only = OFF", "attempt to write a readonly database"),
    ],
    ids=["full", "read-only"],
)
async def test_a_disk_that_takes_nothing_refuses_and_recovers(
    disk: Disk, trouble: str, relief: str, error: str
) -> None:
    """SQLite's own errors give 503; once it writes again, what is sent again is counted once."""
    async with running() as server:
        assert 200 == (await server.post(event(0))).status
        disk.change(trouble)  # SQLite takes a bound below the present size as that size.
        batch = [event(number, metadata={"message": f"{number}" * 400}) for number in range(1, 500)]
        refused = await server.post(batch)
        assert (503, True) == (refused.status, int(refused.headers["Retry-After"]) > 0)
        assert error in disk.failures[0]
        assert ({KEY: 1}, 1, 1, 1) == await memory(server)
        disk.pragma = relief  # For the connection that the next failure opens.

        async def is_taken() -> bool:
            return (await server.post(batch)).status == 200

        await wait_for(is_taken, "events are still refused")
        assert ({KEY: 500}, 500, 500, 500) == await memory(server)


async def test_a_journal_that_takes_no_write_is_not_taken_for_mended(faults: Faults) -> None:
    """It can be opened anew, read and locked; `/readyz` stays at 503 until it takes a write too."""
    async with running() as server:
        faults.takes_writes = False
        assert 503 == (await server.post(event(0))).status
        opens = faults.opens
        await wait_for(lambda: faults.opens > opens + 3, "the journal is not tried again")
        assert 503 == (await server.request("GET", "/readyz")).status
        faults.takes_writes = True
        await until_writable(server)
        assert 200 == (await server.post(event(0))).status
        assert ({KEY: 1}, 1, 1, 1) == await memory(server)


@pytest.mark.parametrize(("opens_to_fail", "status"), [(0, 200), (2, 503)], ids=["reopened at once", "reopened later"])
async def test_dropped_points_are_counted_also_when_the_commit_seemed_to_fail(
    faults: Faults, *, opens_to_fail: int, status: int
) -> None:
    """A COMMIT that is on disk although the call failed drops points as any other: waiting and dropped are all."""
    async with running({"journal_max_bytes": 1 << 16}) as server:
        faults.does_it = True
        for start in range(0, 2000, 100):
            faults.commits_to_fail, faults.opens_to_fail = 1, opens_to_fail
            batch = [event(number, metadata={"message": noise(number)}) for number in range(start, start + 100)]
            assert status == (await server.post(batch)).status
            await until_writable(server)
        dropped = await server.sample("capgo_exporter_journal_dropped_points_total")
        assert dropped > 0
        assert 2000 == len(server.lines()) + dropped


@pytest.mark.parametrize("opens_to_fail", [0, 1], ids=["reopened at once", "reopened later"])
@pytest.mark.parametrize("does_it", [False, True], ids=["not on disk", "on disk"])
def test_what_an_uncertain_transaction_deleted_is_not_brought_back(
    faults: Faults, tmp_path: Path, *, does_it: bool, opens_to_fail: int
) -> None:
    """A copy that was made before takes the journal's place without those points if they are gone, and only then."""
    opened = open_journal(tmp_path)
    journal = Journal(opened.path, opened.connection, opened.restored.totals, max_bytes=None, max_event_ids=1000)
    for number in (1, 2, 3):
        journal.commit(Transaction(number, number, lines=[f"m v={number}i {number}"]))
    salvage = Salvage(opened.path)
    until = journal.begin_salvage()
    salvage.begin()
    salvage.copy_points(until)
    faults.does_it, faults.commits_to_fail, faults.opens_to_fail = does_it, 1, opens_to_fail
    with contextlib.suppress(CommitFailedError):
        journal.commit(Transaction(4, 4, delivered=[1, 2]))
    assert (4 if does_it else 3) == journal.recover()
    assert (1 if does_it else 3) == journal.adopt(salvage).totals.points
    journal.close()


@pytest.mark.parametrize("does_it", [False, True], ids=["not on disk", "on disk"])
async def test_an_event_of_a_series_whose_removal_seemed_to_fail_is_counted(
    gate: Gate, waiting: list[Group], faults: Faults, sweeps: list[Expiry], *, does_it: bool
) -> None:
    """It came while the removal was stored and was refused with it; sent again it is counted once, here and on disk."""
    time = ManualClock()
    gate.open.set()
    async with running(clock=time.clock) as server:
        assert 200 == (await server.post(event(0))).status
        time.advance(server.settings.series_ttl + 1)
        gate.close()
        sweep = asyncio.create_task(sweeps[0].sweep())
        await entered(gate)
        waiting.clear()
        post = asyncio.create_task(server.post(event(1)))
        await staged(waiting, 1)
        faults.does_it, faults.opens_to_fail, faults.commits_to_fail = does_it, 3, 1
        gate.open.set()
        with pytest.raises(NotStoredError):
            await sweep
        assert 503 == (await post).status
        await until_writable(server)
        for _ in range(2):
            assert 200 == (await server.post(event(1))).status
        expired = 1 if does_it else 0
        assert {KEY: 2 - expired} == await server.counters()
        assert expired == await server.sample("capgo_exporter_expired_events_total")
        with closing(sqlite3.connect(server.settings.data_dir / FILE_NAME)) as connection:
            rows = (
                "SELECT sum(value), (SELECT expired_events FROM state) FROM series WHERE family = 'capgo_stats_events'"
            )
            assert [(2 - expired, expired)] == connection.execute(rows).fetchall()


@pytest.mark.parametrize(
    ("part", "method", "is_stored"),
    [(DerivedState, "changes", False), (Journal, "commit", False), (DerivedState, "show", True)],
)
async def test_a_fault_of_the_committer_answers_those_who_wait(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, part: type, method: str, *, is_stored: bool
) -> None:
    """A bug ends the task: waiters get 503 rather than hang, and `/healthz` asks for a restart, which sets it right."""

    def broken(*args: Any) -> None:
        del args
        message = "a bug"
        raise RuntimeError(message)

    async with running({"data_dir": tmp_path}) as server:
        with monkeypatch.context() as patch:
            patch.setattr(part, method, broken)
            assert 503 == (await server.post(event(1))).status
        health = await server.request("GET", "/healthz")
        assert (503, ["committer"]) == (health.status, health.json()["ended_tasks"])
        assert 503 == (await server.request("GET", "/readyz")).status
        assert 503 == (await server.post(event(2))).status
    async with running({"data_dir": tmp_path}) as server:
        assert ({KEY: 1} if is_stored else {}) == await server.counters()
        for number in (1, 2):
            assert 200 == (await server.post(event(number))).status
        assert {KEY: 2} == await server.counters()
        assert 2 == len(server.points())


async def test_a_slow_disk_is_not_overwhelmed(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """While too many events wait for the disk, new requests get 503 and leave nothing behind; then all goes on."""
    monkeypatch.setattr(exporter.intake, "MAX_STAGED_EVENTS", 10)
    async with running() as server:
        first = asyncio.create_task(server.post(event(0)))
        await entered(gate)
        second = asyncio.create_task(server.post([event(number) for number in range(1, 10)]))

        async def full() -> bool:
            return (await server.request("GET", "/readyz")).status == 503

        await wait_for(full, "the group to be full")
        refused = await server.post(event(11))
        assert (503, "5") == (refused.status, refused.headers["Retry-After"])
        assert 1 == await server.sample("capgo_exporter_requests_shed_total", limit="waiting")
        gate.open.set()
        assert [200, 200] == [(await reply).status for reply in (first, second)]
        assert {KEY: 10} == await server.counters()
        assert 200 == (await server.post(event(11))).status
        assert {KEY: 11} == await server.counters()


async def test_a_large_batch_waits_for_a_slow_disk(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch with more events than may wait goes to disk in parts, and each event is counted once."""
    monkeypatch.setattr(exporter.intake, "MAX_STAGED_EVENTS", 1000)
    groups: list[int] = []
    commit = Journal.commit

    def counted(journal: Journal, transaction: Transaction) -> Committed:
        groups.append(len(transaction.event_ids))
        return commit(journal, transaction)

    monkeypatch.setattr(Journal, "commit", counted)
    async with running() as server:
        batch = asyncio.create_task(server.post([event(number) for number in range(5000)]))
        await entered(gate)
        gate.open.set()
        assert 200 == (await batch).status
        assert {KEY: 5000} == await server.counters()
    assert 5000 == sum(groups)
    assert max(groups) <= 2000  # what may wait, and one slice


async def test_a_journal_that_fails_now_and_then_is_told_once(faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is just full takes a small write now and then: one log line until it has been well for a while."""
    monkeypatch.setattr(exporter.commit, "_CALM_SECONDS", 0.3)
    trouble = "journal cannot be written; events are refused with 503 until it can"
    over = "journal can be written again"
    with capture_logs() as logs:

        def told() -> list[str]:
            return [line["event"] for line in logs if line["event"] in {trouble, over}]

        async with running() as server:
            for number in range(5):
                faults.commits_to_fail, faults.opens_to_fail = 1, 1
                assert 503 == (await server.post(event(number))).status
                await until_writable(server)
            assert [trouble] == told()
            assert 5 == await server.sample("capgo_exporter_journal_commit_failures_total")
            await wait_for(lambda: told() == [trouble, over], "the trouble to be over")
            faults.commits_to_fail = 1
            assert 503 == (await server.post(event(9))).status
            assert [trouble, over, trouble] == told()


@pytest.mark.parametrize("does_it", [False, True], ids=["not on disk", "on disk"])
async def test_dead_letters_are_stored_once_also_when_that_is_not_certain(
    faults: Faults, monkeypatch: pytest.MonkeyPatch, *, does_it: bool
) -> None:
    """Whether they are is known only when the file can be read again; until then they are not written anew."""
    committers: list[Committer] = []
    run = Committer.run

    async def noted(committer: Committer) -> None:
        committers.append(committer)
        await run(committer)

    monkeypatch.setattr(Committer, "run", noted)
    async with running() as server:
        assert 200 == (await server.post([event(0), event(1)])).status
        (committer,) = committers
        letter = DeadLetter("refused", "no", ["line"])
        faults.does_it, faults.opens_to_fail, faults.commits_to_fail = does_it, 3, 1
        write = Write(delivered=[1], dead_letters=[letter])
        if does_it:
            await committer.write(write)
        else:
            with pytest.raises(NotStoredError):
                await committer.write(write)
        stored = 1 if does_it else 0
        assert stored == await server.sample("capgo_exporter_dead_letter_points")
        assert 2 * (1 - stored) == await server.sample("capgo_exporter_journal_points")
