"""Measures how often the alerts are wrong, and how soon they are right.

The real rules, pruned to what the alerts need, are evaluated by the real promtool over what a fleet of devices makes
Prometheus scrape. Everything follows from the seeds. docs/alerting.md has the tables.

Needs `promtool`, and numpy, which comes with the exporter. Usage: python -m benchmarks.alarms WHAT, which is
quiet, close, outage, detection or unguarded.
"""

import argparse
import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import structlog

from benchmarks.alarms import detection, outage, quiet, rules
from benchmarks.alarms.promtool import Verdict
from exporter.simulate.scenario import Noise

_NOISY: Final = Noise(rollback=0.06)


def main() -> None:
    """Measure what is asked for, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sorted(_COMMANDS))
    parser.add_argument("--devices", type=int, nargs="+", help="sizes of the apps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--days", type=float, help="how long a quiet time lasts")
    parser.add_argument("--step", type=int, help="seconds between scrapes and evaluations of a quiet time")
    parser.add_argument("--fleet", choices=(quiet.SIMULATED, quiet.MODEL), default=quiet.MODEL)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    began = time.perf_counter()
    _COMMANDS[options.what](options)
    print(f"\n{time.perf_counter() - began:.0f} s")


def _quiet(options: argparse.Namespace) -> None:
    """Count false alarms in quiet weeks, of all alerts."""
    days, step = options.days or 30.0, options.step or 300
    groups = rules.needed(rules.read())
    print(quiet.table(quiet.judge_together(_histories(options, (50, 5_000, 500_000), days, step), groups)))


def _close(options: argparse.Namespace) -> None:
    """Watch good releases as closely as Prometheus does, and as seldom as in the long runs."""
    groups = rules.needed([group for group in rules.read() if group["name"].startswith(detection.GROUPS)])
    print("| rollout | devices | good releases | paged, every 15 s | warned | paged, every 5 min | warned |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for rollout in detection.ROLLOUTS:
        cases = [detection.Case(devices, 0.0, rollout) for devices in options.devices or detection.SIZES]
        found = [
            detection.detect(cases, options.seeds, groups, hours=detection.CLOSE_HOURS, step_seconds=step)
            for step in (15, 300)
        ]
        for case in cases:
            counts = [
                sum(severity in each[case, seed].alerts for seed in options.seeds)
                for each in found
                for severity in ("critical", "warning")
            ]
            cells = (rollout, f"{case.devices:,}", len(options.seeds), *counts)
            print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)


def _outage(options: argparse.Namespace) -> None:
    """Let devices deliver at once what is old, what is new, and what waited while the exporter was down."""
    groups = rules.needed(rules.read())
    (devices,) = options.devices or (10_000,)
    seed = options.seeds[0]
    print("| outage | devices | late events | failures counted | critical | warnings |\n|---|---:|---:|---:|---|---|")
    cases = {
        "failures of 20 hours ago, within a minute": outage.failures_at_once(
            devices, groups, age_hours=20.0, seed=seed
        ),
        "the same, of this minute": outage.failures_at_once(devices, groups, age_hours=0.02, seed=seed),
        "exporter down for 2 hours": outage.exporter_down(devices, groups, seed=seed),
    }
    for name, measured in cases.items():
        found = asyncio.run(measured)
        verdict = found.verdict
        words = " | ".join(_words(verdict, severity) for severity in ("critical", "warning"))
        print(f"| {name} | {devices:,} | {found.late:,} | {found.failures:,} | {words} |", flush=True)


def _detection(options: argparse.Namespace) -> None:
    """Measure how soon bad releases are found."""
    groups = rules.needed([group for group in rules.read() if group["name"].startswith(detection.GROUPS)])
    detection.measure(options.seeds, groups, options.devices or detection.SIZES)


def _unguarded(options: argparse.Namespace) -> None:
    """Show what CapgoUpdateFailSpike would do without its guards, for normal apps and for some that always fail."""
    days, step = options.days or 5.0, options.step or 120
    groups = rules.needed(rules.with_unguarded(rules.read()), lambda rule: rule["alert"].startswith(rules.SPIKE))
    for name, noise in (("normal noise", Noise()), ("6 % of all updates are always rolled back", _NOISY)):
        histories = _histories(options, (50, 5_000, 500_000), days, step, noise)
        print(f"\n{name}\n{quiet.table(quiet.judge_together(histories, groups))}", flush=True)


def _histories(
    options: argparse.Namespace, sizes: Sequence[int], days: float, step: int, noise: Noise | None = None
) -> list[quiet.Fleet]:
    scenarios = [
        quiet.quiet(devices, seed, days=days) for devices in options.devices or sizes for seed in options.seeds
    ]
    if noise is not None:
        scenarios = [replace(scenario, noise=noise) for scenario in scenarios]
    return [
        (scenario, options.fleet, quiet.history_of(scenario, source=options.fleet, days=days, step_seconds=step))
        for scenario in scenarios
    ]


def _words(verdict: Verdict, severity: str) -> str:
    return ", ".join(f"{name} {count} times" for name, count in sorted(verdict.count(severity).items())) or "0"


_COMMANDS: Final[dict[str, Callable[[argparse.Namespace], None]]] = {
    "quiet": _quiet,
    "close": _close,
    "outage": _outage,
    "detection": _detection,
    "unguarded": _unguarded,
}

if __name__ == "__main__":
    main()
