"""The state behind the derived figures: taken over, kept, read back, dropped when damaged, bounded, and expired."""

import asyncio
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

import exporter.commit
import exporter.derived.episodes
import exporter.derived.sightings
import exporter.derived.state
import exporter.journal.derived_store
import exporter.journal.opening
import exporter.journal.schema
from exporter.derived.derivation import Derivation
from exporter.derived.episodes import Episodes
from exporter.derived.families import FAMILIES
from exporter.derived.tracks import Code, Track
from exporter.derived.walk import Entry
from exporter.events import Event, decode
from exporter.expiry import Expiry
from exporter.group import NotStoredError
from exporter.identity import identity
from exporter.journal.codec import compress
from exporter.journal.opening import FILE_NAME, UnusableError, open_journal
from exporter.journal.records import Birth
from exporter.journal.schema import APPLICATION_ID, SCHEMA_VERSION, TABLES
from exporter.journal.store import Journal
from tests.support import everything
from tests.support.derived import (
    APP,
    BEGAN_MS,
    DAY,
    HOUR,
    derivation,
    derived_lines,
    event,
    killed,
    post,
    query,
    rows,
    settle,
    shown,
    values,
)
from tests.support.exporter import CounterKey
from tests.support.inprocess import ManualClock, Running, running
from tests.support.ports import wait_for
from tests.test_commit import Faults, Gate, entered, until_writable

TTL = 30 * DAY
DERIVED_TABLES = ("episodes", "installed", "sketches", "sightings", "releases", "marks")


@pytest.fixture
def clock() -> ManualClock:
    """A clock that moves only when the test says so."""
    return ManualClock()


@pytest.fixture(autouse=True)
def only_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is counted in the background: the tests say when, so that no page depends on the second."""

    async def never(idle: Derivation) -> None:
        del idle
        await asyncio.Event().wait()

    monkeypatch.setattr(Derivation, "run", never)
    monkeypatch.setattr(exporter.commit, "_PROBE_SECONDS", 0.02)


@pytest.fixture
def sweeps(monkeypatch: pytest.MonkeyPatch) -> list[Expiry]:
    """The expiry of every exporter, which sweeps only when it is told to."""
    found: list[Expiry] = []

    async def never(expiry: Expiry) -> None:
        found.append(expiry)
        await asyncio.Event().wait()

    monkeypatch.setattr(Expiry, "run", never)
    return found


# --- an older journal -------------------------------------------------------------------------------------------------

SERIES_1 = """
CREATE TABLE series (
    series_id INTEGER PRIMARY KEY,
    app_id TEXT NOT NULL,
    platform TEXT NOT NULL,
    action TEXT NOT NULL,
    version TEXT NOT NULL,
    environment TEXT NOT NULL,
    value INTEGER NOT NULL,
    birth INTEGER NOT NULL,
    last_ms INTEGER NOT NULL
);
"""
ODD_TEXTS = (
    'say "hi"',
    "it's",
    "[1,2]",
    "null",
    "ünïcödé 🚀",
    "日本語",
    "a,b=c d",
    "\u2028",
    "tab s",
    "%00",
    "{}",
    "0",
)
OLD_SERIES = [
    (3, APP, "ios", "set", "1.0.0", "prod", 5, Birth.FULL, BEGAN_MS - 3),
    (5, APP, "ios", "get", "1.0.0", "prod", 7, Birth.ZERO, BEGAN_MS - 2),
    (8, APP, "ios", "get", "1.1.0", "dev", 9, Birth.HIDDEN, BEGAN_MS - 1),
    (9, APP, "ios", "update_fail", "1.0.0", "prod", 0, Birth.FULL, BEGAN_MS),
    *(
        (20 + number, f"app {text}", "android", f"do {text}", f"v{text}", "emulator", number, Birth.FULL, BEGAN_MS)
        for number, text in enumerate(ODD_TEXTS)
    ),
]
LINES = ["capgo_stats,action=set count=1i 1", "capgo_stats,action=get count=1i 2"]


def make_version_1(data_dir: Path, event_ids: list[int]) -> None:
    """Write a journal as the first exporter did."""
    points = compress(LINES)
    with closing(sqlite3.connect(data_dir / FILE_NAME, isolation_level=None)) as connection:
        connection.executescript(TABLES + SERIES_1)
        connection.executemany("INSERT INTO series VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", OLD_SERIES)
        for event_id in event_ids:
            row = (event_id % 1000, BEGAN_MS, 1, event_id.to_bytes(8, "little"))
            connection.execute("INSERT INTO event_ids VALUES (?, ?, ?, ?)", row)
        connection.execute("INSERT INTO points VALUES (1000, ?, 2, ?, ?)", (BEGAN_MS, len(points) + 32, points))
        connection.execute(
            "UPDATE state SET last_transaction = 1000, expired_events = 11, points = 2, bytes = ?, event_ids = ?",
            (len(points) + 32, len(event_ids)),
        )
        connection.executescript(f"PRAGMA application_id = {APPLICATION_ID};PRAGMA user_version = 1;")


def content(data_dir: Path) -> tuple[int, list[str]]:
    """Give the version of a journal and all that is in it."""
    with closing(sqlite3.connect(data_dir / FILE_NAME)) as connection:
        return connection.execute("PRAGMA user_version").fetchone()[0], list(connection.iterdump())


async def test_a_journal_of_version_1_is_taken_over(tmp_path: Path, clock: ManualClock) -> None:
    """Its counters, births, points, ids and totals are kept exactly, whatever the labels say, and new ones follow."""
    known = event("get", at=1.0)
    (decoded,) = decode(json.dumps([known]).encode()).events
    assert isinstance(decoded, Event)
    event_id = identity(decoded)
    assert event_id is not None
    make_version_1(tmp_path, [event_id])
    expected = {CounterKey(*row[1:6]): row[6] for row in OLD_SERIES}
    full = {CounterKey(*row[1:6]): row[6] for row in OLD_SERIES if row[7] is Birth.FULL}
    zero = {CounterKey(*row[1:6]): 0 for row in OLD_SERIES if row[7] is Birth.ZERO}
    async with running({"data_dir": tmp_path}, clock.clock) as server:
        assert 0 == await server.sample("capgo_exporter_journal_set_aside")
        assert expected == await server.counters(zeros=True)
        assert LINES == server.lines()
        assert 11 == await server.sample("capgo_exporter_expired_events_total")
        await post(server, known)
        assert 1 == await server.sample("capgo_exporter_events_total", outcome="duplicate", reason="")
        assert (SCHEMA_VERSION, [(3, 5), (5, 7), (8, 9)]) == (
            query(tmp_path, "PRAGMA user_version")[0][0],
            query(tmp_path, "SELECT series_id, value FROM series ORDER BY series_id LIMIT 3"),
        )
        births = query(tmp_path, "SELECT series_id, birth, last_ms FROM series ORDER BY series_id")
        assert [(row[0], row[7], row[8]) for row in OLD_SERIES] == births
        page = await server.counters(scraper=True, zeros=True)
        assert {**full, **zero} == {key: page[key] for key in (full | zero)}
        await post(server, event("set", at=2.0))
        assert {(APP, "1.0.0"): 1} == await shown(server, "installs_total", "app_id", "version")
        assert 6 == (await server.counters())[CounterKey(APP, "ios", "set", "1.0.0", "prod")]
    async with running({"data_dir": tmp_path}, clock.clock) as server:
        assert {(APP, "1.0.0"): 1} == await shown(server, "installs_total", "app_id", "version")
        assert 6 == (await server.counters())[CounterKey(APP, "ios", "set", "1.0.0", "prod")]


def test_an_upgrade_that_fails_leaves_the_older_journal_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk the start ends with the reason, and the older exporter finds everything; with room it succeeds."""
    make_version_1(tmp_path, [7])
    before = content(tmp_path)

    def connect_to_full_disk(path: Path) -> sqlite3.Connection:
        connection = exporter.journal.schema.connect(path)
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 3}")
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(exporter.journal.opening, "connect", connect_to_full_disk)
        with pytest.raises(UnusableError, match="disk is full"):
            open_journal(tmp_path)
    assert (1, before[1]) == content(tmp_path)
    with closing((found := open_journal(tmp_path)).connection):
        assert (None, len(OLD_SERIES)) == (found.set_aside, len(found.restored.series))


