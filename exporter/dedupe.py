"""The window of remembered event identities."""

import math
from collections.abc import Iterable
from typing import Final

_MOST_IN_A_SHARD: Final = 1365
"""A dictionary of so many takes 37 kB; with one more it takes twice as much."""

_DEVIATIONS: Final = 7


class _Shard:
    """Two generations: the young one takes new ids, and becomes the old one when it is full.

    They are dictionaries, because those of numbers alone are passed over when garbage is collected, unlike sets.
    """

    __slots__ = ("old", "old_since_ms", "young", "young_since_ms")

    def __init__(self) -> None:
        self.young: dict[int, None] = {}
        self.old: dict[int, None] = {}
        self.young_since_ms: int | None = None
        self.old_since_ms: int | None = None


class DedupeWindow:
    """Remembers at least the last `capacity` committed ids, and at most about two and a half times as many.

    Ids are hashes, so their low bits spread them over shards evenly. Small shards, because one of a million entries
    stops the event loop for 20 ms when it grows, and again when it is dropped; and many, because they grow at about the
    same time.
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
        self._mask = shards - 1
        self._shards = [_Shard() for _ in range(shards)]

    def __len__(self) -> int:
        """Count the ids."""
        return sum(len(shard.young) + len(shard.old) for shard in self._shards)

    def __contains__(self, event_id: int) -> bool:
        """Tell whether an id is remembered."""
        shard = self._shards[event_id & self._mask]
        return event_id in shard.young or event_id in shard.old

    def known(self, event_ids: Iterable[int | None]) -> set[int]:
        """Find the ids that are remembered; None stands for events that have none."""
        shards = self._shards
        mask = self._mask
        return {
            event_id
            for event_id in event_ids
            if event_id is not None and (event_id in (shard := shards[event_id & mask]).young or event_id in shard.old)
        }

    def add(self, event_ids: Iterable[int], now_ms: int) -> None:
        """Remember ids whose transaction is committed.

        Args:
            event_ids: the ids, oldest first.
            now_ms: when they were committed, in milliseconds since 1970.
        """
        shards = self._shards
        mask = self._mask
        for event_id in event_ids:
            shard = shards[event_id & mask]
            if len(shard.young) >= self._generation:
                shard.old = shard.young
                shard.old_since_ms = shard.young_since_ms
                shard.young = {}
                shard.young_since_ms = None
            if shard.young_since_ms is None:
                shard.young_since_ms = now_ms
            shard.young[event_id] = None

    def since_ms(self) -> int | None:
        """Tell since when every id is remembered, in milliseconds since 1970; None while the window is empty."""
        starts = [shard.old_since_ms or shard.young_since_ms for shard in self._shards]
        return max((start for start in starts if start is not None), default=None)


def _generation(capacity: int, shards: int) -> int:
    """Give how many ids a shard must hold for all of them to hold the last `capacity`.

    A shard's share varies by chance, with the square root of its mean as the standard deviation.
    """
    share = capacity / shards
    return math.ceil(share + _DEVIATIONS * math.sqrt(share)) if shards > 1 else capacity
