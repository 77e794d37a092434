"""A device: who it is, what runs on it, and how it says what happens."""

from collections.abc import Iterable
from random import Random
from typing import TYPE_CHECKING, Final

from exporter.labels import split_version
from exporter.legacy import is_legacy_download_fail
from exporter.simulate.clients import ELECTRON, MOBILE, Profile, Shape, plugin_body, worker_body
from exporter.simulate.reports import Report, Track
from exporter.simulate.scenario import Scenario
from exporter.simulate.timeline import Timeline

if TYPE_CHECKING:
    from exporter.simulate.outbox import Outbox

BUILTIN: Final = "builtin"
_WRONG_CLOCKS_MS: Final = (300_000, -300_000, 1000 * 86_400_000, -700 * 86_400_000)
_VERSIONS_OS: Final = {
    "android": ("11", "12", "13", "14", "14", "15"),
    "ios": ("16.7.2", "17.5.1", "17.6.1", "18.1"),
    "electron": ("6.8.0-45-generic", "10.0.22631", "23.6.0"),
}
_FAILURES: Final = ("checksum_required", "insufficient_disk_space")
_UNKNOWN_APP_SHARE: Final = 0.02

Story = list[Report]


class Device:
    """One device.

    Attributes:
        profile: who it is.
        scenario: what it lives through.
        timeline: the time.
        chance: its own.
        outbox: what it has to send.
        current: the version that runs.
        pending: the version that is downloaded and waits.
        broken: versions that were rolled back, which are not tried again.
        offline_until_ms: when a long time without network ends.
    """

    def __init__(self, profile: Profile, scenario: Scenario, timeline: Timeline, chance: Random) -> None:
        """Take a device as it comes out of the shop; it needs an outbox before it can say something."""
        self.profile = profile
        self.scenario = scenario
        self.timeline = timeline
        self.chance = chance
        self.outbox: Outbox
        self.current = BUILTIN
        self.pending = ""
        self.broken: set[str] = set()
        self.offline_until_ms = 0
        self._luck: dict[str, float] = {}

    def luck(self, matter: str) -> float:
        """Give a number from 0 to 1 that stays the same for a matter: which devices a release reaches, or ails."""
        if matter not in self._luck:
            self._luck[matter] = Random(f"{self.scenario.seed}/{self.profile.device_id}/{matter}").random()  # noqa: S311 -- no secret
        return self._luck[matter]

    def happens(self, probability: float) -> bool:
        """Let chance decide."""
        return self.chance.random() < probability

    def say(
        self,
        action: str,
        version: str | None = None,
        *,
        old_version: str = "",
        metadata: dict[str, str] | None = None,
        extra: dict[str, str] | None = None,
        stories: Iterable[Story] = (),
    ) -> None:
        """Report something as the plugin does.

        Args:
            action: what happened.
            version: the bundle it is about; None: the one that runs.
            old_version: the bundle before.
            metadata: what newer plugins say besides.
            extra: what electron says besides.
            stories: what it belongs to.
        """
        profile = self.profile
        body = plugin_body(profile, action, self.current if version is None else version, old_version, extra)
        if profile.generation.shape is Shape.TIMED:
            body["timestamp"] = self._clock_ms()
            if metadata and profile.generation.reports_health:
                body["metadata"] = metadata
        report = self._report(body, profile.app_id)
        for story in stories:
            story.append(report)
        self.outbox.put(report)

    def say_by_worker(self, action: str, version: str, stories: Iterable[Story] = ()) -> None:
        """Report something as Android's download worker does."""
        report = self._report(worker_body(self.profile, action, version), self.profile.worker_app_id)
        for story in stories:
            story.append(report)
        self.outbox.put_alone(report)

    def say_rate_limit(self) -> None:
        """Report a reply 429, at once and alone."""
        body = plugin_body(self.profile, "rate_limit_reached", self.current, "")
        self.outbox.put_alone(self._report(body, self.profile.app_id))

    def _clock_ms(self) -> int:
        """Give the device's time; what happens without network is as old as if days did not pass faster."""
        now_ms = self.timeline.now_ms
        if now_ms < self.offline_until_ms:
            now_ms = self.offline_until_ms - int((self.offline_until_ms - now_ms) * self.scenario.speed)
        return now_ms + self.profile.skew_ms

    def _report(self, body: dict[str, object], app_id: str) -> Report:
        profile = self.profile
        action = str(body["action"])
        version, _ = split_version(str(body["version_name"]))
        is_failure = action.endswith("_fail") or action in _FAILURES
        if action == "download_fail" and is_legacy_download_fail(profile.platform, profile.plugin_version):
            is_failure = False
        track = Track(app_id, profile.said_platform, version or "unknown", profile.environment)
        return Report(body, track, profile.said_channel, is_failure)


def make_profile(scenario: Scenario, chance: Random) -> Profile:
    """Draw a device."""
    names, weights = zip(*scenario.platforms, strict=True)
    platform: str = chance.choices(names, weights)[0]
    generations = ELECTRON if platform == "electron" else MOBILE
    generation = chance.choices([each for each, _ in generations], [weight for _, weight in generations])[0]
    app_id = (scenario.desktop_app_id or scenario.app_id) if platform == "electron" else scenario.app_id
    device_id = _uuid(chance)
    is_worker_lost = platform == "android" and chance.random() < _UNKNOWN_APP_SHARE
    can_be_wrong = generation.shape is Shape.TIMED and chance.random() < scenario.wrong_clock_share
    # A small error is given to iOS alone: on Android it would mix with the worker's events, which have no time, and
    # nobody could tell in which order things happened.
    clocks = _WRONG_CLOCKS_MS if platform == "ios" else _WRONG_CLOCKS_MS[2:]
    skew_ms = chance.choice(clocks) if can_be_wrong else 0
    return Profile(
        platform=platform,
        generation=generation,
        plugin_version=chance.choice(generation.versions),
        app_id=app_id,
        device_id=device_id.upper() if platform == "ios" and generation.shape is Shape.EARLY else device_id,
        custom_id=f"customer-{chance.randrange(100_000)}" if chance.random() < scenario.custom_id_share else "",
        channel="beta" if chance.random() < scenario.beta_share else "production",
        version_os=chance.choice(_VERSIONS_OS[platform]),
        is_emulator=chance.random() < scenario.emulator_share,
        is_prod=chance.random() >= scenario.dev_share,
        skew_ms=skew_ms,
        by_manifest=generation.shape is Shape.TIMED and chance.random() < scenario.manifest_share,
        worker_app_id="unknown" if is_worker_lost else app_id,
    )


def _uuid(chance: Random) -> str:
    digits = f"{chance.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"
