"""The window of remembered event identities."""

from collections.abc import Iterable
from typing import Final

_SHARDS: Final = 64
_SHARD_MASK: Final = _SHARDS - 1


class _Shard:
    """Two generations: the young one takes new ids, and becomes the old one when it is full."""

    __slots__ = ("old", "old_since_ms", "young", "young_since_ms")

    def __init__(self) -> None:
        self.young: set[int] = set()
        self.old: set[int] = set()
        self.young_since_ms: int | None = None
        self.old_since_ms: int | None = None


class DedupeWindow:
    """Remembers at least the last `capacity` committed ids, and at most about twice as many.

    Ids are hashes, so their low bits spread them over shards evenly. Small sets, because a set of a million entries
    stops the event loop for 20 ms when it grows.
    """

    def __init__(self, capacity: int) -> None:
        """Make an empty window.

        Args:
            capacity: how many ids are remembered at least.
        """
        # A shard's share varies by chance; a margin of a tenth and 64 keeps the promise of "at least" for any capacity.
        self._generation = int(capacity / _SHARDS * 1.1) + 64
        self._shards = [_Shard() for _ in range(_SHARDS)]

    def __len__(self) -> int:
        """Count the ids."""
        return sum(len(shard.young) + len(shard.old) for shard in self._shards)

    def __contains__(self, event_id: int) -> bool:
        """Tell whether an id is remembered."""
        shard = self._shards[event_id & _SHARD_MASK]
        return event_id in shard.young or event_id in shard.old

    def add(self, event_ids: Iterable[int], now_ms: int) -> None:
        """Remember ids whose transaction is committed.

        Args:
            event_ids: the ids, oldest first.
            now_ms: when they were committed, in milliseconds since 1970.
        """
        shards = self._shards
        for event_id in event_ids:
            shard = shards[event_id & _SHARD_MASK]
            if len(shard.young) >= self._generation:
                shard.old = shard.young
                shard.old_since_ms = shard.young_since_ms
                shard.young = set()
                shard.young_since_ms = None
            if shard.young_since_ms is None:
                shard.young_since_ms = now_ms
            shard.young.add(event_id)

    def since_ms(self) -> int | None:
        """Tell since when every id is remembered, in milliseconds since 1970; None while the window is empty."""
        starts = [shard.old_since_ms or shard.young_since_ms for shard in self._shards]
        return max((start for start in starts if start is not None), default=None)
