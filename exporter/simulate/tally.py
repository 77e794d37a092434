"""Figures as docs/metrics.md defines them, and how the story of a download becomes some."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from exporter.simulate.reports import Report, Track

STALLED_MS: Final = 7_200_000
LONGEST_MS: Final = 7_200_000
_STARTS: Final = ("download_zip_start", "download_manifest_start", "download_0")
_STEPS: Final = {f"download_{percent}": percent for percent in range(0, 100, 10)}

Labels = tuple[str, ...]
Durations = dict[Labels, list[int]]


def _durations() -> Durations:
    return defaultdict(list)


@dataclass(slots=True)
class Tally:
    """Figures by the values of their labels, in the order in which `exporter.derived.families` has them.

    Attributes:
        events: what was sent, each event once.
        installs: bundles activated.
        uninstalls: bundles replaced.
        failures: failed updates by reason.
        late: events that came more than an hour late, by kind.
        attempts: downloads that are over.
        in_flight: downloads of which the end is not known.
        channel_updates: installs and failures by channel.
        downloads: durations of completed downloads, in milliseconds; the next three likewise.
        downloads_by_kind: the same by app, platform and kind.
        launches: of apps.
        page_loads: of pages.
    """

    events: Counter[Labels] = field(default_factory=Counter)
    installs: Counter[Labels] = field(default_factory=Counter)
    uninstalls: Counter[Labels] = field(default_factory=Counter)
    failures: Counter[Labels] = field(default_factory=Counter)
    late: Counter[Labels] = field(default_factory=Counter)
    attempts: Counter[Labels] = field(default_factory=Counter)
    in_flight: Counter[Labels] = field(default_factory=Counter)
    channel_updates: Counter[Labels] = field(default_factory=Counter)
    downloads: Durations = field(default_factory=_durations)
    downloads_by_kind: Durations = field(default_factory=_durations)
    launches: Durations = field(default_factory=_durations)
    page_loads: Durations = field(default_factory=_durations)

    def count_attempt(self, reports: Iterable[Report], now_ms: int) -> None:
        """Count one attempt to download, by what of it was taken in time."""
        for track, taken in _by_track(reports).items():
            ends = [report for report in taken if report.is_end]
            if not ends:
                if now_ms - max(report.arrived_ms or 0 for report in taken) >= STALLED_MS:
                    self.attempts[*track, "stalled", _reached(taken)] += 1
                else:
                    self.in_flight[track] += 1
            elif ends[-1].is_failure:
                self.attempts[*track, "failed", _reached(taken)] += 1
            else:
                self.attempts[*track, "completed", "complete"] += 1
                if track.environment == "prod":
                    self._measure(track, taken)

    def count_failure(self, reports: Iterable[Report]) -> None:
        """Count one failed update, whose events begin with the most specific reason."""
        for track, taken in _by_track(report for report in reports if report.is_failure).items():
            self.failures[*track, taken[0].reason] += 1
            channel = (track.app_id, track.platform, taken[0].channel, track.environment, "failed")
            self.channel_updates[channel] += 1

    def _measure(self, track: Track, taken: list[Report]) -> None:
        """Note how long a completed download took, from its last start."""
        ends = [report for report in taken if report.action == "download_complete"]
        end = (ends or [report for report in taken if report.is_end])[-1]
        before = [report for report in taken if report is not end and report.time_ms <= end.time_ms]
        starts = [report for report in before if report.action in _STARTS]
        starts = starts or [report for report in before if report.action == "download_10"]
        if not starts:
            return
        duration_ms = _gap_ms(max(starts, key=_moment), end)
        if 0 <= duration_ms <= LONGEST_MS:
            self.downloads[track[:3]].append(duration_ms)
            kind = _kind(taken)
            if kind:
                self.downloads_by_kind[*track[:2], kind].append(duration_ms)


def _by_track(reports: Iterable[Report]) -> dict[Track, list[Report]]:
    """Sort what was taken in time by the labels that the events say, which the download worker may not know."""
    found: dict[Track, list[Report]] = {}
    for report in reports:
        if report.counts:
            found.setdefault(report.track, []).append(report)
    return found


def _reached(taken: list[Report]) -> str:
    return str(max(_STEPS.get(report.action, 0) for report in taken))


def _moment(start: Report) -> tuple[int, int]:
    return start.time_ms, _STARTS.index(start.action) if start.action in _STARTS else 0


def _gap_ms(first: Report, second: Report) -> int:
    """Give the time between two reports, on the device's clock if both say it, else on ours."""
    if first.device_ms is not None and second.device_ms is not None:
        return second.device_ms - first.device_ms
    return (second.arrived_ms or 0) - (first.arrived_ms or 0)


def _kind(taken: list[Report]) -> str:
    actions = {report.action for report in taken}
    for kind in ("zip", "manifest"):
        if actions & {f"download_{kind}_start", f"download_{kind}_complete"}:
            return kind
    return ""
