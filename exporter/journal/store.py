"""Writing to the journal: one transaction at a time, on one thread."""

import contextlib
import json
import sqlite3
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Final

from exporter.journal.codec import compress
from exporter.journal.damage import DamagedRowError, is_damage
from exporter.journal.derived_records import RestoredDerived
from exporter.journal.derived_store import FORGET_DERIVED, read_derived, write_derived
from exporter.journal.edits import Edited, apply_edits, delete_letter
from exporter.journal.reader import JournalReader
from exporter.journal.records import Committed, Totals, Transaction
from exporter.journal.salvage import Salvage, Salvaged
from exporter.journal.schema import connect
from exporter.journal.totals import ROW_OVERHEAD_BYTES, oldest_point_ms, read_totals, write_totals

MAX_DEAD_LETTER_BYTES: Final = 64 << 20
_ID_ROWS_SLACK: Final = 65_536
_OLDEST_POINTS: Final = "SELECT number, bytes FROM points ORDER BY number LIMIT 64"
_DELETE_POINTS: Final = (
    "DELETE FROM points WHERE number IN (SELECT value FROM json_each(?)) RETURNING number, count, bytes"
)
_OLDEST_DEAD_LETTERS: Final = "SELECT id, bytes FROM dead_letters ORDER BY id LIMIT 64"


class CommitFailedError(Exception):
    """A transaction was not stored.

    Attributes:
        is_certain: whether it is certain that it was not; else `Journal.recover` tells later.
        is_damage: whether the file is damaged, so that trying again does not help.
        committed: what it did, if it is stored nevertheless.
    """

    def __init__(
        self, message: str, *, is_certain: bool, is_damage: bool = False, committed: Committed | None = None
    ) -> None:
        """Keep the reason, and what is known of it."""
        super().__init__(message)
        self.is_certain = is_certain
        self.is_damage = is_damage
        self.committed = committed


