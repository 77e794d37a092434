"""Episodes: what is going on with one device and one version, from a download's first step until everything is counted.

Entries may come in any order, twice, or hours apart. So they are kept until the episode is due, and then read together.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final

import msgspec

from exporter.derived.tracks import Code, Track
from exporter.derived.walk import MAX_DURATION_MS, Entry, Memory, Settled, stalled, walk

MAX_EPISODES: Final = 100_000
"""Past so many, the least recently changed is settled at once."""

GRACE_MS: Final = 10_000
"""So long after an end or a failure arrived its stragglers are waited for."""

STALLED_AFTER_MS: Final = MAX_DURATION_MS
REMEMBERED_MS: Final = 5 * 60 * 1000
_MAX_ENTRIES: Final = 64
_FIRST_END: Final = int(Code.MANIFEST_COMPLETE)
_NEVER: Final = 1 << 62
_CLOCK_SET_BACK_MS: Final = 60_000
_SLACK_STATES: Final = 10_000


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
    """

    __slots__ = (
        "_changed_ms",
        "_ended_ms",
        "device",
        "due_ms",
        "entries",
        "is_open",
        "memory",
        "queued_ms",
        "row",
        "track",
    )

    def __init__(self, track: Track, device: int) -> None:
        """Make an episode that nothing is known of."""
        self.track = track
        self.device = device
        self.entries: list[Entry] = []
        self.memory: Memory | None = None
        self.is_open = False
        self.due_ms = 0
        self.queued_ms = _NEVER
        self.row = 0
        self._changed_ms = 0
        self._ended_ms: int | None = None

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
        self._ended_ms = None
        self.is_open = bool(settled.tail)
        self._set_due()
        return settled

    def wait_from(self, now_ms: int) -> None:
        """Follow a clock that was set back."""
        self._changed_ms = min(self._changed_ms, now_ms)
        if self._ended_ms is not None:
            self._ended_ms = min(self._ended_ms, now_ms)
        self._set_due()

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
        for entry in sorted(state.entries, key=lambda entry: entry.arrival_ms):
            self._take(entry)
        self._changed_ms = state.changed_ms
        self._set_due()

    def _take(self, entry: Entry) -> None:
        self.entries.append(entry)
        self._changed_ms = arrival_ms = entry.arrival_ms
        if entry.code < _FIRST_END:
            if self._ended_ms is None:
                self.is_open = True
                self.due_ms = arrival_ms + STALLED_AFTER_MS
            return
        if entry.code != Code.ACTIVATION_FAILURE:
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


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[State])


class Episodes:
    """All episodes, the least recently written first, and the log in which their states are written.

    A row of the log holds the states of the episodes that a transaction changed. A row is needed as long as it holds
    the last state of an episode; a few old ones are written anew with each transaction, so that the log stays in
    proportion to the episodes.
    """

    def __init__(self) -> None:
        """Start without any."""
        self._live: dict[Episode, None] = {}
        self._queue: list[tuple[int, int, Episode]] = []
        self._queued = 0
        self._rows: deque[tuple[int, int]] = deque()
        self._logged = 0
        self._last_ms = 0

    def __len__(self) -> int:
        """Count the episodes."""
        return len(self._live)

    def __iter__(self) -> Iterator[Episode]:
        """Give all episodes."""
        return iter(self._live)

    def begin(self, track: Track, device: int) -> Episode:
        """Make a new episode; there must be room for it."""
        episode = track.episodes[device] = Episode(track, device)
        self._live[episode] = None
        return episode

    def oldest(self) -> Episode | None:
        """Give the least recently written episode if a new one has no room."""
        return next(iter(self._live)) if len(self._live) >= MAX_EPISODES else None

    def forget(self, episode: Episode) -> None:
        """Take an episode out."""
        if self._live.pop(episode, 0) is None:
            del episode.track.episodes[episode.device]

    def queue(self, episode: Episode) -> None:
        """Let an episode be found when it is due."""
        if episode.due_ms < episode.queued_ms:
            episode.queued_ms = episode.due_ms
            self._queued += 1
            heapq.heappush(self._queue, (episode.due_ms, self._queued, episode))

    def due(self, now_ms: int) -> Iterator[Episode]:
        """Give, one after another, the episodes that are due; if our clock was set back, they wait from now on."""
        if now_ms < self._last_ms - _CLOCK_SET_BACK_MS:
            for episode in self._live:
                episode.wait_from(now_ms)
                self.queue(episode)
        self._last_ms = now_ms
        while self._queue and self._queue[0][0] <= now_ms:
            queued_ms, _, episode = heapq.heappop(self._queue)
            if episode not in self._live or queued_ms != episode.queued_ms:
                continue
            episode.queued_ms = _NEVER
            if episode.due_ms <= now_ms:
                yield episode
            else:
                self.queue(episode)

    def log(self, changed: Iterable[Episode], number: int) -> bytes | None:
        """Write the states of changed episodes, and of some whose rows are old.

        The row numbers are noted as if the transaction were stored; if it is not, everything is restored anew.

        Args:
            changed: the episodes.
            number: of the transaction.
        """
        written = {episode: None for episode in changed if episode in self._live}
        if self._logged > 2 * len(self._live) + _SLACK_STATES:
            written |= dict.fromkeys(islice(self._live, 2 * len(written) + 100))
        if not written:
            return None
        for episode in written:
            episode.row = number
            del self._live[episode]
            self._live[episode] = None
        self._rows.append((number, len(written)))
        self._logged += len(written)
        return _encoder.encode([episode.state() for episode in written])

    def needed_from(self) -> int:
        """Give the number of the first row that is still needed; 0 if no row can go."""
        first = next((episode.row for episode in self._live if episode.row), None)
        dropped = 0
        while self._rows and (first is None or self._rows[0][0] < first):
            number, states = self._rows.popleft()
            self._logged -= states
            dropped = number + 1
        return dropped

    def restore(
        self, rows: Iterable[tuple[int, bytes]], find_track: Callable[[tuple[str, str, str, str]], Track]
    ) -> None:
        """Take over what the journal holds, in place of everything there is.

        Raises:
            ValueError: if it is damaged.
        """
        for episode in self._live:
            episode.track.episodes.clear()
        self._live.clear()
        self._queue.clear()
        self._rows.clear()
        self._logged = 0
        for number, blob in rows:
            states = _decoder.decode(blob)
            self._rows.append((number, len(states)))
            self._logged += len(states)
            for state in states:
                track = find_track(state.track)
                episode = track.episodes.get(state.device) or self.begin(track, state.device)
                episode.resume(state)
                episode.row = number
                del self._live[episode]
                self._live[episode] = None
        for episode in self._live:
            self.queue(episode)


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
