"""A fleet in aggregate: what the simulated one does, drawn per step for all devices together, so that it can grow.

Rates are those of `exporter.simulate.scenario`. Devices are divided into classes that use the app more or less; of
each, and of each version, only the number is known. All events come in time, and are of production.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from benchmarks.alarms.crowd import CLASSES, Counts, Shares, classes, whole
from benchmarks.alarms.ledger import Ledger
from benchmarks.alarms.series import History, selector
from exporter.simulate.scenario import Scenario

_HOUR_SECONDS: Final = 3600
_DAY_SECONDS: Final = 86400
_STALLED_SECONDS: Final = 7200
_MEAN_ACTIVITY: Final = 0.55
_COUNTED_AFTER_SECONDS: Final = 10
_SESSION_SECONDS: Final = 45
_READY_TIMEOUT_SECONDS: Final = 10
_EVENTS_PER_SESSION: Final = 5
_LAUNCHES_PER_SESSION: Final = 0.78
_REPORTING_SHARE: Final = 0.55
"""Share of phones and tablets whose plugin reports the app's health."""

_REASONS: Final = {"download_fail": 0.5, "checksum_fail": 0.25, "unzip_fail": 0.25}
_ESTABLISHED_DEVICES: Final = 20
_APP: Final = "com.example.shop"


@dataclass(slots=True)
class Aggregate:
    """What came of a fleet.

    Attributes:
        history: what Prometheus scraped.
        rollbacks: when devices were rolled back, by version: seconds, one for each step with some, and how many.
    """

    history: History
    rollbacks: dict[str, list[tuple[int, int]]] = field(default_factory=dict)


