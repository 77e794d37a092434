"""The journal's file: all or nothing, bounded, and set aside rather than wiped."""

import hashlib
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from exporter.counters import EVENTS
from exporter.journal import store
from exporter.journal.codec import compress, decompress
from exporter.journal.lock import DirectoryLock, LockedError
from exporter.journal.opening import FILE_NAME, UnusableError, open_journal
from exporter.journal.reader import JournalReader
from exporter.journal.records import BirthRow, DeadLetter, Restored, SeriesRow, Totals, Transaction
from exporter.journal.schema import APPLICATION_ID, SCHEMA_VERSION
from exporter.journal.store import Journal
from tests.conftest import StartExporter
from tests.support.fakeinflux import ScriptedInflux, answer
from tests.support.inprocess import running
from tests.support.ports import wait_for

NOW_MS = 1_795_140_000_000
SERIES = SeriesRow(1, EVENTS.name, '["com.example.shop","ios","set","1.0.0","prod"]', 3, 0, NOW_MS)


def opened(data_dir: Path, *, max_bytes: int | None = None, max_event_ids: int = 1000) -> Journal:
    """Open the journal of a directory for writing."""
    found = open_journal(data_dir)
    return Journal(
        found.path, found.connection, found.restored.totals, max_bytes=max_bytes, max_event_ids=max_event_ids
    )


def reopened(data_dir: Path) -> Restored:
    """Open the journal of a directory, and return what it holds."""
    with closing((found := open_journal(data_dir)).connection):
        return found.restored


def set_aside_files(data_dir: Path) -> list[Path]:
    """Find what was set aside, without the files beside it that SQLite made."""
    return list(data_dir.glob(f"{FILE_NAME}.set-aside-*Z"))


def lines(count: int, text: str = "x") -> list[str]:
    """Make lines of points."""
    return [f'capgo_stats,action=set count=1i,message="{text}" {number}' for number in range(count)]


def event(number: int) -> dict[str, Any]:
    """Make an event of its own, with text that does not compress well."""
    message = hashlib.sha512(str(number).encode()).hexdigest() * 2
    return {"app_id": "a", "action": "set", "version_name": "1", "timestamp": NOW_MS + number, "message": message}


def test_a_transaction_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    """Series, values, births, ids, points and dead letters come back when the file is opened again."""
    journal = opened(tmp_path)
    ids = [1, 1 << 63, (1 << 64) - 1]
    journal.commit(Transaction(1, NOW_MS, new_series=[SERIES], event_ids=ids, lines=lines(3)))
    letter = DeadLetter("refused", "bad", lines(2))
    committed = journal.commit(
        Transaction(
            2,
            NOW_MS + 1,
            values=[(8, NOW_MS + 1, 1)],
            births=[BirthRow(2, 1)],
            event_ids=[7],
            lines=lines(1),
            delivered=[1],
            dead_letters=[letter],
        )
    )
    journal.close()
    assert 3 == committed.delivered_points
    restored = reopened(tmp_path)
    assert [SERIES._replace(value=8, birth=2, last_ms=NOW_MS + 1)] == restored.series
    assert [(NOW_MS, ids), (NOW_MS + 1, [7])] == restored.event_ids
    assert committed.totals == restored.totals
    assert (2, 1, 4, 2) == (
        restored.totals.last_transaction,
        restored.totals.points,
        restored.totals.event_ids,
        restored.totals.dead_letter_points,
    )
    assert NOW_MS + 1 == restored.totals.oldest_point_ms
    reader = JournalReader(tmp_path / FILE_NAME)
    assert [(2, lines(1))] == [(row.number, decompress(row.lines)) for row in reader.read(0, 100)]
    reader.close()


def test_a_transaction_is_stored_whole_or_not_at_all(tmp_path: Path) -> None:
    """When one of its parts cannot be stored, none is, and the totals stay."""
    journal = opened(tmp_path)
    journal.commit(Transaction(1, NOW_MS, new_series=[SERIES], lines=lines(1)))
    before = journal.totals
    broken = Transaction(2, NOW_MS, new_series=[SERIES._replace(series_id=2), SERIES], event_ids=[5], lines=lines(9))
    with pytest.raises(store.CommitFailedError) as failure:
        journal.commit(broken)
    assert failure.value.is_certain
    assert before == journal.totals
    journal.commit(Transaction(2, NOW_MS, lines=lines(2)))
    journal.close()
    restored = reopened(tmp_path)
    assert ([SERIES], [], 3) == (restored.series, restored.event_ids, restored.totals.points)


