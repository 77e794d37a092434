"""Reading points back for delivery, on a connection of its own, so that no commit waits for it."""

import sqlite3
from pathlib import Path
from typing import Final

from exporter.journal.records import PointsRow

MAX_BYTES: Final = 16 << 20
_ROWS_AT_ONCE: Final = 512
_GZIP_SIZE_FIELD: Final = 4


class JournalReader:
    """The journal's reading side. Its methods block; they are called on one thread, one after another."""

    def __init__(self, path: Path) -> None:
        """Remember the file; it is opened at the first read."""
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def read(self, after: int, max_points: int) -> list[PointsRow]:
        """Read the oldest groups with a number above `after`.

        It reads as many as hold `max_points` points and `MAX_BYTES` bytes of lines, and at least one.

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
        points = size = 0
        cursor = self._connection.execute(
            # The cast makes bytes of a damaged row too, whatever type it seems to have.
            "SELECT number, count, CAST(lines AS BLOB) FROM points WHERE number > ? ORDER BY number LIMIT ?",
            (after, _ROWS_AT_ONCE),
        )
        try:
            for row in map(PointsRow._make, cursor):
                points += row.points
                size += _decompressed_size(row.lines)
                if rows and (points > max_points or size > MAX_BYTES):
                    break
                rows.append(row)
        finally:
            cursor.close()
        return rows

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _decompressed_size(member: bytes) -> int:
    """Give the size that a gzip member says it has, in its last four bytes (RFC 1952, section 2.3.1)."""
    return int.from_bytes(member[-_GZIP_SIZE_FIELD:], "little")