# --- restarts ---------------------------------------------------------------------------------------------------------


async def test_a_restart_changes_no_figure(tmp_path: Path, clock: ManualClock) -> None:
    """After a clean stop and after a kill the page is the same, and what had begun before goes on."""
    settings = {"data_dir": tmp_path / "data", **everything.SETTINGS}
    async with running(settings, clock.clock) as server:
        await everything.fill(server, clock)
        await post(server, event("download_0", "a"), event("update_fail", "b"), event("set", "e", platform="electron"))
        before = derived_lines(await server.metrics())
        left = killed(tmp_path / "data", tmp_path / "killed")
    for data_dir in (tmp_path / "data", left):
        time = ManualClock(clock.wall_ns)
        async with running({**settings, "data_dir": data_dir}, time.clock) as server:
            assert before == derived_lines(await server.metrics())
            assert {FAMILIES[0].name + "_total"} <= {name.partition("{")[0] for name in before}
            assert 0 == await server.sample("capgo_exporter_derived_resets_total")
            await post(server, event("set", "e", platform="electron"), event("checksum_fail", "a"))
            await settle(server, time, 10)
            assert {("failed", "0"): 1} == await shown(server, "download_attempts_total", "outcome", "reached")
            reasons = {("update_fail",): 1, ("checksum_fail",): 1}
            assert reasons == await shown(server, "update_failures_total", "reason")
            assert {("electron",): 1} == await shown(server, "installs_total", "platform")


