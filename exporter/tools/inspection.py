"""Looking into a journal without changing it, whether an exporter uses it or not."""

import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from exporter.control import socket_address
from exporter.counters import EVENTS
from exporter.journal.codec import decompress
from exporter.journal.derived_store import read_derived
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
    try:
        with reading(path) as connection:
            connection.execute("BEGIN")
            problems = [row[0] for row in connection.execute(f"PRAGMA integrity_check({_MAX_FINDINGS})").fetchall()]
            yield from (problem for problem in problems if problem != "ok")
            if problems == ["ok"]:
                yield from _check_contents(connection)
    except sqlite3.DatabaseError as error:
        yield str(error)


def _check_contents(connection: sqlite3.Connection) -> Iterator[str]:
    totals = read_totals(connection)
    sums = []
    for table, key, what in (("points", "number", "group"), ("dead_letters", "id", "dead letter")):
        count = size = 0
        cursor = connection.execute(f"SELECT {key}, count, bytes, lines FROM {table} ORDER BY {key}")  # noqa: S608 -- fixed names
        for number, points, row_bytes, blob in cursor:
            count += points
            size += row_bytes
            if _lines(blob, points) is None:
                yield f"{what} {number}: its {points} points cannot be read"
        sums += [count, size]
    noted = [totals.points, totals.bytes, totals.dead_letter_points, totals.dead_letter_bytes]
    if sums != noted:
        yield f"the totals (points, bytes, dead letters, their bytes) are noted as {noted}, and are {sums}"
    remembered = _number(connection, "SELECT coalesce(sum(count), 0) FROM event_ids")
    if remembered != totals.event_ids:
        yield f"{totals.event_ids} remembered events are noted, and there are {remembered}"
    if damage := read_derived(connection).damage:
        yield f"what is known of devices is damaged, and begins anew at the next start: {damage}"


def _lines(blob: bytes, points: int) -> list[str] | None:
    try:
        lines = decompress(blob)
    except ValueError:
        return None
    return lines if len(lines) == points and "" not in lines else None
