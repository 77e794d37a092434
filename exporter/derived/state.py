"""What is kept of devices between events: staged with a group, shown when that is stored, restored if it is not.

Rules change this state while they stage events. If the group cannot be stored, everything is read back from the
journal, as at a start; so nothing has to be undone step by step.
"""

from array import array
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric

from exporter.clock import Clock
from exporter.dedupe import DedupeWindow
from exporter.derived.devices import Devices
from exporter.derived.episodes import Episodes
from exporter.derived.marks import MarkChanges, Marks
from exporter.derived.releases import Releases
from exporter.derived.sightings import DAY_MS, Sightings
from exporter.derived.staged import Staged
from exporter.derived.tracks import Track
from exporter.journal.derived_records import DerivedChanges, MarkRow, RestoredDerived
from exporter.journal.derived_store import MIN_INSTALLED_PAIRS
from exporter.telemetry import Telemetry

_SNAPSHOT_AFTER_SIGHTINGS: Final = 65_536
_SNAPSHOT_AFTER_SECONDS: Final = 300.0

_Labels = tuple[str, str, str, str]


class DerivedState:
    """The state of all derived figures, besides their series."""

    def __init__(self, devices: Devices, releases: Releases, telemetry: Telemetry, clock: Clock) -> None:
        """Start without any history."""
        self.tracks: dict[_Labels, Track] = {}
        self.episodes = Episodes()
        self.installed = DedupeWindow(MIN_INSTALLED_PAIRS)
        self.sightings = Sightings(devices, releases)
        self.marks = Marks()
        self._devices = devices
        self._releases = releases
        self._telemetry = telemetry
        self._clock = clock
        self._logged = 0
        self._snapshot_at = clock.monotonic()
        self._retired_on = 0
        self._forgotten: set[tuple[str, str]] = set()

    def track(self, labels: _Labels) -> Track:
        """Give the track of some labels."""
        track = self.tracks.get(labels)
        if track is None:
            track = self.tracks[labels] = Track(labels)
        return track

    def changes(self, staged: Staged, marks: list[MarkRow], number: int, now_ms: int) -> DerivedChanges:
        """Put together what a transaction has to store.

        Args:
            staged: what the events changed.
            marks: releases that were marked.
            number: of the transaction.
            now_ms: its time, in milliseconds since 1970.
        """
        changes = DerivedChanges(installed=staged.installed)
        states = self.episodes.log(staged.episodes, number)
        if states is not None:
            changes.episodes = states
            changes.episodes_until = self.episodes.needed_from()
        self._change_sketches(changes, staged, now_ms)
        changes.releases = [self._releases.row(release) for release in staged.releases]
        # A version of which an event came meanwhile is known again.
        self._forgotten.difference_update((row.app_id, row.version) for row in changes.releases)
        changes.forgotten_releases = list(self._forgotten)
        if marks:
            prepared = self.marks.prepare(marks)
            changes.marks = prepared.rows
            changes.forgotten_marks = prepared.forgotten
        return changes

    def show(self, staged: Staged, changes: DerivedChanges) -> None:
        """Make visible what is stored."""
        devices = self._devices
        if changes.new_sketches:
            devices.mark_stored(row.sketch_id for row in changes.new_sketches)
        for sketch, hashes in staged.sightings.items():
            devices.apply(sketch, hashes)
            self._logged += len(hashes)
        if changes.snapshots:
            devices.mark_snapshot(sketch_id for _, sketch_id in changes.snapshots)
            self._logged = sum(map(len, staged.sightings.values()))
            self._snapshot_at = self._clock.monotonic() + _SNAPSHOT_AFTER_SECONDS
        if changes.dropped_sketches:
            devices.remove(changes.dropped_sketches)
            self.sightings.forget()
        self._releases.mark_stored(changes.releases)
        self._forgotten.difference_update(changes.forgotten_releases)
        if changes.marks:
            self.marks.apply(MarkChanges(changes.marks, changes.forgotten_marks))
        for reason, count in staged.skipped.items():
            self._telemetry.skip(reason, count)

    def restore(self, restored: RestoredDerived) -> None:
        """Take over what the journal holds, in place of everything there is.

        Raises:
            ValueError: if it is damaged.
        """
        if restored.damage:
            raise ValueError(restored.damage)
        self.sightings.forget()
        self.episodes.restore(restored.episodes, self.track)
        self.installed = DedupeWindow(MIN_INSTALLED_PAIRS)
        self.installed.add(restored.installed, self._clock.wall_ms())
        self._devices.clear()
        self._devices.restore(restored.sketches)
        self._logged = 0
        for blob in restored.sightings:
            for sketch_id, hashes in _sightings(blob):
                self._devices.replay(sketch_id, hashes)
                self._logged += len(hashes)
        self._releases.clear()
        self._releases.restore(restored.releases)
        self.marks.clear()
        self.marks.restore(restored.marks)
        self._retired_on = 0
        self._doom(self._forgotten)

    def forget(self, versions: Iterable[tuple[str, str]], apps: Iterable[str]) -> None:
        """Forget versions and apps whose series are gone; the next transaction deletes what the journal has of them."""
        gone = set(versions)
        self._doom(gone)
        for app_id in apps:
            self._devices.forget(app_id)
        self._forgotten |= gone
        self.tracks = {
            labels: track
            for labels, track in self.tracks.items()
            if (labels[0], labels[2]) not in gone or track.episodes
        }

    def _doom(self, versions: Iterable[tuple[str, str]]) -> None:
        """Let go of versions now, so that an event that comes before their deletion is stored makes them new ones."""
        for app_id, version in versions:
            self._devices.forget(app_id, version)
        self._releases.forget(versions)

    def collect(self) -> Iterator[Metric]:
        """Give the metrics that are worked out of this state."""
        yield from self._devices.collect(self._clock.wall_ms() // DAY_MS)
        yield from self._releases.collect()
        yield from self.marks.collect()
        yield GaugeMetricFamily(
            "capgo_exporter_episodes", "Downloads and failures that are being followed.", value=len(self.episodes)
        )
        yield GaugeMetricFamily("capgo_exporter_sketches", "Sketches of distinct devices.", value=len(self._devices))

    def _change_sketches(self, changes: DerivedChanges, staged: Staged, now_ms: int) -> None:
        devices = self._devices
        today = now_ms // DAY_MS
        if today != self._retired_on:
            devices.retire(today)
            self._retired_on = today
        changes.new_sketches = [sketch.row() for sketch in devices.unstored]
        changes.dropped_sketches = [sketch.sketch_id for sketch in devices.doomed]
        if staged.sightings:
            entries = array("Q")
            for sketch, hashes in staged.sightings.items():
                entries.extend((sketch.sketch_id, len(hashes), *hashes))
            changes.sightings = entries.tobytes()
        if self._logged >= _SNAPSHOT_AFTER_SIGHTINGS or (self._logged and self._clock.monotonic() >= self._snapshot_at):
            changes.snapshots = devices.snapshot()


def _sightings(blob: bytes) -> Iterator[tuple[int, list[int]]]:
    log = array("Q")
    log.frombytes(blob)
    start = 0
    while start < len(log):
        sketch_id, count = log[start : start + 2]
        hashes = log[start + 2 : start + 2 + count].tolist()
        if len(hashes) != count:
            msg = "the log of sightings is cut off"
            raise ValueError(msg)
        yield sketch_id, hashes
        start += 2 + count
