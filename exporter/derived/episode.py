"""One episode: the entries of one device and version, and when they are to be counted."""

from typing import Final

import msgspec

from exporter.derived.tracks import Code, Track
from exporter.derived.walk import MAX_DURATION_MS, Entry, Memory, Settled, stalled, walk

GRACE_MS: Final = 10_000
"""So long after an end or a failure arrived its stragglers are waited for."""

STALLED_AFTER_MS: Final = MAX_DURATION_MS
REMEMBERED_MS: Final = 5 * 60 * 1000
NEVER: Final = 1 << 62
"""A moment far away, in milliseconds since 1970."""

_MAX_ENTRIES: Final = 64
_FIRST_END: Final = int(Code.MANIFEST_COMPLETE)


class Episode:
    """What is going on with one device and one version.

    Attributes:
        track: whose labels its figures get.
        device: the hash of the device.
        entries: what is not settled yet.
        memory: what is remembered of what is; None if nothing is.
        is_open: whether a download is under way.
        due_ms: when it has to be settled, or, without entries, forgotten.
        queued_ms: the earliest moment for which it stands in the queue; far away if it does not.
        row: the transaction with which its state was last written.
        weight: how many of its entries are counted among all.
    """

    __slots__ = (
        "_changed_ms",
        "_ended_ms",
        "_is_over",
        "device",
        "due_ms",
        "entries",
        "is_open",
        "memory",
        "queued_ms",
        "row",
        "track",
        "weight",
    )

    def __init__(self, track: Track, device: int) -> None:
        """Make an episode that nothing is known of."""
        self.track = track
        self.device = device
        self.entries: list[Entry] = []
        self.memory: Memory | None = None
        self.is_open = False
        self.due_ms = 0
        self.queued_ms = NEVER
        self.row = 0
        self.weight = 0
        self._changed_ms = 0
        self._ended_ms: int | None = None
        self._is_over = False  # a download's end is among the entries

    @property
    def has_ended(self) -> bool:
        """Tell whether something has ended that is not settled."""
        return self._ended_ms is not None

    def add(self, entry: Entry) -> bool:
        """Add an entry; False if there are too many."""
        if len(self.entries) >= _MAX_ENTRIES:
            self.entries = _condensed(self.entries)
            if len(self.entries) >= _MAX_ENTRIES:
                return False
        self._take(entry)
        return True

    def settle(self) -> Settled:
        """Settle what has ended, or everything if nothing has: then the attempt has stalled."""
        if self._ended_ms is None:
            settled = Settled(attempts=[stalled(self.entries)] if self.entries else [])
        else:
            self.memory = self.memory or Memory()
            settled = walk(self.entries, self.memory)
        self.entries = settled.tail
        if settled.tail:
            self._changed_ms = max(entry.arrival_ms for entry in settled.tail)
        self._ended_ms = None
        self._is_over = False
        self.is_open = bool(settled.tail)
        self._set_due()
        return settled

    def wait_from(self, now_ms: int) -> None:
        """Follow a clock that was set back."""
        self._changed_ms = min(self._changed_ms, now_ms)
        if self._ended_ms is not None:
            self._ended_ms = min(self._ended_ms, now_ms)
        self._set_due()

    def clear(self) -> None:
        """Keep nothing, so that what is written of it says that it is gone."""
        self.entries = []
        self.memory = None

    def state(self) -> "State":
        """Give what has to be written of it."""
        memory = self.memory or Memory()
        return State(self.track.labels, self.device, self._changed_ms, self.entries, memory.end, memory.anchors)

    def resume(self, state: "State") -> None:
        """Take over what was written."""
        self.memory = Memory(state.end, state.anchors) if state.end or state.anchors else None
        self.entries = []
        self.is_open = False
        self._ended_ms = None
        self._is_over = False
        for entry in sorted(state.entries, key=lambda entry: entry.arrival_ms):
            self._take(entry)
        self._changed_ms = state.changed_ms
        self._set_due()

    def _take(self, entry: Entry) -> None:
        self.entries.append(entry)
        self._changed_ms = arrival_ms = entry.arrival_ms
        if entry.code < _FIRST_END:
            self.is_open = not self._is_over
            if self._ended_ms is None:
                self.due_ms = arrival_ms + STALLED_AFTER_MS
            return
        if entry.code != Code.ACTIVATION_FAILURE:
            self._is_over = True
            self.is_open = False
        if self._ended_ms is None:
            self._ended_ms = arrival_ms
            self.due_ms = arrival_ms + GRACE_MS

    def _set_due(self) -> None:
        if self._ended_ms is not None:
            self.due_ms = self._ended_ms + GRACE_MS
        else:
            self.due_ms = self._changed_ms + (STALLED_AFTER_MS if self.entries else REMEMBERED_MS)


class State(msgspec.Struct, array_like=True, gc=False):
    """An episode as it is written."""

    track: tuple[str, str, str, str]
    device: int
    changed_ms: int
    entries: list[Entry]
    end: Entry | None
    anchors: dict[int, Entry]

    @property
    def is_gone(self) -> bool:
        """Tell whether nothing is left of it."""
        return not (self.entries or self.end or self.anchors)


def _condensed(entries: list[Entry]) -> list[Entry]:
    """Keep of each progress step the first and the last entry; more of them say nothing more."""
    kept: dict[Entry, None] = {}
    ordered = sorted(entries)
    for group in (ordered, reversed(ordered)):
        seen: set[int] = set()
        for entry in group:
            if entry.code >= Code.MANIFEST_COMPLETE or entry.code not in seen:
                kept[entry] = None
            seen.add(entry.code)
    return list(kept)
