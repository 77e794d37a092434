"""Reading points back for delivery, on a connection of its own, so that no commit waits for it."""

import sqlite3
from pathlib import Path

from exporter.journal.records import PointsRow

_ROWS_AT_ONCE = 512


class JournalReader:
    """The journal's reading side. Its methods block; they are called on one thread, one after another."""

    def __init__(self, path: Path) -> None:
        """Remember the file; it is opened at the first read."""
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def read(self, after: int, max_points: int) -> list[PointsRow]:
        """Read the oldest groups with a number above `after`: as many as hold `max_points` points, and at least one.

        Raises:
            sqlite3.Error: if the file cannot be read; the next call opens it anew.
        """
        try:
            return self._read(after, max_points)
        except sqlite3.Error:
            self.close()
            raise

    def _read(self, after: int, max_points: int) -> list[PointsRow]:
        if self._connection is None:
            self._connection = sqlite3.connect(
                f"{self._path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA query_only = ON")
        rows: list[PointsRow] = []
        points = 0
        cursor = self._connection.execute(
            "SELECT number, count, lines FROM points WHERE number > ? ORDER BY number LIMIT ?", (after, _ROWS_AT_ONCE)
        )
        try:
            for row in cursor:
                if rows and points + row[1] > max_points:
                    break
                rows.append(PointsRow(*row))
                points += row[1]
        finally:
            cursor.close()
        return rows

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
