"""Following downloads and failures until they can be counted."""

import asyncio
from typing import Final

import structlog

from exporter.clock import Clock
from exporter.commit import Committer
from exporter.derived import families
from exporter.derived.episode import Episode
from exporter.derived.episodes import Episodes
from exporter.derived.tally import Tally
from exporter.derived.tracks import Track
from exporter.derived.walk import Entry
from exporter.group import Group, NotStoredError

_TICK_SECONDS: Final = 1.0
_EPISODES_AT_ONCE: Final = 500

log = structlog.get_logger()


class Following:
    """Takes the entries of episodes, and counts what they have come to when they are due."""

    def __init__(self, episodes: Episodes, tally: Tally, committer: Committer, clock: Clock) -> None:
        """Set the parts.

        Args:
            episodes: what is going on with each device.
            tally: where it is counted.
            committer: whose groups take what is settled by time.
            clock: our own time.
        """
        self._episodes = episodes
        self._tally = tally
        self._committer = committer
        self._clock = clock

    def add(self, track: Track, device: int, entry: Entry, group: Group) -> None:
        """Take an entry of a device, and settle first what is due."""
        now_ms = entry.time_ms + entry.delay_ms
        episodes = self._episodes
        episode = track.episodes.get(device)
        if episode is not None and episode.due_ms <= now_ms:
            self._settle(episode, group, now_ms)
            episode = track.episodes.get(device)
        if episode is None or episodes.room <= 0:
            oldest = episodes.oldest(for_new=episode is None)
            if oldest is not None and oldest is not episode:
                self._evict(oldest, group, now_ms)
        changed = group.derived.episodes
        if episode is None:
            episode = episodes.begin(track, device)
        elif not episode.count and episode.takes(entry):
            changed[episode] = None
            if entry.channel:
                group.derived.skip("same_failure")
            return
        was_open = episode.is_open
        count = episode.count
        if not episode.add(entry):
            group.derived.skip("too_many_steps")
            return
        episodes.room -= episode.count - count
        changed[episode] = None
        if episode.is_open != was_open:
            self._note_open(episode, was_open=was_open, group=group, now_ms=now_ms)
        if episode.due_ms < episode.queued_ms:
            episodes.queue(episode)

    def _note_open(self, episode: Episode, *, was_open: bool, group: Group, now_ms: int) -> None:
        if episode.is_open != was_open:
            delta = 1 if episode.is_open else -1
            self._tally.count(families.DOWNLOADS_IN_FLIGHT, episode.track.labels, group, now_ms, delta)

    def _settle(self, episode: Episode, group: Group, now_ms: int) -> None:
        """Count what an episode that is due has come to, or forget it."""
        if not episode.count:
            self._episodes.forget(episode)
            return
        was_open = episode.is_open
        settled = self._episodes.settle(episode)
        for attempt in settled.attempts:
            self._tally.attempt(episode.track, attempt, group, now_ms)
        for failure in settled.failures:
            self._tally.failure(episode.track, failure, group, now_ms)
        if settled.repeats:
            group.derived.skip("same_failure", settled.repeats)
        group.derived.episodes[episode] = None
        self._note_open(episode, was_open=was_open, group=group, now_ms=now_ms)
        self._episodes.queue(episode)

    def _evict(self, episode: Episode, group: Group, now_ms: int) -> None:
        """Make room: count what ended, and forget a download that is under way, of which nobody knows how it ends."""
        if episode.has_ended:
            self._settle(episode, group, now_ms)
        if episode.is_open:
            episode.is_open = False
            self._note_open(episode, was_open=True, group=group, now_ms=now_ms)
            group.derived.skip("forgotten_download")
        self._episodes.forget(episode)
        episode.clear()
        group.derived.episodes[episode] = None

    async def run(self) -> None:
        """Settle what is due once a second, for ever."""
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            try:
                await self.settle()
            except NotStoredError as error:
                log.warning(
                    "downloads and failures are counted later, because that could not be stored", error=str(error)
                )

    async def settle(self) -> None:
        """Settle everything that is due now.

        Raises:
            NotStoredError: if it could not be stored; it is due again as soon as the journal can be written.
        """
        due = self._episodes.due(self._clock.wall_ms())
        while self._committer.writable:
            group = self._committer.group
            now_ms = self._clock.wall_ms()
            count = 0
            for episode in due:
                self._settle(episode, group, now_ms)
                count += 1
                if count >= _EPISODES_AT_ONCE:
                    break
            if group.is_empty:
                return
            error = await self._committer.wait(group)
            if error is not None:
                raise error
            if count < _EPISODES_AT_ONCE:
                return
