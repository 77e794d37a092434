"""Which devices were seen for what, on which day."""

from array import array
from functools import cache
from typing import Final

from xxhash import xxh3_64_intdigest

from exporter.derived.devices import Devices
from exporter.derived.releases import Releases
from exporter.derived.sketches import Sketch, SketchKind
from exporter.derived.staged import Staged
from exporter.derived.tracks import NO_DAY, Sight, Track

DAY_MS: Final = 86_400_000
_REMEMBERED_BITS: Final = 19  # 4 MiB
_PLACE_SHIFT: Final = 63 - _REMEMBERED_BITS  # hashes of devices have 63 bits
_SIGHT_BITS: Final = 6
_SIGHT_MASK: Final = (1 << _SIGHT_BITS) - 1
_KINDS: Final = (
    (Sight.SEEN, SketchKind.PLATFORM),
    (Sight.SEEN, SketchKind.VERSION),
    (Sight.AFFECTED, SketchKind.AFFECTED),
    (Sight.SUCCEEDED, SketchKind.SUCCEEDED),
    (Sight.FAILED, SketchKind.FAILED),
)


class Sightings:
    """Notes devices in the sketches and for the releases.

    What each device was seen for today is remembered, so that it is noted once. That need not be exact, as to note it
    again changes nothing; so a table of fixed size does, in which a device takes the place of another one. A place
    holds a hash of track, day and device, and in its lowest bits the mask of `Sight`.
    """

    def __init__(self, devices: Devices, releases: Releases) -> None:
        """Set where devices are noted."""
        self._devices = devices
        self._releases = releases
        self._sketches: dict[Track, dict[SketchKind, Sketch | None]] = {}
        self._forgotten = 0
        self._seen = array("Q", bytes(8 << _REMEMBERED_BITS))

    def forget(self) -> None:
        """Forget who was seen: sketches went, or what was staged is not stored."""
        for track in self._sketches:
            track.seen_day = NO_DAY
        self._sketches.clear()
        self._forgotten += 1

    def see(self, track: Track, device: int, sights: int, times_ms: tuple[int, int], staged: Staged) -> int:
        """Note that a device was seen.

        Args:
            track: what it runs; of production.
            device: its hash; 0: it has no id, so that only the version is seen.
            sights: what it is seen for, a mask of `Sight`.
            times_ms: when it happened, which decides about the day, and our time.
            staged: where it is noted.

        Returns:
            What it was seen for, as far as that is remembered, on the day of its track.
        """
        time_ms, now_ms = times_ms
        if not device:
            if sights & Sight.RELEASED:
                self._reach(track, None, now_ms, staged)
            return 0
        today = now_ms // DAY_MS
        day = min(time_ms // DAY_MS, today)
        if day == today:
            if track.seen_day != today:
                self._begin(track, today)
            sketches = self._sketches[track]
            seen = self._seen_before(track.seen_hash ^ device, sights)
        else:
            sketches, seen = {}, 0
        missing = sights & ~seen
        if missing:
            for kind in _kinds(missing):
                if kind not in sketches:
                    sketches[kind] = self._sketch(track, kind, day, today)
                sketch = sketches[kind]
                if sketch is not None:
                    staged.sightings.setdefault(sketch, []).append(device)
            if missing & (Sight.RELEASED | Sight.RUNNING):
                self._reach(track, device if missing & Sight.RUNNING else None, now_ms, staged)
        return seen | sights if day == today else 0

    def _begin(self, track: Track, today: int) -> None:
        """Remember nothing of a track yet."""
        track.seen_day = today
        name = f"{self._forgotten} {today} {track.labels}"
        track.seen_hash = xxh3_64_intdigest(name.encode()) >> 1
        self._sketches[track] = {}

    def _seen_before(self, hashed: int, sights: int) -> int:
        """Tell what a device was seen for today, and remember what it is seen for now."""
        place = hashed >> _PLACE_SHIFT
        entry = self._seen[place]
        seen = 0 if (entry ^ hashed) >> _SIGHT_BITS else entry & _SIGHT_MASK
        if sights & ~seen:
            self._seen[place] = (hashed & ~_SIGHT_MASK) | seen | sights
        return seen

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
