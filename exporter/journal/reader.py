"""Reading points back for delivery, on a connection of its own, so that no commit waits for it."""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from exporter.journal.damage import DamagedRowError
from exporter.journal.records import PointsRow

MAX_BYTES: Final = 16 << 20
_ROWS_AT_ONCE: Final = 512
_GZIP_SIZE_FIELD: Final = 4
_NO_BOUND: Final = (1 << 63) - 1


class JournalReader:
    """The journal's reading side. Its methods block; they are called on one thread, one after another."""

    def __init__(self, path: Path) -> None:
        """Remember the file; it is opened at the first read."""
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()

    def read(self, after: int, max_points: int, until: int = _NO_BOUND) -> list[PointsRow]:
        """Read the oldest groups with a number above `after`, up to `until`.

        It reads as many as hold `max_points` points and `MAX_BYTES` bytes of lines, and at least one.

        Raises:
            sqlite3.Error: if the file cannot be read; the next call opens it anew.
        """
        with self._lock:
            try:
                return self._read(after, max_points, until)
            except sqlite3.Error:
                self._close()
                raise

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Keep the file closed, so that another can take its place; reads wait."""
        with self._lock:
            self._close()
            yield

    def _read(self, after: int, max_points: int, until: int) -> list[PointsRow]:
        if self._connection is None:
            self._connection = sqlite3.connect(
                f"{self._path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA query_only = ON")
        rows: list[PointsRow] = []
        points = size = 0
        cursor = self._connection.execute(
            # The cast makes bytes of a damaged row too, whatever type it seems to have.
            "SELECT number, count, CAST(lines AS BLOB) FROM points WHERE number BETWEEN ? AND ? "
            "ORDER BY number LIMIT ?",
            (after + 1, until, _ROWS_AT_ONCE),
        )
        try:
            for row in map(PointsRow._make, cursor):
                if type(row.points) is not int:
                    msg = f"group {row.number} holds values of wrong types"
                    raise DamagedRowError(msg)
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
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _decompressed_size(member: bytes) -> int:
    """Give the size that a gzip member says it has, in its last four bytes (RFC 1952, section 2.3.1)."""
    return int.from_bytes(member[-_GZIP_SIZE_FIELD:], "little")
