"""One episode: the entries of one device and version, and when they are to be counted.

There may be 100,000 episodes with a million entries. So entries are kept as they are written, as MessagePack, which
takes a tenth of the room of objects, and episodes are structs that the garbage collector need not look at.
"""

from typing import Final, Self

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

_encode: Final = msgspec.msgpack.Encoder().encode
_decode_entries: Final = msgspec.msgpack.Decoder(list[Entry]).decode
_decode_memory: Final = msgspec.msgpack.Decoder(Memory).decode
_NO_ENTRIES: Final[list[Entry]] = []
_ARRAY_OF: Final = [_encode([0] * count)[: -count or None] for count in range(_MAX_ENTRIES + 1)]
"""What stands before so many entries."""


class Episode(msgspec.Struct, gc=False, eq=False):
    """What is going on with one device and one version.

    Attributes:
        track: whose labels its figures get.
        device: the hash of the device.
        count: how many entries are not settled yet.
        is_open: whether a download is under way.
        due_ms: when it has to be settled, or, without entries, forgotten.
        queued_ms: the earliest second for which it stands in the queue, as its beginning; far away if it does not.
        row: the transaction with which its state was last written.
        before: the one that was written before it; None if it is forgotten.
        after: the one that was written after it; None if it is forgotten.
    """

    track: Track
    device: int
    count: int = 0
    is_open: bool = False
    due_ms: int = 0
    queued_ms: int = NEVER
    row: int = 0
    before: Self | None = None
    after: Self | None = None
    _packed: bytes = b""
    _fresh: list[Entry] = msgspec.field(default_factory=lambda: _NO_ENTRIES)  # not packed yet
    _memory: bytes = b""
    _changed_ms: int = 0
    _ended_ms: int | None = None
    _is_over: bool = False  # a download's end is among the entries

    @property
    def entries(self) -> list[Entry]:
        """Give what is not settled yet."""
        self._pack()
        return _decode_entries(_ARRAY_OF[self.count] + self._packed)

    @property
    def memory(self) -> Memory | None:
        """Give what is remembered of what is settled; None if nothing is."""
        return _decode_memory(self._memory) if self._memory else None

    @property
    def has_ended(self) -> bool:
        """Tell whether something has ended that is not settled."""
        return self._ended_ms is not None

    def add(self, entry: Entry) -> bool:
        """Add an entry; False if there are too many."""
        if self.count >= _MAX_ENTRIES:
            self._keep(_condensed(self.entries))
            if self.count >= _MAX_ENTRIES:
                return False
        if self._fresh:
            self._fresh.append(entry)
        else:
            self._fresh = [entry]
        self.count += 1
        self._changed_ms = arrival_ms = entry.time_ms + entry.delay_ms
        code = entry.code
        if code < Code.MANIFEST_COMPLETE:
            self.is_open = not self._is_over
            if self._ended_ms is None:
                self.due_ms = arrival_ms + STALLED_AFTER_MS
            return True
        if code != Code.ACTIVATION_FAILURE:
            self._is_over = True
            self.is_open = False
        if self._ended_ms is None:
            self._ended_ms = arrival_ms
            self.due_ms = arrival_ms + GRACE_MS
        return True

    def takes(self, entry: Entry) -> bool:
        """Tell whether an entry says nothing new, because it belongs to what is settled; it is remembered then."""
        if self.count or not self._memory:
            return False
        memory = _decode_memory(self._memory)
        is_taken = memory.takes(entry)
        self._memory = _encode(memory)
        return is_taken

    def settle(self) -> Settled:
        """Settle what has ended, or everything if nothing has: then the attempt has stalled."""
        if self._ended_ms is None:
            settled = Settled(attempts=[stalled(self.entries)] if self.count else [])
        else:
            memory = self.memory or Memory()
            settled = walk(self.entries, memory)
            self._memory = _encode(memory)
        self._keep(settled.tail)
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
        self._keep([])
        self._memory = b""

    def state(self) -> "State":
        """Give what has to be written of it."""
        self._pack()
        entries = msgspec.Raw(_ARRAY_OF[self.count] + self._packed)
        return State(self.track.labels, self.device, self._changed_ms, entries, self._memory)

    def resume(self, state: "State") -> None:
        """Take over what was written.

        Raises:
            ValueError: if it is damaged.
        """
        self.clear()
        self.is_open = False
        self._ended_ms = None
        self._is_over = False
        for entry in sorted(_decode_entries(state.entries), key=lambda entry: entry.arrival_ms):
            self.add(entry)
        if state.memory:
            _decode_memory(state.memory)
        self._memory = state.memory
        self._changed_ms = state.changed_ms
        self._set_due()
        self._pack()

    def _keep(self, entries: list[Entry]) -> None:
        """Have these entries in place of those there are."""
        self.count = len(entries)
        self._packed = b""
        self._fresh = entries
        self._pack()

    def _pack(self) -> None:
        """Turn entries into bytes; it costs less for many at once than for each."""
        fresh, self._fresh = self._fresh, _NO_ENTRIES
        if fresh:
            self._packed += _encode(fresh)[len(_ARRAY_OF[len(fresh)]) :]

    def _set_due(self) -> None:
        if self._ended_ms is not None:
            self.due_ms = self._ended_ms + GRACE_MS
        else:
            self.due_ms = self._changed_ms + (STALLED_AFTER_MS if self.count else REMEMBERED_MS)


class State(msgspec.Struct, array_like=True, gc=False):
    """An episode as it is written."""

    track: tuple[str, str, str, str]
    device: int
    changed_ms: int
    entries: msgspec.Raw
    memory: bytes

    @property
    def is_gone(self) -> bool:
        """Tell whether nothing is left of it."""
        return not self.memory and bytes(self.entries) == _ARRAY_OF[0]


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
