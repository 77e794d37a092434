"""A damaged journal is salvaged: what can be read is kept, all of it, whatever happens meanwhile."""

import asyncio
import hashlib
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from exporter.counters import EVENTS
from exporter.journal import gaps
from exporter.journal.codec import decompress
from exporter.journal.gaps import POINTS, GapReader
from exporter.journal.opening import FILE_NAME, open_journal
from exporter.journal.records import DeadLetter, SeriesRow, Transaction
from exporter.journal.salvage import Salvage
from exporter.journal.store import Journal
from exporter.repair import AGAIN_SECONDS, Repairs
from exporter.telemetry import Telemetry
from exporter.tools.keeper import Local
from exporter.worker import Worker
from tests.support.inprocess import ManualClock

NOW_MS = 1_795_140_000_000
SERIES = SeriesRow(1, EVENTS.name, '["com.example.shop","ios","set","1.0.0","prod"]', 3, 0, NOW_MS)
GROUPS = 400


def opened(data_dir: Path) -> Journal:
    """Open the journal of a directory for writing."""
    found = open_journal(data_dir)
    return Journal(found.path, found.connection, found.restored.totals, max_bytes=None, max_event_ids=1000)


def line(number: int) -> str:
    """Make a line that does not compress well."""
    return f'capgo_stats count=1i,message="{hashlib.sha512(str(number).encode()).hexdigest()}" {number}'


def group(number: int, **more: Any) -> Transaction:
    """Make a transaction with points and an identity; every tenth number is one without points."""
    lines = [] if number % 10 == 0 else [line(number), line(number + 10**6)]
    return Transaction(number, NOW_MS + number, event_ids=[number], lines=lines, **more)


def fill(data_dir: Path) -> Journal:
    """Make a journal with a few dozen pages of points, a counter, ids, and a dead letter."""
    data_dir.mkdir(exist_ok=True)
    journal = opened(data_dir)
    journal.commit(group(1, new_series=[SERIES], dead_letters=[DeadLetter("refused", "bad", ["x"])]))
    for number in range(2, GROUPS + 1):
        journal.commit(group(number))
    return journal


def pages(path: Path, table: str, kind: str) -> list[int]:
    """Find the pages of a table, in order; everything is merged into the file before."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return [
            page
            for (page,) in connection.execute(
                "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = ? ORDER BY path", (table, kind)
            )
        ]


def spoil(path: Path, *damaged: int) -> None:
    """Write garbage over pages."""
    with path.open("r+b") as file:
        for page in damaged:
            file.seek((page - 1) * 4096)
            file.write(b"\xff" * 4096)


def is_readable(connection: sqlite3.Connection, number: int) -> bool:
    """Tell whether a group is there and can be read by its number alone."""
    try:
        return connection.execute("SELECT * FROM points WHERE number = ?", (number,)).fetchone() is not None
    except sqlite3.DatabaseError:
        return False


def readable(path: Path) -> set[int]:
    """Find the groups that can be read, one by one."""
    with closing(sqlite3.connect(path)) as connection:
        return {number for number in range(1, GROUPS + 10) if is_readable(connection, number)}


def files(data_dir: Path) -> set[str]:
    """Name the files that are there, but not those that SQLite keeps beside the journal."""
    return {path.name for path in data_dir.iterdir()} - {f"{FILE_NAME}-wal", f"{FILE_NAME}-shm"}


def waiting(path: Path) -> list[int]:
    """Return the numbers of the groups that wait, and compare their lines and the totals with what they should be."""
    with closing(sqlite3.connect(path)) as connection:
        assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall()
        rows = connection.execute("SELECT number, count, bytes, lines FROM points ORDER BY number").fetchall()
        assert [group(number).lines for number, *_ in rows] == [decompress(lines) for *_, lines in rows]
        totals = connection.execute("SELECT points, bytes FROM state").fetchone()
        assert (sum(count for _, count, _, _ in rows), sum(size for _, _, size, _ in rows)) == totals
    return [number for number, *_ in rows]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal that is not damaged; it is copied, never changed."""
    data_dir = tmp_path_factory.mktemp("sound")
    fill(data_dir).close()
    return data_dir / FILE_NAME


