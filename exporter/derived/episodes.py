"""All episodes: what is going on with each device and version, until everything is counted.

Entries may come in any order, twice, or hours apart. So they are kept until the episode is due, and then read together.
"""

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final

import msgspec

from exporter.derived.episode import NEVER, Episode, State
from exporter.derived.tracks import Track

MAX_EPISODES: Final = 100_000
"""Past so many, the least recently changed is settled at once."""

MAX_ENTRIES: Final = 1_000_000
"""Past so many entries of all episodes, too; they take some 270 MiB."""

_CLOCK_SET_BACK_MS: Final = 60_000
_SLACK_STATES: Final = 10_000

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
        # Not a dict: to find the first one it looks at the places of all that were taken out before it.
        self._live: OrderedDict[Episode, None] = OrderedDict()
        self._entries = 0
        self._queue: list[tuple[int, int, Episode]] = []
        self._queued = 0
        self._rows: deque[tuple[int, int]] = deque()
        self._logged = 0
        self._last_ms = NEVER

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

    def oldest(self, *, for_new: bool = True) -> Episode | None:
        """Give the least recently written episode if an entry has no room, or the new episode that it begins."""
        is_full = self._entries >= MAX_ENTRIES or (for_new and len(self._live) >= MAX_EPISODES)
        return next(iter(self._live), None) if is_full else None

    def weigh(self, episode: Episode) -> None:
        """Note how many entries an episode has by now."""
        self._entries += len(episode.entries) - episode.weight
        episode.weight = len(episode.entries)

    def forget(self, episode: Episode) -> None:
        """Take an episode out; if the log holds more of it than memory, it must be cleared and written once more."""
        if self._live.pop(episode, 0) is None:
            del episode.track.episodes[episode.device]
            self._entries -= episode.weight

    def queue(self, episode: Episode) -> None:
        """Let an episode be found when it is due."""
        if episode.due_ms < episode.queued_ms:
            episode.queued_ms = episode.due_ms
            self._queued += 1
            heapq.heappush(self._queue, (episode.due_ms, self._queued, episode))
            if len(self._queue) > 4 * len(self._live) + _SLACK_STATES:
                self._clear_queue()

    def due(self, now_ms: int) -> Iterator[Episode]:
        """Give, one after another, the episodes that are due; if our clock was set back, they wait from now on.

        Whether it was while nobody looked cannot be told, so that they do from the first call after `restore`, too.
        """
        if now_ms < self._last_ms - _CLOCK_SET_BACK_MS:
            for episode in self._live:
                episode.wait_from(now_ms)
                self.queue(episode)
        self._last_ms = now_ms
        while self._queue and self._queue[0][0] <= now_ms:
            queued_ms, _, episode = heapq.heappop(self._queue)
            if episode not in self._live or queued_ms != episode.queued_ms:
                continue
            episode.queued_ms = NEVER
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
        written = dict.fromkeys(changed)
        if self._logged > 2 * len(self._live) + _SLACK_STATES:
            written |= dict.fromkeys(islice(self._live, 2 * len(written) + 100))
        if not written:
            return None
        for episode in written:
            episode.row = number
            if episode in self._live:
                self._live.move_to_end(episode)
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
        self._entries = 0
        self._queue.clear()
        self._rows.clear()
        self._logged = 0
        self._last_ms = NEVER
        for number, blob in rows:
            states = _decoder.decode(blob)
            self._rows.append((number, len(states)))
            self._logged += len(states)
            for state in states:
                track = find_track(state.track)
                episode = track.episodes.get(state.device) or self.begin(track, state.device)
                if state.is_gone:
                    self.forget(episode)
                    continue
                episode.resume(state)
                episode.row = number
                self._live.move_to_end(episode)
        for episode in self._live:
            self.weigh(episode)
            self.queue(episode)

    def _clear_queue(self) -> None:
        """Take out of the queue what is forgotten, or due at another moment by now."""
        self._queue = [each for each in self._queue if each[2] in self._live and each[0] == each[2].queued_ms]
        heapq.heapify(self._queue)
