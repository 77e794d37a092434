"""Quiet weeks: good releases, rolled out in stages, and the noise of normal times."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.alarms.model import Model
from benchmarks.alarms.promtool import Verdict, judge
from benchmarks.alarms.recorded import record_now
from benchmarks.alarms.rules import Group
from benchmarks.alarms.series import History
from exporter.simulate.scenario import AT_ONCE, STAGED, Release, Scenario

FIRST_RELEASE_HOURS: Final = 34.0
"""Ten in the morning of the second day."""

RELEASE_EVERY_HOURS: Final = 72.0
_HOTFIX: Final = 6

SIMULATED: Final = "simulated"
MODEL: Final = "model"

Fleet = tuple[Scenario, str, History]
"""A scenario, `simulated` or `model`, and what was scraped."""


def quiet(devices: int, seed: int, *, days: float = 30.0) -> Scenario:
    """Make quiet weeks: every three days a release in stages, one of them at once, all of them good.

    Args:
        devices: how many there are.
        seed: of all chance.
        days: how long it lasts.
    """
    hours = [FIRST_RELEASE_HOURS + RELEASE_EVERY_HOURS * number for number in range(1 + int(days / 3))]
    releases = tuple(
        Release(f"2.{number}.0", start, AT_ONCE if number == _HOTFIX else STAGED)
        for number, start in enumerate(hours, start=1)
        if start < 24 * days
    )
    return Scenario(seed=seed, devices=devices, base_version="2.0.0", releases=releases)


@dataclass(frozen=True, slots=True)
class Run:
    """One quiet time, judged.

    Attributes:
        devices: of the app.
        seed: of all chance.
        source: `simulated` or `model`.
        days: how long it lasted.
        installs: the updates in it.
        verdict: which alerts fired.
    """

    devices: int
    seed: int
    source: str
    days: float
    installs: int
    verdict: Verdict


def history_of(scenario: Scenario, *, source: str, days: float, step_seconds: int) -> History:
    """Let a fleet live, one device at a time through the real exporter, or in aggregate."""
    if source == SIMULATED:
        return record_now(scenario, days=days, step_seconds=step_seconds)
    return Model(scenario, days=days, step_seconds=step_seconds).run().history


def judge_together(histories: Sequence[Fleet], groups: Sequence[Group]) -> list[Run]:
    """Judge fleets in one run of promtool, which is faster; each has an app and an exporter of its own.

    Args:
        histories: each with its scenario and its source.
        groups: the rules; see `rules.needed`.
    """
    first = histories[0][2]
    together = History(first.step_seconds, first.length)
    for number, (_, _, history) in enumerate(histories):
        lean = history.without_label("capgo_download_attempts_total", "reached")
        together.series.update(lean.renamed(f"app-{number}").series)
    verdict = judge(together, groups)
    return [
        Run(
            scenario.devices,
            scenario.seed,
            source,
            history.seconds / 86400,
            history.total("capgo_installs_total"),
            verdict.of_app(f"app-{number}"),
        )
        for number, (scenario, source, history) in enumerate(histories)
    ]


def table(runs: Sequence[Run]) -> str:
    """Write a table: how often each alert began to fire, and for how long, in each run."""
    lines = [
        "| devices | fleet | seed | days | installs | critical | warnings |",
        "|---:|---|---:|---:|---:|---:|---|",
    ]
    for each in runs:
        critical = _words(each.verdict, "critical") or "0"
        warnings = _words(each.verdict, "warning") or "0"
        fleet = f"{each.devices:,} | {each.source} | {each.seed} | {each.days:g} | {each.installs:,}"
        lines.append(f"| {fleet} | {critical} | {warnings} |")
    return "\n".join(lines)


def _words(verdict: Verdict, severity: str) -> str:
    seconds: Counter[str] = Counter()
    for alert, firing in verdict.firing_seconds.items():
        if alert.severity == severity:
            seconds[alert.name] += firing
    return ", ".join(
        f"{name} {count} times ({seconds[name] / 3600:.1f} h)"
        for name, count in sorted(verdict.count(severity).items())
    )