class Journal:
    """The journal's writing side. Its methods block; they are called on one thread, one after another."""

    def __init__(
        self, path: Path, connection: sqlite3.Connection, totals: Totals, *, max_bytes: int | None, max_event_ids: int
    ) -> None:
        """Take over an opened file.

        Args:
            path: the file.
            connection: a connection made by `schema.connect`.
            totals: what `load` found.
            max_bytes: past it the oldest points are dropped; None: never.
            max_event_ids: identities kept, at least.
        """
        self.path = path
        self._connection: sqlite3.Connection | None = connection
        self._totals = totals
        self._max_bytes = max_bytes
        self._max_event_ids = max_event_ids
        self._readers: list[JournalReader] = []
        self._gone: list[int] | None = None
        self._rewritten: list[int] = []
        self._doubtful: Committed | None = None

    @property
    def totals(self) -> Totals:
        """Give the totals as of the last commit."""
        return self._totals

    def commit(self, transaction: Transaction) -> Committed:
        """Store a transaction on disk.

        Raises:
            CommitFailedError: if it was not stored, or if that cannot be told now.
        """
        totals = replace(self._totals, last_transaction=transaction.number)
        committed = None
        try:
            if self._connection is None:
                self._connection = connect(self.path)
            self._connection.execute("BEGIN IMMEDIATE")
            committed = self._apply(self._connection, transaction, totals)
            self._connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            reason = f"{type(error).__name__}: {error}"
            self._doubtful = committed
            if self.recover(reason) < transaction.number or committed is None:
                raise CommitFailedError(reason, is_certain=True, is_damage=is_damage(error)) from error
        else:
            self._note(committed)
        self._totals = committed.totals
        return committed

    def reader(self) -> JournalReader:
        """Make a reader; it follows when a salvaged file takes the place of this one."""
        reader = JournalReader(self.path)
        self._readers.append(reader)
        return reader

    def begin_salvage(self) -> int:
        """Remember from now on which groups are deleted or rewritten, for `adopt`, or until `end_salvage`.

        Returns:
            The number of the last transaction: no group up to it will be added.
        """
        self._gone, self._rewritten = [], []
        return self._totals.last_transaction

    def end_salvage(self) -> None:
        """Remember no more which groups are deleted, because nothing will be adopted."""
        self._gone = None

    def adopt(self, salvage: Salvage) -> Salvaged:
        """Let a salvaged file take the place of this one.

        Raises:
            SalvageError: if that cannot be done now.
            sqlite3.Error: the same.
            OSError: the same.
        """
        gone, self._gone = self._gone or [], None
        self.close()
        with contextlib.ExitStack() as stack:
            for reader in self._readers:
                stack.enter_context(reader.closed())
            salvaged = salvage.finish(gone, self._rewritten)
        self._totals = salvaged.totals
        return salvaged

    def recover(self, reason: str = "") -> int:
        """Open the file anew after an error, and see what it holds.

        Returns:
            The number of the last transaction that is stored.

        Raises:
            CommitFailedError: if the file cannot be read now, so that nothing is certain.
        """
        self.close()
        try:
            connection = connect(self.path)
            try:
                totals = read_totals(connection)
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("UPDATE state SET last_transaction = last_transaction")
                connection.execute("COMMIT")
            except sqlite3.Error:
                connection.close()
                raise
        except (sqlite3.Error, OSError) as error:
            raise CommitFailedError(
                f"{reason}; {type(error).__name__}: {error}".lstrip("; "),
                is_certain=False,
                is_damage=is_damage(error),
                committed=self._doubtful,
            ) from error
        self._connection = connection
        if totals.last_transaction != self._totals.last_transaction:  # Else ours may be those that `corrected` counted.
            self._totals = totals
        doubtful, self._doubtful = self._doubtful, None
        if doubtful is not None and doubtful.totals.last_transaction == self._totals.last_transaction:
            self._note(doubtful)
        return self._totals.last_transaction

    def read_derived(self) -> RestoredDerived:
        """Read the derived state as of the last commit.

        Raises:
            CommitFailedError: if it cannot be read now.
        """
        try:
            if self._connection is None:
                self._connection = connect(self.path)
            return read_derived(self._connection)
        except (sqlite3.Error, OSError) as error:
            msg = f"{type(error).__name__}: {error}"
            raise CommitFailedError(msg, is_certain=False) from error

    def forget_derived(self) -> None:
        """Delete the derived state, because it is damaged; only before the first commit.

        Raises:
            sqlite3.Error: if that cannot be stored.
        """
        if self._connection is not None:
            self._connection.executescript(FORGET_DERIVED)

    def close(self) -> None:
        """Close the file; closing it again does nothing."""
        if self._connection is not None:
            try:
                self._connection.close()
            finally:
                self._connection = None

    def _note(self, committed: Committed) -> None:
        """Remember what a stored transaction deleted, if a copy of the file may hold it."""
        if self._gone is not None:
            self._gone += committed.gone
            self._rewritten += committed.rewritten

    def _apply(self, connection: sqlite3.Connection, transaction: Transaction, totals: Totals) -> Committed:
        _write_series(connection, transaction)
        totals.expired_events += transaction.expired_events
        self._write_event_ids(connection, transaction, totals)
        if transaction.derived is not None:
            write_derived(connection, transaction.number, transaction.derived)
        edited = apply_edits(connection, transaction.edits, totals) if transaction.edits else Edited()
        _write_points(connection, transaction, edited.lines, totals)
        delivered = sum(_delete_points(connection, transaction.delivered, totals).values())
        gone = [*transaction.delivered, *edited.gone]
        dropped_dead_letters = _write_dead_letters(connection, transaction, totals)
        dropped: dict[int, int] = {}
        while self._max_bytes is not None and totals.bytes > self._max_bytes:
            oldest = _oldest(connection, _OLDEST_POINTS, totals.bytes - self._max_bytes)
            if not oldest:
                break
            deleted = _delete_points(connection, oldest, totals)
            _check_deleted(len(deleted))
            dropped |= deleted
            gone += oldest
        totals.oldest_point_ms = oldest_point_ms(connection)
        if totals.oldest_point_ms is None:
            totals.points = totals.bytes = 0  # whatever a damaged row said of itself
        write_totals(connection, totals)
        return Committed(totals, gone, edited.rewritten, delivered, dropped, dropped_dead_letters)

    def _write_event_ids(self, connection: sqlite3.Connection, transaction: Transaction, totals: Totals) -> None:
        if transaction.event_ids:
            ids = array("Q", transaction.event_ids).tobytes()
            row = (transaction.number, transaction.now_ms, len(transaction.event_ids), ids)
            connection.execute("INSERT INTO event_ids VALUES (?, ?, ?, ?)", row)
            totals.event_ids += len(transaction.event_ids)
        if totals.event_ids < self._max_event_ids + _ID_ROWS_SLACK:
            return
        cursor = connection.execute("SELECT number, count FROM event_ids ORDER BY number")
        last = None
        for number, count in cursor:
            if totals.event_ids - count < self._max_event_ids:
                break
            totals.event_ids -= count
            last = number
        cursor.close()
        if last is not None:
            connection.execute("DELETE FROM event_ids WHERE number <= ?", (last,))


