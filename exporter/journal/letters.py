"""Reading dead letters, for operators: on a connection of its own, a letter at a time, so that no commit waits."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from exporter.journal.codec import decompress
from exporter.journal.edits import DAMAGED


class Letter(NamedTuple):
    """A dead letter without its lines.

    Attributes:
        letter_id: its key.
        now_ms: when it was stored, in milliseconds since 1970.
        points: how many points it holds.
        size_bytes: its compressed size.
        reason: the word for it in the metrics.
        error: what InfluxDB said.
    """

    letter_id: int
    now_ms: int
    points: int
    size_bytes: int
    reason: str
    error: str

    @property
    def is_readable(self) -> bool:
        """Tell whether its lines are lines; those of damaged points are hexadecimal text."""
        return self.reason != DAMAGED


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Open the journal for reading, whoever else has it open.

    Raises:
        sqlite3.Error: if it cannot be read.
    """
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)
    connection.execute("PRAGMA query_only = ON")
    return connection


def list_letters(path: Path) -> list[Letter]:
    """Read all dead letters without their lines, oldest first.

    Raises:
        sqlite3.Error: if the journal cannot be read.
    """
    with closing(connect_to_read(path)) as connection:
        return [
            Letter._make(row)
            for row in connection.execute(
                "SELECT id, now_ms, count, bytes, reason, error FROM dead_letters ORDER BY id"
            ).fetchall()
        ]


def read_lines(path: Path, letter_id: int) -> list[str] | None:
    """Read the lines of a dead letter; None if it is not there.

    Raises:
        ValueError: if they are damaged.
        sqlite3.Error: if the journal cannot be read.
    """
    with closing(connect_to_read(path)) as connection:
        row = connection.execute("SELECT lines FROM dead_letters WHERE id = ?", (letter_id,)).fetchone()
    return None if row is None else decompress(row[0])


def find_letters(path: Path, needles: tuple[str, ...]) -> Iterator[int]:
    """Find the dead letters whose lines hold one of some texts; damaged ones are passed over.

    Raises:
        sqlite3.Error: if the journal cannot be read.
    """
    for letter in list_letters(path):
        if not letter.is_readable:
            continue
        try:
            lines = read_lines(path, letter.letter_id) or []
        except ValueError:
            continue
        if any(needle in line for line in lines for needle in needles):
            yield letter.letter_id