# --- commits that fail ------------------------------------------------------------------------------------------------


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Every journal commits through a gate, which is open until the test closes it."""
    gate = Gate()
    gate.open.set()
    monkeypatch.setattr(Journal, "commit", gate.wrap(Journal.commit))
    yield gate
    gate.open.set()


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """Faults for every journal that is opened from now on."""
    faults = Faults()
    for module in ("exporter.journal.store", "exporter.journal.opening"):
        monkeypatch.setattr(f"{module}.connect", faults.connect(exporter.journal.schema.connect))
    return faults


async def test_nothing_derived_is_shown_before_the_commit(gate: Gate, clock: ManualClock) -> None:
    """While the COMMIT runs no family, gauge, sketch, release or mark shows anything of its events."""
    async with running(everything.SETTINGS, clock.clock) as server:
        before = derived_lines(await server.metrics())
        assert {} == before
        gate.close()
        batch = asyncio.create_task(server.post(everything.events(BEGAN_MS)))
        await entered(gate)
        headers = {"Authorization": f"Bearer {everything.TOKEN}"}
        body = {"app_id": APP, "version": "1.0.0"}
        for scraper in (True, False):
            assert {} == derived_lines(await server.metrics(scraper=scraper))
        gate.open.set()
        assert 200 == (await batch).status
        before = derived_lines(await server.metrics())
        gate.close()
        mark = asyncio.create_task(server.request("POST", "/releases", json=body, headers=headers))
        await entered(gate)
        assert before == derived_lines(await server.metrics())
        gate.open.set()
        assert 200 == (await mark).status
        before = derived_lines(await server.metrics())
        assert {("1.0.0",)} == set(await shown(server, "release_timestamp_seconds", "version"))
        assert {family.sample_name for family in FAMILIES[:2]} <= {name.partition("{")[0] for name in before}
        gate.close()
        again = asyncio.create_task(server.post([event("set", "other"), event("download_0", "other", app_id="new")]))
        await entered(gate)
        assert before == derived_lines(await server.metrics())
        gate.open.set()
        assert 200 == (await again).status
        assert {("new",): 1, ("com.example.shop",): 1} == await shown(
            server, "downloads_in_flight", "app_id", app_id=None
        )


def fleet(at: float) -> list[list[dict[str, Any]]]:
    """Give batches that touch everything and are known when they are sent again."""
    return [
        everything.events(BEGAN_MS),
        [event("download_zip_start", "a", at=at), event("download_20", "a", at=at + 1), event("set", "b", at=at)],
        [
            event("download_zip_complete", "a", at=at + 2),
            event("set", "c", at=at, platform="electron", old_version_name="0.9.0", channel="beta"),
            event("unzip_fail", "b", at=at, version_name="2.0.0"),
            event("update_fail", "b", at=at),
            event("get", "z", at=at - 2 * HOUR),
            event("download_10", "y", at=at),
        ],
    ]


async def until_acknowledged(server: Running, batch: list[dict[str, Any]]) -> None:
    """Send a batch as a device does, until it is taken."""
    while (await server.post(batch)).status != 200:
        await until_writable(server)


async def settled(server: Running) -> None:
    """Have everything counted that is due, however often that fails."""
    for _ in range(3):
        try:
            await derivation(server).settle()
        except NotStoredError:
            await until_writable(server)


@pytest.mark.parametrize("opens_to_fail", [0, 3], ids=["reopened at once", "reopened later"])
@pytest.mark.parametrize("does_it", [False, True], ids=["not on disk", "on disk"])
async def test_a_failing_commit_changes_no_figure(
    tmp_path: Path, faults: Faults, *, does_it: bool, opens_to_fail: int
) -> None:
    """Whichever commit fails, of events or of what is settled, each figure is the same as if none had."""
    pages = []
    for fails in (False, True):
        time = ManualClock()
        settings = {"data_dir": tmp_path / str(fails)}
        async with running(settings, time.clock) as server:
            for batch in fleet(10.0):
                before = derived_lines(await server.metrics())
                if fails:
                    faults.does_it, faults.opens_to_fail, faults.commits_to_fail = does_it, opens_to_fail, 1
                    refused = (await server.post(batch)).status != 200
                    assert refused is (not does_it or opens_to_fail > 0)
                    if refused and not does_it:
                        await until_writable(server)
                        assert before == derived_lines(await server.metrics())
                await until_acknowledged(server, batch)
            time.advance(20)
            if fails:
                faults.opens_to_fail, faults.commits_to_fail = opens_to_fail, 1
            await settled(server)
            time.advance(8000)
            if fails:
                faults.opens_to_fail, faults.commits_to_fail = opens_to_fail, 1
            await settled(server)
            for batch in fleet(10.0):
                await until_acknowledged(server, batch)
            pages.append(derived_lines(await server.metrics()))
        async with running(settings, time.clock) as server:
            pages.append(derived_lines(await server.metrics()))
    assert {} != pages[0]
    assert [pages[0]] * 3 == pages[1:]


# --- damage -----------------------------------------------------------------------------------------------------------


def flip(table: str, column: str) -> Callable[[Path], None]:
    """Flip a bit in the middle of each of a table's blobs."""

    def damage(data_dir: Path) -> None:
        with closing(sqlite3.connect(data_dir / FILE_NAME, isolation_level=None)) as connection:
            found = connection.execute(f"SELECT rowid, {column} FROM {table} WHERE {column} IS NOT NULL").fetchall()  # noqa: S608 -- ours
            assert found
            for row, blob in found:
                flipped = bytearray(blob)
                flipped[len(blob) // 2] ^= 0x10
                connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (bytes(flipped), row))  # noqa: S608 -- ours

    return damage


def change(statement: str) -> Callable[[Path], None]:
    """Change rows as nobody should, or as a flipped bit does that SQLite does not notice."""

    def damage(data_dir: Path) -> None:
        with closing(sqlite3.connect(data_dir / FILE_NAME, isolation_level=None)) as connection:
            connection.execute("PRAGMA ignore_check_constraints = ON")
            assert connection.execute(statement).rowcount

    return damage


BLOBS = (("episodes", "states"), ("installed", "pairs"), ("sketches", "sketch"), ("sightings", "devices"))
DAMAGES = {
    **{f"{table} flipped": flip(table, column) for table, column in (*BLOBS, ("releases", "devices"))},
    **{
        f"{table} {name}": change(f"UPDATE {table} SET {column} = {value}")  # noqa: S608 -- ours
        for table, column in (*BLOBS, ("releases", "devices"))
        for name, value in (
            ("garbage", "x'6761726261676521'"),
            ("cut", f"substr({column}, 1, length({column}) - 5)"),
            ("text", "'text'"),
            ("number", "1000000000000"),
            ("empty", "x''"),
        )
    },
    "sketch of an unknown kind": change("UPDATE sketches SET kind = 'kin'"),
    "day that is a text": change("UPDATE sketches SET day = 'today'"),
    "time that is a text": change("UPDATE releases SET first_seen_ms = 'once'"),
    "version that is no text": change("UPDATE releases SET version = x'01' WHERE rowid = 1"),
    "version that is no UTF-8": change("UPDATE releases SET version = CAST(x'63e3' AS TEXT) WHERE rowid = 1"),
    "mark without a time": change("UPDATE marks SET marked_ms = 'then'"),
    "mark without sense": change("UPDATE marks SET rollout_percentage = 1e9"),
}