def damage_header(path: Path) -> None:
    """Write garbage over the file's head."""
    with path.open("r+b") as file:
        file.write(b"garbage!" * 64)


def damage_by_cutting(path: Path) -> None:
    """Cut the file in the middle of a page."""
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2 + 100)


def damage_by_cutting_the_header(path: Path) -> None:
    """Cut the file within its header."""
    with path.open("r+b") as file:
        file.truncate(60)


def damage_table(path: Path, table: str) -> None:
    """Write garbage over the first page of a table."""
    with closing(sqlite3.connect(path)) as connection:
        page = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()[0]
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


def damage_by_sql(path: Path, statement: str) -> None:
    """Change what is stored as nobody should, or as a flipped bit does that SQLite does not notice."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)


def make_foreign(path: Path) -> None:
    """Put the database of another program there."""
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE contacts (name TEXT)")
        connection.execute("INSERT INTO contacts VALUES ('Ada')")
        connection.commit()


def make_text(path: Path) -> None:
    """Put a text there."""
    path.write_text("Dear diary, " * 100)


DAMAGING = (
    "DROP TABLE event_ids",
    "DELETE FROM state",
    "UPDATE state SET last_transaction = 'some'",
    "UPDATE event_ids SET ids = substr(ids, 1, 13)",
    "UPDATE event_ids SET now_ms = 'now'",
    "UPDATE series SET value = 'many'",
    "UPDATE series SET labels = x'ff'",
    "UPDATE series SET birth = 9",
)


def name_of_damage(value: object) -> str | None:
    """Name a test by its damage; functions and reasons name themselves."""
    return " ".join(value.keywords.values()) if isinstance(value, partial) else None


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_header, "damaged"),
        (damage_by_cutting, "damaged"),
        (damage_by_cutting_the_header, "damaged"),
        *((partial(damage_table, table=table), "damaged") for table in ("series", "state", "event_ids")),
        *((partial(damage_by_sql, statement=statement), "damaged") for statement in DAMAGING),
        (make_foreign, "another program"),
        (make_text, "damaged"),
    ],
    ids=name_of_damage,
)
async def test_a_file_that_cannot_be_used_is_set_aside(tmp_path: Path, damage: Any, reason: str) -> None:
    """It is renamed, byte for byte as it was, with a clear reason, and the exporter starts and counts."""
    data_dir = tmp_path / "data"
    async with running({"data_dir": data_dir}) as server:
        assert 200 == (await server.post([event(number) for number in range(300)])).status
    path = data_dir / FILE_NAME
    damage(path)
    content = path.read_bytes()
    shutil.copytree(data_dir, tmp_path / "copy")
    with closing((found := open_journal(tmp_path / "copy")).connection):
        assert found.set_aside is not None
        assert reason in found.set_aside[1]
    async with running({"data_dir": data_dir}) as server:
        (kept,) = set_aside_files(data_dir)
        assert content == kept.read_bytes()
        assert 1 == await server.sample("capgo_exporter_journal_set_aside")
        assert 200 == (await server.post(event(1))).status
        assert [1] == list((await server.counters()).values())
        # What a crash would leave now: nothing of the old file may have taken the new one's write-ahead log away.
        shutil.copytree(data_dir, tmp_path / "crashed", ignore=shutil.ignore_patterns("*.sock"))
    assert 1 == reopened(tmp_path / "crashed").totals.points
    async with running({"data_dir": data_dir}) as server:
        assert [1] == list((await server.counters()).values())
        assert 0 == await server.sample("capgo_exporter_journal_set_aside")


def leave(source: sqlite3.Connection, data_dir: Path) -> dict[str, bytes]:
    """Leave the journal's file as the crash of a program would that has it open; gives what stands in which file."""
    path = Path(source.execute("PRAGMA database_list").fetchone()[2])
    for ending in ("", "-wal", "-journal"):
        if path.with_name(path.name + ending).exists():
            shutil.copyfile(path.with_name(path.name + ending), data_dir / (FILE_NAME + ending))
    return {file.name: file.read_bytes() for file in data_dir.iterdir()}


