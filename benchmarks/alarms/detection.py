"""Detection: how soon a release that rolls back installs fires an alert, and how many devices it hurts until then.

Many apps share one run of promtool, because rules keep apps apart.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.alarms.model import Aggregate, Model
from benchmarks.alarms.promtool import judge
from benchmarks.alarms.rules import Group
from benchmarks.alarms.series import History
from exporter.simulate.scenario import AT_ONCE, STAGED, Release, Scenario

SIZES: Final = (50, 500, 5_000, 50_000, 500_000)
BAD_SHARES: Final = (0.1, 0.3, 1.0)
ROLLOUTS: Final = {"staged": STAGED, "at once": AT_ONCE}

CLOSE_HOURS: Final = 4.0
CLOSE_STEP_SECONDS: Final = 15
LONG_HOURS: Final = 37.0
LONG_STEP_SECONDS: Final = 120

PHASE_SECONDS: Final = 15
"""Rules are evaluated up to an interval after the scrape; here both come at the same moment, so that is added."""

GROUPS: Final = ("capgo-thresholds", "capgo-updates")
"""What the groups of the rules about updates are called, in the beginning; the others do not look for bad releases."""

_BEGINS_AT_HOUR: Final = 9.0
_RELEASED_AFTER_HOURS: Final = 1.0
_WINDOW_SECONDS: Final = 300
_STEPS_PER_WINDOW: Final = _WINDOW_SECONDS // CLOSE_STEP_SECONDS


@dataclass(frozen=True, slots=True)
class Case:
    """A bad release.

    Attributes:
        devices: of the app.
        bad_share: of the installs that are rolled back.
        rollout: one of `ROLLOUTS`.
    """

    devices: int
    bad_share: float
    rollout: str

    def scenario(self, seed: int) -> Scenario:
        """Make the fleet and its release, at ten in the morning."""
        release = Release(
            "2.1.0", _RELEASED_AFTER_HOURS, ROLLOUTS[self.rollout], bad="update_fail", bad_share=self.bad_share
        )
        return Scenario(seed=seed, devices=self.devices, base_version="2.0.0", releases=(release,))


@dataclass(frozen=True, slots=True)
class Detection:
    """What became of one bad release.

    Attributes:
        seconds: from the first roll-back to the first alert of each severity; none if there was none.
        alerts: which one that was.
        hurt: the devices rolled back until then; without an alert, until the end.
    """

    seconds: dict[str, float]
    alerts: dict[str, str]
    hurt: dict[str, int]


def detect(
    cases: Sequence[Case], seeds: Sequence[int], groups: Sequence[Group], *, hours: float, step_seconds: int
) -> dict[tuple[Case, int], Detection]:
    """Let all cases happen, and look for their alerts.

    Args:
        cases: bad releases.
        seeds: each case happens once with each.
        groups: the rules; see `rules.needed`.
        hours: how long they are watched; the release comes after the first one.
        step_seconds: between two scrapes and between two evaluations.
    """
    apps: dict[str, tuple[Case, int]] = {}
    lives: dict[str, Aggregate] = {}
    for case in cases:
        for seed in seeds:
            app = f"app-{len(apps)}"
            apps[app] = (case, seed)
            model = Model(
                case.scenario(seed), days=hours / 24, step_seconds=step_seconds, begins_at_hour=_BEGINS_AT_HOUR
            )
            lives[app] = model.run()
    together = History(step_seconds, min(life.history.length for life in lives.values()))
    for app, life in lives.items():
        together.series.update(life.history.renamed(app).series)
    verdict = judge(together, groups, window_seconds=_STEPS_PER_WINDOW * step_seconds, only_first=True)
    found: dict[str, dict[str, tuple[float, str]]] = {app: {} for app in apps}
    for alert, seconds in verdict.first_seconds.items():
        by_severity = found[alert.labels["app_id"]]
        by_severity[alert.severity] = min((seconds, alert.name), by_severity.get(alert.severity, (seconds, alert.name)))
    return {apps[app]: _detection(life, found[app]) for app, life in lives.items()}


def _detection(life: Aggregate, found: dict[str, tuple[float, str]]) -> Detection:
    rollbacks = [each for version in life.rollbacks.values() for each in version]
    first = min((at for at, _ in rollbacks), default=0)
    fired = {severity: at + PHASE_SECONDS for severity, (at, _) in found.items()}
    never = float("inf")
    return Detection(
        {severity: at - first for severity, at in fired.items()},
        {severity: name for severity, (_, name) in found.items()},
        {
            severity: sum(count for at, count in rollbacks if at <= fired.get(severity, never))
            for severity in ("critical", "warning")
        },
    )


def measure(seeds: Sequence[int], groups: Sequence[Group], sizes: Sequence[int] = SIZES) -> None:
    """Measure all cases, the slow ones again over days, and print the table."""
    titles = (
        *("rollout", "rolled back", "devices", "paged", "minutes: median, worst", "hurt: median, worst", "which page"),
        "first warning: minutes, which",
    )
    lines = [f"| {' | '.join(titles)} |", "|---|---:|---:|---:|---:|---:|---|---|"]
    print("\n".join(lines))
    for rollout in ROLLOUTS:
        for bad_share in BAD_SHARES:
            cases = [Case(devices, bad_share, rollout) for devices in sizes]
            found = detect(cases, seeds, groups, hours=CLOSE_HOURS, step_seconds=CLOSE_STEP_SECONDS)
            slow = [case for case in cases if any("critical" not in found[case, seed].seconds for seed in seeds)]
            if slow:
                found |= detect(slow, seeds, groups, hours=LONG_HOURS, step_seconds=LONG_STEP_SECONDS)
            for case in cases:
                print(_line(case, [found[case, seed] for seed in seeds]), flush=True)


def _line(case: Case, found: Sequence[Detection]) -> str:
    paged = [each for each in found if "critical" in each.seconds]
    minutes = _spread([each.seconds["critical"] / 60 for each in paged], "{:.1f}")
    hurt = _spread([each.hurt["critical"] for each in found], "{:,.0f}")
    names = _names([each.alerts["critical"] for each in paged])
    warned = [each for each in found if "warning" in each.seconds]
    warning = _spread([each.seconds["warning"] / 60 for each in warned], "{:.1f}").partition(",")[0]
    of = f" ({len(warned)} of {len(found)})" if len(warned) < len(found) else ""
    cells = (
        *(case.rollout, f"{case.bad_share:.0%}", f"{case.devices:,}", f"{len(paged)} of {len(found)}", minutes, hurt),
        *(names, f"{warning} {_names([each.alerts['warning'] for each in warned])}{of}"),
    )
    return f"| {' | '.join(cells)} |"


def _names(names: Sequence[str]) -> str:
    return ", ".join(sorted({name.removeprefix("Capgo") for name in names}))


def _spread(values: Sequence[float], form: str) -> str:
    if not values:
        return "-"
    return f"{form.format(statistics.median(values))}, {form.format(max(values))}"
