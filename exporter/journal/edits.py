"""Edits: what an operator changes in the journal, as part of a transaction like any other."""

import sqlite3
from dataclasses import dataclass, field
from typing import Final

from exporter.journal.codec import compress, decompress
from exporter.journal.records import Discard, Edit, Retry, Totals
from exporter.journal.totals import ROW_OVERHEAD_BYTES

DAMAGED: Final = "damaged"
"""Reason of dead letters whose lines could not be read; they are kept as hexadecimal text."""


@dataclass(frozen=True, slots=True)
class Edited:
    """What edits leave to do.

    Attributes:
        lines: points that wait again.
        gone: numbers of the groups that left the journal.
        rewritten: numbers of the groups that hold less.
    """

    lines: list[str] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)
    rewritten: list[int] = field(default_factory=list)


def apply_edits(connection: sqlite3.Connection, edits: list[Edit], totals: Totals) -> Edited:
    """Make edits in a transaction that is open, and keep the totals right; points that wait again are only returned."""
    edited = Edited()
    for edit in edits:
        if isinstance(edit, Retry):
            edit.points = _retry(connection, edit.letters, totals, edited.lines)
        elif isinstance(edit, Discard):
            edit.points = sum(delete_letter(connection, letter, totals) for letter in edit.letters)
        else:
            edit.points = sum(_forget_in_group(connection, number, edit.ids, totals, edited) for number in edit.groups)
            edit.dead_letter_points = sum(
                _forget_in_letter(connection, letter, edit.ids, totals) for letter in edit.letters
            )
    return edited


def holds_device(line: str, ids: tuple[str, ...]) -> bool:
    """Tell whether a point is of a device: whether its field `device_id` is one of the ids, as they stand in lines."""
    fields = _fields_start(line)
    return any(_has_field(line, fields, f'{before}device_id="{each}"') for each in ids for before in (" ", ","))


def _fields_start(line: str) -> int:
    """Find the blank between tags and fields: the first one without a backslash."""
    start = line.find(" ")
    while start > 0 and line[start - 1] == "\\":
        start = line.find(" ", start + 1)
    return max(start, 0)


def _has_field(line: str, fields: int, text: str) -> bool:
    at = line.find(text, fields)
    while at >= 0:
        if not _is_in_text(line, fields, at):
            return True
        at = line.find(text, at + 1)
    return False


def _is_in_text(line: str, fields: int, at: int) -> bool:
    """Tell whether a place of a line is between the quotes of a text; a quote in a text has a backslash before it."""
    inside = False
    position = fields
    while position < at:
        if inside and line[position] == "\\":
            position += 1
        elif line[position] == '"':
            inside = not inside
        position += 1
    return inside


def _retry(connection: sqlite3.Connection, letters: list[int], totals: Totals, lines: list[str]) -> int:
    points = 0
    for letter in letters:
        row = connection.execute("SELECT reason, lines FROM dead_letters WHERE id = ?", (letter,)).fetchone()
        found = None if row is None or row[0] == DAMAGED else _read(row[1])
        if found is not None:
            lines += found
            delete_letter(connection, letter, totals)
            points += len(found)
    return points


def delete_letter(connection: sqlite3.Connection, letter: int, totals: Totals) -> int:
    """Delete a dead letter, if it is there, and tell how many points it held."""
    deleted = 0
    for count, size in connection.execute(
        "DELETE FROM dead_letters WHERE id = ? RETURNING count, bytes", (letter,)
    ).fetchall():
        deleted += count
        totals.dead_letter_points -= count
        totals.dead_letter_bytes -= size
    return deleted


def _forget_in_group(
    connection: sqlite3.Connection, number: int, ids: tuple[str, ...], totals: Totals, edited: Edited
) -> int:
    row = connection.execute("SELECT count, bytes, lines FROM points WHERE number = ?", (number,)).fetchone()
    kept = None if row is None else _without(row[2], ids)
    if kept is None:
        return 0
    count, size, _ = row
    if kept:
        compressed = compress(kept)
        values = (len(kept), len(compressed) + ROW_OVERHEAD_BYTES, compressed, number)
        connection.execute("UPDATE points SET count = ?, bytes = ?, lines = ? WHERE number = ?", values)
        totals.bytes += len(compressed) + ROW_OVERHEAD_BYTES
        edited.rewritten.append(number)
    else:
        connection.execute("DELETE FROM points WHERE number = ?", (number,))
        edited.gone.append(number)
    totals.bytes -= size
    totals.points -= count - len(kept)
    return int(count - len(kept))


def _forget_in_letter(connection: sqlite3.Connection, letter: int, ids: tuple[str, ...], totals: Totals) -> int:
    row = connection.execute("SELECT reason, count, bytes, lines FROM dead_letters WHERE id = ?", (letter,)).fetchone()
    kept = None if row is None or row[0] == DAMAGED else _without(row[3], ids)
    if kept is None:
        return 0
    if not kept:
        return delete_letter(connection, letter, totals)
    _, count, size, _ = row
    compressed = compress(kept)
    values = (len(kept), len(compressed) + ROW_OVERHEAD_BYTES, compressed, letter)
    connection.execute("UPDATE dead_letters SET count = ?, bytes = ?, lines = ? WHERE id = ?", values)
    totals.dead_letter_bytes += len(compressed) + ROW_OVERHEAD_BYTES - size
    totals.dead_letter_points -= count - len(kept)
    return int(count - len(kept))


def _without(blob: bytes, ids: tuple[str, ...]) -> list[str] | None:
    """Give the points of a gzip member that are not of a device; None if all are not, or if it cannot be read."""
    lines = _read(blob)
    if lines is None:
        return None
    kept = [line for line in lines if not holds_device(line, ids)]
    return None if len(kept) == len(lines) else kept


def _read(blob: bytes) -> list[str] | None:
    """Read a gzip member; one that is damaged is left to delivery, which keeps it as a dead letter."""
    try:
        return decompress(blob)
    except ValueError:
        return None
