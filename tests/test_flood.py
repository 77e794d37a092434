"""Floods: whoever invents labels, devices or ids by the thousand meets a bound, and real reports go on beside him."""

import itertools
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import exporter.births
import exporter.blocks
import exporter.derived.episodes
import exporter.expiry
import exporter.steps
from exporter.actions import BY_NAME
from exporter.caps import SeriesRoom
from exporter.derived.episodes import MAX_ENTRIES, Episodes
from exporter.expiry import Expiry
from exporter.intake import Intake
from exporter.journal.opening import FILE_NAME
from exporter.journal.records import Committed, Transaction
from exporter.journal.store import Journal
from tests.conftest import V2InfluxDB
from tests.support.delivering import accept, delivering, emptied
from tests.support.exporter import CounterKey, ExporterProcess, influx_settings, parse_samples
from tests.support.fakeinflux import ScriptedInflux
from tests.support.inprocess import ManualClock, Running, running
from tests.support.ports import wait_for

HOUR = 3600.0
DAY = 24 * HOUR
GOOD = "com.example.good"
EVIL = "com.example.evil"
KNOWN_ACTIONS = tuple(BY_NAME)
_numbers = itertools.count(1)


def event(version: str = "1.0.0", action: str = "set", app_id: str = GOOD, **fields: Any) -> dict[str, Any]:
    """Make an event of a device of its own."""
    made = {"app_id": app_id, "action": action, "platform": "ios", "version_name": version}
    return {**made, "device_id": f"d{next(_numbers)}", **fields}


def invented(count: int, app_id: str = EVIL) -> list[dict[str, Any]]:
    """Make events of as many versions that nobody has heard of."""
    return [event(f"9.9.{next(_numbers)}", app_id=app_id) for _ in range(count)]


def labels_of(counters: Iterable[CounterKey], name: str, **where: str) -> set[str]:
    """Give the values of a label that have series."""
    return {getattr(key, name) for key in counters if all(getattr(key, each) == value for each, value in where.items())}


async def counted_in_all(server: Running) -> int:
    """Give the events of all series, those that are gone included."""
    expired = await server.sample("capgo_exporter_expired_events_total")
    return sum((await server.counters()).values()) + int(expired)


@pytest.fixture
def clock() -> ManualClock:
    """A clock that moves only when the test says so."""
    return ManualClock()


@pytest.fixture
def sweeps(monkeypatch: pytest.MonkeyPatch) -> list[Expiry]:
    """The expiry of every exporter, which sweeps only when it is told to."""
    found: list[Expiry] = []

    async def never(expiry: Expiry) -> None:
        found.append(expiry)

    monkeypatch.setattr(Expiry, "run", never)
    return found


# --- labels -----------------------------------------------------------------------------------------------------------


async def test_invented_versions_come_at_a_pace(clock: ManualClock) -> None:
    """Of five hundred an hour 80 % of the cap get labels at once, then twenty an hour; no other app notices."""
    async with running({"max_versions_per_app": 250}, clock.clock) as server:
        seen = []
        for _ in range(4):
            await accept(server, invented(500))
            seen.append(len(labels_of(await server.counters(), "version", app_id=EVIL) - {"other"}))
            clock.advance(HOUR)
        assert [220, 240, 250, 250] == seen
        await accept(server, [event(f"1.{number}") for number in range(200)])
        assert 200 == len(labels_of(await server.counters(), "version", app_id=GOOD) - {"other"})
        overflow = await server.sample("capgo_exporter_label_overflow_total", label="version")
        assert (2000 - 250, 2200) == (overflow, await counted_in_all(server))


async def test_invented_apps_come_at_a_pace(clock: ManualClock) -> None:
    """Of a hundred an hour 80 % of the cap get labels at once, then five an hour; free names need no place."""
    async with running({"max_apps": 50}, clock.clock) as server:
        seen = []
        for _ in range(4):
            await accept(server, [event(app_id=f"com.evil.{next(_numbers)}") for _ in range(100)])
            seen.append(len(labels_of(await server.counters(), "app_id") - {"other"}))
            clock.advance(HOUR)
        assert [45, 50, 50, 50] == seen
        await accept(server, [event(app_id="unknown"), event("builtin", app_id="com.evil.late")])
        assert {"unknown"} == labels_of(await server.counters(), "app_id") & {"unknown", "com.evil.late"}
        assert 402 == await counted_in_all(server)


