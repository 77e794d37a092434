"""Reading a damaged table: all rows that can be read, on both sides of each gap."""

import sqlite3
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, Final, NamedTuple

from exporter.journal.damage import is_damage

MAX_FAILURES: Final = 100_000
"""So many readings may fail, each in some microseconds; then what is left of the gaps is given up."""

_ROWS_AT_ONCE: Final = 256
_BYTES_AT_ONCE: Final = 4 << 20


class Table(NamedTuple):
    """A table that may have gaps.

    Attributes:
        name: its name.
        key: the integer that is its primary key, and its first column.
        types: the types of its columns; a damaged row may have others.
    """

    name: str
    key: str
    types: tuple[type, ...]


POINTS: Final = Table("points", "number", (int, int, int, int, bytes))
DEAD_LETTERS: Final = Table("dead_letters", "id", (int, int, int, int, str, str, bytes))

_Rows = list[tuple[Any, ...]]


class GapReader:
    """Reads a table, stepping over what cannot be read."""

    def __init__(self, connection: sqlite3.Connection, table: Table) -> None:
        """Take a connection; each reading is a transaction of its own, unless one is open."""
        self._connection = connection
        self._name, self._key, self._types = table
        self._failures = 0

    def read(self, first: int, last: int) -> Iterator[_Rows]:
        """Read the rows with keys from `first` to `last`, some at a time, in any order.

        A gap is narrowed from both sides and then cut to pieces, so that rows between two gaps are found too: of one
        that is not wider than some ten thousand keys, every single key is tried, of others those near their ends.

        Raises:
            sqlite3.Error: for any reason but damage.
        """
        unread = deque([(first, last)])
        while unread and self._failures < MAX_FAILURES:
            low, high = unread.popleft()
            low = yield from self._read_until_damage(low, high, "ASC")
            if low <= high:
                high = yield from self._read_until_damage(low, high, "DESC")
            if low < high:
                unread += _cut(low, high)

    def _read_until_damage(self, low: int, high: int, order: str) -> Generator[_Rows, None, int]:
        """Read from one end towards the other; returns the first key that is not read."""
        is_damaged = False
        while low <= high and not is_damaged:
            rows: _Rows = []
            is_damaged = not self._read_into(rows, low, high, order)
            yield [row for row in rows if tuple(map(type, row)) == self._types]
            if not rows and not is_damaged:
                return high + 1 if order == "ASC" else low - 1
            if rows and low <= rows[-1][0] <= high:
                low, high = (rows[-1][0] + 1, high) if order == "ASC" else (low, rows[-1][0] - 1)
            elif rows:  # A page of elsewhere, which would lead in circles.
                is_damaged = True
                self._failures += 1
        return low if order == "ASC" else high

    def _read_into(self, rows: _Rows, low: int, high: int, order: str) -> bool:
        """Read rows until there are many, or up to damage; tells whether there was none."""
        query = f"SELECT * FROM {self._name} WHERE {self._key} BETWEEN ? AND ? ORDER BY {self._key} {order} LIMIT ?"  # noqa: S608 -- fixed names
        size = 0
        try:
            with closing(self._connection.execute(query, (low, high, _ROWS_AT_ONCE))) as cursor:
                for row in cursor:
                    rows.append(row)
                    size += len(row[-1]) if isinstance(row[-1], bytes) else 0
                    if size > _BYTES_AT_ONCE:
                        break
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            self._failures += 1
            return False
        return True


def _cut(low: int, high: int) -> Iterator[tuple[int, int]]:
    """Cut a range into narrow pieces at both ends and wider ones towards its middle: it may reach far into nothing."""
    width = 1
    while low <= high:
        yield low, min(low + width - 1, high)
        low += width
        if low <= high:
            yield max(high - width + 1, low), high
        high -= width
        width *= 2
