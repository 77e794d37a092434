"""Looking into a journal without changing it, whether an exporter uses it or not."""

import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final

from exporter.control import socket_address
from exporter.counters import EVENTS
from exporter.journal.codec import decompress
from exporter.journal.damage import DamagedRowError, is_damage
from exporter.journal.derived_store import is_damaged_text, read_derived
from exporter.journal.gaps import DEAD_LETTERS, POINTS, Table
from exporter.journal.letters import connect_to_read
from exporter.journal.reader import JournalReader
from exporter.journal.records import Totals
from exporter.journal.schema import APPLICATION_ID, SCHEMA_VERSION
from exporter.journal.totals import read_totals
from exporter.tools.problems import DataError

_POINTS_AT_ONCE: Final = 20_000
_MAX_FINDINGS: Final = 100


@dataclass(frozen=True, slots=True)
class Status:
    """A journal in figures.

    Attributes:
        totals: its own.
        groups: how many groups of points wait.
        letters: how many dead letters there are.
        series: how many series of events.
        events: their sum, with those of series that are gone.
        file_bytes: the size of the file.
        log_bytes: that of its write-ahead log.
        free_bytes: how much of the file is empty pages.
        in_use: whether a running exporter uses it.
    """

    totals: Totals
    groups: int
    letters: int
    series: int
    events: int
    file_bytes: int
    log_bytes: int
    free_bytes: int
    in_use: bool


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a journal for reading.

    Raises:
        DataError: if it cannot be read, or is no journal of this version.
    """
    try:
        with closing(connect_to_read(path)) as connection:
            found = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
            if found != [APPLICATION_ID, SCHEMA_VERSION]:
                msg = f"{path}: not a journal of this version; start this version's exporter on it once"
                raise DataError(msg)
            yield connection
    except sqlite3.Error as error:
        msg = f"{path}: {error}"
        raise DataError(msg) from error


def status(path: Path) -> Status:
    """Put a journal into figures.

    Raises:
        DataError: if it cannot be read.
    """
    with reading(path) as connection:
        connection.execute("BEGIN")
        totals = read_totals(connection)
        if not all(type(value) is int for value in astuple(totals)[:-1]):  # the last one may be None
            msg = "a total is not a number"
            raise DamagedRowError(msg)
        family = (EVENTS.name,)
        return Status(
            totals=totals,
            groups=_number(connection, "SELECT count(*) FROM points"),
            letters=_number(connection, "SELECT count(*) FROM dead_letters"),
            series=_number(connection, "SELECT count(*) FROM series WHERE family = ?", family),
            events=totals.expired_events
            + _number(connection, "SELECT coalesce(sum(value), 0) FROM series WHERE family = ?", family),
            file_bytes=path.stat().st_size,
            log_bytes=_size(path.with_name(f"{path.name}-wal")),
            free_bytes=_number(connection, "PRAGMA freelist_count") * _number(connection, "PRAGMA page_size"),
            in_use=_is_in_use(path.parent),
        )


def _number(connection: sqlite3.Connection, query: str, values: tuple[str, ...] = ()) -> int:
    return int(connection.execute(query, values).fetchone()[0])


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_in_use(data_dir: Path) -> bool:
    """Ask whether an exporter listens; to try the lock could keep one from starting at that very moment."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            with socket_address(data_dir) as address:
                return client.connect_ex(address) == 0
        except OSError:
            return False


def groups(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Read the groups that wait, oldest first, with their numbers; damaged ones come without lines.

    What is delivered meanwhile may be missing, and what is stored meanwhile be there or not; nothing comes twice.

    Raises:
        DataError: if the journal cannot be read.
    """
    with reading(path):
        pass
    reader = JournalReader(path)
    after = 0
    try:
        while rows := reader.read(after, _POINTS_AT_ONCE):
            after = rows[-1].number
            for row in rows:
                yield row.number, _lines(row.lines, row.points) or []
    except sqlite3.Error as error:
        msg = f"{path}: {error}"
        raise DataError(msg) from error
    finally:
        reader.close()


def verify(path: Path) -> Iterator[str]:
    """Check a journal from end to end, as of one moment, and tell of all that is wrong with it.

    Raises:
        DataError: if it cannot be read at all.
    """
    with reading(path) as connection:
        connection.execute("BEGIN")
        sums: list[int] = []
        checks = {
            "pages": _check_pages(connection),
            "points": _check_lines(connection, POINTS, "group", sums),
            "dead letters": _check_lines(connection, DEAD_LETTERS, "dead letter", sums),
            "totals": _check_totals(connection, sums),
            "what is known of devices": _check_derived(connection),
        }
        for what, check in checks.items():
            try:
                yield from check
            except sqlite3.DatabaseError as error:
                if not _is_of_the_file(error):
                    raise
                yield f"{what}: {error}"


def _is_of_the_file(error: sqlite3.DatabaseError) -> bool:
    """Tell what is wrong with the file from trouble with the disk, or with rights: that is no finding."""
    is_wrong = getattr(error, "sqlite_errorcode", None) in {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISMATCH}
    return is_wrong or is_damage(error) or is_damaged_text(error)


def _check_pages(connection: sqlite3.Connection) -> Iterator[str]:
    for (problem,) in connection.execute(f"PRAGMA integrity_check({_MAX_FINDINGS})").fetchall():
        if problem != "ok":
            yield problem


def _check_lines(connection: sqlite3.Connection, table: Table, what: str, sums: list[int]) -> Iterator[str]:
    """Check each row, and add up points and bytes; what cannot be read to its end has no sums."""
    count = size = 0
    cursor = connection.execute(f"SELECT {table.key}, count, bytes, lines FROM {table.name} ORDER BY {table.key}")  # noqa: S608 -- fixed names
    for number, points, row_bytes, blob in cursor:
        if (type(points), type(row_bytes), type(blob)) != (int, int, bytes):
            yield f"{what} {number}: holds values of wrong types"
            continue
        count += points
        size += row_bytes
        if _lines(blob, points) is None:
            yield f"{what} {number}: its {points} points cannot be read"
    sums += [count, size]


def _check_totals(connection: sqlite3.Connection, sums: list[int]) -> Iterator[str]:
    totals = read_totals(connection)
    noted = [totals.points, totals.bytes, totals.dead_letter_points, totals.dead_letter_bytes]
    if len(sums) == len(noted) and sums != noted:
        yield f"the totals (points, bytes, dead letters, their bytes) are noted as {noted}, and are {sums}"
    remembered = _number(connection, "SELECT coalesce(sum(count), 0) FROM event_ids")
    if remembered != totals.event_ids:
        yield f"{totals.event_ids} remembered events are noted, and there are {remembered}"


def _check_derived(connection: sqlite3.Connection) -> Iterator[str]:
    if damage := read_derived(connection).damage:
        yield f"what is known of devices is damaged, and begins anew at the next start: {damage}"


def _lines(blob: bytes, points: int) -> list[str] | None:
    try:
        lines = decompress(blob)
    except ValueError:
        return None
    return lines if len(lines) == points and "" not in lines else None
