"""Writing and reading the journal's tables of derived state."""

import sqlite3
from array import array
from typing import Final, TypeVar

from exporter.journal.codec import pack, seal, unpack, unseal
from exporter.journal.derived_records import DerivedChanges, MarkRow, ReleaseRow, RestoredDerived, SketchRow

MIN_INSTALLED_PAIRS: Final = 200_000
"""Pairs of device and version that are remembered at least, to tell electron's first `set` from later ones."""

FORGET_DERIVED: Final = (
    "BEGIN IMMEDIATE; DELETE FROM episodes; DELETE FROM installed; DELETE FROM sketches; DELETE FROM sightings; "
    "DELETE FROM releases; DELETE FROM marks; COMMIT;"
)
_PRUNE_EVERY: Final = 1024  # transactions: to look is not free
_TYPES: Final[dict[type, tuple[tuple[type, ...], ...]]] = {
    SketchRow: ((int,), (str,), (str,), (str,), (int,), (bytes, type(None))),
    ReleaseRow: ((str,), (str,), (int,), (bytes,)),
    MarkRow: ((str,), (str,), (str,), (int,), (float, type(None)), (str,)),
}

_Row = TypeVar("_Row", SketchRow, ReleaseRow, MarkRow)


def write_derived(connection: sqlite3.Connection, number: int, changes: DerivedChanges) -> None:
    """Write what a transaction, which is open, changes in the derived state."""
    if changes.episodes is not None:
        connection.execute("INSERT INTO episodes VALUES (?, ?)", (number, pack(changes.episodes)))
    if changes.episodes_until:
        connection.execute("DELETE FROM episodes WHERE number < ?", (changes.episodes_until,))
    if changes.installed:
        pairs = seal(array("Q", changes.installed).tobytes())
        connection.execute("INSERT INTO installed VALUES (?, ?, ?)", (number, len(changes.installed), pairs))
    if number % _PRUNE_EVERY == 0:
        _prune_installed(connection)
    _write_sketches(connection, number, changes)
    if changes.releases:
        rows = [row._replace(devices=seal(row.devices)) for row in changes.releases]
        connection.executemany("INSERT OR REPLACE INTO releases VALUES (?, ?, ?, ?)", rows)
    if changes.forgotten_releases:
        connection.executemany("DELETE FROM releases WHERE app_id = ? AND version = ?", changes.forgotten_releases)
    if changes.forgotten_marks:
        connection.executemany(
            "DELETE FROM marks WHERE app_id = ? AND version = ? AND channel = ?", changes.forgotten_marks
        )
    if changes.marks:
        connection.executemany("INSERT OR REPLACE INTO marks VALUES (?, ?, ?, ?, ?, ?)", changes.marks)


def _prune_installed(connection: sqlite3.Connection) -> None:
    remembered = connection.execute("SELECT sum(count) FROM installed").fetchone()[0]
    cursor = connection.execute("SELECT number, count FROM installed ORDER BY number")
    last = 0
    for row, count in cursor:
        if remembered - count < MIN_INSTALLED_PAIRS:
            break
        remembered -= count
        last = row
    cursor.close()
    connection.execute("DELETE FROM installed WHERE number <= ?", (last,))


def _write_sketches(connection: sqlite3.Connection, number: int, changes: DerivedChanges) -> None:
    if changes.new_sketches:
        connection.executemany("INSERT INTO sketches VALUES (?, ?, ?, ?, ?, ?)", changes.new_sketches)
    if changes.snapshots:
        connection.executemany("UPDATE sketches SET sketch = ? WHERE sketch_id = ?", changes.snapshots)
        connection.execute("DELETE FROM sightings")
    if changes.dropped_sketches:
        connection.executemany(
            "DELETE FROM sketches WHERE sketch_id = ?", [(sketch_id,) for sketch_id in changes.dropped_sketches]
        )
    if changes.sightings is not None:
        connection.execute("INSERT INTO sightings VALUES (?, ?)", (number, seal(changes.sightings)))


def read_derived(connection: sqlite3.Connection) -> RestoredDerived:
    """Read the derived state; what is damaged comes back as nothing but a description of the damage.

    Raises:
        sqlite3.Error: if the file cannot be read.
    """
    try:
        return _read(connection)
    except (ValueError, TypeError) as error:
        return RestoredDerived(damage=f"{type(error).__name__}: {error}")
    except sqlite3.OperationalError as error:
        if is_damaged_text(error):
            return RestoredDerived(damage=str(error))
        raise


def is_damaged_text(error: sqlite3.Error) -> bool:
    """Tell whether a text that was read is no UTF-8, which has no error code of its own."""
    return str(error).startswith("Could not decode to UTF-8")


def _read(connection: sqlite3.Connection) -> RestoredDerived:
    installed: list[int] = []
    for (pairs,) in connection.execute("SELECT pairs FROM installed ORDER BY number").fetchall():
        ids = array("Q")
        ids.frombytes(unseal(pairs))
        installed += ids
    return RestoredDerived(
        episodes=[
            (int(number), unpack(states))
            for number, states in connection.execute("SELECT number, states FROM episodes ORDER BY number").fetchall()
        ],
        installed=installed,
        sketches=[
            _checked(SketchRow._make(row))
            for row in connection.execute("SELECT * FROM sketches ORDER BY sketch_id").fetchall()
        ],
        sightings=[
            unseal(devices)
            for (devices,) in connection.execute("SELECT devices FROM sightings ORDER BY number").fetchall()
        ],
        releases=[
            _unsealed(_checked(ReleaseRow._make(row)))
            for row in connection.execute("SELECT * FROM releases").fetchall()
        ],
        marks=[
            _checked(MarkRow._make(row))
            for row in connection.execute("SELECT * FROM marks ORDER BY marked_ms").fetchall()
        ],
    )


def _unsealed(row: ReleaseRow) -> ReleaseRow:
    return row._replace(devices=unseal(row.devices))


def _checked(row: _Row) -> _Row:
    """Check the types of a row: SQLite reads a flipped bit in a page as a value of another type, without an error."""
    if not all(isinstance(value, types) for value, types in zip(row, _TYPES[type(row)], strict=True)):
        msg = f"a row of derived state holds values of wrong types: {type(row).__name__}"
        raise ValueError(msg)
    return row
