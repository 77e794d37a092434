"""Working derived figures out of events: what each one means is written here, how it is kept elsewhere."""

from collections.abc import Iterable
from typing import Final

from xxhash import xxh3_64_intdigest

from exporter.clock import MAX_AHEAD_MS, Clock
from exporter.commit import Committer
from exporter.counters import Cell
from exporter.derived import families
from exporter.derived.figures import Figures
from exporter.derived.following import Following
from exporter.derived.sightings import DAY_MS
from exporter.derived.state import DerivedState
from exporter.derived.tally import Tally
from exporter.derived.tracks import LEGACY_DOWNLOAD_FAIL, Role, Sight, Track, role_of, track_labels
from exporter.derived.walk import Entry, Failure
from exporter.events import UNKNOWN, Event
from exporter.group import Group
from exporter.labels import OTHER, LabelPolicy, Labels
from exporter.legacy import is_legacy_download_fail
from exporter.points import duration_ms

LATE_AFTER_MS: Final = 3600 * 1000
"""Events that come so much after they happened are left out, so that nobody is paged for yesterday's failures."""

_CACHED_CHANNELS: Final = 4096
_LATE_SIGHTS: Final = ~(Sight.RUNNING | Sight.RELEASED)
_ELECTRON: Final = "electron"
_ELECTRON_PLUGIN: Final = "0.0."


def _is_electron(event: Event, platform: str) -> bool:
    """Tell whether an event comes from the electron plugin, which said that it is android before 0.0.5."""
    return platform == _ELECTRON or (event.plugin_version or "").startswith(_ELECTRON_PLUGIN)


def _reason(event: Event, labels: Labels) -> str:
    """Give the reason of a failure: its action.

    Electron's `set_fail` is a roll-back, which alerts know by the platform; by one that is wrong they would not.
    """
    if labels.action == "set_fail" and labels.platform != _ELECTRON and _is_electron(event, labels.platform):
        return "update_fail"
    return labels.action


def device_hash(device_id: str | None) -> int:
    """Give the hash of a device id as it was sent, 63 bits; 0 if there is none."""
    return xxh3_64_intdigest(device_id.lower().encode()) >> 1 or 1 if device_id else 0


def _role(event: Event, cell: Cell, group: Group) -> Role:
    """Tell what an event means whose action alone does not say it."""
    if event.action == "download_fail" and is_legacy_download_fail(event.platform, event.plugin_version):
        group.derived.skip("legacy_download_fail")
        return LEGACY_DOWNLOAD_FAIL
    return role_of(cell.labels.action, event.action)


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
        self._labels = labels
        self._tally = Tally(figures)
        self._following = Following(state.episodes, self._tally, committer, clock)
        self._max_age_ms = int(max_event_age_seconds * 1000)
        self._channels: dict[tuple[str, str], str] = {}

    def observe(self, events: Iterable[Event], cells: Iterable[Cell], group: Group, now_ms: int) -> None:
        """Stage what events mean to the derived figures.

        Args:
            events: the events as they were sent; most of the time those of one device.
            cells: where each is counted.
            group: where to stage.
            now_ms: when they arrived, in milliseconds since 1970.
        """
        see = self._state.sightings.see
        device_id: str | None = None
        device = seen = 0
        seen_track: Track | None = None
        for event, cell in zip(events, cells, strict=True):
            track = cell.track or self._introduce(cell, now_ms)
            role = cell.role or _role(event, cell, group)
            if track is not seen_track or event.device_id != device_id:
                seen_track, device_id, seen = track, event.device_id, 0
                device = device_hash(device_id)
            time_ms = now_ms
            is_timed = is_late = False
            if event.timestamp is not None:
                age_ms = now_ms - event.timestamp
                is_late = age_ms > LATE_AFTER_MS
                if -MAX_AHEAD_MS <= age_ms <= self._max_age_ms:
                    time_ms, is_timed = event.timestamp, True
            if track.is_prod:
                sights = role.sights & _LATE_SIGHTS if is_late else role.sights
                # The usual case at its cheapest: the device was seen for all this by an event before.
                if sights & ~seen or track.seen_day != time_ms // DAY_MS:
                    seen = see(track, device, sights, (time_ms, now_ms), group.derived)
            if is_late:
                self._tally.count(families.LATE_EVENTS, (*track.labels, role.kind), group, now_ms)
            elif role.code is not None and device and not (role.is_failure or event.metadata):  # again the usual case
                entry = Entry(time_ms, role.code, now_ms - time_ms, is_timed)
                self._following.add(track, device, entry, group)
            elif not role.is_plain:
                self._derive(event, cell, role, device, group, (time_ms, now_ms, is_timed))

    def _derive(
        self, event: Event, cell: Cell, role: Role, device: int, group: Group, times: tuple[int, int, bool]
    ) -> None:
        track = cell.track
        if track is None:
            return
        time_ms, now_ms, is_timed = times
        if role.is_install:
            self._install(event, track, device, group, now_ms)
        elif role.duration is not None:
            duration = duration_ms(event.metadata or {})
            if duration is not None and track.is_prod:
                self._tally.measure(role.duration, track.labels[:3], duration, group, now_ms)
        elif role.code is not None:
            detail = channel = ""
            if role.is_failure:
                detail = _reason(event, cell.labels)
                channel = self._channel(event, track)
                if not device:
                    self._tally.failure(track, Failure(detail, channel), group, now_ms)
                    return
            elif not device:
                group.derived.skip("no_device")
                return
            elif event.metadata:
                duration = duration_ms(event.metadata)
                detail = "" if duration is None else repr(duration)
            entry = Entry(time_ms, role.code, now_ms - time_ms, is_timed, detail, channel)
            self._following.add(track, device, entry, group)

    def _introduce(self, cell: Cell, now_ms: int) -> Track:
        """Find a cell's track; one that is new has its key figures born together at 0."""
        labels = track_labels(cell.labels)
        is_new = labels not in self._state.tracks
        track = cell.track = self._state.track(labels)
        if cell.labels.action not in {OTHER, "download_fail"}:  # there the event decides
            cell.role = role_of(cell.labels.action, cell.labels.action)
        if is_new:
            self._tally.bear(track, now_ms)
        return track

    def _install(self, event: Event, track: Track, device: int, group: Group, now_ms: int) -> None:
        app_id, platform, version, environment = track.labels
        if device and _is_electron(event, platform):
            pair = xxh3_64_intdigest(f"{device}:{len(app_id)}:{app_id}{version}".encode())
            if pair in self._state.installed:
                group.derived.skip("repeated_set")
                return
            self._state.installed.add((pair,), now_ms)
            group.derived.installed.append(pair)
        self._tally.count(families.INSTALLS, track.labels, group, now_ms)
        channel = (app_id, platform, self._channel(event, track), environment, "installed")
        self._tally.count(families.CHANNEL_UPDATES, channel, group, now_ms)
        if event.old_version_name:
            replaced = self._labels.place_version(app_id, event.old_version_name)
            if replaced not in {UNKNOWN, version}:
                self._tally.count(families.UNINSTALLS, (app_id, platform, replaced, environment), group, now_ms)

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
            if channel == sent:  # else the text may be of any length
                self._channels[key] = channel
        return channel

    def forget_channels(self) -> None:
        """Drop the shortcuts to channels, after some were removed."""
        self._channels.clear()

    async def settle(self) -> None:
        """Count everything that is due now.

        Raises:
            NotStoredError: if it could not be stored; it is due again as soon as the journal can be written.
        """
        await self._following.settle()

    async def run(self) -> None:
        """Count what is due once a second, for ever."""
        await self._following.run()