@pytest.fixture
def copied(sound: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copy(sound, tmp_path / FILE_NAME))


# --- what is kept -----------------------------------------------------------------------------------------------------


@given(data=st.data())
def test_every_row_that_can_be_read_is_found(sound: Path, tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """Whichever pages are damaged, the rows are those that a look at each single number finds."""
    path = Path(shutil.copy(sound, tmp_path_factory.mktemp("damaged")))
    leaves = pages(path, "points", "leaf")
    assert len(leaves) > 10
    spoil(path, *data.draw(st.sets(st.sampled_from(leaves), max_size=6)))
    expected = readable(path)
    with closing(sqlite3.connect(path)) as connection:
        found = [row[0] for rows in GapReader(connection, POINTS).read(1, GROUPS) for row in rows]
    assert sorted(expected) == sorted(found)


def test_rows_between_gaps_are_found_at_the_end_of_a_long_history(copied: Path) -> None:
    """They are also when the first rows cannot be read, and there may have been billions before them."""
    leaves = pages(copied, "points", "leaf")
    spoil(copied, leaves[0], leaves[2], *leaves[5:8], leaves[-3], leaves[-1])
    with closing(sqlite3.connect(copied)) as connection:
        found = [row[0] for rows in GapReader(connection, POINTS).read(-(1 << 33), GROUPS) for row in rows]
    assert sorted(readable(copied)) == sorted(found)


def test_a_table_without_a_root_costs_little(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for rows that nothing leads to any more ends, and all else is kept."""
    monkeypatch.setattr(gaps, "MAX_FAILURES", 50)
    spoil(copied, *pages(copied, "points", "internal"))
    found = open_journal(copied.parent)
    found.connection.close()
    assert found.salvaged is not None
    assert [SERIES] == found.restored.series
    points = len([number for number in range(1, GROUPS + 1) for _ in group(number).lines])
    assert (points, 0, 1) == (
        found.salvaged.lost_points,
        found.restored.totals.points,
        found.restored.totals.dead_letter_points,
    )
    assert [] == waiting(copied)


def test_rows_with_values_of_wrong_types_are_left_out(copied: Path) -> None:
    """A row that a flipped bit has changed is lost, and only that."""
    with closing(sqlite3.connect(copied, isolation_level=None)) as connection:
        connection.execute("UPDATE points SET count = 'many' WHERE number = 207")
    spoil(copied, pages(copied, "points", "leaf")[0])
    expected = readable(copied) - {207}
    assert len(expected) < len(readable(copied))
    open_journal(copied.parent).connection.close()
    assert sorted(expected) == waiting(copied)


def test_an_oldest_row_without_its_time_is_left_out(copied: Path) -> None:
    """The totals tell how long the oldest group waits, so that one is read at the start."""
    with closing(sqlite3.connect(copied, isolation_level=None)) as connection:
        connection.execute("UPDATE points SET now_ms = 'x' WHERE number = (SELECT min(number) FROM points)")
    expected = sorted(readable(copied))[1:]
    open_journal(copied.parent).connection.close()
    assert expected == waiting(copied)


def test_dead_letters_have_gaps_too(copied: Path) -> None:
    """Points, counters and ids are kept, and the totals know that the dead letters are gone."""
    spoil(copied, pages(copied, "dead_letters", "leaf")[0], pages(copied, "points", "leaf")[0])
    found = open_journal(copied.parent)
    found.connection.close()
    assert found.salvaged is not None
    assert (1, 0) == (found.salvaged.lost_dead_letter_points, found.restored.totals.dead_letter_points)
    assert [SERIES] == found.restored.series
    assert list(range(1, GROUPS + 1)) == [number for _, ids in found.restored.event_ids for number in ids]


# --- what happens meanwhile -------------------------------------------------------------------------------------------


def test_transactions_during_a_salvage_are_kept(tmp_path: Path) -> None:
    """What was delivered does not come back, what came in is there, before and after the points were copied."""
    journal = fill(tmp_path)
    reader = journal.reader()
    reader.read(0, 10)
    leaves = pages(journal.path, "points", "leaf")
    spoil(journal.path, leaves[len(leaves) // 2])
    expected = readable(journal.path)
    salvage = Salvage(journal.path)
    until = journal.begin_salvage()
    salvage.begin()
    journal.commit(group(GROUPS + 1, delivered=[1, 2]))
    salvage.copy_points(until)
    journal.commit(group(GROUPS + 2, delivered=[3, GROUPS - 1]))
    copied = salvage.steps
    salvaged = journal.adopt(salvage)
    assert 0 < copied < salvage.steps  # the watchdog is told that both halves get on
    journal.commit(group(GROUPS + 3, delivered=[4, GROUPS + 2]))
    rows = reader.read(0, 10**6)
    expected = expected - {1, 2, 3, 4, GROUPS - 1} | {GROUPS + 1, GROUPS + 3}
    assert sorted(expected) == [row.number for row in rows]
    reader.close()
    journal.close()
    assert sorted(expected) == waiting(journal.path)
    restored = open_journal(tmp_path)
    restored.connection.close()
    assert (GROUPS + 3, [SERIES]) == (restored.restored.totals.last_transaction, restored.restored.series)
    assert restored.salvaged is None
    gone = {number for number in range(1, GROUPS + 1) if number % 10} - expected - {1, 2, 3, 4, GROUPS - 1}
    assert 2 * len(gone) == salvaged.lost_points


class Crashes:
    """Copies a data directory before each change of a name in it and before each fsync: what a crash would leave."""

    def __init__(self, journal: Journal, copies: Path) -> None:
        """Take the journal, and an empty directory."""
        self._journal = journal
        self._copies = copies
        self.found: list[tuple[Path, int]] = []

    def observe(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Make a function that copies first."""

        def observed(*args: Any, **options: Any) -> Any:
            copy = self._copies / str(len(self.found))
            shutil.copytree(self._journal.path.parent, copy)
            self.found.append((copy, self._journal.totals.last_transaction))
            return function(*args, **options)

        return observed


def test_a_crash_at_any_moment_of_a_salvage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next start finds the old file or the new one, with each transaction stored by then and what is readable."""
    journal = fill(tmp_path / "data")
    leaves = pages(journal.path, "points", "leaf")
    spoil(journal.path, leaves[len(leaves) // 2])
    at_first = readable(journal.path)
    crashes = Crashes(journal, tmp_path / "copies")
    for module, name in ((os, "link"), (os, "fsync"), (Path, "replace"), (Path, "unlink")):
        monkeypatch.setattr(module, name, crashes.observe(getattr(module, name)))
    salvage = Salvage(journal.path)
    until = journal.begin_salvage()
    salvage.begin()
    journal.commit(group(GROUPS + 1, delivered=[1]))
    salvage.copy_points(until)
    journal.commit(group(GROUPS + 2, delivered=[2]))
    journal.adopt(salvage)
    salvage.discard()
    monkeypatch.undo()
    journal.close()
    were_new = set()
    for crash, last in crashes.found:
        found = open_journal(crash)
        found.connection.close()
        assert (last, [SERIES]) == (found.restored.totals.last_transaction, found.restored.series)
        assert list(range(1, last + 1)) == [number for _, ids in found.restored.event_ids for number in ids]
        expected = at_first - set(range(1, last - GROUPS + 1)) | set(range(GROUPS + 1, last + 1))
        assert expected == readable(crash / FILE_NAME)
        assert not (crash / f"{FILE_NAME}.new").exists()
        were_new.add((crash / f"{FILE_NAME}.damaged").exists())
    assert ({True, False}, True) == (were_new, len(crashes.found) > 6)


# --- when it cannot be done -------------------------------------------------------------------------------------------


class Repaired:
    """A journal with its repairs.

    Attributes:
        time: the repairs' clock.
        telemetry: where they count.
    """

    def __init__(self, journal: Journal, thread: Worker) -> None:
        """Put them together."""
        self.time = ManualClock()
        self.telemetry = Telemetry()
        self.repairs = Repairs(journal, thread, self.telemetry, self.time.clock.monotonic)

    async def run(self) -> bool:
        """Repair what was found now."""
        return await self.repairs.run(self.repairs.done)

    def count(self) -> tuple[float | None, float | None]:
        """Return how many repairs there were, and how many points were lost."""
        registry = self.telemetry.registry
        return (
            registry.get_sample_value("capgo_exporter_journal_repairs_total"),
            registry.get_sample_value("capgo_exporter_journal_lost_points_total"),
        )


@pytest.fixture
def thread() -> Iterator[Worker]:
    """The journal's thread."""
    worker = Worker("journal")
    yield worker
    worker.finish()


async def test_no_room_for_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thread: Worker) -> None:
    """It is told once and tried again after a minute; nothing is changed until there is room."""
    journal = fill(tmp_path)
    spoil(journal.path, pages(journal.path, "points", "leaf")[3])
    expected = readable(journal.path)
    repaired = Repaired(journal, thread)
    usage = shutil.disk_usage(tmp_path)
    with capture_logs() as logs, monkeypatch.context() as small:
        small.setattr(shutil, "disk_usage", lambda _: usage._replace(free=64 << 20))
        for _ in range(3):
            assert not await repaired.run()
            repaired.time.advance(AGAIN_SECONDS)
        repaired.time.advance(-1)
    assert not await repaired.run()
    (line,) = logs
    assert "are needed for a new file" in line["error"]
    assert ((0, 0), expected) == (repaired.count(), readable(journal.path))
    assert {FILE_NAME} == files(tmp_path)
    repaired.time.advance(1)
    assert await repaired.run()
    journal.close()
    assert sorted(expected) == waiting(journal.path)
    assert 1 == repaired.count()[0] == repaired.repairs.done
    assert await repaired.repairs.run(0)
    assert 1 == repaired.repairs.done


async def test_a_damaged_file_is_kept_only_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thread: Worker
) -> None:
    """The last one is kept; on a disk that is nearly full, none."""
    journal = fill(tmp_path)
    repaired = Repaired(journal, thread)
    kept = tmp_path / f"{FILE_NAME}.damaged"
    for _ in range(2):
        page = pages(journal.path, "points", "leaf")[3]
        spoil(journal.path, page)
        content = journal.path.read_bytes()
        assert all(await asyncio.gather(repaired.run(), repaired.run()))  # both have found it
        assert content == kept.read_bytes()
    assert 2 == repaired.repairs.done
    room = [1 << 40, 64 << 20]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=room.pop(0)))
    assert await repaired.run()
    assert not kept.exists()
    journal.close()


