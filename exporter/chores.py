"""Chores: what an operator has done to a journal, in small transactions, by a running exporter or by a command."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from exporter.group import Write
from exporter.journal.codec import unpack
from exporter.journal.edits import DAMAGED
from exporter.journal.letters import Letter, find_letters, list_letters
from exporter.journal.reader import JournalReader
from exporter.journal.records import Discard, Forget, Retry

POINTS_AT_ONCE: Final = 20_000
SETTLE_SECONDS: Final = 30.0
"""So long what is being sent is waited for: while InfluxDB is away, it is tried again and again."""


class ChoreError(Exception):
    """Something could not be done."""


class Done(NamedTuple):
    """What was done to dead letters.

    Attributes:
        letters: how many were retried or discarded.
        points: how many points they held.
        left: how many of those that were asked for are not there, or are damaged and cannot be retried.
    """

    letters: int
    points: int
    left: int


class Forgotten(NamedTuple):
    """What was deleted of a device.

    Attributes:
        points: how many points waited for InfluxDB.
        dead_letter_points: how many were among the dead letters.
        unreadable: dead letters that nobody can look into, because they are damaged.
    """

    points: int
    dead_letter_points: int
    unreadable: int


class Chores:
    """Does chores on one journal."""

    def __init__(
        self,
        path: Path,
        reader: JournalReader,
        *,
        last_transaction: Callable[[], int],
        write: Callable[[Write], Awaitable[None]],
        settle: Callable[[], Awaitable[None]],
    ) -> None:
        """Take the parts.

        Args:
            path: the journal.
            reader: one of its own.
            last_transaction: gives the number of the last transaction.
            write: stores something, and raises NotStoredError if it cannot.
            settle: returns when everything that was read for delivery before is delivered or put back.
        """
        self._path = path
        self._reader = reader
        self._last_transaction = last_transaction
        self._write = write
        self._settle = settle

    async def retry(self, ids: Iterable[int] | None) -> Done:
        """Let dead letters wait for InfluxDB again.

        Args:
            ids: of the letters; None: all.

        Raises:
            NotStoredError: if that cannot be stored; what was retried before is.
            sqlite3.Error: if the journal cannot be read.
        """
        letters, left = await self._letters(ids)
        readable = [letter for letter in letters if letter.reason != DAMAGED]
        done = 0
        for part in _in_parts(readable):
            edit = Retry([letter.letter_id for letter in part])
            await self._write(Write(edits=[edit]))
            done += edit.points
        return Done(len(readable), done, left + len(letters) - len(readable))

    async def discard(self, ids: Iterable[int] | None) -> Done:
        """Delete dead letters.

        Args:
            ids: of the letters; None: all.

        Raises:
            NotStoredError: if that cannot be stored.
            sqlite3.Error: if the journal cannot be read.
        """
        letters, left = await self._letters(ids)
        edit = Discard([letter.letter_id for letter in letters])
        await self._write(Write(edits=[edit]))
        return Done(len(letters), edit.points, left)

    async def add(self, lines: list[str]) -> None:
        """Let points wait for InfluxDB; counters stay as they are.

        Raises:
            NotStoredError: if that cannot be stored.
        """
        await self._write(Write(lines=lines))

    async def forget(self, ids: tuple[str, ...]) -> Forgotten:
        """Delete the points of a device that wait or are dead letters.

        Everything that was accepted before is looked at, also what is being sent meanwhile: on return nothing of it
        waits or is under way any more.

        Args:
            ids: of the device, as they stand in lines.

        Raises:
            ChoreError: if InfluxDB does not answer what is being sent; what waits is deleted then, too.
            NotStoredError: if that cannot be stored.
            sqlite3.Error: if the journal cannot be read.
        """
        needles = tuple(f'device_id="{each}"' for each in ids)
        points = 0
        last = self._last_transaction()
        after = 0
        while after < last:
            after, groups = await asyncio.to_thread(_find_groups, self._reader, after, last, needles)
            if groups:
                edit = Forget(ids, groups=groups)
                await self._write(Write(edits=[edit]))
                points += edit.points
        is_settled = await self._wait_for_delivery()  # What is being sent may become dead letters.
        dead = 0
        for letter in await asyncio.to_thread(lambda: list(find_letters(self._path, needles))):
            edit = Forget(ids, letters=[letter])
            await self._write(Write(edits=[edit]))
            dead += edit.dead_letter_points
        if not is_settled:
            msg = (
                "all that waits is deleted, but points may be on their way to InfluxDB, which does not answer; "
                "forget the device again once it does"
            )
            raise ChoreError(msg)
        letters = await asyncio.to_thread(list_letters, self._path)
        return Forgotten(points, dead, sum(not letter.is_readable for letter in letters))

    async def _wait_for_delivery(self) -> bool:
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                await self._settle()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Close the reader."""
        self._reader.close()

    async def _letters(self, ids: Iterable[int] | None) -> tuple[list[Letter], int]:
        """Give the letters that were asked for and are there, and how many are not."""
        letters = await asyncio.to_thread(list_letters, self._path)
        if ids is None:
            return letters, 0
        wanted = set(ids)
        found = [letter for letter in letters if letter.letter_id in wanted]
        return found, len(wanted) - len(found)


def _in_parts(letters: list[Letter]) -> Iterable[list[Letter]]:
    """Give letters in parts of about so many points as one transaction should have."""
    part: list[Letter] = []
    points = 0
    for letter in letters:
        if part and points + letter.points > POINTS_AT_ONCE:
            yield part
            part, points = [], 0
        part.append(letter)
        points += letter.points
    if part:
        yield part


def _find_groups(reader: JournalReader, after: int, last: int, needles: tuple[str, ...]) -> tuple[int, list[int]]:
    """Find some groups above a number that hold one of some texts; tells up to which number it looked, too."""
    rows = reader.read(after, POINTS_AT_ONCE, last)
    if not rows:
        return last, []
    encoded = [needle.encode() for needle in needles]
    return rows[-1].number, [row.number for row in rows if _holds(row.lines, encoded)]


def _holds(blob: bytes, needles: list[bytes]) -> bool:
    try:
        text = unpack(blob)
    except ValueError:  # Delivery keeps it as a dead letter.
        return False
    return any(needle in text for needle in needles)