async def test_a_live_release_outlasts_a_flood(clock: ManualClock, sweeps: list[Expiry]) -> None:
    """In an app flooded for three days a release heard of once in 23 hours keeps its series; silent inventions go."""
    async with running({"max_versions_per_app": 20}, clock.clock) as server:
        sent = 0
        for hour in range(72):
            if hour % 23 == 0:
                await accept(server, [event("1.0.0", "get")])
                sent += 1
            await accept(server, invented(30, GOOD))
            sent += 30
            clock.advance(HOUR)
            await sweeps[-1].sweep()
            series = await server.counters(zeros=True)
            assert 20 >= len(labels_of(series, "version", app_id=GOOD) - {"other"})
            assert hour // 23 + 1 == series[CounterKey(GOOD, "ios", "get", "1.0.0", "prod")]
        assert 20 < await server.sample("capgo_exporter_expired_events_total")
        assert sent == await counted_in_all(server)


async def test_what_is_invented_is_gone_in_time(clock: ManualClock, sweeps: list[Expiry], tmp_path: Path) -> None:
    """When nobody invents any more, the TTL leaves no series, label or sketch of it, in memory or on disk."""
    settings = {"data_dir": tmp_path, "max_apps": 5, "max_versions_per_app": 10, "max_unknown_actions": 5}
    async with running(settings, clock.clock) as server:
        await accept(server, [event("1.0"), *(event(app_id=f"com.evil.{number}") for number in range(20))])
        await accept(server, [event(action=f"new_{number}", app_id="com.evil.1") for number in range(20)])
        await accept(server, [*invented(20, "com.evil.1"), *invented(20, "other")])
        for day in range(32):
            clock.advance(DAY)
            await accept(server, [event(f"1.{day // 8}")])
            await sweeps[-1].sweep()
        series = await server.counters(zeros=True)
        assert {"1.0", "1.1", "1.2", "1.3"} == labels_of(series, "version")
        assert {GOOD} == labels_of(series, "app_id")
        assert 33 + 80 == await counted_in_all(server)
        await accept(server, [event(app_id=f"com.new.{number}", action=f"newer_{number}") for number in range(3)])
        assert "other" not in labels_of(await server.counters(), "app_id") | labels_of(
            await server.counters(), "action"
        )
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as journal:
        for table in ("series", "sketches", "releases"):
            assert ("com.evil" in str(journal.execute(f"SELECT * FROM {table}").fetchall())) is False, table  # noqa: S608


# --- series in all ----------------------------------------------------------------------------------------------------


def every_label(app_id: str, versions: int) -> list[dict[str, Any]]:
    """Make events with every known action, platform and environment, for as many series as there can be."""
    return [
        event(f"0.{version}", action, app_id, platform=platform, is_prod=is_prod)
        for version in range(versions)
        for action in BY_NAME
        for platform in ("ios", "android", "web")
        for is_prod in (True, False)
    ]


async def test_nobody_takes_a_listed_apps_series(clock: ManualClock, tmp_path: Path) -> None:
    """Though strangers fill the series in another listed app's name, and as `unknown`, a new release has its own."""
    other_listed = "com.example.listed"
    settings = {
        "data_dir": tmp_path,
        "max_series": 1000,
        "allowed_apps": frozenset({GOOD, other_listed}),
    }
    flood = [*every_label("unknown", 3), *every_label(other_listed, 3), *every_label("com.evil.any", 1)]
    async with running(settings, clock.clock) as server:
        await accept(server, [event("1.0.0")])
        await accept(server, flood)
        assert 0 < await server.sample("capgo_exporter_label_overflow_total", label="series")
        assert {GOOD, other_listed, "unknown", "other"} == labels_of(await server.counters(), "app_id")
    async with running(settings, clock.clock) as server:
        await accept(server, flood)
        release = [event("2.0.0", action) for action in ("set", "get", "update_fail", "download_complete")]
        await accept(server, release)
        counters = await server.counters()
        assert dict.fromkeys(("set", "get", "update_fail", "download_complete"), 1) == {
            key.action: value for key, value in counters.items() if key.version == "2.0.0" and key.app_id == GOOD
        }
        clock.advance(11)
        assert server.exporter.derivation is not None
        await server.exporter.derivation.settle()
        page = await server.metrics()
        figures = {
            (sample.name, sample.labels.get("reason")): sample.value
            for sample in parse_samples(page)
            if sample.labels.get("version") == "2.0.0" and sample.labels.get("app_id") == GOOD and sample.value == 1
        }
        assert {("capgo_installs_total", None), ("capgo_update_failures_total", "update_fail")} <= set(figures)
        # Past the bound stand only series of `other` labels, of which there are few.
        own = [key for key in await server.counters(zeros=True) if key.app_id != "other"]
        assert len(own) <= 1000
        filtered = await server.sample("capgo_exporter_events_total", outcome="filtered", reason="app_not_allowed")
        assert sum(each["app_id"] == "com.evil.any" for each in flood) == filtered