async def test_a_vacuum_leaves_a_damaged_file_alone(tmp_path: Path, thread: Worker) -> None:
    """Points were lost with it; only people delete it. Of the vacuum itself nothing is left over."""
    journal = fill(tmp_path)
    damaged = tmp_path / f"{FILE_NAME}.damaged"
    damaged.write_bytes(b"what was lost")
    repaired = Repaired(journal, thread)
    assert await repaired.repairs.vacuum()
    journal.close()
    await Local(journal.path).vacuum()
    assert (b"what was lost", {FILE_NAME, damaged.name}) == (damaged.read_bytes(), files(tmp_path))


@pytest.mark.parametrize("mode", [0o600, 0o640])
async def test_the_new_file_is_whose_the_old_one_was(tmp_path: Path, thread: Worker, mode: int) -> None:
    """Root may vacuum, and the exporter's user can open it afterwards; nobody else can who could not before."""
    journal = fill(tmp_path)
    owner = (65534, 65534) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(journal.path, *owner)
    journal.path.chmod(mode)
    assert await Repaired(journal, thread).repairs.vacuum()
    journal.close()
    status = journal.path.stat()
    assert (mode, owner) == (stat.S_IMODE(status.st_mode), (status.st_uid, status.st_gid))


async def test_damaged_counters_are_not_salvaged(tmp_path: Path, thread: Worker) -> None:
    """What the counters are stored in has to be whole: the file stays as it is, and a start sets it aside as ever."""
    journal = fill(tmp_path)
    spoil(journal.path, pages(journal.path, "points", "leaf")[3], *pages(journal.path, "series", "leaf"))
    content = journal.path.read_bytes()
    repaired = Repaired(journal, thread)
    with capture_logs() as logs:
        assert not await repaired.run()
    assert ["series: database disk image is malformed"] == [line["error"] for line in logs]
    assert content == journal.path.read_bytes()
    journal.close()
    found = open_journal(tmp_path)
    found.connection.close()
    assert found.set_aside is not None
    assert found.salvaged is None
    assert content == found.set_aside[0].read_bytes()


