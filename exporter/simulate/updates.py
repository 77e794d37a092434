"""Updates: how a device finds a release, downloads it, activates it, and rolls it back."""

from collections.abc import Iterator
from typing import Final

from exporter.legacy import is_legacy_download_fail
from exporter.simulate.clients import Shape
from exporter.simulate.device import BUILTIN, Device, Story
from exporter.simulate.downloads import Step, failure, steps
from exporter.simulate.scenario import HOUR_MS, Release
from exporter.simulate.tally import STALLED_MS
from exporter.simulate.truth import Truth

READY_TIMEOUT_MS: Final = 10_000
_TYPICAL_DOWNLOAD_MS: Final = 6_000
_SLOWER: Final = 60
_LONGEST_DOWNLOAD_MS: Final = 5_400_000
_BETA_HEAD_START: Final = 4.0
_LONGEST_UNPACKING_MS: Final = 2_000

Waits = Iterator[int]
"""A story as it is lived: each number is a wait in milliseconds."""


class Updater:
    """What a device does to keep its bundle new.

    Attributes:
        has_downloaded: whether it has downloaded something since the app started.
    """

    def __init__(self, device: Device, truth: Truth, start_ms: int) -> None:
        """Set the device.

        Args:
            device: that is kept new.
            truth: what is told of downloads and failures.
            start_ms: when the releases' hours begin.
        """
        self.has_downloaded = False
        self._device = device
        self._truth = truth
        self._start_ms = start_ms
        self._releases = device.scenario.releases
        self._order = {release.version: index for index, release in enumerate(self._releases)}
        self._attempts: dict[str, tuple[Story, int]] = {}
        self._bundles = 0

    def check(self) -> Waits:
        """Ask for an update, and download what there is."""
        device = self._device
        release = self._find()
        if release is None:
            device.say("noNew")
            profile = device.profile
            is_old = is_legacy_download_fail(profile.platform, profile.plugin_version)
            if is_old and device.happens(device.scenario.noise.old_false_fail):
                device.say("download_fail")
            return
        device.say("get", release.version)
        yield from self._download(release)

    def activate(self) -> Waits:
        """Start the downloaded bundle, and go back to the old one if it does not work."""
        device = self._device
        version, device.pending = device.pending, ""
        old, device.current = device.current, version
        self._bundles += 1
        is_electron = device.profile.platform == "electron"
        bundle = {"bundle_id": f"bundle-{self._bundles}"} if is_electron else None
        device.say("set", old_version=old, extra=bundle)
        if self._is_good(version):
            yield 2000 + device.chance.randrange(2000)
            if old != BUILTIN and not is_electron:
                device.say("delete", old)
            return
        if device.happens(0.7) and device.profile.generation.reports_health:
            yield 2500
            device.say("webview_javascript_error", metadata=_JAVASCRIPT_ERROR)
        yield READY_TIMEOUT_MS - 2500 + device.chance.randrange(400)
        extra = {**bundle, "message": "notifyAppReady timeout"} if bundle else None
        action = "set_fail" if is_electron else "update_fail"
        device.say(action, extra=extra, stories=[self._truth.begin_failure()])
        device.current = old
        device.broken.add(version)

    def _find(self) -> Release | None:
        """Find the newest release that is meant for the device, unless it has it, or has rolled it back."""
        device = self._device
        if device.pending:
            return None
        hours = (device.timeline.now_ms - self._start_ms) / HOUR_MS
        has = self._order.get(device.current, -1)
        head_start = _BETA_HEAD_START if device.profile.channel == "beta" else 1.0
        for index in range(len(self._releases) - 1, has, -1):
            release = self._releases[index]
            if release.version in device.broken:
                continue
            if device.luck(f"rollout {release.version}") < release.share_at(hours) * head_start:
                return release
        return None

    def _download(self, release: Release) -> Waits:
        device = self._device
        profile = device.profile
        story = self._attempt(release.version)
        planned = steps(profile, is_first=not self.has_downloaded)
        self.has_downloaded = True
        total_ms = self._duration_ms(release)
        outcome, ends_at = self._draw_outcome(release)
        at_ms = 0
        for step in planned:
            if step.at > ends_at:
                break
            due_ms = _due_ms(step, total_ms)
            yield due_ms - at_ms
            at_ms = due_ms
            if step.by_worker:
                device.say_by_worker(step.action, release.version, [story])
            else:
                device.say(step.action, release.version, stories=[story])
            self._attempts[release.version] = (story, device.timeline.now_ms)
        if outcome == "completed":
            self._attempts.pop(release.version)
            device.pending = release.version
            if profile.generation.shape is Shape.TIMED:
                device.say("set_next", release.version, old_version=device.current)
        elif outcome == "failed":
            yield max(0, int(ends_at * total_ms) - at_ms)
            yield from self._fail(release.version, story)

    def _fail(self, version: str, story: Story) -> Waits:
        device = self._device
        failed = self._truth.begin_failure()
        for event in failure(device.profile, device.chance):
            name = f"{version}:{event.file}" if event.file else version
            if event.by_worker and device.profile.platform == "android":
                device.say_by_worker(event.action, name, [story, failed])
            else:
                device.say(event.action, name, stories=[story, failed])
            yield 20 + device.chance.randrange(400)
        if any(report.is_failure for report in failed):
            self._attempts.pop(version, None)

    def _attempt(self, version: str) -> Story:
        """Give the story of a download: a new one, or that of an attempt that was begun lately and has no end."""
        story, last_ms = self._attempts.get(version, (None, 0))
        if story is None or self._device.timeline.now_ms - last_ms >= STALLED_MS:
            story = self._truth.begin_attempt()
        return story

    def _is_good(self, version: str) -> bool:
        """Tell whether a bundle will call `notifyAppReady`."""
        device = self._device
        release = self._releases[self._order[version]]
        if self._ails(release, "update_fail"):
            return False
        return not device.happens(device.scenario.noise.rollback)

    def _draw_outcome(self, release: Release) -> tuple[str, float]:
        """Draw how a download ends, and after which share of its time."""
        device = self._device
        noise = device.scenario.noise
        if self._ails(release, "download_fail") or device.happens(noise.download_failure):
            return "failed", device.chance.uniform(0.05, 0.95)
        if device.happens(noise.stall):
            return "stalled", device.chance.uniform(0.05, 0.95)
        return "completed", 1.0

    def _duration_ms(self, release: Release) -> int:
        device = self._device
        duration_ms = _TYPICAL_DOWNLOAD_MS * device.chance.lognormvariate(0.0, 0.7)
        if self._ails(release, "slow_download"):
            duration_ms *= _SLOWER
        return min(int(duration_ms), _LONGEST_DOWNLOAD_MS)

    def _ails(self, release: Release, kind: str) -> bool:
        """Tell whether a release is bad in this way, and on this device."""
        device = self._device
        if release.bad != kind or not release.ails(device.profile.platform):
            return False
        return device.luck(f"bad {release.version}") < release.bad_share

    def crashes(self) -> bool:
        """Tell whether what runs crashes in this session because the release is bad."""
        index = self._order.get(self._device.current)
        return index is not None and self._ails(self._releases[index], "crash") and self._device.happens(0.7)


def _due_ms(step: Step, total_ms: int) -> int:
    """Tell when a step comes; once a bundle has arrived, unpacking does not take longer because the network is slow."""
    due_ms = int(step.at * total_ms)
    return max(due_ms, total_ms - _LONGEST_UNPACKING_MS) if step.is_arrival else due_ms


_JAVASCRIPT_ERROR: Final = {
    "error_type": "javascript_error",
    "message": "Uncaught TypeError: Cannot read properties of undefined (reading 'cart')",
    "source": "capacitor://localhost/main.js",
    "line": "1",
    "column": "2045",
    "stack": "TypeError: Cannot read properties of undefined (reading 'cart')\n    at checkout (main.js:1:2045)",
}
