"""All episodes: what is going on with each device and version, until everything is counted.

Entries may come in any order, twice, or hours apart. So they are kept until the episode is due, and then read together.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final

import msgspec

from exporter.derived.episode import NEVER, Episode, State
from exporter.derived.tracks import Track
from exporter.derived.walk import Settled

MAX_EPISODES: Final = 100_000
"""Past so many, the least recently changed is settled at once."""

MAX_ENTRIES: Final = 1_000_000
"""Past so many entries of all episodes, too; they take some 60 MiB."""

_CLOCK_SET_BACK_MS: Final = 60_000
_SLACK_STATES: Final = 10_000
_SECOND_MS: Final = 1000

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[State])


class Episodes:
    """All episodes, the least recently written first, and the log in which their states are written.

    A row of the log holds the states of the episodes that a transaction changed. A row is needed as long as it holds
    the last state of an episode; a few old ones are written anew with each transaction, so that the log stays in
    proportion to the episodes.

    The queue holds a list of episodes for each second in which some are due.

    Attributes:
        room: for how many more entries there is room, of all episodes together.
    """

    def __init__(self) -> None:
        """Start without any."""
        self._live = _Chain()
        self.room = MAX_ENTRIES
        self._queue: dict[int, list[Episode]] = {}
        self._seconds: list[int] = []
        self._queued = 0
        self._found: list[Episode] = []
        self._rows: deque[tuple[int, int]] = deque()
        self._logged = 0
        self._last_ms = NEVER

    def __len__(self) -> int:
        """Count the episodes."""
        return self._live.length

    def __iter__(self) -> Iterator[Episode]:
        """Give all episodes."""
        return iter(self._live)

    def begin(self, track: Track, device: int) -> Episode:
        """Make a new episode; there must be room for it."""
        episode = track.episodes[device] = Episode(track, device)
        self._live.append(episode)
        return episode

    def oldest(self, *, for_new: bool = True) -> Episode | None:
        """Give the least recently written episode if an entry has no room, or the new episode that it begins."""
        is_full = self.room <= 0 or (for_new and self._live.length >= MAX_EPISODES)
        return self._live.first if is_full else None

    def settle(self, episode: Episode) -> Settled:
        """Settle what has ended of an episode, or everything if nothing has."""
        self.room += episode.count
        settled = episode.settle()
        self.room -= episode.count
        return settled

    def forget(self, episode: Episode) -> None:
        """Take an episode out; if the log holds more of it than memory, it must be cleared and written once more."""
        if episode in self._live:
            self._live.remove(episode)
            del episode.track.episodes[episode.device]
            self.room += episode.count
            episode.queued_ms = NEVER

    def queue(self, episode: Episode) -> None:
        """Let an episode be found when it is due."""
        second_ms = episode.due_ms - episode.due_ms % _SECOND_MS
        if second_ms >= episode.queued_ms:
            return
        episode.queued_ms = second_ms
        waiting = self._queue.get(second_ms)
        if waiting is None:
            waiting = self._queue[second_ms] = []
            heapq.heappush(self._seconds, second_ms)
        waiting.append(episode)
        self._queued += 1
        if self._queued > 4 * self._live.length + _SLACK_STATES:
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
        while self._found or self._find(now_ms):
            episode = self._found.pop()
            if episode.queued_ms == NEVER:  # it was forgotten in the meantime
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
        if self._logged > 2 * self._live.length + _SLACK_STATES:
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
            self.forget(episode)
        self.room = MAX_ENTRIES
        self._queue.clear()
        self._seconds.clear()
        self._queued = 0
        self._found.clear()
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
                    episode.clear()
                    self.forget(episode)
                    continue
                episode.resume(state)
                episode.row = number
                self._live.move_to_end(episode)
        for episode in self._live:
            self.room -= episode.count
            self.queue(episode)

    def _find(self, now_ms: int) -> bool:
        """Take out of the queue whoever is due, the first at the end; who is due later by now waits on."""
        late: list[Episode] = []
        while self._seconds and self._seconds[0] <= now_ms:
            second_ms = heapq.heappop(self._seconds)
            waiting = self._queue.pop(second_ms)
            self._queued -= len(waiting)
            late += [episode for episode in waiting if episode.queued_ms == second_ms]
        late.sort(key=lambda episode: episode.due_ms)
        for episode in late:
            if episode.due_ms > now_ms:
                episode.queued_ms = NEVER
                self.queue(episode)
        self._found += [episode for episode in reversed(late) if episode.due_ms <= now_ms]
        return bool(self._found)

    def _clear_queue(self) -> None:
        """Take out of the queue what is forgotten, or due at another moment by now."""
        for second_ms, waiting in self._queue.items():
            waiting[:] = [episode for episode in waiting if episode.queued_ms == second_ms]
        self._queued = sum(map(len, self._queue.values()))


class _Chain:
    """Live episodes in order, each linked to its neighbours: an `OrderedDict` takes ten times the room."""

    def __init__(self) -> None:
        self._end = Episode(Track(("", "", "", "")), 0)  # comes after the last and before the first
        self._end.before = self._end.after = self._end
        self.length = 0

    def __iter__(self) -> Iterator[Episode]:
        episode = self._end.after
        while episode is not None and episode is not self._end:
            after = episode.after  # now, as it may be removed
            yield episode
            episode = after

    def __contains__(self, episode: Episode) -> bool:
        return episode.after is not None

    @property
    def first(self) -> Episode | None:
        return next(iter(self), None)

    def append(self, episode: Episode) -> None:
        last = self._end.before or self._end
        episode.before, episode.after = last, self._end
        last.after = self._end.before = episode
        self.length += 1

    def remove(self, episode: Episode) -> None:
        before, after = episode.before, episode.after
        if before is not None and after is not None:
            before.after, after.before = after, before
            episode.before = episode.after = None
            self.length -= 1

    def move_to_end(self, episode: Episode) -> None:
        self.remove(episode)
        self.append(episode)
