"""What a simulated fleet lives through: its devices, its releases, what goes wrong."""

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final, Literal

HOUR_MS: Final = 3_600_000
DAY_HOURS: Final = 24.0

Bad = Literal["update_fail", "download_fail", "crash", "slow_download"]
BAD: Final[tuple[Bad, ...]] = ("update_fail", "download_fail", "crash", "slow_download")
BAD_SHARE: Final = 0.35

STAGED: Final = ((0.0, 0.05), (4.0, 0.25), (24.0, 1.0))
"""A careful rollout: 5 % at once, a quarter after four hours, everyone after a day."""

AT_ONCE: Final = ((0.0, 1.0),)


@dataclass(frozen=True, slots=True)
class Release:
    """One release.

    Attributes:
        version: its name.
        start_hours: when it is released, after the beginning; negative: before it.
        rollout: hours after the release and the share of devices that get it then; in between, the share rises evenly.
        bad: what is wrong with it; None: nothing.
        bad_share: the share of devices that suffer from that.
        bad_platform: the only platform that does; None: all.
    """

    version: str
    start_hours: float
    rollout: tuple[tuple[float, float], ...] = STAGED
    bad: Bad | None = None
    bad_share: float = BAD_SHARE
    bad_platform: str | None = None

    def share_at(self, hours: float) -> float:
        """Give the share of devices that may have it, at a time in hours after the beginning."""
        age = hours - self.start_hours
        if age < self.rollout[0][0]:
            return 0.0
        for (begin, low), (end, high) in pairwise(self.rollout):
            if age < end:
                return low + (high - low) * (age - begin) / (end - begin)
        return self.rollout[-1][1]

    def ails(self, platform: str) -> bool:
        """Tell whether the release is bad on a platform."""
        return self.bad is not None and self.bad_platform in {None, platform}


@dataclass(frozen=True, slots=True)
class Noise:
    """How often things go wrong in normal times; each a probability.

    Attributes:
        rollback: an activated bundle is rolled back.
        download_failure: a download fails.
        stall: a download is never heard of again, unless the next session takes it up.
        crash: the app crashes in a session.
        web_error: the page reports an error in a session.
        strain: the system complains about the app in a session: memory, time, processes.
        reset: the app goes back to its built-in bundle in a session.
        old_false_fail: an old plugin reports `download_fail` although there is no update.
        lost_reply: a batch is stored, but the device never hears so.
        offline_session: a session without any network.
    """

    rollback: float = 0.002
    download_failure: float = 0.015
    stall: float = 0.008
    crash: float = 0.002
    web_error: float = 0.006
    strain: float = 0.004
    reset: float = 0.0005
    old_false_fail: float = 0.2
    lost_reply: float = 0.001
    offline_session: float = 0.01


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything that decides what a fleet does; the same scenario gives the same events.

    Attributes:
        seed: of all chance.
        devices: how many there are.
        app_id: of phones and tablets.
        desktop_app_id: of electron; None: the same.
        base_version: what is installed in the beginning.
        releases: in the order of their versions.
        platforms: the mix of platforms.
        builtin_share: devices that start with the bundle of the app store.
        manifest_share: devices that download file by file, if their plugin can.
        offline_share: devices that are without network for a day now and then.
        wrong_clock_share: devices whose clock is wrong.
        emulator_share, dev_share: devices that are no customers'.
        beta_share: devices in the channel `beta`, which get releases first.
        custom_id_share: devices with a custom id.
        sessions_per_day: of the average device.
        noise: what goes wrong in normal times.
        speed: how many times as fast days pass, while a session takes its real time.
    """

    seed: int = 1
    devices: int = 300
    app_id: str = "com.example.shop"
    desktop_app_id: str | None = None
    base_version: str = "1.8.0"
    releases: tuple[Release, ...] = ()
    platforms: tuple[tuple[str, float], ...] = (("android", 0.55), ("ios", 0.38), ("electron", 0.07))
    builtin_share: float = 0.04
    manifest_share: float = 0.4
    offline_share: float = 0.06
    wrong_clock_share: float = 0.02
    emulator_share: float = 0.02
    dev_share: float = 0.02
    beta_share: float = 0.06
    custom_id_share: float = 0.25
    sessions_per_day: float = 4.0
    noise: Noise = field(default_factory=Noise)
    speed: float = 1.0

    def sped_up(self, factor: float) -> "Scenario":
        """Let days pass faster: sessions come more often, releases roll out faster; a session takes its real time."""
        releases = tuple(
            replace(
                release,
                start_hours=release.start_hours / factor,
                rollout=tuple((hours / factor, share) for hours, share in release.rollout),
            )
            for release in self.releases
        )
        return replace(self, releases=releases, speed=self.speed * factor)

    def activity(self, hours: float) -> float:
        """Give how much of the busiest hour's use there is at a time in hours after a midnight: little at night."""
        hour_of_day = hours * self.speed % DAY_HOURS
        return 0.55 + 0.45 * math.cos((hour_of_day - 17.0) / DAY_HOURS * math.tau)


def month(
    *, seed: int = 1, devices: int = 300, days: float = 30.0, bad: Bad | None = "update_fail", app_id: str = ""
) -> Scenario:
    """Make weeks with good and bad releases, of every kind of badness; the last one came out shortly before the end.

    Args:
        seed: of all chance.
        devices: how many there are.
        days: how long it lasts.
        bad: what is wrong with the last release.
        app_id: the app; empty: the usual one.
    """
    hours = days * DAY_HOURS
    last = max(hours * 0.9, hours - 5.0)
    made = Scenario(
        seed=seed,
        devices=devices,
        releases=(
            Release("1.9.0", hours * 0.06),
            Release("1.10.0", hours * 0.2, bad="crash", bad_share=0.2),
            Release("1.10.1", hours * 0.24, AT_ONCE),
            Release("2.0.0", hours * 0.4, bad="download_fail", bad_platform="android"),
            Release("2.0.1", hours * 0.45, AT_ONCE),
            Release("2.1.0", hours * 0.62, bad="slow_download", bad_share=0.8),
            Release("2.2.0", hours * 0.8),
            Release("2.3.0", last, ((0.0, 0.4), (4.0, 0.8)), bad=bad),
        ),
    )
    return replace(made, app_id=app_id) if app_id else made


def demo(
    *, seed: int = 1, devices: int = 300, bad: Bad | None = "update_fail", speed: float = 1.0, app_id: str = ""
) -> Scenario:
    """Make a day to watch: a good release first, six hours later one that may be bad, six hours later its repair.

    Args:
        seed: of all chance.
        devices: how many there are.
        bad: what is wrong with the second release.
        speed: how many times as fast days pass.
        app_id: the app; empty: the usual one.
    """
    made = Scenario(
        seed=seed,
        devices=devices,
        base_version="2.3.0",
        releases=(
            Release("2.4.0", 0.0, ((0.0, 0.3), (4.0, 1.0))),
            Release("2.5.0", 6.0, ((0.0, 0.2), (6.0, 0.8)), bad=bad),
            Release("2.5.1", 12.0, AT_ONCE),
        ),
    )
    made = replace(made, app_id=app_id) if app_id else made
    return made if speed == 1.0 else made.sped_up(speed)
