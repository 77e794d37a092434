"""Working derived figures out of events: what each one means is written here, how it is kept elsewhere."""

import asyncio
from typing import Final

import structlog
from xxhash import xxh3_64_intdigest

from exporter.clock import MAX_AHEAD_MS, Clock
from exporter.commit import Committer
from exporter.counters import Cell
from exporter.derived import families
from exporter.derived.episodes import Episode
from exporter.derived.figures import Figures
from exporter.derived.sightings import DAY_MS
from exporter.derived.state import DerivedState
from exporter.derived.tracks import Role, Sight, Track, role_of, track_labels
from exporter.derived.walk import MAX_DURATION_MS, NO_TIME, Attempt, Entry, Failure
from exporter.events import UNKNOWN, Event
from exporter.group import Group, NotStoredError
from exporter.labels import OTHER, LabelPolicy
from exporter.legacy import is_legacy_download_fail
from exporter.points import duration_ms
from exporter.series import Family

LATE_AFTER_MS: Final = 3600 * 1000
"""Events that come so much after they happened are left out, so that nobody is paged for yesterday's failures."""

_TICK_SECONDS: Final = 1.0
_EPISODES_AT_ONCE: Final = 500
_CACHED_CHANNELS: Final = 4096
_LATE_SIGHTS: Final = ~(Sight.RUNNING | Sight.RELEASED)
_ELECTRON_PLUGIN: Final = "0.0."

log = structlog.get_logger()