async def test_a_marked_release_has_its_labels(clock: ManualClock, tmp_path: Path) -> None:
    """Though an app's versions and series are all taken in its own name, a release that was marked has its own."""
    settings = {
        "data_dir": tmp_path,
        "max_series": 1000,
        "max_versions_per_app": 20,
        "allowed_apps": frozenset({GOOD}),
        "releases_token": "a-token-of-the-test",
    }
    key_actions = ("set", "set_fail", "update_fail", "download_fail", "download_complete")
    async with running(settings, clock.clock) as server:
        await accept(server, [event("1.9.0"), *every_label(GOOD, 10), *invented(50, GOOD), event("2.0.0")])
        assert not {"2.0.0"} & labels_of(await server.counters(), "version")
        mark = {"app_id": GOOD, "version": "2.0.0"}
        headers = {"Authorization": "Bearer a-token-of-the-test"}
        assert 200 == (await server.request("POST", "/releases", json=mark, headers=headers)).status
        await accept(server, [event("2.0.0", action) for action in key_actions])
    async with running(settings, clock.clock) as server:
        await accept(server, [event("2.0.0", "get"), event("2.0.1", "get"), *every_label(GOOD, 10)])
        counters = await server.counters()
        assert dict.fromkeys([*key_actions, "get"], 1) == {
            key.action: value for key, value in counters.items() if "2.0.0" == key.version and "ios" == key.platform
        }
        assert "2.0.1" not in labels_of(counters, "version")
        own = [key for key in await server.counters(zeros=True) if key.app_id != "other"]
        assert len(own) <= 1050


async def test_restarts_make_no_room_for_marked_releases(clock: ManualClock, tmp_path: Path) -> None:
    """The 5 % past the bound that marked releases may take are 5 % in all, however often the exporter starts."""
    settings = {"data_dir": tmp_path, "max_series": 1000, "releases_token": "a-token-of-the-test"}
    headers = {"Authorization": "Bearer a-token-of-the-test"}
    for start in range(3):
        async with running(settings, clock.clock) as server:
            await accept(server, every_label(GOOD, 14))
            for number in range(3):
                mark = {"app_id": GOOD, "version": f"2.{start}.{number}"}
                assert 200 == (await server.request("POST", "/releases", json=mark, headers=headers)).status
                await accept(server, [event(mark["version"], action) for action in BY_NAME])
            own = [key for key in await server.counters(zeros=True) if key.app_id != "other"]
            assert 1000 < len(own) <= 1050


apps = st.sampled_from(["one", "two", "unknown", "other"])


@given(
    st.integers(100, 300),
    st.lists(st.tuples(apps, st.sampled_from(["marked", "any"]), st.integers(1, 12), st.booleans()), max_size=200),
)
def test_room_for_series(bound: int, steps: list[tuple[str, str, int, bool]]) -> None:
    """However series come and go, a listed app can have its part, and only marked releases go past the bound."""
    room = SeriesRoom(bound, ["one", "two"], lambda app_id, version: (app_id, version) == ("one", "marked"))
    series: list[tuple[int, str, str]] = []
    part, past = bound // 4, bound // 20
    for number, (app_id, version, count, is_birth) in enumerate(steps):
        of_app = [each for each in series if each[1] == app_id]
        if is_birth:
            is_allowed = room.allows(app_id, version, count)
            assert is_allowed or app_id not in {"one", "two"} or len(of_app) + count > part
            if is_allowed:
                made = [(number * 100 + index, app_id, version) for index in range(count)]
                series += made
                for each in made:
                    room.take(each, app_id, version)
        elif of_app:
            series.remove(of_app[0])
            room.give_back(of_app[0], app_id)
        assert len(series) <= bound + past
        assert len([each for each in series if each[1:] != ("one", "marked")]) <= bound


