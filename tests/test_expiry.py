"""Expiry: silent series go, their events stay counted, and silent versions make room in a crowded app."""

import asyncio
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import exporter.commit
import exporter.expiry
from exporter.actions import KEY_ACTIONS
from exporter.clock import Clock
from exporter.counters import Counters
from exporter.derived.families import KEY_REASONS
from exporter.events import decode
from exporter.expiry import Expiry
from exporter.intake import Intake
from exporter.journal.records import Committed, Transaction
from exporter.journal.store import CommitFailedError, Journal
from exporter.series import Series
from tests.support.exporter import CounterKey
from tests.support.inprocess import Running, running
from tests.support.ports import wait_for

HOUR = 3600.0
TTL = 30 * 24 * HOUR
KEY_FIGURES = 2 + len(KEY_REASONS)  # installs, uninstalls and failures are born with a version
APP = "com.example.app"


class Time:
    """A clock that moves only when it is told to, and a count of the sweeps that were finished."""

    def __init__(self) -> None:
        """Start at some moment."""
        self.ns = 1_700_000_000 * 10**9
        self.sweeps = 0
        self.clock = Clock(wall_ns=lambda: self.ns, monotonic=lambda: self.ns / 1e9)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.ns += int(seconds * 1000) * 10**6

    async def swept(self) -> None:
        """Wait until a sweep has begun after now, and is finished."""
        goal = self.sweeps + 2
        await wait_for(lambda: self.sweeps >= goal, "two more sweeps")


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    """A clock of the test's own, with a sweep every few milliseconds of the real one."""
    fake = Time()
    sweep = Expiry.sweep

    async def counted(self: Expiry) -> int:
        try:
            return await sweep(self)
        finally:
            fake.sweeps += 1

    monkeypatch.setattr(exporter.expiry, "SWEEP_SECONDS", 0.005)
    monkeypatch.setattr(Expiry, "sweep", counted)
    return fake


def event(version: str = "1.0.0", action: str = "get", app_id: str = APP) -> dict[str, Any]:
    """Make an event without a time of its own."""
    return {"app_id": app_id, "action": action, "platform": "ios", "version_name": version, "device_id": "d"}


def key(version: str = "1.0.0", action: str = "get", app_id: str = APP) -> CounterKey:
    """Give the labels of the series of an event."""
    return CounterKey(app_id, "ios", action, version, "prod")


async def post(running_exporter: Running, *events: dict[str, Any]) -> None:
    """Post events in one batch."""
    assert 200 == (await running_exporter.post(list(events))).status


async def expired(running_exporter: Running) -> int:
    """Give the number of events whose series are gone."""
    return int(await running_exporter.sample("capgo_exporter_expired_events_total"))


async def events_in_all(running_exporter: Running) -> int:
    """Give the events of all series, of those that are gone too."""
    return sum((await running_exporter.counters()).values()) + await expired(running_exporter)


async def versions(running_exporter: Running, app_id: str = APP) -> set[str]:
    """Give the versions of an app that have series."""
    return {labels.version for labels in await running_exporter.counters(zeros=True) if labels.app_id == app_id}


async def test_silent_series_are_removed(time: Time) -> None:
    """A series past the TTL is gone, its events are counted as expired, and one that is a second younger stays."""
    async with running({"series_ttl": TTL}, time.clock) as exporter:
        await post(exporter, *[event("1.0.0")] * 3, event("1.0.0", "set"))
        time.advance(2)
        await post(exporter, event("2.0.0"))
        time.advance(TTL - 1)
        await time.swept()
        assert {key("2.0.0"): 1} == await exporter.counters()
        assert {"2.0.0"} == await versions(exporter)
        assert (4, 5) == (await expired(exporter), await events_in_all(exporter))
        # Its own series and those of the key actions, of which `set` is one; the key figures, and the channel's.
        gone = 1 + len(KEY_ACTIONS) + KEY_FIGURES + 1
        assert gone == await exporter.sample("capgo_exporter_series_expired_total")
        assert 1 + len(KEY_ACTIONS) == await exporter.sample("capgo_exporter_series")


async def test_series_at_the_ttl_stay(time: Time) -> None:
    """A series that has been silent for exactly the TTL is not yet past it."""
    async with running({"series_ttl": TTL}, time.clock) as exporter:
        await post(exporter, event())
        time.advance(TTL)
        await time.swept()
        assert {key(): 1} == await exporter.counters()
        time.advance(0.001)
        await time.swept()
        assert {} == await exporter.counters()


