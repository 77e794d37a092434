"""What really happened in a fleet, by the definitions of docs/metrics.md, to be compared with what an exporter shows.

It counts what was delivered: an event that no server ever took cannot be shown by any. Downloads and failures are known
from the device's story, not guessed from events; only what of them was delivered, and in time, is counted. Where a
network loses parts of a story, an exporter has to guess and may come to another figure; the events themselves agree.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from copy import deepcopy
from typing import Final, NamedTuple

from exporter.actions import BY_NAME, Kind
from exporter.labels import split_version
from exporter.simulate.reports import DAY_MS, Report, Track
from exporter.simulate.tally import LONGEST_MS, Durations, Labels, Tally

_NO_ISSUES: Final = frozenset(
    {
        *("app_launch_start", "app_launch_ready", "webview_dom_content_loaded", "webview_page_loaded"),
        *("os_version_changed", "native_app_version_changed"),
    }
)
_ROLLBACKS: Final = ("update_fail", "set_fail")

DevicesByDay = dict[Labels, dict[int, set[str]]]
"""Distinct devices by some labels and by UTC day, counted from 1970."""


class Rollback(NamedTuple):
    """A bundle that was rolled back."""

    at_ms: int
    device_id: str
    track: Track


def _devices_by_day() -> DevicesByDay:
    return defaultdict(lambda: defaultdict(set))


class Truth:
    """What happened so far.

    Attributes:
        said: events that devices tried to send, each once.
        delivered: distinct events that were taken.
        repeats: events that were taken although they had been taken before.
        lost: events that never will be taken.
        devices: production devices by app and platform.
        version_devices: production devices by app and version.
        affected: those of them with a failure of that version.
        succeeded: production devices by app that activated a bundle.
        failed: production devices by app on which an update failed.
        first_seen_ms: when the first event of a production device with a version arrived in time, by app and version.
        rollbacks: of production devices, as their reports arrived in time.
    """

    def __init__(self) -> None:
        """Start before anything has happened."""
        self.said = 0
        self.delivered = 0
        self.repeats = 0
        self.lost = 0
        self.devices = _devices_by_day()
        self.version_devices = _devices_by_day()
        self.affected = _devices_by_day()
        self.succeeded = _devices_by_day()
        self.failed = _devices_by_day()
        self.first_seen_ms: dict[Labels, int] = {}
        self.rollbacks: list[Rollback] = []
        self._tally = Tally()
        self._doubtful: Counter[Report] = Counter()
        self._attempts: list[list[Report]] = []
        self._failures: list[list[Report]] = []
        self._installed: set[tuple[str, str, str]] = set()

    def begin_attempt(self) -> list[Report]:
        """Open the story of a download; its reports go into it in the order in which they happen."""
        self._attempts.append([])
        return self._attempts[-1]

    def begin_failure(self) -> list[Report]:
        """Open the story of a failed update; its reports go into it, the most specific first."""
        self._failures.append([])
        return self._failures[-1]

    def take(self, report: Report, at_ms: int) -> None:
        """Note that a server took an event."""
        if report.arrived_ms is not None:
            self.repeats += 1
            return
        report.arrived_ms = at_ms
        self.delivered += 1
        track = report.track
        self._tally.events[track.app_id, track.platform, report.action, track.version, track.environment] += 1
        if track.environment == "prod":
            self._see(report)
        if report.is_late:
            self._tally.late[*track, BY_NAME[report.action].kind.value] += 1
        elif report.action == "set":
            self._install(report)
        elif report.action == "app_launch_ready":
            _note_duration(report, self._tally.launches)
        elif report.action == "webview_page_loaded":
            _note_duration(report, self._tally.page_loads)

    def doubt(self, reports: Iterable[Report]) -> None:
        """Note that nobody answered when events were sent: a server may have taken them."""
        self._doubtful.update(reports)

    @property
    def doubtful(self) -> list[Report]:
        """Events that a server may have taken once more often than is known here.

        They were sent without an answer and have not been taken since; or they were, but they have no time of their
        own by which the server could have recognised them: such a one stands here as often as nobody answered.
        """
        doubtful = []
        for report, times in self._doubtful.items():
            if "timestamp" not in report.body:
                doubtful += [report] * times
            elif report.arrived_ms is None:
                doubtful.append(report)
        return doubtful

    def tally(self, now_ms: int) -> Tally:
        """Give the figures as an exporter should show them at a time, some seconds after the last delivery."""
        tally = deepcopy(self._tally)
        for attempt in self._attempts:
            tally.count_attempt(attempt, now_ms)
        for failure in self._failures:
            tally.count_failure(failure)
        return tally

    def _see(self, report: Report) -> None:
        track = report.track
        device_id = report.device_id
        day = report.time_ms // DAY_MS
        self.devices[track[:2]][day].add(device_id)
        self.version_devices[track.app_id, track.version][day].add(device_id)
        if report.is_failure:
            self.failed[track[:1]][day].add(device_id)
        if report.is_failure or _is_issue(report.action):
            self.affected[track.app_id, track.version][day].add(device_id)
        if report.action == "set":
            self.succeeded[track[:1]][day].add(device_id)
        if not report.is_late:
            self.first_seen_ms.setdefault((track.app_id, track.version), report.arrived_ms or 0)
            if report.action in _ROLLBACKS:
                self.rollbacks.append(Rollback(report.arrived_ms or 0, device_id, track))

    def _install(self, report: Report) -> None:
        """Count an activated bundle; electron says so at every launch, which is one install."""
        track = report.track
        if report.body["plugin_version"].startswith("0.0."):
            pair = (track.app_id, track.version, report.device_id)
            if pair in self._installed:
                return
            self._installed.add(pair)
        self._tally.installs[track] += 1
        channel = (track.app_id, track.platform, report.channel, track.environment, "installed")
        self._tally.channel_updates[channel] += 1
        replaced, _ = split_version(report.body.get("old_version_name", ""))
        if replaced not in {"", "unknown", track.version}:
            self._tally.uninstalls[track._replace(version=replaced)] += 1


def _note_duration(report: Report, durations: Durations) -> None:
    duration_ms = int(report.body["metadata"]["duration_ms"])
    if report.track.environment == "prod" and duration_ms <= LONGEST_MS:
        durations[report.track[:3]].append(duration_ms)


def _is_issue(action: str) -> bool:
    return BY_NAME[action].kind is Kind.APP_HEALTH and action not in _NO_ISSUES