def test_room_without_a_list() -> None:
    """Whoever comes first takes what there is."""
    room = SeriesRoom(100)
    for number in range(99):
        room.take(number, "any", "1.0.0")
    assert (True, False) == (room.allows("new", "1.0.0", 1), room.allows("new", "1.0.0", 2))


def test_room_for_a_marked_release_is_bounded_and_comes_back() -> None:
    """Past the bound there are 5 % for marked releases; what they give back is theirs again."""
    room = SeriesRoom(100, is_marked=lambda _, version: version == "marked")
    for number in range(105):
        assert room.allows("app", "marked", 1)
        room.take(number, "app", "marked")
    assert (False, False) == (room.allows("app", "marked", 1), room.allows("app", "any", 1))
    room.give_back(104, "app")
    assert (True, False) == (room.allows("app", "marked", 1), room.allows("app", "any", 1))
    room.give_back(0, "app")
    assert (True, True) == (room.allows("app", "marked", 2), room.allows("app", "any", 1))


# --- devices, downloads, ids ------------------------------------------------------------------------------------------


async def test_invented_devices_and_names_leave_a_bounded_number_of_sketches(clock: ManualClock) -> None:
    """Whatever apps, versions and days they are of; the day's devices of an app that was there still count."""
    async with running({"max_sketches": 100}, clock.clock) as server:
        await accept(server, [event(action="ping") for _ in range(10)])
        for _ in range(10):
            flood = invented(50) + [event(f"1.{number}", app_id=f"com.evil.{number % 20}") for number in range(50)]
            now_ms = clock.wall_ns // 10**6
            flood += [event(app_id=EVIL, timestamp=now_ms - days * 86_400_000) for days in range(30)]
            await accept(server, flood)
            assert 100 >= await server.sample("capgo_exporter_sketches")
        await accept(server, [event(action="ping") for _ in range(10)])
        assert 20 == await server.sample("capgo_devices", app_id=GOOD, platform="ios", window="1d")
        assert 0 < await server.sample("capgo_exporter_derived_skipped_total", reason="no_sketch")
        assert 10 * 130 + 20 == await counted_in_all(server)