async def test_a_reader_of_the_old_file_is_waited_for(tmp_path: Path, thread: Worker) -> None:
    """While another program, such as a backup, reads a file that it would lose, it is not replaced."""
    journal = fill(tmp_path)
    spoil(journal.path, pages(journal.path, "points", "leaf")[3])
    journal.commit(group(GROUPS + 1))
    repaired = Repaired(journal, thread)
    with closing(sqlite3.connect(journal.path, isolation_level=None)) as backup:
        backup.execute("BEGIN")
        backup.execute("SELECT count(*) FROM state").fetchone()
        journal.commit(group(GROUPS + 2))
        assert not await repaired.run()
        journal.commit(group(GROUPS + 3))
    expected = readable(journal.path)
    assert {GROUPS + 1, GROUPS + 2, GROUPS + 3} <= expected
    repaired.time.advance(AGAIN_SECONDS)
    assert await repaired.run()
    journal.close()
    assert sorted(expected) == waiting(journal.path)


async def test_a_program_that_has_the_old_file_open(tmp_path: Path, thread: Worker) -> None:
    """It goes on seeing the old file, and neither it nor what it leaves takes anything from the new one."""
    journal = fill(tmp_path / "data")
    spoil(journal.path, pages(journal.path, "points", "leaf")[3])
    expected = readable(journal.path)
    repaired = Repaired(journal, thread)
    with closing(sqlite3.connect(journal.path, isolation_level=None)) as shell:
        shell.execute("SELECT count(*) FROM state").fetchone()
        assert await repaired.run()
        for number in range(GROUPS + 1, GROUPS + 5):
            journal.commit(group(number))
        assert [(GROUPS,)] == shell.execute("SELECT last_transaction FROM state").fetchall()
    journal.commit(group(GROUPS + 5))
    shutil.copytree(tmp_path / "data", tmp_path / "crashed")
    journal.close()
    expected |= set(range(GROUPS + 1, GROUPS + 6))
    for data_dir in (tmp_path / "data", tmp_path / "crashed"):
        assert sorted(expected) == waiting(data_dir / FILE_NAME)


async def test_repairs_end_when_they_are_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thread: Worker
) -> None:
    """One that copies gives up, and leaves nothing; no other begins."""
    journal = fill(tmp_path)
    spoil(journal.path, pages(journal.path, "points", "leaf")[3])
    expected = readable(journal.path)
    repaired = Repaired(journal, thread)
    copy = Salvage.copy_points

    def copy_after_the_end(salvage: Salvage, until: int) -> None:
        repaired.repairs.stop()
        copy(salvage, until)

    monkeypatch.setattr(Salvage, "copy_points", copy_after_the_end)
    with capture_logs() as logs:
        first, second = await asyncio.gather(repaired.run(), repaired.run())
        await repaired.repairs.wait()
        assert [False, False, False] == [first, second, await repaired.run()]
    journal.close()
    assert ([], expected, {FILE_NAME}) == (logs, readable(journal.path), files(tmp_path))
