"""Batches that arrive in the same turn of the event loop: staged together, and still each for itself."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import exporter.commit
import exporter.intake
from exporter.app import make_derivation, make_intake
from exporter.arrivals import EVENTS_AT_ONCE
from exporter.clock import Clock
from exporter.commit import Committer
from exporter.counters import EVENTS
from exporter.derived.derivation import Derivation
from exporter.events import Event, decode
from exporter.intake import Intake, UnavailableError
from exporter.journal.codec import unpack
from exporter.journal.opening import FILE_NAME
from exporter.journal.records import Committed, Transaction
from exporter.journal.store import CommitFailedError, Journal
from exporter.points import PointEncoder
from exporter.settings import Settings
from exporter.state import State
from tests.support.ports import wait_for

if TYPE_CHECKING:
    from exporter.group import NotStoredError

NOW_MS = 1_795_140_000_000
POISON = "poison"


class Parts(NamedTuple):
    """What an exporter is made of, without HTTP."""

    intake: Intake
    committer: Committer
    state: State
    data_dir: Path

    async def send(self, *events: dict[str, Any]) -> None:
        """Send a batch, and wait until it is stored."""
        await self.intake.accept(decode(json.dumps(events).encode()))

    def counted(self) -> int:
        """Sum up all events that are shown."""
        return sum(series.value for series in self.state.counters if series.family is EVENTS)

    def duplicates(self) -> float:
        """Tell how many duplicates were answered."""
        return self.sample("capgo_exporter_events_total", outcome="duplicate", reason="")

    def filtered(self) -> float:
        """Tell how many events were left out because their app may not report."""
        return self.sample("capgo_exporter_events_total", outcome="filtered", reason="app_not_allowed")

    def sample(self, name: str, **labels: str) -> float:
        """Read one of the exporter's own metrics."""
        return self.state.telemetry.registry.get_sample_value(name, labels) or 0.0

    def stored(self, column: str, table: str) -> list[Any]:
        """Read a column of the journal."""
        with closing(sqlite3.connect(self.data_dir / FILE_NAME)) as connection:
            return [value for (value,) in connection.execute(f"SELECT {column} FROM {table} ORDER BY number")]  # noqa: S608 -- our own names

    def points(self) -> int:
        """Count the points in the journal."""
        return sum(unpack(lines).count(b"\n") + 1 for lines in self.stored("lines", "points"))

    def groups(self) -> list[int]:
        """Give how many events each transaction stored."""
        return self.stored("count", "points")


@asynccontextmanager
async def parts(data_dir: Path, **settings_given: Any) -> AsyncIterator[Parts]:
    """Put the parts together, and commit until the block ends."""
    settings = Settings(data_dir=data_dir, **settings_given)
    clock = Clock(lambda: NOW_MS * 1_000_000)
    state = State(settings, clock)
    intake = make_intake(settings, state, make_derivation(settings, state, clock), b"k" * 32, clock)
    running = asyncio.create_task(state.committer.run())
    try:
        yield Parts(intake, state.committer, state, data_dir)
    finally:
        state.committer.stop()
        await running
        state.committer.close()


def event(number: int, **fields: Any) -> dict[str, Any]:
    """Make an event of its own."""
    made = {"app_id": "a", "platform": "ios", "action": "set", "version_name": "1.0.0", "device_id": "d"}
    return {**made, "timestamp": NOW_MS - number, **fields}


def without_timestamp(number: int, **fields: Any) -> dict[str, Any]:
    """Make an event that no other can be told to be the same as."""
    made = event(number, **fields)
    del made["timestamp"]
    return made


async def test_batches_of_one_turn_are_one_transaction(tmp_path: Path) -> None:
    """Whatever arrives in a turn of the loop is staged and stored together, in the order of arrival."""
    async with parts(tmp_path) as made:
        await asyncio.gather(*(made.send(event(2 * number), event(2 * number + 1)) for number in range(20)))
        assert [40] == made.groups()
        assert (40, 40) == (made.counted(), made.points())


async def test_what_comes_turn_after_turn_goes_together(tmp_path: Path) -> None:
    """Batches that come in turns shortly after each other are one transaction."""
    async with parts(tmp_path) as made:
        sent: list[asyncio.Task[None]] = []
        for number in range(10):
            sent.append(asyncio.create_task(made.send(event(number))))
            await asyncio.sleep(0)
        await asyncio.gather(*sent)
        assert [10] == made.groups()


async def test_a_stream_without_end_does_not_put_off_the_commit(tmp_path: Path) -> None:
    """Where every turn brings more, the first are on their way to the disk after some turns all the same."""
    async with parts(tmp_path) as made:
        first = asyncio.create_task(made.send(event(0)))
        sent: list[asyncio.Task[None]] = []
        while made.committer.in_flight is None:
            assert len(sent) < 100
            sent.append(asyncio.create_task(made.send(event(1 + len(sent)))))
            await asyncio.sleep(0)
        assert not first.done()
        await asyncio.gather(first, *sent)
        assert 1 + len(sent) == made.counted()
        assert len(made.groups()) > 1


