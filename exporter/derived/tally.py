"""Counting what was derived: which series of which families grow."""

from exporter.derived import families
from exporter.derived.figures import Figures
from exporter.derived.tracks import Track
from exporter.derived.walk import MAX_DURATION_MS, Attempt, Failure
from exporter.group import Group
from exporter.series import Family


class Tally:
    """Stages increments of derived series."""

    def __init__(self, figures: Figures) -> None:
        """Set the series."""
        self._figures = figures

    def bear(self, track: Track, now_ms: int) -> None:
        """Let the key figures of a track be born together at 0."""
        self._figures.find(families.INSTALLS, track.labels, now_ms)
        self._figures.find(families.UNINSTALLS, track.labels, now_ms)
        for reason in families.KEY_REASONS:
            self._figures.find(families.UPDATE_FAILURES, (*track.labels, reason), now_ms)

    def count(self, family: Family, labels: tuple[str, ...], group: Group, now_ms: int, delta: int = 1) -> None:
        """Count something."""
        group.add(self._figures.find(family, labels, now_ms), delta)

    def measure(self, family: Family, labels: tuple[str, ...], duration_ms: float, group: Group, now_ms: int) -> None:
        """Put a duration into a histogram, unless nobody would believe it."""
        if not 0 <= duration_ms <= MAX_DURATION_MS:
            group.derived.skip("duration_out_of_range")
            return
        histogram = self._figures.histogram(family, labels, now_ms)
        group.add(histogram.bucket(duration_ms), 1)
        group.add(histogram.sum, round(duration_ms))

    def failure(self, track: Track, failure: Failure, group: Group, now_ms: int) -> None:
        """Count a failed update."""
        app_id, platform, _, environment = track.labels
        self.count(families.UPDATE_FAILURES, (*track.labels, failure.reason), group, now_ms)
        channel = (app_id, platform, failure.channel, environment, "failed")
        self.count(families.CHANNEL_UPDATES, channel, group, now_ms)

    def attempt(self, track: Track, attempt: Attempt, group: Group, now_ms: int) -> None:
        """Count a download that is over, and measure it if it was completed in production."""
        self.count(families.DOWNLOAD_ATTEMPTS, (*track.labels, attempt.outcome, attempt.reached), group, now_ms)
        if attempt.duration_ms is None or not track.is_prod:
            return
        app_id, platform, version, _ = track.labels
        self.measure(families.DOWNLOAD_DURATION, (app_id, platform, version), attempt.duration_ms, group, now_ms)
        if attempt.kind and 0 <= attempt.duration_ms <= MAX_DURATION_MS:
            kind = (app_id, platform, attempt.kind)
            self.measure(families.DOWNLOAD_KIND_DURATION, kind, attempt.duration_ms, group, now_ms)
