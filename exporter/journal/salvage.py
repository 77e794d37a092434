"""Salvaging a damaged journal: what can be read goes into a new file, which then takes the old one's place.

Only points and dead letters may have gaps. Everything else, counters and remembered ids above all, is copied whole, or
the journal cannot be salvaged. The bulk, which is points, is copied while transactions go on; the rest is done between
two of them. There is always a whole journal under its name, whenever the process is killed.
"""

import contextlib
import os
import shutil
import sqlite3
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from exporter.journal.gaps import DEAD_LETTERS, POINTS, GapReader, Table
from exporter.journal.records import Totals
from exporter.journal.schema import create
from exporter.journal.totals import read_totals

ROOM_LEFT_BYTES: Final = 64 << 20
DAMAGED: Final = "damaged"
BEFORE_VACUUM: Final = "before-vacuum"
"""A vacuum has a name of its own for the old file: the journal that was damaged once is for people to delete."""

_PATIENCE_SECONDS: Final = 0.1  # events wait meanwhile
_INSTRUCTIONS_A_STEP: Final = 100_000  # of SQLite's virtual machine: some milliseconds
_LAST_TRANSACTION: Final = "SELECT last_transaction FROM damaged.state"
_LAST_DEAD_LETTER: Final = "SELECT max(seq) FROM damaged.sqlite_sequence WHERE name = 'dead_letters'"
_WHOLE_TABLES: Final = (
    "event_ids",
    "series",
    "episodes",
    "installed",
    "sketches",
    "sightings",
    "releases",
    "marks",
)


class SalvageError(Exception):
    """The journal cannot be salvaged now."""


@dataclass(frozen=True, slots=True)
class Salvaged:
    """What became of a damaged journal.

    Attributes:
        totals: those of the new file.
        lost_points: points that waited and could not be read.
        lost_dead_letter_points: the same of dead letters.
        kept: where the damaged file is; None if there was no room for it.
    """

    totals: Totals
    lost_points: int
    lost_dead_letter_points: int
    kept: Path | None