async def test_a_duplicate_in_the_same_turn_shares_the_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the event is stored or not, every request that brought it is told the same; it is counted once."""
    async with parts(tmp_path) as made:
        await asyncio.gather(*(made.send(event(1)) for _ in range(5)))
        assert (1, 4.0, [1]) == (made.counted(), made.duplicates(), made.groups())
        monkeypatch.setattr(exporter.commit, "_PROBE_SECONDS", 0.01)
        with monkeypatch.context() as broken:
            broken.setattr(Journal, "commit", _fail)
            outcomes = await asyncio.gather(*(made.send(event(2)) for _ in range(5)), return_exceptions=True)
        assert [UnavailableError] * 5 == [type(outcome) for outcome in outcomes]
        assert 5.0 == made.sample("capgo_exporter_events_total", outcome="unavailable", reason="")
        assert 1 == made.counted()


def _fail(journal: Journal, transaction: Transaction) -> Committed:
    del journal, transaction
    message = "database or disk is full"
    raise CommitFailedError(message, is_certain=True)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a poisonous event no point can be written."""
    encode = PointEncoder.encode

    def failing(encoder: PointEncoder, events: list[Event], *args: Any) -> list[str]:
        lines = encode(encoder, events, *args)
        if any(each.device_id == POISON for each in events):
            raise LookupError(POISON)
        return lines

    monkeypatch.setattr(PointEncoder, "encode", failing)


@pytest.mark.usefixtures("poisoned")
async def test_a_fault_fails_the_request_that_it_comes_from(tmp_path: Path) -> None:
    """Those of the same turn are stored, once, also events that could not be told apart from themselves."""
    async with parts(tmp_path) as made:
        good = [made.send(event(number), without_timestamp(number), event(number)) for number in range(4)]
        bad = made.send(event(9), event(8, device_id=POISON))
        outcomes = await asyncio.gather(*good[:2], bad, *good[2:], return_exceptions=True)
        assert [None, None, LookupError, None, None] == [outcome and type(outcome) for outcome in outcomes]
        assert (8, 8, 4.0) == (made.counted(), made.points(), made.duplicates())
        assert 8 == sum(made.groups())
        await asyncio.gather(*(made.send(event(number)) for number in (0, 9)))
        assert (9, 5.0) == (made.counted(), made.duplicates())


@pytest.mark.usefixtures("poisoned")
async def test_what_is_left_out_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of other apps count as left out when the request that brought them is answered, not when it fails."""
    monkeypatch.setattr(exporter.commit, "_PROBE_SECONDS", 0.01)
    async with parts(tmp_path, allowed_apps="a") as made:
        mixed = event(1), event(2, app_id="b"), event(3, app_id="c")
        bad = made.send(event(4, device_id=POISON), event(5, app_id="b"))
        outcomes = await asyncio.gather(made.send(*mixed), bad, return_exceptions=True)
        assert [None, LookupError] == [outcome and type(outcome) for outcome in outcomes]
        assert (1, 2.0) == (made.counted(), made.filtered())
        with monkeypatch.context() as broken:
            broken.setattr(Journal, "commit", _fail)
            with pytest.raises(UnavailableError):
                await made.send(event(6), event(7, app_id="b"))
        assert (1, 2.0) == (made.counted(), made.filtered())
        await wait_for(lambda: made.committer.writable, "the journal to be well")
        await made.send(event(7, app_id="b"))
        assert (1, 3.0) == (made.counted(), made.filtered())


async def test_a_fault_in_figures_costs_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of which figures cannot be derived are stored and counted, and the fault is told of: few and many."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    def broken(*args: Any) -> None:
        del args
        raise LookupError(POISON)

    async with parts(tmp_path) as made:
        with monkeypatch.context() as patch:
            patch.setattr(Derivation, "observe", broken)
            await asyncio.gather(made.send(event(1)), made.send(without_timestamp(2)))
            await made.send(*(event(number) for number in range(10, 510)))
        await made.send(event(3))
        assert (503, 503) == (made.counted(), made.points())
    assert [LookupError] * 2 == [type(context["exception"]) for context in told]


async def test_a_large_batch_is_staged_at_once_and_let_go(tmp_path: Path) -> None:
    """Whoever sends many events keeps no memory until they are on disk; small batches before it go with it."""
    async with parts(tmp_path) as made:
        batches = [
            decode(json.dumps([event(start + number) for number in range(size)]).encode())
            for start, size in ((0, 3), (1000, 500), (2000, 4))
        ]
        sent = [asyncio.create_task(made.intake.accept(batch)) for batch in batches]
        await asyncio.sleep(0)
        assert 503 == made.committer.group.events
        assert [0, 0, 4] == [len(batch.events) for batch in batches]
        assert [3, 500, 4] == [batch.size for batch in batches]
        await asyncio.gather(*sent)
        assert (507, [507]) == (made.counted(), made.groups())
        assert (3.0, 507.0) == tuple(made.sample(f"capgo_exporter_batch_events_{name}") for name in ("count", "sum"))


async def test_a_large_batch_does_not_hold_up_a_small_one(tmp_path: Path) -> None:
    """A batch of thousands of events takes its turns; what came after it does not wait for the end of it."""
    async with parts(tmp_path) as made:
        large = asyncio.create_task(made.send(*(event(number) for number in range(20_000))))
        await asyncio.sleep(0)
        await made.send(event(1_000_000))
        assert made.counted() < 20_000
        await large
        assert 20_001 == made.counted()


async def test_small_batches_do_not_hurry_a_large_one(tmp_path: Path) -> None:
    """A turn stages its share of events, and no more, also if many requests come beside a batch of thousands."""
    async with parts(tmp_path) as made:
        large = asyncio.create_task(made.send(*(event(number) for number in range(20_000))))
        small = [asyncio.create_task(made.send(event(1_000_000 + number))) for number in range(30)]
        await asyncio.sleep(0)
        assert 0 == made.committer.group.events
        await asyncio.sleep(0)
        assert EVENTS_AT_ONCE == made.committer.group.events
        await asyncio.gather(large, *small)
        assert 20_030 == made.counted()


async def test_large_batches_do_not_hurry_a_larger_one(tmp_path: Path) -> None:
    """Batches that were staged at once leave nothing behind that stages more than a turn's share of what follows."""
    async with parts(tmp_path) as made:
        large = [made.send(*(event(1000 * start + number) for number in range(200))) for start in range(5)]
        larger = made.send(*(event(1_000_000 + number) for number in range(20_000)))
        sent = [asyncio.create_task(each) for each in (*large, larger)]
        await asyncio.sleep(0)
        assert 1000 == made.committer.group.events
        await asyncio.sleep(0)
        assert 1000 + EVENTS_AT_ONCE == made.committer.group.events
        await asyncio.gather(*sent)
        assert 21_000 == made.counted()