async def test_coming_back_is_a_birth(time: Time) -> None:
    """A series that comes back is shown to Prometheus as 0 first, then with what it counted since."""
    async with running({"series_ttl": TTL, "scrape_interval": 15}, time.clock) as exporter:
        await post(exporter, *[event()] * 3)
        for _ in range(3):
            await exporter.metrics(scraper=True)
            time.advance(15)
        assert 3 == (await exporter.counters(scraper=True))[key()]
        time.advance(TTL)
        await time.swept()
        assert {} == await exporter.counters(scraper=True, zeros=True)
        await post(exporter, event())
        assert {key(): 1} == await exporter.counters()
        assert 0 == (await exporter.counters(scraper=True, zeros=True))[key()]
        time.advance(15)
        assert 1 == (await exporter.counters(scraper=True))[key()]
        assert 4 == await events_in_all(exporter)


async def test_key_actions_live_as_long_as_their_family(time: Time) -> None:
    """The key actions' series, born at 0, stay while any series of their family is alive; other actions' do not."""
    async with running({"series_ttl": TTL}, time.clock) as exporter:
        await post(exporter, event(action="get"), event(action="delete"), event("2.0.0"))
        time.advance(TTL - 1)
        await post(exporter, event(action="get"))
        time.advance(2)
        await time.swept()
        family = {key(action=action): 0 for action in KEY_ACTIONS}
        assert {**family, key(action="get"): 2} == await exporter.counters(zeros=True)
        assert (2, 4) == (await expired(exporter), await events_in_all(exporter))


async def test_longest_silent_versions_make_room(time: Time) -> None:
    """In a crowded app the versions silent for longest make room, one for each new one, and none sooner than a day."""
    async with running({"max_versions_per_app": 10}, time.clock) as exporter:
        await post(exporter, event("builtin"), event("v0", app_id="com.example.other"))
        for version in ("v0", "v1", "v2"):
            await post(exporter, event(version))
            time.advance(HOUR)
        await post(exporter, *[event(f"v{number}") for number in range(3, 7)])
        time.advance(23.5 * HOUR)
        await time.swept()
        assert {"builtin", *(f"v{number}" for number in range(7))} == await versions(exporter)  # 7 of 8 free places
        for new, gone in (("v7", "v0"), ("v8", "v1"), ("v9", "v2")):
            await post(exporter, event(new))
            await time.swept()
            assert {new} == await versions(exporter) & {new, gone}
        await post(exporter, event("v10"))
        await time.swept()
        assert {"builtin", *(f"v{number}" for number in range(3, 11))} == await versions(exporter)  # none silent enough
        assert {"v0"} == await versions(exporter, "com.example.other")  # not crowded
        assert 3 == await expired(exporter)
        assert 13 == await events_in_all(exporter)


async def test_place_of_a_removed_version_is_free_again(time: Time) -> None:
    """Versions past the TTL give their places back: as many new ones get series of their own."""
    async with running({"series_ttl": TTL, "max_versions_per_app": 5, "max_apps": 1}, time.clock) as exporter:
        await post(exporter, *[event(f"1.{number}") for number in range(5)], event("1.5"))
        assert {f"1.{number}" for number in range(5)} | {"other"} == await versions(exporter)
        time.advance(TTL + 1)
        await time.swept()
        await post(exporter, *[event(f"2.{number}") for number in range(5)])
        assert {f"2.{number}" for number in range(5)} == await versions(exporter)
        time.advance(TTL + 1)
        await time.swept()
        await post(exporter, event("1.0", app_id="com.example.next"))
        assert {"1.0"} == await versions(exporter, "com.example.next")
        assert 12 == await events_in_all(exporter)


async def test_restart(time: Time, tmp_path: Path) -> None:
    """What expired stays expired over a restart, what is silent goes on ageing, and no event is counted twice."""
    settings = {"data_dir": tmp_path, "series_ttl": TTL}
    async with running(settings, time.clock) as exporter:
        await post(exporter, *[event("1.0.0")] * 3)
        time.advance(TTL - 1)
        await post(exporter, event("2.0.0"))
        time.advance(2)
        await time.swept()
    async with running(settings, time.clock) as exporter:
        await time.swept()
        assert ({key("2.0.0"): 1}, 3) == (await exporter.counters(), await expired(exporter))
        time.advance(TTL)
        await time.swept()
        assert ({}, 4) == (await exporter.counters(zeros=True), await expired(exporter))
        await post(exporter, event("1.0.0"))
    async with running(settings, time.clock) as exporter:
        assert ({key("1.0.0"): 1}, 5) == (await exporter.counters(), await events_in_all(exporter))