class Salvage:
    """One attempt. Its methods block, and are called one after another: `begin`, `copy_points`, `finish`, `discard`.

    Attributes:
        stopping: once it is set, a method that copies ends with an error.
        steps: rises while a method gets on, whichever thread it runs in; it stands still where the disk does.
    """

    def __init__(self, path: Path, kept_as: str = DAMAGED) -> None:
        """Remember the damaged file.

        Args:
            path: its path.
            kept_as: what is added to its name once the new one is in place; an older file of that name is deleted.
        """
        self.stopping = threading.Event()
        self.steps = 0
        self._path = path
        self._new = _new_name(path)
        self._kept = path.with_name(f"{path.name}.{kept_as}")
        self._target: sqlite3.Connection | None = None
        self._copied_until = 0

    def begin(self) -> None:
        """Make the new file.

        Raises:
            SalvageError: if the disk has no room for it, or if something is damaged that has to be copied whole.
            sqlite3.Error: if the file cannot be read, or the new one not be written.
            OSError: the same.
        """
        self._new.unlink(missing_ok=True)
        with closing(_connect(self._path)) as source:
            for table in _WHOLE_TABLES:  # It would be a pity to find that out at the end.
                with _needed(table):
                    source.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608 -- a fixed name
            self._kept.unlink(missing_ok=True)
            self._check_room(source)
        self._target = _connect(self._new)
        self._target.set_progress_handler(self.note_step, _INSTRUCTIONS_A_STEP)
        self._target.execute("PRAGMA journal_mode = MEMORY")
        self._target.execute("PRAGMA synchronous = OFF")
        create(self._target)
        _own_alike(self._path, self._new)

    def copy_points(self, until: int) -> None:
        """Copy the groups up to a number; transactions that delete some of them may be stored meanwhile.

        Raises:
            SalvageError: if it was stopped.
            sqlite3.Error: if the file cannot be read, or the new one not be written.
            OSError: the same.
        """
        target = self._open_target()
        with closing(_connect(self._path)) as source:
            target.execute("BEGIN")
            self._copy(POINTS, source, target, 1, until)
            target.execute("COMMIT")
        _sync(self._new)
        self._copied_until = until

    def finish(self, gone: Iterable[int], rewritten: Iterable[int] = ()) -> Salvaged:
        """Copy everything else, and put the new file in place; nothing else may have the old one open.

        Args:
            gone: numbers of groups that were deleted since `begin`.
            rewritten: numbers of groups that an operator's edits changed since.

        Raises:
            SalvageError: if it was stopped, if something is damaged that has to be copied whole, or if somebody reads
                the old file.
            sqlite3.Error: if the file cannot be read, or the new one not be written.
            OSError: the same.
        """
        target = self._open_target()
        target.execute("ATTACH DATABASE ? AS damaged", (str(self._path),))
        target.execute("BEGIN")
        with closing(_connect(self._path)) as source:
            target.executemany("DELETE FROM points WHERE number = ?", ((number,) for number in (*gone, *rewritten)))
            for number in rewritten:
                self._copy(POINTS, source, target, number, number)
            self._copy(POINTS, source, target, self._copied_until + 1, _highest(target, _LAST_TRANSACTION))
            self._copy(DEAD_LETTERS, source, target, 1, _highest(target, _LAST_DEAD_LETTER))
        for table in _WHOLE_TABLES:
            with _needed(table):
                target.execute(f"INSERT INTO main.{table} SELECT * FROM damaged.{table}")  # noqa: S608 -- a fixed name
            self.note_step()
        with _needed("state"):
            lost, lost_dead_letters = _write_state(target)
        target.execute("COMMIT")
        totals = read_totals(target)
        self._close_target()
        _sync(self._new)
        return Salvaged(totals, lost, lost_dead_letters, self._swap())

    def note_step(self) -> int:
        """Note that there is progress; SQLite calls it in long statements, and goes on if it gets 0."""
        self.steps += 1
        return 0

    def discard(self) -> None:
        """Remove the new file, unless it is in place."""
        self._close_target()
        self._new.unlink(missing_ok=True)

    def _open_target(self) -> sqlite3.Connection:
        if self._target is None:
            msg = "not begun"
            raise SalvageError(msg)
        return self._target

    def _close_target(self) -> None:
        if self._target is not None:
            self._target.close()
            self._target = None

    def _check_room(self, source: sqlite3.Connection) -> None:
        pages, free_pages, page_size = (
            source.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        needed = (pages - free_pages) * page_size + ROOM_LEFT_BYTES
        free = shutil.disk_usage(self._path.parent).free
        if free < needed:
            msg = f"{self._path.parent}: {needed} bytes are needed for a new file, and {free} are free"
            raise SalvageError(msg)

    def _copy(
        self, table: Table, source: sqlite3.Connection, target: sqlite3.Connection, first: int, last: int
    ) -> None:
        """Copy the rows with keys from `first` to `last` that can be read."""
        insert = f"INSERT OR IGNORE INTO {table.name} VALUES ({', '.join('?' * len(table.types))})"  # noqa: S608 -- fixed names
        for rows in GapReader(source, table).read(first, last):
            if self.stopping.is_set():
                msg = "stopped"
                raise SalvageError(msg)
            target.executemany(insert, rows)
            self.note_step()

    def _swap(self) -> Path | None:
        with closing(sqlite3.connect(self._path, isolation_level=None, timeout=_PATIENCE_SECONDS)) as connection:
            busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            msg = f"{self._path}: another program reads it"
            raise SalvageError(msg)
        for ending in ("-wal", "-shm"):
            self._path.with_name(self._path.name + ending).unlink(missing_ok=True)
        kept = None
        with contextlib.suppress(OSError):  # a file system without hard links
            os.link(self._path, self._kept)
            kept = self._kept
        self._new.replace(self._path)
        _sync(self._path.parent)
        if kept is not None and shutil.disk_usage(kept.parent).free < kept.stat().st_size + ROOM_LEFT_BYTES:
            kept.unlink()
            return None
        return kept


def discard_unfinished(path: Path) -> None:
    """Remove what a process left that was killed while it salvaged a journal; the journal itself is still in place."""
    _new_name(path).unlink(missing_ok=True)


def salvage(path: Path, kept_as: str = DAMAGED) -> Salvaged:
    """Salvage a journal that nobody has open; the arguments are those of `Salvage`.

    Raises:
        SalvageError: if it cannot be salvaged.
    """
    attempt = Salvage(path, kept_as)
    try:
        attempt.begin()
        return attempt.finish(())
    except (sqlite3.Error, OSError) as error:
        msg = f"{type(error).__name__}: {error}"
        raise SalvageError(msg) from error
    finally:
        attempt.discard()


def _own_alike(path: Path, other: Path) -> None:
    """Give a file another one's mode and owner: what root made, the exporter's user could not open.

    Raises:
        OSError: if the owner cannot be given.
    """
    status, made = path.stat(), other.stat()
    other.chmod(stat.S_IMODE(status.st_mode))
    if (status.st_uid, status.st_gid) != (made.st_uid, made.st_gid):
        os.chown(other, status.st_uid, status.st_gid)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.text_factory = _forgiving
    return connection


def _forgiving(text: bytes) -> str:
    """Read a text that may be damaged."""
    return text.decode(errors="replace")


@contextlib.contextmanager
def _needed(table: str) -> Iterator[None]:
    """Say which table it is that cannot do without what is damaged."""
    try:
        yield
    except (sqlite3.DatabaseError, TypeError) as error:
        msg = f"{table}: {error}"
        raise SalvageError(msg) from error


def _highest(target: sqlite3.Connection, query: str) -> int:
    """Read up to which key there may be rows."""
    with _needed("state"):
        return int(target.execute(query).fetchone()[0] or 0)


def _write_state(target: sqlite3.Connection) -> tuple[int, int]:
    """Copy the totals, and correct those of what has gaps; gives how many points and dead letters are gone."""
    columns = "last_transaction, expired_events, event_ids, points, bytes, dead_letter_points, dead_letter_bytes"
    *others, points, _, dead_letters, _ = target.execute(f"SELECT {columns} FROM damaged.state").fetchone()  # noqa: S608 -- fixed names
    sums = "SELECT coalesce(sum(count), 0), coalesce(sum(bytes), 0) FROM main."
    present = target.execute(f"{sums}points").fetchone()
    present_letters = target.execute(f"{sums}dead_letters").fetchone()
    target.execute(
        f"UPDATE main.state SET ({columns}) = (?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 -- fixed names
        (*others, *present, *present_letters),
    )
    return max(0, points - present[0]), max(0, dead_letters - present_letters[0])


def _sync(path: Path) -> None:
    """Have the system write a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _new_name(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")