async def test_a_burst_within_one_turn_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has not had its turn yet counts as waiting, too; once it had, there is room again, also after who left."""
    monkeypatch.setattr(exporter.intake, "MAX_STAGED_EVENTS", 10)
    async with parts(tmp_path) as made:
        for start in (0, 100):
            gone = asyncio.create_task(made.send(event(start + 99)))
            await asyncio.sleep(0)
            gone.cancel()
            sent = (made.send(event(start + number), event(start + 20 + number)) for number in range(8))
            outcomes = await asyncio.gather(*sent, return_exceptions=True)
            assert [None] * 5 + [UnavailableError] * 3 == [outcome and type(outcome) for outcome in outcomes]
        assert 20 == made.counted()


async def test_a_large_batch_has_a_bound_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies are bounded in bytes: of a batch that has many slices to go, one counts as waiting."""
    monkeypatch.setattr(exporter.intake, "MAX_STAGED_EVENTS", 2000)
    async with parts(tmp_path) as made:
        large = made.send(*(event(number) for number in range(5000)))
        await asyncio.gather(large, made.send(event(1_000_000)))
        assert 5001 == made.counted()


async def test_who_gave_up_is_not_staged(tmp_path: Path) -> None:
    """A request that ended before its events were staged leaves nothing, so that nothing is stored unanswered."""
    async with parts(tmp_path) as made:
        gone = asyncio.create_task(made.send(event(1)))
        other = asyncio.create_task(made.send(event(2)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone, other])
        assert (True, 1) == (gone.cancelled(), made.counted())


async def test_a_journal_that_fails_before_the_turn_refuses(tmp_path: Path) -> None:
    """Events that arrived while the journal was well are refused if it is not when they are to be staged."""
    async with parts(tmp_path) as made:
        sent = [asyncio.create_task(made.send(event(number))) for number in range(3)]
        await asyncio.sleep(0)
        made.committer.writable = False
        outcomes = await asyncio.gather(*sent, return_exceptions=True)
        assert [UnavailableError] * 3 == [type(outcome) for outcome in outcomes]
        made.committer.writable = True
        await made.send(event(0))
        assert 1 == made.counted()


async def test_an_empty_batch_waits_for_nothing(tmp_path: Path) -> None:
    """No event is no transaction."""
    async with parts(tmp_path) as made:
        await asyncio.gather(made.send(), made.send())
        assert [] == made.groups()


@pytest.mark.parametrize("waits", [True, False])
async def test_a_waiter_may_be_given(tmp_path: Path, *, waits: bool) -> None:
    """A group's outcome goes to a future of the caller's, or to a new one."""
    async with parts(tmp_path) as made:
        future: asyncio.Future[NotStoredError | None] = asyncio.get_running_loop().create_future()
        group = made.committer.group
        given = made.committer.wait(group, future) if waits else made.committer.wait(group)
        assert waits == (given is future)
        assert await given is None