def test_a_foreign_file_keeps_what_was_not_merged(tmp_path: Path) -> None:
    """What a crashed program left in its write-ahead log is set aside with the file, byte for byte as it was."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    with closing(sqlite3.connect(tmp_path / "theirs", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE contacts (name TEXT)")
        connection.execute("INSERT INTO contacts VALUES ('Ada')")
        left = leave(connection, data_dir)
    assert {FILE_NAME, f"{FILE_NAME}-wal"} == set(left)
    with closing((found := open_journal(data_dir)).connection):
        assert found.set_aside is not None
        path, reason = found.set_aside
    assert "an SQLite file of another program" == reason
    assert left == {name: (data_dir / name.replace(FILE_NAME, path.name)).read_bytes() for name in left}
    with closing(sqlite3.connect(path)) as connection:
        assert [("Ada",)] == connection.execute("SELECT name FROM contacts").fetchall()


def test_a_foreign_file_keeps_what_was_not_rolled_back(tmp_path: Path) -> None:
    """A rollback journal stays with its file, so that its program can still undo what it had begun."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    with closing(sqlite3.connect(tmp_path / "theirs", isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 5")
        connection.execute("CREATE TABLE contacts (name TEXT)")
        connection.executemany("INSERT INTO contacts VALUES (?)", [("Ada" * 500,)] * 100)
        connection.execute("BEGIN")
        connection.execute("UPDATE contacts SET name = 'Bob'")  # More than the cache holds, so part of it is written.
        left = leave(connection, data_dir)
    assert {FILE_NAME, f"{FILE_NAME}-journal"} == set(left)
    with closing((found := open_journal(data_dir)).connection):
        assert found.set_aside is not None
        path, _ = found.set_aside
    assert left == {name: (data_dir / name.replace(FILE_NAME, path.name)).read_bytes() for name in left}
    with closing(sqlite3.connect(path)) as connection:
        assert [("Ada" * 500,)] == connection.execute("SELECT DISTINCT name FROM contacts").fetchall()