class Model:
    """One fleet."""

    def __init__(self, scenario: Scenario, *, days: float, step_seconds: int, begins_at_hour: float = 0.0) -> None:
        """Make the devices; all of them run the base version.

        Args:
            scenario: what the fleet lives through.
            days: how long.
            step_seconds: between two scrapes.
            begins_at_hour: the hour of the day at which it begins.
        """
        self._begins_at_hour = begins_at_hour
        self._scenario = scenario
        self._step = step_seconds
        self._length = int(days * _DAY_SECONDS) // step_seconds + 1
        self._chance = np.random.default_rng([scenario.seed, scenario.devices])
        self._platforms = tuple(name for name, _ in scenario.platforms)
        self._versions = (scenario.base_version, *(release.version for release in scenario.releases))
        self._use = classes(scenario)
        customers = (1.0 - scenario.emulator_share) * (1.0 - scenario.dev_share) * scenario.devices
        shares = np.array([share for _, share in scenario.platforms])[:, None] / CLASSES
        self._devices = whole(customers * np.broadcast_to(shares, (len(shares), CLASSES)))
        # By version, platform and class: what runs; what is downloaded and waits; what was rolled back to the version
        # before and is not tried again.
        shape = (len(self._versions), *self._devices.shape)
        self._running = np.zeros(shape, np.int64)
        self._running[0] = self._devices
        self._got = np.zeros(shape, np.int64)
        self._running_before = self._running.copy()
        self._got_before = self._got.copy()
        self._ledger = Ledger(self._length)
        self._rollbacks: dict[str, list[tuple[int, int]]] = {}
        self._activations: dict[int, list[tuple[int, Counts]]] = {}
        self._today = np.zeros(self._use.shape)

    def run(self) -> Aggregate:
        """Let it live."""
        for index in range(self._length):
            self._sessions(index)
        return Aggregate(self._ledger.history(self._step), self._rollbacks)

    def _sessions(self, index: int) -> None:
        """Live one step."""
        seconds = index * self._step
        hours = seconds / _HOUR_SECONDS
        if seconds % _DAY_SECONDS == 0:
            self._today[:] = 0.0
            self._running_before = self._running.copy()
            self._got_before = self._got.copy()
        per_device = (
            self._use
            * self._scenario.activity(hours + self._begins_at_hour)
            / _MEAN_ACTIVITY
            * self._step
            / _DAY_SECONDS
        )
        self._today += per_device
        for version in range(len(self._versions)):
            if self._running[version].any():
                self._ledger.bear(self._versions[version], index)
                self._use_app(index, version, per_device)
        chance_of_session = 1.0 - np.exp(-per_device)
        self._update(index, hours, chance_of_session)
        for version, devices in self._activations.pop(index, ()):
            self._activate(index, version, devices)
        self._ledger.settle(index)
        self._gauges(index)

    def _use_app(self, index: int, version: int, per_device: Shares) -> None:
        sessions = self._chance.poisson(self._running[version] * per_device).sum(axis=1)
        noise = self._scenario.noise
        for platform, count in enumerate(sessions.tolist()):
            label = self._labels(version, platform)
            self._ledger.add(
                selector("capgo_stats_events_total", action="other_actions", **label),
                index,
                count * _EVENTS_PER_SESSION,
            )
            if self._platforms[platform] == "electron":
                continue
            reporting = int(self._chance.binomial(count, _REPORTING_SHARE * _LAUNCHES_PER_SESSION))
            timeouts = int(self._chance.binomial(reporting, noise.strain / 4))
            crashes = int(self._chance.binomial(int(count * _REPORTING_SHARE), noise.crash * 0.75))
            self._ledger.add(
                selector("capgo_stats_events_total", action="app_launch_timeout", **label), index, timeouts
            )
            self._ledger.add(selector("capgo_stats_events_total", action="app_crash", **label), index, crashes)
            launches = {name: value for name, value in label.items() if name != "environment"}
            self._ledger.add(selector("capgo_launch_duration_seconds_count", **launches), index, reporting - timeouts)

    def _update(self, index: int, hours: float, chance_of_session: Shares) -> None:
        """Let devices find the newest release that is meant for them, and download it."""
        noise = self._scenario.noise
        for number, release in enumerate(self._scenario.releases):
            version = number + 1
            share = release.share_at(hours)
            if share <= 0.0 or (
                version + 1 < len(self._versions) and self._scenario.releases[number + 1].share_at(hours) >= 1.0
            ):
                continue
            waiting = np.maximum(whole(self._devices * share) - self._got[version:].sum(axis=0), 0)
            begun = self._chance.binomial(waiting, np.broadcast_to(chance_of_session, waiting.shape))
            if not begun.any():
                continue
            self._ledger.bear(release.version, max(index - 1, 0))
            failed = self._chance.binomial(begun, noise.download_failure)
            stalled = self._chance.binomial(begun - failed, noise.stall)
            completed = begun - failed - stalled
            self._got[version] += completed
            self._note_downloads(index, version, completed, failed, stalled)
            after = max(round(_SESSION_SECONDS / self._step), 0)
            self._activations.setdefault(index + after, []).append((version, completed))

    def _note_downloads(self, index: int, version: int, completed: Counts, failed: Counts, stalled: Counts) -> None:
        counted = index + -(-_COUNTED_AFTER_SECONDS // self._step)
        stalled_at = index + _STALLED_SECONDS // self._step
        for platform in range(len(self._platforms)):
            label = self._labels(version, platform)
            for outcome, devices, at in (
                ("completed", completed, index),
                ("failed", failed, counted),
                ("stalled", stalled, stalled_at),
            ):
                reached = {"completed": "complete", "failed": "50", "stalled": "50"}[outcome]
                name = selector("capgo_download_attempts_total", outcome=outcome, reached=reached, **label)
                self._ledger.plan(name, at, int(devices[platform].sum()))
            of_reasons = self._chance.multinomial(int(failed[platform].sum()), list(_REASONS.values()))
            for reason, count in zip(_REASONS, of_reasons.tolist(), strict=True):
                self._ledger.plan(selector("capgo_update_failures_total", reason=reason, **label), counted, count)

    def _activate(self, index: int, version: int, devices: Counts) -> None:
        """Start the new bundle; some devices go back to the one before."""
        scenario = self._scenario
        release = scenario.releases[version - 1]
        bad = release.bad_share if release.bad == "update_fail" else 0.0
        rolled_back = self._chance.binomial(devices, bad + (1.0 - bad) * scenario.noise.rollback)
        staying = devices - rolled_back
        self._running[version] += staying
        # Whoever updates ran one of the versions before, the lately released ones more likely.
        left = staying
        for before in range(version - 1, -1, -1):
            taken = np.minimum(self._running[before], left)
            self._running[before] -= taken
            left = left - taken
        happened = index + round(_READY_TIMEOUT_SECONDS / self._step)
        counted = index + -(-(_READY_TIMEOUT_SECONDS + _COUNTED_AFTER_SECONDS) // self._step)
        if rolled_back.any():
            self._rollbacks.setdefault(release.version, []).append((happened * self._step, int(rolled_back.sum())))
        for platform, name in enumerate(self._platforms):
            label = self._labels(version, platform)
            self._ledger.plan(selector("capgo_installs_total", **label), index, int(devices[platform].sum()))
            reason = "set_fail" if name == "electron" else "update_fail"
            failures = selector("capgo_update_failures_total", reason=reason, **label)
            self._ledger.plan(failures, counted, int(rolled_back[platform].sum()))

    def _gauges(self, index: int) -> None:
        """Tell the distinct devices of the day, and which versions are the newest."""
        noise = self._scenario.noise
        seen_share = 1.0 - np.exp(-self._today)
        troubles = (noise.crash + noise.web_error + noise.strain) * _REPORTING_SHARE
        hurt_share = 1.0 - np.exp(-self._today * troubles)
        for version, name in enumerate(self._versions):
            # Whoever got the version today was seen with it; of the others, whoever used the app.
            got_today = self._got[version] - self._got_before[version]
            failed = self._failed_today(index, version)
            seen = float((self._running_before[version] * seen_share + got_today).sum()) + failed
            if seen < 1.0:
                continue
            hurt = min(seen, float((self._running[version] * hurt_share).sum()) + failed)
            window = {"app_id": _APP, "version": name, "window": "1d"}
            self._ledger.set(selector("capgo_version_devices", **window), index, round(seen))
            self._ledger.set(selector("capgo_version_affected_devices", **window), index, round(hurt))
            self._ledger.set(selector("capgo_version_issue_free_ratio", **window), index, round(1.0 - hurt / seen, 4))
        established = [
            version
            for version in range(len(self._versions))
            if (count := int(self._got[version].sum()) or int(self._running[version].sum())) >= _ESTABLISHED_DEVICES
            or count >= max(2, 0.01 * self._scenario.devices)
        ]
        for rank, version in enumerate(reversed(established[-2:]), start=1):
            info = {"app_id": _APP, "order": "first_seen", "rank": str(rank), "version": self._versions[version]}
            self._ledger.set(selector("capgo_version_rank_info", **info), index, 1.0)

    def _failed_today(self, index: int, version: int) -> float:
        """Count the failed updates of the day."""
        midnight = index - index % (_DAY_SECONDS // self._step)
        return sum(
            self._ledger.since(
                selector("capgo_update_failures_total", reason=reason, **self._labels(version, platform)),
                midnight,
                index,
            )
            for platform in range(len(self._platforms))
            for reason in (*_REASONS, "update_fail", "set_fail")
        )

    def _labels(self, version: int, platform: int) -> dict[str, str]:
        return {
            "app_id": _APP,
            "platform": self._platforms[platform],
            "version": self._versions[version],
            "environment": "prod",
        }