class Derivation:
    """Derives figures from each event as it is staged, and in time from what did not come."""

    def __init__(
        self,
        *,
        state: DerivedState,
        figures: Figures,
        labels: LabelPolicy,
        committer: Committer,
        clock: Clock,
        max_event_age_seconds: float,
    ) -> None:
        """Set the parts.

        Args:
            state: what is kept of devices.
            figures: the series.
            labels: the caps of versions and channels.
            committer: whose groups take what is settled.
            clock: our own time.
            max_event_age_seconds: the oldest device time that is believed.
        """
        self._state = state
        self._figures = figures
        self._labels = labels
        self._committer = committer
        self._clock = clock
        self._max_age_ms = int(max_event_age_seconds * 1000)
        self._channels: dict[tuple[str, str], str] = {}
        self._last_device = ("", 0)

    def device_hash(self, device_id: str | None) -> int:
        """Give the hash of a device id as it was sent, 63 bits; 0 if there is none."""
        if not device_id:
            return 0
        last_id, last_hash = self._last_device
        if device_id == last_id:
            return last_hash
        device = xxh3_64_intdigest(device_id.lower().encode()) >> 1 or 1
        self._last_device = (device_id, device)
        return device

    def observe(self, event: Event, cell: Cell, device: int, group: Group, now_ms: int) -> None:
        """Stage what an event means to the derived figures.

        Args:
            event: the event as it was sent.
            cell: where it is counted.
            device: its device's hash.
            group: where to stage.
            now_ms: when it arrived, in milliseconds since 1970.
        """
        track = cell.track or self._introduce(cell, now_ms)
        role = cell.role or role_of(cell.labels.action, event.action)
        time_ms, device_ms = now_ms, NO_TIME
        is_late = False
        if event.timestamp is not None:
            age_ms = now_ms - event.timestamp
            is_late = age_ms > LATE_AFTER_MS
            if -MAX_AHEAD_MS <= age_ms <= self._max_age_ms:
                time_ms = device_ms = event.timestamp
        if event.action == "download_fail" and is_legacy_download_fail(event.platform, event.plugin_version):
            group.derived.skip("legacy_download_fail")
            role = _LEGACY
        if track.is_prod:
            audience = track.audience
            sights = role.sights & _LATE_SIGHTS if is_late else role.sights
            # The usual case at its cheapest: the device was seen for all this today.
            if audience is None or audience.day != time_ms // DAY_MS or sights & ~audience.sights.get(device, 0):
                self._state.sightings.see(track, device, sights, (time_ms, now_ms), group.derived)
        if is_late:
            self._count(families.LATE_EVENTS, (*track.labels, role.kind), group, now_ms)
        elif not role.is_plain:
            self._derive(event, cell, role, device, group, (time_ms, now_ms, device_ms))

    def _derive(
        self, event: Event, cell: Cell, role: Role, device: int, group: Group, times: tuple[int, int, int]
    ) -> None:
        track = cell.track
        if track is None:
            return
        time_ms, now_ms, device_ms = times
        if role.is_install:
            self._install(event, track, device, group, now_ms)
        elif role.duration is not None:
            self._observe_duration(role.duration, track, duration_ms(event.metadata or {}), group, now_ms)
        elif role.code is not None:
            detail = channel = ""
            if role.is_failure:
                detail = cell.labels.action
                channel = self._channel(event, track)
                if not device:
                    self._count_failure(track, Failure(detail, channel), group, now_ms)
                    return
            elif not device:
                group.derived.skip("no_device")
                return
            elif event.metadata:
                duration = duration_ms(event.metadata)
                detail = "" if duration is None else repr(duration)
            self._add(track, device, Entry(time_ms, role.code, now_ms, device_ms, detail, channel), group)

    def _introduce(self, cell: Cell, now_ms: int) -> Track:
        """Find a cell's track; one that is new has its key figures born together at 0."""
        labels = track_labels(cell.labels)
        is_new = labels not in self._state.tracks
        track = cell.track = self._state.track(labels)
        if cell.labels.action != OTHER:
            cell.role = role_of(cell.labels.action, cell.labels.action)
        if is_new:
            self._figures.find(families.INSTALLS, labels, now_ms)
            self._figures.find(families.UNINSTALLS, labels, now_ms)
            for reason in families.KEY_REASONS:
                self._figures.find(families.UPDATE_FAILURES, (*labels, reason), now_ms)
        return track

    def _install(self, event: Event, track: Track, device: int, group: Group, now_ms: int) -> None:
        app_id, platform, version, environment = track.labels
        if device and (platform == "electron" or (event.plugin_version or "").startswith(_ELECTRON_PLUGIN)):
            pair = xxh3_64_intdigest(f"{device}:{len(app_id)}:{app_id}{version}".encode())
            if pair in self._state.installed:
                group.derived.skip("repeated_set")
                return
            self._state.installed.add((pair,), now_ms)
            group.derived.installed.append(pair)
        self._count(families.INSTALLS, track.labels, group, now_ms)
        channel = (app_id, platform, self._channel(event, track), environment, "installed")
        self._count(families.CHANNEL_UPDATES, channel, group, now_ms)
        if event.old_version_name:
            replaced = self._labels.place_version(app_id, event.old_version_name)
            if replaced not in {UNKNOWN, version}:
                self._count(families.UNINSTALLS, (app_id, platform, replaced, environment), group, now_ms)

    def _channel(self, event: Event, track: Track) -> str:
        sent = event.channel or event.default_channel
        if not sent:
            return UNKNOWN
        key = (track.labels[0], sent)
        channel = self._channels.get(key)
        if channel is None:
            channel = self._labels.place_channel(*key)
            if len(self._channels) >= _CACHED_CHANNELS:
                self._channels.clear()
            if channel != OTHER:
                self._channels[key] = channel
        return channel

    def forget_channels(self) -> None:
        """Drop the shortcuts to channels, after some were removed."""
        self._channels.clear()

    def _observe_duration(
        self, family: Family, track: Track, duration: float | None, group: Group, now_ms: int
    ) -> None:
        if duration is None or not track.is_prod:
            return
        if duration > MAX_DURATION_MS:
            group.derived.skip("duration_out_of_range")
            return
        self._observe(family, track.labels[:3], duration, group, now_ms)

    def _observe(self, family: Family, labels: tuple[str, ...], duration: float, group: Group, now_ms: int) -> None:
        histogram = self._figures.histogram(family, labels, now_ms)
        group.add(histogram.bucket(duration), 1)
        group.add(histogram.sum, round(duration))

    def _count(self, family: Family, labels: tuple[str, ...], group: Group, now_ms: int, delta: int = 1) -> None:
        group.add(self._figures.find(family, labels, now_ms), delta)

    def _add(self, track: Track, device: int, entry: Entry, group: Group) -> None:
        now_ms = entry.arrival_ms
        episodes = self._state.episodes
        episode = track.episodes.get(device)
        if episode is not None and episode.due_ms <= now_ms:
            self._settle(episode, group, now_ms)
            episode = track.episodes.get(device)
        if episode is None:
            oldest = episodes.oldest()
            if oldest is not None:
                self._evict(oldest, group, now_ms)
            episode = episodes.begin(track, device)
        elif not episode.entries and episode.memory is not None and episode.memory.takes(entry):
            group.derived.episodes[episode] = None
            if entry.channel:
                group.derived.skip("same_failure")
            return
        was_open = episode.is_open
        if not episode.add(entry):
            group.derived.skip("too_many_steps")
            return
        group.derived.episodes[episode] = None
        if episode.is_open != was_open:
            self._note_open(episode, was_open=was_open, group=group, now_ms=now_ms)
        if episode.due_ms < episode.queued_ms:
            episodes.queue(episode)

    def _note_open(self, episode: Episode, *, was_open: bool, group: Group, now_ms: int) -> None:
        if episode.is_open != was_open:
            delta = 1 if episode.is_open else -1
            self._count(families.DOWNLOADS_IN_FLIGHT, episode.track.labels, group, now_ms, delta)

    def _settle(self, episode: Episode, group: Group, now_ms: int) -> None:
        """Count what an episode that is due has come to, or forget it."""
        if not episode.entries:
            self._state.episodes.forget(episode)
            return
        was_open = episode.is_open
        settled = episode.settle()
        for attempt in settled.attempts:
            self._count_attempt(episode.track, attempt, group, now_ms)
        for failure in settled.failures:
            self._count_failure(episode.track, failure, group, now_ms)
        if settled.repeats:
            group.derived.skip("same_failure", settled.repeats)
        group.derived.episodes[episode] = None
        self._note_open(episode, was_open=was_open, group=group, now_ms=now_ms)
        self._state.episodes.queue(episode)

    def _evict(self, episode: Episode, group: Group, now_ms: int) -> None:
        """Make room: count what ended, and forget a download that is under way, of which nobody knows how it ends."""
        if episode.has_ended:
            self._settle(episode, group, now_ms)
        if episode.is_open:
            episode.is_open = False
            self._note_open(episode, was_open=True, group=group, now_ms=now_ms)
            group.derived.skip("forgotten_download")
        self._state.episodes.forget(episode)

    def _count_failure(self, track: Track, failure: Failure, group: Group, now_ms: int) -> None:
        app_id, platform, _, environment = track.labels
        self._count(families.UPDATE_FAILURES, (*track.labels, failure.reason), group, now_ms)
        channel = (app_id, platform, failure.channel, environment, "failed")
        self._count(families.CHANNEL_UPDATES, channel, group, now_ms)

    def _count_attempt(self, track: Track, attempt: Attempt, group: Group, now_ms: int) -> None:
        self._count(families.DOWNLOAD_ATTEMPTS, (*track.labels, attempt.outcome, attempt.reached), group, now_ms)
        duration = attempt.duration_ms
        if duration is None or not track.is_prod:
            return
        if not 0 <= duration <= MAX_DURATION_MS:
            group.derived.skip("duration_out_of_range")
            return
        self._observe(families.DOWNLOAD_DURATION, track.labels[:3], duration, group, now_ms)
        if attempt.kind:
            labels = (*track.labels[:2], attempt.kind)
            self._observe(families.DOWNLOAD_KIND_DURATION, labels, duration, group, now_ms)

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
        due = self._state.episodes.due(self._clock.wall_ms())
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


_LEGACY: Final = Role(
    kind="update_failure",
    code=None,
    is_failure=False,
    is_install=False,
    duration=None,
    sights=Sight.SEEN | Sight.RELEASED,
    is_plain=True,
)