def _write_series(connection: sqlite3.Connection, transaction: Transaction) -> None:
    if transaction.new_series:
        connection.executemany("INSERT INTO series VALUES (?, ?, ?, ?, ?, ?)", transaction.new_series)
    if transaction.values:
        connection.executemany("UPDATE series SET value = ?, last_ms = ? WHERE series_id = ?", transaction.values)
    if transaction.births:
        connection.executemany("UPDATE series SET birth = ? WHERE series_id = ?", transaction.births)
    if transaction.expired_series:
        connection.executemany("DELETE FROM series WHERE series_id = ?", [(key,) for key in transaction.expired_series])


def _write_points(connection: sqlite3.Connection, transaction: Transaction, more: list[str], totals: Totals) -> None:
    lines = [*transaction.lines, *more] if more else transaction.lines
    if not lines:
        return
    compressed = compress(lines)
    size = len(compressed) + ROW_OVERHEAD_BYTES
    row = (transaction.number, transaction.now_ms, len(lines), size, compressed)
    connection.execute("INSERT INTO points VALUES (?, ?, ?, ?, ?)", row)
    totals.points += len(lines)
    totals.bytes += size


def _delete_points(connection: sqlite3.Connection, numbers: list[int], totals: Totals) -> dict[int, int]:
    """Delete groups, and give their numbers and points.

    It takes one statement: one each takes three times as long, and waits for the interpreter each time.
    """
    if not numbers:
        return {}
    deleted: dict[int, int] = {}
    for number, count, size in connection.execute(_DELETE_POINTS, (json.dumps(numbers),)).fetchall():
        deleted[number] = count
        totals.points -= count
        totals.bytes -= size
    return deleted


def _write_dead_letters(connection: sqlite3.Connection, transaction: Transaction, totals: Totals) -> int:
    for letter in transaction.dead_letters:
        lines = compress(letter.lines)
        size = len(lines) + ROW_OVERHEAD_BYTES
        connection.execute(
            "INSERT INTO dead_letters (now_ms, count, bytes, reason, error, lines) VALUES (?, ?, ?, ?, ?, ?)",
            (transaction.now_ms, len(letter.lines), size, letter.reason, letter.error, lines),
        )
        totals.dead_letter_points += len(letter.lines)
        totals.dead_letter_bytes += size
    dropped = 0
    while totals.dead_letter_bytes > MAX_DEAD_LETTER_BYTES:
        oldest = _oldest(connection, _OLDEST_DEAD_LETTERS, totals.dead_letter_bytes - MAX_DEAD_LETTER_BYTES)
        if not oldest:
            totals.dead_letter_points = totals.dead_letter_bytes = 0  # whatever a damaged row said of itself
            break
        deleted = sum(delete_letter(connection, letter_id, totals) for letter_id in oldest)
        _check_deleted(deleted)
        dropped += deleted
    return dropped


def _check_deleted(deleted: int) -> None:
    """Tell of keys that are read and then not found, as a page out of order has them: they would be tried for ever."""
    if not deleted:
        msg = "the oldest rows are there, and cannot be deleted"
        raise DamagedRowError(msg)


def _oldest(connection: sqlite3.Connection, query: str, excess: int) -> list[int]:
    """Find the oldest rows whose sizes make up the excess, some at a time; the query gives keys and sizes."""
    found: list[int] = []
    for key, size in connection.execute(query).fetchall():
        if excess <= 0:
            break
        found.append(key)
        excess -= size
    return found
