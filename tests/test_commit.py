"""Group commit: what is not on disk is neither shown nor acknowledged, whatever goes wrong."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import exporter.commit
import exporter.journal.schema
import exporter.journal.store
from exporter.commit import Committer
from exporter.group import Group, NotStoredError
from exporter.journal.records import Committed, Transaction
from exporter.journal.store import Journal
from tests.support.exporter import CounterKey, Reply
from tests.support.inprocess import Running, running
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


class Gate:
    """Holds every commit until it is opened, and counts them."""

    def __init__(self) -> None:
        """Start closed."""
        self.open = threading.Event()
        self.entered = threading.Event()
        self.commits = 0

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

    await wait_for(is_there, 10, "no commit came to the gate")


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> list[Group]:
    """The groups that requests wait for, one entry a request, in the order of staging."""
    groups: list[Group] = []
    wait = Committer.wait

    def noted(committer: Committer, group: Group) -> asyncio.Future[NotStoredError | None]:
        groups.append(group)
        return wait(committer, group)

    monkeypatch.setattr(Committer, "wait", noted)
    return groups


async def staged(waiting: list[Group], requests: int) -> None:
    """Wait until so many requests are staged."""
    await wait_for(lambda: len(waiting) == requests, 10, f"{requests} staged requests")


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
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.commits_to_fail = 0
        self.does_it = False
        self.opens_to_fail = 0

    def connect(self, real: Callable[..., sqlite3.Connection]) -> Callable[..., Any]:
        """Stand before the function that opens the file."""

        def connect(*args: Any) -> Any:
            if self.opens_to_fail:
                self.opens_to_fail -= 1
                message = "unable to open database file"
                raise sqlite3.OperationalError(message)
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

    await wait_for(is_ready, 10, "the journal cannot be written")


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


async def test_a_full_disk_refuses_and_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's own `database or disk is full` gives 503; once there is room, what is sent again is counted once."""
    connections: list[sqlite3.Connection] = []
    real = exporter.journal.schema.connect

    def connect(*args: Any) -> sqlite3.Connection:
        connections.append(real(*args))
        if limit:
            connections[-1].execute(f"PRAGMA max_page_count = {limit[0]}")
        return connections[-1]

    limit: list[int] = []
    for module in ("exporter.journal.store", "exporter.journal.opening"):
        monkeypatch.setattr(f"{module}.connect", connect)
    async with running() as server:
        assert 200 == (await server.post(event(0))).status
        pages = connections[-1].execute("PRAGMA page_count").fetchone()[0]
        limit.append(pages)
        connections[-1].execute(f"PRAGMA max_page_count = {pages}")
        batch = [event(number, metadata={"message": f"{number}" * 400}) for number in range(1, 500)]
        assert 503 == (await server.post(batch)).status
        assert {KEY: 1} == await server.counters()
        limit[0] = 1 << 30
        connections[-1].execute(f"PRAGMA max_page_count = {1 << 30}")
        await until_writable(server)
        assert 200 == (await server.post(batch)).status
        assert {KEY: 500} == await server.counters()


async def test_a_fault_of_the_committer_answers_those_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug ends the task: waiters get 503 rather than hang, and `/healthz` asks for a restart."""

    def broken(journal: Journal, transaction: Transaction) -> Committed:
        del journal, transaction
        message = "a bug"
        raise RuntimeError(message)

    async with running() as server:
        monkeypatch.setattr(Journal, "commit", broken)
        assert 503 == (await server.post(event(1))).status
        health = await server.request("GET", "/healthz")
        assert (503, ["committer"]) == (health.status, health.json()["ended_tasks"])
        assert 503 == (await server.post(event(2))).status
