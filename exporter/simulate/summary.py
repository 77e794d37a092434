"""What a fleet has done, as text for people."""

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from exporter.simulate.backfill import Result
from exporter.simulate.device import BUILTIN
from exporter.simulate.fleet import Fleet
from exporter.simulate.live import Sent
from exporter.simulate.scenario import Scenario
from exporter.simulate.tally import Labels, Tally

_ROLLBACKS: Final = ("update_fail", "set_fail")
_CURL: Final = 'curl --fail --silent --show-error --data-binary @- "http://localhost:8086/write?db=capgo"'
_HEAD: Final = ("version", "installs", "downloads failed", "rolled back", "what is wrong with it")


def in_short(fleet: Fleet, sent: Sent) -> str:
    """Say in a few words how a live fleet fares."""
    truth = fleet.truth
    said = f"{sent.posts:,} posts, {truth.delivered:,} events delivered, {len(truth.rollbacks):,} roll-backs"
    failing = {name: count for name, count in sent.answers.items() if not name.startswith("2")}
    return f"{said}, not taken: {_counts(Counter(failing))}" if failing else said


def of_live(fleet: Fleet, sent: Sent) -> str:
    """Sum up what came of a live fleet."""
    truth = fleet.truth
    lines = [
        f"posts      {sent.posts:,} ({sent.repeats:,} with events that had been sent before)",
        f"answers    {_counts(sent.answers)}",
        f"events     {truth.said:,} said, {sent.events:,} sent, {truth.delivered:,} delivered",
        f"again      {truth.repeats:,} of those were delivered more than once",
        f"lost       {truth.lost:,}",
        f"waiting    {fleet.waiting:,}",
        f"in doubt   {_unanswered(fleet):,} of those lost or waiting were sent, but not answered",
    ]
    if sent.marks:
        lines.append(f"releases   {_counts(sent.marks)}")
    return "\n".join([*lines, "", *_versions(fleet.scenario, truth.tally(fleet.now_ms))])


def of_backfill(result: Result, openmetrics: Path, points: Path) -> str:
    """Sum up a backfill, and say how its files are loaded."""
    fleet = result.fleet
    metrics_path, points_path = shlex.quote(str(openmetrics)), shlex.quote(str(points))
    lines = [
        f"events     {result.events:,} in {result.deliveries:,} posts",
        f"{openmetrics}: {result.samples:,} samples of {result.series:,} series, {result.scrapes:,} scrapes",
        f"{points}: {result.lines:,} points",
        "",
        *_versions(fleet.scenario, fleet.truth.tally(fleet.now_ms)),
        "",
        "Prometheus, while it is stopped (PROMETHEUS_DATA is its --storage.tsdb.path):",
        f"  promtool tsdb create-blocks-from openmetrics {metrics_path} PROMETHEUS_DATA",
        "InfluxDB 2.x (--org and --token, if they are not configured):",
        f"  influx write --bucket capgo --precision ns --file {points_path}",
        "InfluxDB 1.x, in parts that are not too large:",
        f"  split --lines=20000 --filter='{_CURL}' {points_path}",
    ]
    return "\n".join(lines)


def _unanswered(fleet: Fleet) -> int:
    return len({report for report in fleet.truth.doubtful if report.arrived_ms is None})


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in sorted(counts.items())) or "none"


def _versions(scenario: Scenario, tally: Tally) -> list[str]:
    """Make a table of the versions, in the order of their releases."""
    installs, failed, rolled_back = Counter[str](), Counter[str](), Counter[str]()
    for (_, _, version, *_), count in tally.installs.items():
        installs[version] += count
    for labels, count in tally.failures.items():
        (rolled_back if labels[-1] in _ROLLBACKS else failed)[labels[2]] += count
    rows: list[Sequence[str]] = [_HEAD]
    for version, bad in _known(scenario, tally):
        counts = (installs[version], failed[version], rolled_back[version])
        rows.append((version, *(f"{count:,}" for count in counts), bad))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return [_row(row, widths) for row in rows]


def _known(scenario: Scenario, tally: Tally) -> Iterator[tuple[str, str]]:
    """Give the versions that updates were about, with what is wrong with them."""
    bad = {release.version: release.bad or "" for release in scenario.releases}
    seen: set[Labels] = {*tally.installs, *tally.failures}
    versions = {labels[2] for labels in seen}
    order = [BUILTIN, scenario.base_version, *bad]
    yield from ((version, bad.get(version, "")) for version in order if version in versions)
    yield from ((version, "") for version in sorted(versions.difference(order)))


def _row(row: Sequence[str], widths: Sequence[int]) -> str:
    """Align the first and the last column to the left, numbers to the right."""
    first, *numbers, last = row
    aligned = [number.rjust(width) for number, width in zip(numbers, widths[1:-1], strict=True)]
    return "  ".join((first.ljust(widths[0]), *aligned, last)).rstrip()