def test_a_newer_journal_of_a_killed_exporter_is_left_alone(tmp_path: Path) -> None:
    """What it left in its write-ahead log is not merged either: the newer exporter finds its files as they were."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (tmp_path / "newer").mkdir()
    with closing((made := open_journal(tmp_path / "newer")).connection):
        made.connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        left = leave(made.connection, data_dir)
    assert {FILE_NAME, f"{FILE_NAME}-wal"} == set(left)
    with pytest.raises(UnusableError, match="made by a newer exporter"):
        open_journal(data_dir)
    assert left == {name: (data_dir / name).read_bytes() for name in left}
    assert [] == set_aside_files(data_dir)


def test_a_journal_that_cannot_be_opened_is_not_set_aside(tmp_path: Path) -> None:
    """Trouble that moving the file would not mend ends the start, with the path in the message."""
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(UnusableError, match=f"{FILE_NAME}: cannot be used: unable to open database file"):
        open_journal(tmp_path)
    assert [] == set_aside_files(tmp_path)


@pytest.mark.parametrize("form", ["empty", "without tables"])
async def test_a_file_that_was_never_filled_is_filled(tmp_path: Path, form: str) -> None:
    """A process killed while it made the file leaves an empty one, or one without tables; that is no damage."""
    path = tmp_path / FILE_NAME
    path.touch()
    if form == "without tables":
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
    async with running({"data_dir": tmp_path}) as server:
        assert 200 == (await server.post(event(1))).status
        assert 0 == await server.sample("capgo_exporter_journal_set_aside")
    assert [] == set_aside_files(tmp_path)


async def test_the_journal_of_a_newer_exporter_is_left_alone(exporter_process: StartExporter) -> None:
    """It is neither read nor set aside: the start ends with one line that says what to do, and exit code 4."""
    exporter = await exporter_process()
    await exporter.terminate()
    path = exporter.data_dir / FILE_NAME
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    content = path.read_bytes()
    exporter.spawn()
    assert 4 == await exporter.wait()
    (line,) = (entry["raw"] for entry in exporter.logs())
    assert f"made by a newer exporter (schema {SCHEMA_VERSION + 1}, this one knows {SCHEMA_VERSION})" in line
    assert content == path.read_bytes()
    with pytest.raises(UnusableError, match="newer exporter"):
        open_journal(exporter.data_dir)
    assert APPLICATION_ID == int.from_bytes(content[68:72])
    assert [] == set_aside_files(exporter.data_dir)


def test_a_directory_has_one_exporter(tmp_path: Path) -> None:
    """A second lock is refused with the way out, until the first one is let go of."""
    with DirectoryLock(tmp_path), pytest.raises(LockedError, match=r"in use by another exporter.*EXPORTER_DATA_DIR"):
        DirectoryLock(tmp_path)
    with DirectoryLock(tmp_path):
        pass


async def test_a_full_journal_drops_the_oldest_points_and_goes_on_counting(tmp_path: Path) -> None:
    """The bound holds, every dropped point is counted, and neither counters nor remembered events suffer."""
    bound = 1 << 16
    async with running({"data_dir": tmp_path, "journal_max_bytes": bound}) as server:
        for start in range(0, 2000, 100):
            assert 200 == (await server.post([event(number) for number in range(start, start + 100)])).status
            assert bound >= await server.sample("capgo_exporter_journal_bytes")
        waiting = server.points()
        dropped = await server.sample("capgo_exporter_journal_dropped_points_total")
        assert dropped > 0
        assert 2000 == len(waiting) + dropped
        assert len(waiting) == await server.sample("capgo_exporter_journal_points")
        assert NOW_MS + 1999 == max(point.time_ns // 10**6 for point in waiting)
        assert 200 == (await server.post([event(number) for number in range(2000)])).status
        assert [2000] == list((await server.counters()).values())


async def test_a_full_journal_refuses_events_if_told_so(tmp_path: Path, scripted_influx: ScriptedInflux) -> None:
    """With `reject`, events are refused with 503 and no point is lost; once InfluxDB takes points, events are taken."""
    scripted_influx.default = answer(503)
    settings = {
        "data_dir": tmp_path,
        "journal_max_bytes": 1 << 16,
        "journal_full": "reject",
        "influx_url": scripted_influx.url,
    }
    async with running(settings) as server:
        sent = 0
        while (reply := await server.post([event(number) for number in range(sent, sent + 100)])).status == 200:
            sent += 100
        assert sent > 0
        assert (503, True) == (reply.status, int(reply.headers["Retry-After"]) > 0)
        assert 0 == await server.sample("capgo_exporter_journal_dropped_points_total")
        scripted_influx.default = answer(204)

        async def takes_events() -> bool:
            return (await server.post([event(number) for number in range(sent, sent + 100)])).status == 200

        await wait_for(takes_events, "events are still refused")
        assert [sent + 100] == list((await server.counters()).values())

        async def all_delivered() -> bool:
            return scripted_influx.store_count == sent + 100

        await wait_for(all_delivered, "not all points were delivered")


def test_dead_letters_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the bound the oldest leave, and are counted."""
    monkeypatch.setattr(store, "MAX_DEAD_LETTER_BYTES", 1000)
    journal = opened(tmp_path)
    dropped = 0
    for number in range(1, 41):
        letters = [DeadLetter("refused", f"error {number}", lines(2, str(number)))]
        committed = journal.commit(Transaction(number, NOW_MS, dead_letters=letters))
        dropped += committed.dropped_dead_letter_points
        assert committed.totals.dead_letter_bytes <= 1000
    kept = journal.totals.dead_letter_points
    assert 80 == kept + dropped
    assert 0 < kept < 80
    journal.close()
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        errors = [row[0] for row in connection.execute("SELECT error FROM dead_letters ORDER BY id")]
    assert [f"error {number}" for number in range(41 - kept // 2, 41)] == errors


@pytest.mark.parametrize("damage", [1 << 40, -(1 << 40), 0, "x"])
@pytest.mark.parametrize("column", ["points", "bytes", "event_ids", "dead_letter_points", "dead_letter_bytes"])
def test_a_damaged_total_is_counted_anew(tmp_path: Path, column: str, damage: Any) -> None:
    """Nothing that is there is dropped for a total that a flipped bit made, not even after an error."""
    journal = opened(tmp_path)
    letters = [DeadLetter("refused", "bad", lines(2))]
    totals = journal.commit(Transaction(1, NOW_MS, event_ids=[1, 2], lines=lines(3), dead_letters=letters)).totals
    journal.close()
    with closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as connection:
        value = damage if damage in (0, "x") else getattr(totals, column) + damage
        connection.execute(f"UPDATE state SET {column} = ?", (value,))  # noqa: S608 -- fixed names
    journal = opened(tmp_path, max_bytes=1 << 20)
    assert totals == journal.totals
    journal.recover()
    committed = journal.commit(Transaction(2, NOW_MS, lines=lines(1)))
    assert (4, 2, 2) == (committed.totals.points, committed.totals.event_ids, committed.totals.dead_letter_points)
    assert ({}, 0) == (committed.dropped, committed.dropped_dead_letter_points)
    journal.close()
    assert (committed.totals, False) == ((restored := reopened(tmp_path)).totals, restored.is_recounted)


def test_a_total_that_is_wrong_drops_what_is_there_and_no_more(tmp_path: Path) -> None:
    """A total far past its bound ends no transaction's life: once nothing is left, it is 0."""
    journal = opened(tmp_path)
    letters = [DeadLetter("refused", "bad", lines(2))]
    journal.commit(Transaction(1, NOW_MS, lines=lines(3), dead_letters=letters))
    journal.close()
    found = open_journal(tmp_path)
    wrong = replace(found.restored.totals, bytes=1 << 40, dead_letter_bytes=1 << 40)
    journal = Journal(found.path, found.connection, wrong, max_bytes=1 << 20, max_event_ids=1000)
    committed = journal.commit(Transaction(2, NOW_MS, lines=lines(1)))
    assert ({1: 3, 2: 1}, 2) == (committed.dropped, committed.dropped_dead_letter_points)
    assert Totals(last_transaction=2) == committed.totals
    assert {} == journal.commit(Transaction(3, NOW_MS, lines=lines(1))).dropped
    journal.close()


def test_groups_that_are_read_and_not_found_are_damage(tmp_path: Path) -> None:
    """A full journal whose oldest group has a number out of order is to be repaired, and not tried for ever."""
    journal = opened(tmp_path)
    for number in range(1, 6):
        journal.commit(Transaction(number, NOW_MS, lines=lines(1)))
    size = journal.totals.bytes
    journal.close()
    path = tmp_path / FILE_NAME
    with closing(sqlite3.connect(path)) as connection:
        page = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'points'").fetchone()[0]
        page_size = connection.execute("PRAGMA page_size").fetchone()[0]
    content = bytearray(path.read_bytes())
    start = (page - 1) * page_size
    first_cell = start + int.from_bytes(content[start + 8 : start + 10])  # a leaf's head takes 8 bytes
    number_at = first_cell + (2 if content[first_cell] > 127 else 1)  # behind the length
    assert 1 == content[number_at]
    content[number_at] = 100
    path.write_bytes(content)
    journal = opened(tmp_path, max_bytes=size)
    with pytest.raises(store.CommitFailedError) as failure:
        journal.commit(Transaction(6, NOW_MS, lines=lines(1)))
    assert (True, True) == (failure.value.is_damage, failure.value.is_certain)
    journal.close()


def test_remembered_ids_are_pruned_but_not_too_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least the promised number stays, the newest ones, and the rows do not grow without end."""
    monkeypatch.setattr(store, "_ID_ROWS_SLACK", 50)
    journal = opened(tmp_path, max_event_ids=1000)
    for number in range(1, 500):
        ids = list(range(number * 10, number * 10 + 10))
        totals = journal.commit(Transaction(number, NOW_MS, event_ids=ids)).totals
        assert min(number * 10, 1000) <= totals.event_ids < 1000 + 50 + 10
    journal.close()
    kept = [event_id for _, ids in reopened(tmp_path).event_ids for event_id in ids]
    assert len(kept) >= 1000
    assert list(range(5000 - len(kept), 5000)) == kept


def test_damaged_points_are_an_error_that_can_be_handled() -> None:
    """Compressed lines come back, and bytes that are no gzip member are a ValueError."""
    blob = compress(lines(100))
    assert lines(100) == decompress(blob)
    for damaged in (b"garbage", blob[:-9], blob[:20] + b"\x00\xff" * 10 + blob[40:]):
        with pytest.raises(ValueError, match="damaged"):
            decompress(damaged)


def test_the_reader_reads_in_order_and_within_its_bound(tmp_path: Path) -> None:
    """It gives as many groups as fit, at least one, after the last one that was read."""
    journal = opened(tmp_path)
    for number, count in enumerate((5, 5, 50, 5), 1):
        journal.commit(Transaction(number, NOW_MS, lines=lines(count)))
    reader = JournalReader(tmp_path / FILE_NAME)
    assert [1, 2] == [row.number for row in reader.read(0, 20)]
    assert [3] == [row.number for row in reader.read(2, 20)]
    assert [4] == [row.number for row in reader.read(3, 20)]
    assert [] == reader.read(4, 20)
    reader.close()
    journal.close()


def test_new_totals_are_all_zero(tmp_path: Path) -> None:
    """A new journal holds nothing."""
    assert Totals() == reopened(tmp_path).totals