async def test_event_while_the_removal_is_stored(time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that arrives while the removal of its series runs begins a new series: born at 0, counted from there."""
    intakes: list[Intake] = []
    arriving: list[asyncio.Task[Any]] = []
    _remember_instances(monkeypatch, intakes)
    loop = asyncio.get_running_loop()
    commit = Journal.commit

    async def arrive() -> None:
        arriving.append(asyncio.create_task(intakes[0].accept(decode(json.dumps([event()]).encode()))))
        await asyncio.sleep(0)

    def commit_slowly(self: Journal, transaction: Transaction) -> Committed:
        if transaction.expired_series:
            asyncio.run_coroutine_threadsafe(arrive(), loop).result(10)
        return commit(self, transaction)

    monkeypatch.setattr(Journal, "commit", commit_slowly)
    async with running({"series_ttl": TTL}, time.clock) as exporter:
        await post(exporter, *[event()] * 3)
        for _ in range(3):
            await exporter.metrics(scraper=True)
            time.advance(60)
        assert 3 == (await exporter.counters(scraper=True))[key()]
        time.advance(TTL)
        await time.swept()
        assert [{}] == await asyncio.gather(*arriving)
        assert ({key(): 1}, 3) == (await exporter.counters(), await expired(exporter))
        assert 0 == (await exporter.counters(scraper=True, zeros=True))[key()]
        time.advance(60)
        assert 1 == (await exporter.counters(scraper=True))[key()]


async def test_event_at_the_moment_of_removal(time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that arrives when its series is just gone is counted in a new one."""
    intakes: list[Intake] = []
    arriving: list[asyncio.Task[Any]] = []
    _remember_instances(monkeypatch, intakes)
    body = json.dumps([event()]).encode()
    _at_each_removal(monkeypatch, lambda: arriving.append(asyncio.create_task(intakes[0].accept(decode(body)))))
    async with running({"series_ttl": TTL}, time.clock) as exporter:
        await post(exporter, event())
        await post(exporter, event())  # This one takes the short way to the cell.
        time.advance(TTL + 1)
        await time.swept()
        assert [{}] == await asyncio.gather(*arriving)
        assert ({key(): 1}, 2) == (await exporter.counters(), await expired(exporter))


def _remember_instances(monkeypatch: pytest.MonkeyPatch, intakes: list[Intake]) -> None:
    """Collect every intake that is made."""
    make = Intake.__init__

    def remembered(self: Intake, **parts: Any) -> None:
        make(self, **parts)
        intakes.append(self)

    monkeypatch.setattr(Intake, "__init__", remembered)


def _at_each_removal(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    """Do something right after cells were taken out."""
    remove = Counters.remove

    def remove_and_act(self: Counters, gone: Iterable[Series]) -> None:
        remove(self, gone)
        action()

    monkeypatch.setattr(Counters, "remove", remove_and_act)


async def test_removal_that_cannot_be_stored(time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a removal cannot be stored nothing is gone, and a later sweep removes it."""
    monkeypatch.setattr(exporter.commit, "_PROBE_SECONDS", 0.001)
    commit = Journal.commit
    seen: list[int] = []

    def flaky(self: Journal, transaction: Transaction) -> Committed:
        if transaction.expired_series and len(seen) < 3:
            seen.append(len(transaction.expired_series))
            message = "disk full"
            raise CommitFailedError(message, is_certain=True)
        return commit(self, transaction)

    monkeypatch.setattr(Journal, "commit", flaky)
    async with running({"series_ttl": TTL}, time.clock) as running_exporter:
        await post(running_exporter, event())
        time.advance(TTL + 1)
        await wait_for(lambda: len(seen) == 3)
        await wait_for(lambda: _is_gone(running_exporter))
        # The same series each time: none was taken for removed before it was.
        assert [1 + len(KEY_ACTIONS) + KEY_FIGURES] * 3 == seen
        assert 1 == await events_in_all(running_exporter)


async def _is_gone(running_exporter: Running) -> bool:
    """Tell whether no series is left."""
    return {} == await running_exporter.counters(zeros=True)