async def test_steps_of_all_downloads_are_bounded(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices that report many steps each forget the oldest downloads, long before there are too many downloads."""
    monkeypatch.setattr(exporter.derived.episodes, "MAX_ENTRIES", 200)
    stores: list[Episodes] = []
    init = Episodes.__init__

    def remembered(episodes: Episodes) -> None:
        init(episodes)
        stores.append(episodes)

    monkeypatch.setattr(Episodes, "__init__", remembered)
    async with running({}, clock.clock) as server:
        for device in range(30):
            steps = [f"download_{step}0" for step in range(10)] * 3
            await accept(server, [event(action=step, device_id=f"many-{device}") for step in steps])
            assert 200 >= sum(len(episode.entries) for episode in stores[-1])
        assert 30 - 7 <= await server.sample("capgo_exporter_derived_skipped_total", reason="forgotten_download")
        # A real download that goes on meanwhile is among the newest, and so stays.
        await accept(server, [event("2.0.0", f"download_{step}0", device_id="real") for step in range(10)])
        await accept(server, [event("2.0.0", "download_complete", device_id="real")])
        clock.advance(11)
        assert server.exporter.derivation is not None
        await server.exporter.derivation.settle()
        attempts = {
            sample.labels["outcome"]: sample.value
            for sample in parse_samples(await server.metrics())
            if sample.name == "capgo_download_attempts_total" and sample.labels["version"] == "2.0.0"
        }
        assert {"completed": 1} == attempts


async def test_the_steps_that_are_kept_are_counted_right(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After settling, forgetting and a restart the number by which the bound is kept is that of the entries."""
    stores: list[Episodes] = []
    init = Episodes.__init__

    def remembered(episodes: Episodes) -> None:
        init(episodes)
        stores.append(episodes)

    monkeypatch.setattr(Episodes, "__init__", remembered)
    monkeypatch.setattr(exporter.derived.episodes, "MAX_EPISODES", 15)
    for _ in range(2):
        async with running({"data_dir": tmp_path}, clock.clock) as server:
            for number in range(40):
                device = f"d{number % 20}"
                actions = ("download_10", "download_40", "download_complete", "update_fail")
                await accept(
                    server, [event(action=action, device_id=device) for action in actions[: number % 5]] or [event()]
                )
                clock.advance(4)
                assert server.exporter.derivation is not None
                await server.exporter.derivation.settle()
                found = sum(len(episode.entries) for episode in stores[-1])
                assert found == MAX_ENTRIES - stores[-1].room


async def test_a_flood_of_ids_takes_bounded_room(clock: ManualClock, tmp_path: Path) -> None:
    """As many events as are remembered are recognised, however many come; memory and file hold few more than that."""
    async with running({"data_dir": tmp_path, "dedupe_events": 1000}, clock.clock) as server:
        now_ms = clock.wall_ns // 10**6
        batch: list[dict[str, Any]] = []
        for number in range(20):
            batch = [event(timestamp=now_ms - each) for each in range(2000)]
            await accept(server, batch)
            assert (number + 1) * 2000 == await counted_in_all(server)
        assert 12_000 > await server.sample("capgo_exporter_dedupe_events")
        await accept(server, batch[-1000:])
        assert 1000 == await server.sample("capgo_exporter_events_total", outcome="duplicate", reason="")
        assert 0 <= await server.sample("capgo_exporter_dedupe_window_seconds")
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as journal:
        assert 70_000 > journal.execute("SELECT sum(count) FROM event_ids").fetchone()[0]


# --- short ways -------------------------------------------------------------------------------------------------------


async def test_short_ways_are_bounded(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the short way to a series nor that to a channel keeps what is invented, or texts of any length."""
    intakes: list[Intake] = []
    init = Intake.__init__

    def remembered(self: Intake, **parts: Any) -> None:
        init(self, **parts)
        intakes.append(self)

    monkeypatch.setattr(Intake, "__init__", remembered)
    async with running({"max_series": 300, "max_versions_per_app": 1000}, clock.clock) as server:
        await accept(server, [event(channel="production")])
        for _ in range(5):
            await accept(server, invented(500))
            flags = itertools.product(("0.1", "0.2", ""), BY_NAME, (True, False, None), (True, False, None))
            await accept(
                server, [event(version, action, is_prod=prod, is_emulator=emu) for version, action, prod, emu in flags]
            )
            await accept(server, [event(channel=" " * number + "production") for number in range(1000, 1100)])
            ways = [
                (origin, action, cell.labels)
                for origin, cells in intakes[-1]._cells.items()  # noqa: SLF001 -- what takes the memory
                for action, cell in cells.items()
            ]
            assert 0 < len(ways) <= 1200
            # Each text is the one that the series has anyway.
            assert all(origin[0] is labels.app_id and action is labels.action for origin, action, labels in ways)
        assert server.exporter.derivation is not None
        channels = server.exporter.derivation._channels  # noqa: SLF001 -- what takes the memory
        assert set() == {sent for _, sent in channels if len(sent) > 128}
        updates = [
            sample.value
            for sample in parse_samples(await server.metrics())
            if sample.name == "capgo_channel_updates_total" and sample.labels["channel"] == "production"
        ]
        assert 501 == sum(updates)


# --- sweeps -----------------------------------------------------------------------------------------------------------


async def test_a_sweep_lets_events_in(
    clock: ManualClock, sweeps: list[Expiry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it looks at many series events are taken, and the series that they reach stay."""
    monkeypatch.setattr(exporter.expiry, "_CHUNK", 3)
    async with running({"series_ttl": 30 * DAY}, clock.clock) as server:
        await accept(server, [event(f"1.{number}", "get") for number in range(5) for _ in range(3)])
        clock.advance(30 * DAY + 1)
        waits = 0

        async def meanwhile() -> None:
            nonlocal waits
            waits += 1
            if waits in {1, 30}:
                await accept(server, [event("1.0" if waits == 1 else "1.4", "get")])

        monkeypatch.setattr(exporter.expiry, "Steps", lambda: SimpleNamespace(pause=meanwhile))
        await sweeps[-1].sweep()
        assert waits > 30
        series = await server.counters()
        assert {"1.0", "1.4"} == labels_of(series, "version")
        assert {4} == set(series.values())
        assert (9, 17) == (
            await server.sample("capgo_exporter_expired_events_total"),
            await counted_in_all(server),
        )


# --- scrapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pause_seconds", "most_pauses"), [(0.0, 2000), (0.1, 40)])
async def test_a_page_of_many_series_waits_a_few_times_only(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch, pause_seconds: float, most_pauses: int
) -> None:
    """While requests pour in each pause is long, so that their number must not grow with the series."""
    monkeypatch.setattr(exporter.blocks, "_SERIES_A_BLOCK", 1)
    async with running({}, clock.clock) as server:
        await accept(server, every_label(GOOD, 3))
        await accept(server, [event(f"0.{n}", "app_launch_ready", metadata={"duration_ms": "5"}) for n in range(60)])
        now = 0.0
        pauses = looks = 0

        async def pause(_: float) -> None:
            nonlocal now, pauses
            pauses += 1
            now += pause_seconds

        def look() -> float:
            nonlocal now, looks
            looks += 1
            now += 0.0003  # what a part of a page takes, as this clock has it
            return now

        page = await server.metrics()
        monkeypatch.setattr(exporter.steps, "asyncio", SimpleNamespace(sleep=pause))
        monkeypatch.setattr(exporter.steps, "time", SimpleNamespace(perf_counter=look))
        once_more = await server.metrics()
        wanted = ("capgo_stats_events_total", "capgo_launch_duration_seconds")
        assert [line for line in page.splitlines() if line.startswith(wanted)] == [
            line for line in once_more.splitlines() if line.startswith(wanted)
        ]
        assert 500 < looks
        assert 0 < pauses <= most_pauses
        # Without a pause in between, others wait as long as five parts of the page at most if they wait for nothing.
        assert pause_seconds or looks <= 5 * pauses


async def test_births_of_many_series_are_stored_in_parts(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no event waits for a hundred thousand of them; each series is shown as 0, then in full, as ever."""
    monkeypatch.setattr(exporter.births, "_STEPS_AT_ONCE", 50)
    sizes: list[int] = []
    commit = Journal.commit

    def watched(journal: Journal, transaction: Transaction) -> Committed:
        sizes.append(len(transaction.births))
        return commit(journal, transaction)

    monkeypatch.setattr(Journal, "commit", watched)
    async with running({"scrape_interval": 15}, clock.clock) as server:
        events = every_label(GOOD, 1)
        await accept(server, events)
        page = await server.metrics()
        series = await server.sample("capgo_exporter_series") + await server.sample("capgo_exporter_derived_series")
        series -= page.count("\ncapgo_downloads_in_flight{")  # of a gauge nobody takes an increase
        shown: list[dict[CounterKey, int]] = []
        for _ in range(2):
            await server.metrics(scraper=True)
            shown.append({})
            await wait_for(lambda: sum(sizes) == len(shown) * series, "all births to be stored")
            shown[-1] = await server.counters(scraper=True, zeros=True)
            clock.advance(15)
        assert [{0}, {1}] == [set(each.values()) for each in shown]
        assert {len(events)} == {len(each) for each in shown}
        assert 50 == max(sizes)


# --- the whole --------------------------------------------------------------------------------------------------------


def mixed(number: int, now_ms: int) -> list[dict[str, Any]]:
    """Make a batch of everything that can be invented."""
    name = f"x{number}"
    return [
        *invented(5),
        event(app_id=f"com.evil.{name}"),
        event(action=f"new_{name}", app_id=EVIL),
        event(action=KNOWN_ACTIONS[number % len(KNOWN_ACTIONS)], app_id=EVIL),
        event(app_id=EVIL, platform=name),
        event(app_id=EVIL, channel=name, defaultChannel=name, old_version_name=name),
        event(app_id=EVIL, is_prod=number % 2, is_emulator=number % 3 == 0),
        event(app_id=EVIL, metadata={f"key_{name}_{key}": "v" * 10 for key in range(30)}),
        event(app_id=EVIL, timestamp=number),
        event(app_id=EVIL, timestamp=now_ms + 10**12 + number),
        event(f"{name} " * 100, app_id=EVIL, custom_id=name, key_id=name, install_source=name, plugin_version=name),
        event(action="download_10", app_id=EVIL),
        event(action="update_fail", app_id=EVIL),
        event(action="app_launch_ready", app_id=EVIL, metadata={"duration_ms": str(number)}),
    ]


SMALL_CAPS: dict[str, Any] = {"max_apps": 5, "max_versions_per_app": 5, "max_unknown_actions": 3}


async def test_influxdb_sees_no_more_series_than_the_caps_allow(v2_influxdb: V2InfluxDB) -> None:
    """Once the caps are reached a flood adds points, but no series, no tag value and no field; nothing is lost."""
    influx = v2_influxdb.server
    shape = []
    async with delivering(v2_influxdb, influx_token=v2_influxdb.token, influx_org="org", **SMALL_CAPS) as server:
        sent = 0
        for start in (0, 120, 240):
            for number in range(start, start + 120):
                sent += len(await accept(server, mixed(number, time.time_ns() // 10**6)))
            await emptied(server)
            assert sent == await influx.count("capgo_stats", "count") == await counted_in_all(server)
            values = [
                sorted(
                    str(row["value"])
                    for row in await influx.query(f'SHOW TAG VALUES FROM capgo_stats WITH KEY = "{tag}"')
                )
                for tag in await influx.tag_keys("capgo_stats")
            ]
            fields = await influx.field_types("capgo_stats")
            shape.append((await influx.query("SHOW SERIES CARDINALITY"), values, fields))
        assert shape[0] == shape[1] == shape[2]
        assert "metadata" in shape[0][2]
        assert [] == [name for name in shape[0][2] if name.startswith("key_x")]


@asynccontextmanager
async def real_process(tmp_path: Path, influx: ScriptedInflux, **settings: str) -> AsyncIterator[ExporterProcess]:
    """Run the exporter as a process that delivers to a server of the test."""
    env = influx_settings(influx.url, token="any", org="any", bucket="any")  # noqa: S106 -- no secret
    async with ExporterProcess(tmp_path, {**env, **settings}) as process:
        yield process


async def test_every_event_of_a_flood_is_counted_once(tmp_path: Path, scripted_influx: ScriptedInflux) -> None:
    """Through caps, repeats and a kill: accepted events = counters + expired = points; each cap is told of once."""
    caps = {
        "EXPORTER_MAX_APPS": "5",
        "EXPORTER_MAX_VERSIONS_PER_APP": "5",
        "EXPORTER_MAX_UNKNOWN_ACTIONS": "3",
        "EXPORTER_MAX_SERIES": "120",
        "EXPORTER_MAX_SKETCHES": "100",
    }
    now_ms = time.time_ns() // 10**6
    batches = [
        [
            # No two in the same millisecond, of which some would share a nanosecond and so be one point.
            {**each, "timestamp": each.get("timestamp", now_ms + 20 * number + index)}
            for index, each in enumerate(mixed(number, now_ms))
        ]
        for number in range(200)
    ]
    async with real_process(tmp_path, scripted_influx, **caps) as process:
        warned: list[tuple[str, str]] = []
        for number, batch in enumerate(batches):
            if number == 100:
                warned = [
                    (line["event"], line.get("reason", "")) for line in process.logs() if line.get("level") == "warning"
                ]
                await process.kill9()
                await process.start()
            assert 200 == (await process.post(batch)).status
            assert 200 == (await process.post(batch[::-1])).status

        async def delivered() -> bool:
            samples: dict[str, float] = {each.name: each.value for each in parse_samples(await process.metrics())}
            return 0 == samples["capgo_exporter_journal_points"]

        await wait_for(delivered, "the points to be delivered")
        expected = len({json.dumps(each, sort_keys=True) for batch in batches for each in batch})
        samples = parse_samples(await process.metrics())
        expired = sum(each.value for each in samples if each.name == "capgo_exporter_expired_events_total")
        assert expected == sum((await process.counters()).values()) + expired
        assert expected == len(scripted_influx.stored)
        assert sorted(set(warned), key=str) == sorted(warned, key=str)
        assert {"app_id", "action", "version", "channel", "series"} <= {reason for _, reason in warned}
