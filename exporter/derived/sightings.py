"""Which devices were seen for what, on which day."""

from functools import cache
from typing import Final

from exporter.derived.devices import Devices
from exporter.derived.releases import Releases
from exporter.derived.sketches import Sketch, SketchKind
from exporter.derived.staged import Staged
from exporter.derived.tracks import Sight, Track

DAY_MS: Final = 86_400_000
_MAX_REMEMBERED: Final = 1_000_000
_KINDS: Final = (
    (Sight.SEEN, SketchKind.PLATFORM),
    (Sight.SEEN, SketchKind.VERSION),
    (Sight.AFFECTED, SketchKind.AFFECTED),
    (Sight.SUCCEEDED, SketchKind.SUCCEEDED),
    (Sight.FAILED, SketchKind.FAILED),
)


class Audience:
    """The devices of a track that were seen on a day, so that each is noted once.

    Attributes:
        day: days since 1970, in UTC.
        sights: what each device was seen for, as a mask, by its hash.
        sketches: where devices are noted, by what they are seen for; None where there was no room.
    """

    __slots__ = ("day", "sights", "sketches")

    def __init__(self, day: int) -> None:
        """Start without a device."""
        self.day = day
        self.sights: dict[int, int] = {}
        self.sketches: dict[SketchKind, Sketch | None] = {}


class Sightings:
    """Notes devices in the sketches and for the releases."""

    def __init__(self, devices: Devices, releases: Releases) -> None:
        """Set where devices are noted."""
        self._devices = devices
        self._releases = releases
        self._tracks: dict[Track, None] = {}
        self._remembered = 0

    def forget(self) -> None:
        """Forget who was seen: sketches went, or what was staged is not stored."""
        for track in self._tracks:
            track.audience = None
        self._tracks.clear()
        self._remembered = 0

    def see(self, track: Track, device: int, sights: int, times_ms: tuple[int, int], staged: Staged) -> None:
        """Note that a device was seen.

        Args:
            track: what it runs; of production.
            device: its hash; 0: it has no id, so that only the version is seen.
            sights: what it is seen for, a mask of `Sight`.
            times_ms: when it happened, which decides about the day, and our time.
            staged: where it is noted.
        """
        time_ms, now_ms = times_ms
        if not device:
            if sights & Sight.RELEASED:
                self._reach(track, None, now_ms, staged)
            return
        today = now_ms // DAY_MS
        day = min(time_ms // DAY_MS, today)
        audience = self._audience(track, day, today)
        seen = audience.sights.get(device, 0)
        missing = sights & ~seen
        if not missing:
            return
        audience.sights[device] = seen | missing
        self._remembered += not seen
        if self._remembered > _MAX_REMEMBERED:
            self.forget()
        for kind in _kinds(missing):
            if kind not in audience.sketches:
                audience.sketches[kind] = self._sketch(track, kind, day, today)
            sketch = audience.sketches[kind]
            if sketch is not None:
                staged.sightings.setdefault(sketch, []).append(device)
        if missing & (Sight.RELEASED | Sight.RUNNING):
            self._reach(track, device if missing & Sight.RUNNING else None, now_ms, staged)

    def _audience(self, track: Track, day: int, today: int) -> Audience:
        """Give a track's audience of a day; that of another day than today is not kept."""
        audience = track.audience
        if audience is None or audience.day != day:
            audience = Audience(day)
            if day == today:
                track.audience = audience
                self._tracks[track] = None
        return audience

    def _reach(self, track: Track, device: int | None, now_ms: int, staged: Staged) -> None:
        release = self._releases.observe(track.labels[0], track.labels[2], device, now_ms)
        if release is not None:
            staged.releases[release] = None

    def _sketch(self, track: Track, kind: SketchKind, day: int, today: int) -> Sketch | None:
        app_id, platform, version, _ = track.labels
        names = {SketchKind.PLATFORM: platform, SketchKind.VERSION: version, SketchKind.AFFECTED: version}
        return self._devices.find(app_id, kind, names.get(kind, ""), day, today)


@cache
def _kinds(sights: int) -> tuple[SketchKind, ...]:
    """Name the kinds of sketches for what a device is seen for."""
    return tuple(kind for sight, kind in _KINDS if sights & sight)
