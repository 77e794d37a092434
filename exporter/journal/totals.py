"""The totals that the journal keeps of itself: reading, writing, and counting anew what a flipped bit made of them."""

import sqlite3
from dataclasses import replace
from typing import Final

from exporter.journal.damage import DamagedRowError
from exporter.journal.records import Totals

ROW_OVERHEAD_BYTES: Final = 32
"""What a row of points or dead letters takes beside its lines, about."""

_COLUMNS: Final = "last_transaction, expired_events, points, bytes, event_ids, dead_letter_points, dead_letter_bytes"
_ID_BYTES: Final = 8


def read_totals(connection: sqlite3.Connection) -> Totals:
    """Read the totals of a file.

    Raises:
        DamagedRowError: if it holds none, or the oldest group does not say when it was stored.
    """
    row = connection.execute(f"SELECT {_COLUMNS} FROM state").fetchone()  # noqa: S608 -- fixed names
    if row is None:
        msg = "the row of totals is missing"
        raise DamagedRowError(msg)
    totals = Totals(*row)
    totals.oldest_point_ms = oldest_point_ms(connection)
    return totals


def write_totals(connection: sqlite3.Connection, totals: Totals) -> None:
    """Write totals, as part of a transaction that is open."""
    connection.execute(
        f"UPDATE state SET ({_COLUMNS}) = (?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 -- fixed names
        (
            totals.last_transaction,
            totals.expired_events,
            totals.points,
            totals.bytes,
            totals.event_ids,
            totals.dead_letter_points,
            totals.dead_letter_bytes,
        ),
    )


def corrected(connection: sqlite3.Connection, noted: Totals) -> Totals:
    """Count anew what a flipped bit may have made of totals: the journal drops what it holds by them.

    Ids and dead letters are few. To count a gibibyte of points takes two seconds if the disk has to be read, so that is
    done only where their totals cannot be right.
    """
    dead_letter_points, dead_letter_bytes = _count(connection, "dead_letters")
    ids_bytes = connection.execute("SELECT sum(length(ids)) FROM event_ids").fetchone()[0]
    totals = replace(
        noted,
        event_ids=int(ids_bytes or 0) // _ID_BYTES,
        dead_letter_points=dead_letter_points,
        dead_letter_bytes=dead_letter_bytes,
    )
    if not _can_be_right(connection, noted):
        totals.points, totals.bytes = _count(connection, "points")
    return totals


def _count(connection: sqlite3.Connection, table: str) -> tuple[int, int]:
    """Count the points of a table and their bytes; SQLite knows how long lines are without reading them."""
    points, size, rows = connection.execute(f"SELECT sum(count), sum(length(lines)), count(*) FROM {table}").fetchone()  # noqa: S608 -- fixed names
    return int(points or 0), int(size or 0) + rows * ROW_OVERHEAD_BYTES


def _can_be_right(connection: sqlite3.Connection, totals: Totals) -> bool:
    """Tell whether so many points can be there: each takes a byte at least, and all fit into the file's pages."""
    if type(totals.points) is not int or type(totals.bytes) is not int:
        return False
    if totals.oldest_point_ms is None:
        return totals.points == totals.bytes == 0
    pages, free_pages, page_size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return 0 < totals.points <= totals.bytes <= int((pages - free_pages) * page_size)


def oldest_point_ms(connection: sqlite3.Connection) -> int | None:
    """Read when the oldest group that waits was stored, in milliseconds since 1970; None if none waits.

    Raises:
        DamagedRowError: if it does not say.
    """
    row = connection.execute("SELECT now_ms FROM points ORDER BY number LIMIT 1").fetchone()
    if row is None:
        return None
    if type(row[0]) is not int:
        msg = "the oldest group holds values of wrong types"
        raise DamagedRowError(msg)
    return row[0]
