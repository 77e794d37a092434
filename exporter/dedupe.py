"""The window of remembered event identities.

A hash table with open addressing, whose slots hold the ids themselves: 8 bytes each, where a dictionary takes some 60
for its entry and the number. A batch is looked up at once, so that the processor waits for memory for many ids
together; with dictionaries that waiting was most of what the window cost. Where an id belongs is told by multiplication
with a secret odd factor (multiply-shift hashing, Dietzfelbinger et al. 1997): nobody can make ids that all belong to
one place.
"""

import math
import mmap
import secrets
from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

_MOST_IN_A_SHARD: Final = 1 << 15
"""A generation of so many takes half a mebibyte, which is emptied in some 0.1 ms."""

_SLOTS_PER_ID: Final = 2
_PART: Final = 8
"""So many parts of a row are added at most before it is looked whether it is full."""

_LEAST_SLOTS: Final = 64
_SLOT_BYTES: Final = 8
_ID_BITS: Final = 64
_ID_MASK: Final = (1 << _ID_BITS) - 1
_DEVIATIONS: Final = 7
_FEW: Final = 48
"""Fewer than so many are faster one by one."""

_Ids = NDArray[np.uint64]
_Places = NDArray[np.int64]


class DedupeWindow:
    """Remembers at least the last `capacity` committed ids, and at most about two and a half times as many.

    Ids are numbers of 64 bits, but not 0, which stands for an empty slot.

    Each shard has two generations: the young one takes new ids, and becomes the old one when it is full, in place of
    the one before. Both are rows of one table, in its first half and in its second one by turns. A row is never more
    than two thirds full, so that every search meets an empty slot soon.
    """

    def __init__(self, capacity: int) -> None:
        """Make an empty window.

        Args:
            capacity: how many ids are remembered at least.
        """
        shards = 1
        while _generation(capacity, shards) > _MOST_IN_A_SHARD:
            shards *= 2
        self._generation = _generation(capacity, shards)
        slots = _LEAST_SLOTS
        while slots < self._generation * _SLOTS_PER_ID:
            slots *= 2
        self._slots = slots
        self._at_once = slots // _PART
        self._half = shards * slots
        self._shift = _ID_BITS - self._half.bit_length() + 1
        self._factor = secrets.randbits(_ID_BITS) | 1
        # From the system, page by page as it is used: numpy would ask for huge pages, which are slow to come.
        memory = mmap.mmap(-1, 2 * self._half * _SLOT_BYTES)
        self._table: _Ids = np.frombuffer(memory, np.uint64)  # 0: empty
        self._cells = memoryview(memory).cast("Q")  # for single ids, of which numpy would make objects of its own
        self._young = [0] * shards  # where the young generation's half begins
        # The first generations are of different sizes, so that shards do not age all at the same time.
        self._limits = [max(self._generation * (shard + 1) // shards, 1) for shard in range(shards)]
        self._counts = [0] * shards
        self._old_counts = [0] * shards
        # Since when all ids of a generation are remembered; None: since the window's first one.
        self._young_since_ms: list[int | None] = [None] * shards
        self._old_since_ms: list[int | None] = [None] * shards
        self._began_ms: int | None = None

    def __len__(self) -> int:
        """Count the ids."""
        return sum(self._counts) + sum(self._old_counts)

    def __contains__(self, event_id: int) -> bool:
        """Tell whether an id is remembered."""
        place = self._place(event_id)
        return self._holds(event_id, place) or self._holds(event_id, place + self._half)

    def known(self, event_ids: Iterable[int | None]) -> set[int]:
        """Find the ids that are remembered; None stands for events that have none."""
        ids = [event_id for event_id in event_ids if event_id is not None]
        if len(ids) < _FEW:
            return {event_id for event_id in ids if event_id in self}
        wanted = np.array(ids, np.uint64)
        places = self._places(wanted)
        # Both halves are searched at once.
        wanted = np.concatenate((wanted, wanted))
        places = np.concatenate((places, places + self._half))
        found: set[int] = set()
        while len(places) >= _FEW:
            held = self._table[places]
            found.update(wanted[held == wanted].tolist())
            goes_on = held != 0  # also after what was found, which is rare
            wanted, places = wanted[goes_on], self._next(places[goes_on])
        found.update(
            event_id
            for event_id, place in zip(wanted.tolist(), places.tolist(), strict=True)
            if self._holds(event_id, place)
        )
        return found

    def add(self, event_ids: Iterable[int], now_ms: int) -> None:
        """Remember ids whose transaction is committed.

        Args:
            event_ids: the ids, oldest first; one that comes twice may count as two.
            now_ms: when they were committed, in milliseconds since 1970.
        """
        ids = list(event_ids)
        if ids and self._began_ms is None:
            self._began_ms = now_ms
        for start in range(0, len(ids), self._at_once):
            some = ids[start : start + self._at_once]
            shards = self._add_few(some) if len(some) < _FEW else self._add_many(some)
            for shard in shards:
                if self._counts[shard] >= self._limits[shard]:
                    self._age(shard, now_ms)

    def since_ms(self) -> int | None:
        """Tell since when every id is remembered, in milliseconds since 1970; None while the window is empty."""
        if self._began_ms is None:
            return None
        return max(self._began_ms if since is None else since for since in self._old_since_ms)

    def _place(self, event_id: int) -> int:
        """Give where an id belongs in the first half: its shard's row, and there its slot."""
        return (event_id * self._factor & _ID_MASK) >> self._shift

    def _places(self, wanted: _Ids) -> _Places:
        return (wanted * np.uint64(self._factor) >> np.uint64(self._shift)).view(np.int64)

    def _next(self, places: _Places) -> _Places:
        """Give the slots after these; the first one of a row follows its last."""
        within = self._slots - 1
        return places & ~within | places + 1 & within

    def _holds(self, event_id: int, place: int) -> bool:
        within = self._slots - 1
        while held := self._cells[place]:
            if held == event_id:
                return True
            place = place & ~within | place + 1 & within
        return False

    def _put(self, event_id: int, place: int) -> None:
        """Put an id into a slot, or into the next free one after it."""
        within = self._slots - 1
        while (held := self._cells[place]) and held != event_id:
            place = place & ~within | place + 1 & within
        self._cells[place] = event_id

    def _add_few(self, ids: list[int]) -> set[int]:
        """Put ids into their shards, and give those."""
        shards = set()
        for event_id in ids:
            place = self._place(event_id)
            shard = place // self._slots
            self._put(event_id, place + self._young[shard])
            self._counts[shard] += 1
            shards.add(shard)
        return shards

    def _add_many(self, ids: list[int]) -> range:
        """Do the same at once: of several ids that meet at a slot the last one gets it, and the others go on."""
        wanted = np.array(ids, np.uint64)
        places = self._places(wanted)
        shards = places // self._slots
        counts = np.bincount(shards, minlength=len(self._counts)).tolist()
        self._counts = [before + more for before, more in zip(self._counts, counts, strict=True)]
        places += np.array(self._young)[shards]
        while len(places) >= _FEW:
            is_free = self._table[places] == 0
            self._table[places[is_free]] = wanted[is_free]
            goes_on = self._table[places] != wanted
            wanted, places = wanted[goes_on], self._next(places[goes_on])
        for event_id, place in zip(wanted.tolist(), places.tolist(), strict=True):
            self._put(event_id, place)
        return range(len(counts))

    def _age(self, shard: int, now_ms: int) -> None:
        """Let the young generation be the old one; ids of the same time may be in either, so it is known later."""
        self._young[shard] = self._half - self._young[shard]
        row = self._young[shard] + shard * self._slots
        self._table[row : row + self._slots] = 0
        self._limits[shard] = self._generation
        self._old_counts[shard], self._counts[shard] = self._counts[shard], 0
        self._old_since_ms[shard], self._young_since_ms[shard] = self._young_since_ms[shard], now_ms + 1


def _generation(capacity: int, shards: int) -> int:
    """Give how many ids a shard must hold for all of them to hold the last `capacity`.

    A shard's share varies by chance, with the square root of its mean as the standard deviation.
    """
    share = capacity / shards
    return math.ceil(share + _DEVIATIONS * math.sqrt(share)) if shards > 1 else capacity