@pytest.fixture
async def journal_to_damage(tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory with rows in all tables, snapshots of sketches too, and a download under way."""
    monkeypatch.setattr(exporter.derived.state, "_SNAPSHOT_AFTER_SIGHTINGS", 20)
    data_dir = tmp_path / "data"
    async with running({"data_dir": data_dir, **everything.SETTINGS}, clock.clock) as server:
        await everything.fill(server, clock)
        await post(server, event("download_0", "a"), event("set", "e", platform="electron"), event("set", "f"))
        await post(server, event("unzip_fail", "b"))
    assert all(rows(data_dir, DERIVED_TABLES).values())
    return data_dir


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_damaged_state_is_dropped_and_counters_are_kept(
    journal_to_damage: Path, clock: ManualClock, damage: Callable[[Path], None]
) -> None:
    """The start succeeds with one error in the log, no download stays under way for ever, and the next is clean."""
    settings = {"data_dir": journal_to_damage}
    stored = "SELECT family, labels, value FROM series WHERE family != 'capgo_downloads_in_flight' ORDER BY series_id"
    counted = query(journal_to_damage, stored)
    damage(journal_to_damage)
    with capture_logs() as logs:
        async with running(settings, clock.clock) as server:
            assert 1 == await server.sample("capgo_exporter_derived_resets_total")
            assert 0 == await server.sample("capgo_exporter_journal_set_aside")
            assert {} == await shown(server, "downloads_in_flight", "version", app_id=None)
            assert {} == await shown(server, "devices", "app_id", "platform", "window", app_id=None)
            assert counted == query(journal_to_damage, stored)
            assert dict.fromkeys(DERIVED_TABLES, 0) == rows(journal_to_damage, DERIVED_TABLES)
            await post(server, event("download_0", "a"), event("set", "g"))
            assert {("1.0.0",): 1} == await shown(server, "downloads_in_flight", "version", app_id=None)
    errors = [line for line in logs if line["log_level"] == "error"]
    assert ["what is known of devices is damaged and starts anew; counters are not"] == [
        line["event"] for line in errors
    ]
    assert errors[0]["error"]
    with capture_logs() as logs:
        async with running(settings, clock.clock) as server:
            assert 0 == await server.sample("capgo_exporter_derived_resets_total")
            assert {("ios",): 2, ("electron",): 1} == await shown(server, "installs_total", "platform")
            assert {("1.0.0",): 1} == await shown(server, "downloads_in_flight", "version", app_id=None)
            await settle(server, clock, 8000)
            assert {} == await shown(server, "downloads_in_flight", "version", app_id=None)
    assert [] == [line for line in logs if line["log_level"] == "error"]


async def test_switched_off_damage_is_nobodys_business(journal_to_damage: Path, clock: ManualClock) -> None:
    """Without derived figures a damaged state neither hinders the start nor is touched."""
    DAMAGES["episodes flipped"](journal_to_damage)
    before = content(journal_to_damage)
    async with running({"data_dir": journal_to_damage, "derived": "off"}, clock.clock) as server:
        assert 0 == await server.sample("capgo_exporter_derived_resets_total")
        assert {} != await server.counters()
    assert before == content(journal_to_damage)


@pytest.mark.parametrize(
    "value", ["'[\"a\"'", "'[1,2,3,4,5]'", "CAST(x'63e3' AS TEXT)"], ids=["cut", "numbers", "no UTF-8"]
)
async def test_labels_that_cannot_be_read_are_damage(journal_to_damage: Path, clock: ManualClock, value: str) -> None:
    """A counter whose labels are lost is no counter: the journal is set aside, and the exporter starts."""
    change(f"UPDATE series SET labels = {value} WHERE series_id = 1")(journal_to_damage)  # noqa: S608 -- ours
    async with running({"data_dir": journal_to_damage}, clock.clock) as server:
        assert 1 == await server.sample("capgo_exporter_journal_set_aside")
        await post(server, event("set"))
        assert 1 == sum((await server.counters()).values())


# --- settings that change ---------------------------------------------------------------------------------------------


async def test_changed_buckets_begin_anew(tmp_path: Path, clock: ManualClock) -> None:
    """Histograms with the old bounds are gone from page and file; the new ones count from 0, all else is kept."""
    launch: dict[str, Any] = {"metadata": {"duration_ms": "700"}}
    steps = [
        event("download_zip_start", at=0.0),
        event("download_complete", at=3.0),
        event("app_launch_ready", **launch),
    ]
    async with running({"data_dir": tmp_path}, clock.clock) as server:
        await post(server, *steps, event("set"))
        await settle(server, clock, 10)
        before = derived_lines(await server.metrics())
    changed = {"data_dir": tmp_path, "download_buckets": "1s,10s"}
    async with running(changed, clock.clock) as server:
        kept = {key: value for key, value in before.items() if not key.startswith("capgo_download_") or "_total" in key}
        assert kept == derived_lines(await server.metrics())
        stored = query(tmp_path, "SELECT DISTINCT family FROM series WHERE family LIKE '%duration%'")
        assert [("capgo_launch_duration_seconds",)] == stored
        later = [event("download_zip_start", at=100.0), event("download_complete", at=110.0)]
        await post(server, *later)
        await settle(server, clock, 20)
        buckets = {("10.0",): 1, ("+Inf",): 1}
        assert buckets == await shown(server, "download_duration_seconds_bucket", "le")
        assert {(APP,): 10} == await shown(server, "download_duration_seconds_sum", "app_id")
        page = derived_lines(await server.metrics())
    async with running(changed, clock.clock) as server:
        assert page == derived_lines(await server.metrics())
        found = query(tmp_path, "SELECT count(*), count(DISTINCT family || labels) FROM series")
        assert 1 == len({count for row in found for count in row})


async def test_switched_off_and_on_again(tmp_path: Path, clock: ManualClock) -> None:
    """While it is off nothing derived has samples; what was known waits in the file, and no id is given twice."""
    settings = {"data_dir": tmp_path}
    async with running(settings, clock.clock) as server:
        await post(server, *everything.events(BEGAN_MS), event("set", "e", platform="electron"))
        await settle(server, clock, 20)
        before = derived_lines(await server.metrics())
        kept = rows(tmp_path, DERIVED_TABLES)
    async with running({**settings, "derived": "off"}, clock.clock) as server:
        assert {} == derived_lines(await server.metrics())
        await post(server, event("set", "x", version_name="9.9.9"), event("get", "x", version_name="9.9.9"))
        assert {} == derived_lines(await server.metrics())
        assert kept == rows(tmp_path, DERIVED_TABLES)
    async with running(settings, clock.clock) as server:
        assert before == derived_lines(await server.metrics())
        await post(server, event("set", "e", platform="electron"), event("set", "y", version_name="9.9.9"))
        assert {("ios", "9.9.9"): 1, ("electron", "1.0.0"): 1} == await shown(
            server, "installs_total", "platform", "version"
        )
        counters = await server.counters()
        assert 2 == counters[CounterKey(APP, "ios", "set", "9.9.9", "prod")]
        assert 1 == counters[CounterKey(APP, "ios", "get", "9.9.9", "prod")]


# --- expiry -----------------------------------------------------------------------------------------------------------


async def invariant(server: Running) -> tuple[float, float]:
    """Give the events of all series with those of series that are gone, and the events that were accepted."""
    counted = sum((await server.counters()).values()) + await server.sample("capgo_exporter_expired_events_total")
    return counted, await server.sample("capgo_exporter_events_total", outcome="accepted", reason="")


def release_of(version: str) -> list[dict[str, Any]]:
    """Give events after which everything knows a version, which replaced `old-` and itself."""
    base: dict[str, Any] = {"version_name": version, "channel": f"channel-{version}"}
    launch: dict[str, Any] = {"metadata": {"duration_ms": "700"}}
    return [
        event("set", "a", **base, old_version_name=f"old-{version}"),
        event("download_zip_start", "a", **base),
        event("download_complete", "a", **base),
        event("update_fail", "b", **base),
        event("app_launch_ready", "a", **base, **launch),
    ]


async def known_versions(server: Running) -> dict[str, set[str]]:
    """Give the versions that stand in each family of derived figures, zeros too."""
    found: dict[str, set[str]] = {}
    for line in derived_lines(await server.metrics()):
        name, _, labels = line.partition("{")
        if 'version="' in labels:
            found.setdefault(name, set()).add(labels.split('version="')[1].split('"')[0])
    return found


async def test_what_is_derived_of_a_version_lives_and_goes_with_it(
    tmp_path: Path, clock: ManualClock, sweeps: list[Expiry]
) -> None:
    """While any event of a version comes all its figures stay; silent, it leaves nothing on the page or on disk."""
    settings = {"data_dir": tmp_path, "series_ttl": TTL}
    async with running(settings, clock.clock) as server:
        await post(server, *release_of("1.0.0"), *release_of("2.0.0"))
        await settle(server, clock, 10)
        await settle(server, clock, TTL - 20)
        await post(server, event("get", "a", version_name="2.0.0"))
        before = await known_versions(server)
        assert {"1.0.0", "2.0.0"} <= before["capgo_installs_total"]
        channels = {("channel-1.0.0", "installed"), ("channel-1.0.0", "failed"), ("channel-2.0.0", "installed")}
        assert channels <= set(await shown(server, "channel_updates_total", "channel", "outcome"))
        clock.advance(30)
        await sweeps[-1].sweep()
        after = await known_versions(server)
        assert {name: {"2.0.0"} for name in before} == after
        assert {} == await shown(server, "channel_updates_total", "channel")
        assert {(APP,): 1} == await shown(server, "download_duration_seconds_count", "app_id")
        assert (11, 11) == await invariant(server)
        await post(server, event("get", "a", version_name="2.0.0"))
        assert [("2.0.0",)] == query(tmp_path, "SELECT version FROM releases")
        assert [("2.0.0",)] == query(tmp_path, "SELECT DISTINCT name FROM sketches WHERE kind = 'version'")
        stored = query(tmp_path, "SELECT labels FROM series")
        assert [] == [labels for (labels,) in stored if "1.0.0" in labels]
        clock.advance(60)
        await post(server, *release_of("1.0.0"))
        born = (clock.wall_ns // 10**6) / 1000
        assert {("2.0.0",): BEGAN_MS / 1000, ("1.0.0",): born} == await shown(
            server, "version_first_seen_timestamp_seconds", "version"
        )
        assert {("1.0.0",): 1, ("2.0.0",): 1} == await shown(server, "installs_total", "version")
        scraped = values(await server.metrics(scraper=True), "installs_total", "version")
        assert {} == scraped
        assert (17, 17) == await invariant(server)


async def test_a_version_that_comes_back_before_its_end_is_stored(
    tmp_path: Path, clock: ManualClock, sweeps: list[Expiry]
) -> None:
    """The first event after a removal may be of the version removed: it begins a new release, which stays."""
    async with running({"data_dir": tmp_path, "series_ttl": TTL}, clock.clock) as server:
        await post(server, event("set", "a"))
        clock.advance(TTL + 1)
        await sweeps[-1].sweep()
        assert {} == await shown(server, "version_first_seen_timestamp_seconds", "version")
        await post(server, event("set", "a"))
        await post(server, event("set", "a", version_name="2.0.0"))
        born = clock.wall_ns // 10**6
        expected = [("1.0.0", born), ("2.0.0", born)]
        assert expected == query(tmp_path, "SELECT version, first_seen_ms FROM releases ORDER BY version")
        assert {("1.0.0",): born / 1000, ("2.0.0",): born / 1000} == await shown(
            server, "version_first_seen_timestamp_seconds", "version"
        )


async def test_a_kill_after_a_removal_leaves_no_release_behind(
    tmp_path: Path, clock: ManualClock, sweeps: list[Expiry]
) -> None:
    """A version's series go first and its release with the next transaction; a kill between is made good."""
    async with running({"data_dir": tmp_path / "data", "series_ttl": TTL}, clock.clock) as server:
        await post(server, event("set", "a"))
        clock.advance(TTL + 1)
        await sweeps[-1].sweep()
        left = killed(tmp_path / "data", tmp_path / "killed")
    assert [("1.0.0",)] == query(left, "SELECT version FROM releases")
    async with running({"data_dir": left, "series_ttl": TTL}, clock.clock) as server:
        assert {} == await shown(server, "version_first_seen_timestamp_seconds", "version")
        await post(server, event("set", "a", version_name="2.0.0"))
        assert [("2.0.0",)] == query(left, "SELECT version FROM releases")


async def test_places_of_expired_versions_and_channels_are_free_again(clock: ManualClock, sweeps: list[Expiry]) -> None:
    """Also those of versions that were only replaced, and of channels: as many new ones have names of their own."""
    async with running({"series_ttl": TTL, "max_versions_per_app": 5}, clock.clock) as server:
        for names in (["a1", "a2", "a3", "a4", "a5"], ["a1", "b2", "b3", "b4", "b5"]):
            for name in ["steady", *names]:
                await post(server, event("set", version_name="steady", old_version_name=name, channel=name))
                clock.advance(HOUR)
            channels = {("steady",), *((name,) for name in names[:4]), ("other",)}
            assert channels == set(await shown(server, "channel_updates_total", "channel"))
            assert channels - {("steady",)} == set(await shown(server, "uninstalls_total", "version"))
            clock.advance(TTL - HOUR)
            await post(server, event("set", version_name="steady", channel="steady"))
            clock.advance(6 * HOUR)
            await sweeps[-1].sweep()
            assert {("steady",)} == set(await shown(server, "channel_updates_total", "channel"))
            assert {("steady",)} == set(await shown(server, "installs_total", "version"))
            assert {} == await shown(server, "uninstalls_total", "version")


# --- bounds -----------------------------------------------------------------------------------------------------------


async def test_series_of_derived_figures_are_bounded(clock: ManualClock) -> None:
    """Past the bound events of new versions are counted in series of `other`, each of them noted."""
    async with running({"max_series": 150}, clock.clock) as server:
        noted = []
        for number in range(20):
            base: dict[str, Any] = {"version_name": f"1.{number}.0", "metadata": {"duration_ms": "700"}}
            await post(server, event("set", f"d{number}", **base), event("app_launch_ready", f"d{number}", **base))
            noted.append(await server.sample("capgo_exporter_label_overflow_total", label="series"))
        installs = await shown(server, "installs_total", "app_id", "version", app_id=None)
        launches = await shown(server, "launch_duration_seconds_count", "app_id", "version", app_id=None)
        own = {(APP, f"1.{number}.0"): 1 for number in range(20 - int(installs["other", "other"]))}
        assert {**own, ("other", "other"): 20 - len(own)} == installs
        assert 5 < len(own) < 15
        assert 20 == sum(launches.values())
        assert 5 < launches["other", "other"]
        assert 150 <= await server.sample("capgo_exporter_derived_series") < 150 + 30
        assert [0, 0] == noted[:2]
        assert noted[10:] == sorted(set(noted[10:]))


async def test_episodes_are_bounded(tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently changed one makes room: its failure counts at once, its download is forgotten, for good."""
    monkeypatch.setattr(exporter.derived.episodes, "MAX_EPISODES", 10)
    settings = {"data_dir": tmp_path / "data"}
    async with running(settings, clock.clock) as server:
        # Some of those that stand in one row of the log make room, others of it stay.
        await post(server, *[event("download_10", f"open{number}") for number in range(10)])
        assert {("1.0.0",): 10} == await shown(server, "downloads_in_flight", "version")
        failures = [[event("download_20", f"f{number}"), event("unzip_fail", f"f{number}")] for number in range(10)]
        for batch in failures[:5]:
            await post(server, *batch)
        left = killed(tmp_path / "data", tmp_path / "killed")
        for batch in failures[5:]:
            await post(server, *batch)
        skipped = "capgo_exporter_derived_skipped_total"
        assert (0, 10) == (
            len(await shown(server, "downloads_in_flight", "version")),
            await server.sample(skipped, reason="forgotten_download"),
        )
        assert {} == await shown(server, "update_failures_total", "reason")
        await post(server, *[event("update_fail", f"u{number}") for number in range(20)])
        await post(server, *[event("update_fail", f"v{number}") for number in range(5)])
        assert 10 == await server.sample("capgo_exporter_episodes")
        assert {("unzip_fail",): 10, ("update_fail",): 15} == await shown(server, "update_failures_total", "reason")
    expected = {("unzip_fail",): 10, ("update_fail",): 25}
    for _ in range(2):
        async with running(settings, clock.clock) as server:
            await settle(server, clock, 8000)
            assert expected == await shown(server, "update_failures_total", "reason")
            assert {("failed", "20"): 10} == await shown(server, "download_attempts_total", "outcome", "reached")
            assert {} == await shown(server, "downloads_in_flight", "version")
            assert {("failed",): 35} == await shown(server, "channel_updates_total", "outcome")
    async with running({"data_dir": left}, clock.clock) as server:
        assert {("1.0.0",): 5} == await shown(server, "downloads_in_flight", "version")
        await settle(server, clock)
        assert {("failed", "20"): 5, ("stalled", "10"): 5} == await shown(
            server, "download_attempts_total", "outcome", "reached"
        )


async def test_the_log_of_episodes_stays_in_proportion(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over thousands of changes few rows and bytes stay, although one download that stalled stands in the first."""
    monkeypatch.setattr(exporter.derived.episodes, "_SLACK_STATES", 50)
    size = "SELECT count(*), sum(length(states)) FROM episodes"
    async with running({"data_dir": tmp_path}, clock.clock) as server:
        await post(server, event("download_10", "stalled"))
        most = (0, 0)
        for number in range(600):
            device = f"d{number % 20}"
            await post(server, event("download_zip_start", device), event("download_complete", device))
            await settle(server, clock, 11)
            (found,) = query(tmp_path, size)
            most = (max(most[0], found[0]), max(most[1], found[1]))
        assert {("1.0.0",): 1} == await shown(server, "downloads_in_flight", "version")
        assert most[0] < 150
        assert most[1] < 40_000
        left = killed(tmp_path, tmp_path / "killed")
    async with running({"data_dir": left}, clock.clock) as server:
        await settle(server, clock, 7200)
        assert {("completed", "complete"): 600, ("stalled", "10"): 1} == await shown(
            server, "download_attempts_total", "outcome", "reached"
        )


def test_the_queue_of_episodes_is_bounded() -> None:
    """However many come and go within the two hours for which each is queued, it holds few more than there are."""
    episodes = Episodes()
    track = Track((APP, "ios", "1.0.0", "prod"))
    for number in range(1, 100_001):
        episode = episodes.begin(track, number)
        assert episode.add(Entry(number, Code.STEP_0))
        episodes.queue(episode)
        if number > 10:
            episodes.forget(track.episodes[number - 10])
    assert 10 == len(episodes)
    assert episodes._queued < 20_000  # noqa: SLF001 -- what takes the memory
    assert 10 == len(list(episodes.due(1 << 60)))


async def test_pairs_of_device_and_version_are_bounded(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest pairs are remembered, at least as many as promised, whichever transactions have some."""
    monkeypatch.setattr(exporter.journal.derived_store, "MIN_INSTALLED_PAIRS", 100)
    monkeypatch.setattr(exporter.journal.derived_store, "_PRUNE_EVERY", 8)
    async with running({"data_dir": tmp_path}, clock.clock) as server:
        for number in range(40):
            batch = [event("set", f"d{number * 10 + each}", platform="electron") for each in range(10)]
            await post(server, *batch)
            await post(server, event("get"))
            (found,) = query(tmp_path, "SELECT sum(count) FROM installed")
            assert min(100, number * 10 + 10) <= found[0] < 100 + 10 * 8
    async with running({"data_dir": tmp_path}, clock.clock) as server:
        await post(server, *[event("set", f"d{number}", platform="electron") for number in range(300, 400)])
        assert {("1.0.0",): 400} == await shown(server, "installs_total", "version")


@pytest.mark.parametrize("places", [1, 2])
async def test_devices_that_share_a_place_are_counted_each(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch, places: int
) -> None:
    """When one device takes another one's place among those that were seen today, both count, and once."""
    monkeypatch.setattr(exporter.derived.sightings, "_PLACE_SHIFT", 64 - places)
    async with running({}, clock.clock) as server:
        for number in range(3):
            for version in ("1.0.0", "2.0.0"):
                await post(server, *[event("get", f"d{n}", version_name=version) for n in range(50)])
            await post(server, event("unzip_fail", f"d{number}"), event("get", f"d{number}"))
        assert {("1d",): 50, ("7d",): 50, ("30d",): 50} == await shown(server, "devices", "window")
        versions = await shown(server, "version_devices", "version", "window")
        assert {"1.0.0": 50, "2.0.0": 50} == {
            version: count for (version, window), count in versions.items() if window == "1d"
        }
        affected = await shown(server, "version_affected_devices", "version", "window")
        assert {"1.0.0": 3} == {version: count for (version, window), count in affected.items() if window == "1d"}


async def test_snapshots_cut_the_log_of_sightings(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log of who was seen does not grow, after so many sightings or so much time, and no device is lost."""
    monkeypatch.setattr(exporter.derived.state, "_SNAPSHOT_AFTER_SIGHTINGS", 40)
    async with running({"data_dir": tmp_path}, clock.clock) as server:
        for number in range(100):
            await post(server, event("get", f"d{number}"))
            assert 22 >= rows(tmp_path, ["sightings"])["sightings"]
        clock.advance(301)
        await post(server, event("get", "last"))
        assert 1 == rows(tmp_path, ["sightings"])["sightings"]
        left = killed(tmp_path, tmp_path / "killed")
    for data_dir in (tmp_path, left):
        async with running({"data_dir": data_dir}, clock.clock) as server:
            assert {("1d",): 101, ("7d",): 101, ("30d",): 101} == await shown(server, "devices", "window")


# --- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("sweeps")
@pytest.mark.parametrize("restarts", [False, True], ids=["running", "while it was down"])
@pytest.mark.parametrize("days", [-365, -1, 1, 365])
async def test_a_clock_that_is_set_loses_no_failure(tmp_path: Path, days: int, *, restarts: bool) -> None:
    """Set back or ahead, with a failure and a download under way: they are counted in time, once, and none waits."""
    time = ManualClock(BEGAN_MS * 10**6 + 400 * int(DAY) * 10**9)
    settings = {"data_dir": tmp_path, "series_ttl": 1000 * DAY}

    async def go_on(server: Running) -> None:
        await settle(server, time)
        await post(server, event("unzip_fail", "b"), event("update_fail", "c"))
        await settle(server, time, 10)
        found = await shown(server, "update_failures_total", "reason")
        assert {("unzip_fail",): 2, ("update_fail",): 1} == found
        await settle(server, time, 7200)
        assert {} == await shown(server, "downloads_in_flight", "version")
        assert {("failed",): 2, ("stalled",): 1} == await shown(server, "download_attempts_total", "outcome")
        await settle(server, time, 400)
        assert 0 == await server.sample("capgo_exporter_episodes")

    async with running(settings, time.clock) as server:
        await settle(server, time)
        await post(server, event("unzip_fail", "a"), event("download_0", "open"))
        time.wall_ns += days * int(DAY) * 10**9
        if not restarts:
            await go_on(server)
    if restarts:
        async with running(settings, time.clock) as server:
            await go_on(server)


async def test_a_leap_of_the_clock_leaves_no_wrong_gauge(clock: ManualClock, sweeps: list[Expiry]) -> None:
    """If silent series are removed before a download has stalled, its gauge still ends at 0."""
    async with running({"series_ttl": TTL}, clock.clock) as server:
        await post(server, event("download_0"))
        clock.advance(365 * DAY)
        await sweeps[-1].sweep()
        assert {("1.0.0",): 1} == await shown(server, "downloads_in_flight", "version")
        await settle(server, clock)
        assert {} == await shown(server, "downloads_in_flight", "version")
        assert {("stalled",): 1} == await shown(server, "download_attempts_total", "outcome")
        clock.advance(365 * DAY)
        await sweeps[-1].sweep()
        assert {} == derived_lines(await server.metrics())


@pytest.mark.parametrize("when", ["staged with it", "while it is stored"])
async def test_a_histogram_goes_or_stays_as_a_whole(
    tmp_path: Path, clock: ManualClock, gate: Gate, sweeps: list[Expiry], when: str
) -> None:
    """An event that comes with the removal of its histogram is counted, on the page and after a restart."""
    launch: dict[str, Any] = {"metadata": {"duration_ms": "700"}}
    async with running({"data_dir": tmp_path, "series_ttl": TTL}, clock.clock) as server:
        await post(server, event("app_launch_ready", **launch), event("download_0"))
        await settle(server, clock, 8000)
        clock.advance(TTL + 1)
        gate.close()
        first = None
        if when == "staged with it":
            first = asyncio.create_task(server.post(event("get", version_name="2.0.0")))
            await entered(gate)
        sweep = asyncio.create_task(sweeps[-1].sweep())
        if when == "while it is stored":
            await entered(gate)
        second = asyncio.create_task(server.post([event("app_launch_ready", **launch), event("download_0")]))
        await until_staged(server, events=2)
        gate.open.set()
        await sweep
        if first:
            assert 200 == (await first).status
        assert 200 == (await second).status
        count = 2 if first else 1
        assert {("1.0.0",): count} == await shown(server, "launch_duration_seconds_count", "version")
        scraped = values(await server.metrics(scraper=True), "downloads_in_flight", "version")
        assert {("1.0.0",): 1} == scraped
        page = derived_lines(await server.metrics())
    async with running({"data_dir": tmp_path, "series_ttl": TTL}, clock.clock) as server:
        assert page == derived_lines(await server.metrics())
        await post(server, event("app_launch_ready", "d2", **launch))
        assert {("1.0.0",): count + 1} == await shown(server, "launch_duration_seconds_count", "version")


async def test_a_version_that_is_only_replaced_stays_known(
    tmp_path: Path, clock: ManualClock, sweeps: list[Expiry]
) -> None:
    """A restart forgets nothing of a version that sends no events any more, as long as others say they replaced it."""
    settings = {"data_dir": tmp_path, "series_ttl": 2 * DAY}
    known = ("version_first_seen_timestamp_seconds", "version")
    async with running(settings, clock.clock) as server:
        await post(server, *(event("set", f"old-{number}") for number in range(30)))
        for day in range(3):
            clock.advance(DAY)
            new: dict[str, Any] = {"version_name": "2.0.0", "old_version_name": "1.0.0"}
            await post(server, *(event("set", f"new-{day}-{number}", **new) for number in range(20)))
        await sweeps[-1].sweep()
        assert {"2.0.0"} == {key.version for key in await server.counters()}
        before = await shown(server, *known)
        assert {("1.0.0",), ("2.0.0",)} == before.keys()
    async with running(settings, clock.clock) as server:
        assert before == await shown(server, *known)


async def until_staged(server: Running, events: int) -> None:
    """Wait until so many events wait for their transaction."""
    committer = derivation(server)._following._committer  # noqa: SLF001 -- nothing else tells
    await wait_for(lambda: committer.group.events == events, "staged events")
