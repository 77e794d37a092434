"""Reading the totals that the journal keeps of itself."""

import sqlite3

from exporter.journal.records import Totals


def read_totals(connection: sqlite3.Connection) -> Totals:
    """Read the totals of a file."""
    columns = "last_transaction, expired_events, points, bytes, event_ids, dead_letter_points, dead_letter_bytes"
    totals = Totals(*connection.execute(f"SELECT {columns} FROM state").fetchone())  # noqa: S608 -- fixed names
    totals.oldest_point_ms = oldest_point_ms(connection)
    return totals


def oldest_point_ms(connection: sqlite3.Connection) -> int | None:
    """Read when the oldest group that waits was stored, in milliseconds since 1970; None if none waits."""
    row = connection.execute("SELECT now_ms FROM points ORDER BY number LIMIT 1").fetchone()
    return None if row is None else int(row[0])
