"""Backfill: what the exporter makes of a simulated fleet is the truth, and databases take the files.

An exporter has to guess where events do not say enough: a download worker that does not know its app reports a part of
a download under another app, and a device that is offline in the middle of a download reports the rest too late. There
the bound is stated.
"""

import asyncio
import io
import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from exporter.simulate.backfill import SCRAPE_LABELS, Plan, Result, backfill
from exporter.simulate.openmetrics import Recorder
from exporter.simulate.pagetext import EOF, openmetrics
from exporter.simulate.reports import DAY_MS
from exporter.simulate.scenario import AT_ONCE, Bad, Noise, Release, Scenario, month
from tests.support import rulebackfill
from tests.support.exporter import parse_samples
from tests.support.influxdb import InfluxDB16
from tests.support.prometheus import Prometheus
from tests.support.truth import Values, active_devices, happened, shown, shown_devices

END_MS: Final = 1_751_313_600_000
DAYS: Final = 3.0
PLAN: Final = Plan(month(devices=80, days=DAYS), END_MS, DAYS, step_seconds=3600, fine_hours=1.0, fine_step_seconds=60)
QUIET: Final = Noise(*(0.0 for _ in range(10)))
BAD_ON: Final[Mapping[Bad, str]] = {
    "update_fail": "android",
    "download_fail": "ios",
    "crash": "android",
    "slow_download": "ios",
}
EXACT: Final = (
    *("events", "installs", "uninstalls", "failures", "late", "channel_updates"),
    *("launches counted", "launches in all", "page_loads counted", "page_loads in all"),
)
GUESSED: Final = ("attempts", "in_flight", "downloads counted", "downloads_by_kind counted")
BOUND: Final = 0.01


class Filled(NamedTuple):
    """A backfill and its files."""

    result: Result
    openmetrics: Path
    lines: Path


def run(plan: Plan, directory: Path) -> Filled:
    """Run a backfill into a directory."""
    paths = directory / "metrics.om", directory / "points.lp"
    return Filled(asyncio.run(backfill(plan, *paths)), *paths)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """Three days of a fleet with everything in it."""
    return run(PLAN, tmp_path_factory.mktemp("backfill"))


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Five days with a release of each kind of badness, each on one platform only, and nothing else that goes wrong."""
    releases = tuple(
        Release(f"2.{number}.0", 2.0 + 28.0 * number, AT_ONCE, bad=kind, bad_share=1.0, bad_platform=platform)
        for number, (kind, platform) in enumerate(BAD_ON.items())
    )
    scenario = Scenario(devices=40, releases=releases, noise=QUIET, offline_share=0.0, wrong_clock_share=0.0)
    plan = Plan(scenario, END_MS, 5.0, step_seconds=7200, fine_hours=0.0)
    return run(plan, tmp_path_factory.mktemp("bad")).result


def total(values: Values) -> float:
    """Sum up."""
    return sum(values.values())


# --- the page against the truth ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("figure", EXACT)
def test_page_is_the_truth(figure: str, filled: Filled) -> None:
    """What the exporter does not have to guess is exact, in every series."""
    result = filled.result
    expected = happened(result.fleet.truth.tally(END_MS))[figure]
    assert {} != expected
    assert expected == shown(result.page)[figure]


@pytest.mark.parametrize("figure", GUESSED)
def test_page_is_nearly_the_truth(figure: str, filled: Filled) -> None:
    """What the exporter pieces together from events differs by less than 1 % of all, or by one."""
    result = filled.result
    expected = happened(result.fleet.truth.tally(END_MS))[figure]
    actual = shown(result.page)[figure]
    keys = expected.keys() | actual.keys()
    difference = sum(abs(expected.get(key, 0.0) - actual.get(key, 0.0)) for key in keys)
    assert difference <= max(1.0, BOUND * total(expected))


def test_durations_of_downloads(filled: Filled) -> None:
    """Downloads take as long as they took, up to 1 % of their sum."""
    result = filled.result
    expected = total(happened(result.fleet.truth.tally(END_MS))["downloads in all"])
    assert expected > 0
    assert expected == pytest.approx(total(shown(result.page)["downloads in all"]), rel=BOUND)


@pytest.mark.parametrize(("window", "days"), [("1d", 1), ("7d", 7), ("30d", 30)])
def test_active_devices(window: str, days: int, filled: Filled) -> None:
    """Sketches of so few devices are exact to about one in fifty."""
    expected = active_devices(filled.result.fleet.truth, END_MS // DAY_MS, days)
    actual = shown_devices(filled.result.page, window)
    assert expected.keys() == actual.keys()
    assert expected == {key: pytest.approx(value, rel=0.02, abs=0.5) for key, value in actual.items()}


def test_every_event_is_accepted(filled: Filled) -> None:
    """No event is rejected, filtered or refused; repeats are recognised, one by one."""
    result, truth = filled.result, filled.result.fleet.truth
    outcomes = {
        (sample.labels["outcome"], sample.labels["reason"]): sample.value
        for sample in parse_samples(result.page)
        if sample.name == "capgo_exporter_events_total" and sample.value
    }
    assert {("accepted", ""): truth.delivered, ("duplicate", ""): truth.repeats} == outcomes
    assert truth.delivered == total(shown(result.page)["events"])
    assert truth.repeats > 0


def test_nothing_is_forgotten(filled: Filled) -> None:
    """What devices said was delivered, is lost, or waits."""
    fleet = filled.result.fleet
    assert fleet.truth.said == fleet.truth.delivered + fleet.truth.lost + fleet.waiting


# --- each kind of badness ---------------------------------------------------------------------------------------------


def by_platform(values: Values, version: str, *rest: str) -> set[str]:
    """Give the platforms of a version that have a value, by the labels after the environment."""
    return {
        key[1]
        for key, value in values.items()
        if value and key[2] == version and (not rest or key[-len(rest) :] == rest)
    }


def test_bad_update(bad: Result) -> None:
    """A bundle that does not start is rolled back, on its platform alone."""
    failures = shown(bad.page)["failures"]
    assert {"android"} == by_platform(failures, "2.0.0", "update_fail")
    assert {"android"} == {key[1] for key in failures if key[2] == "2.0.0"}


def test_bad_download(bad: Result) -> None:
    """A bundle that cannot be downloaded fails there, and is installed nowhere on its platform."""
    figures = shown(bad.page)
    assert {"ios"} == by_platform(figures["failures"], "2.1.0")
    assert {"ios"} == {key[1] for key in figures["attempts"] if key[2] == "2.1.0" and key[4] == "failed"}
    assert "ios" not in by_platform(figures["installs"], "2.1.0")
    assert "android" in by_platform(figures["installs"], "2.1.0")


def test_bad_crash(bad: Result) -> None:
    """A bundle that crashes says so at the next launch, on its platform alone, and is no failed update."""
    events = shown(bad.page)["events"]
    assert {("android", "2.2.0")} == {(key[1], key[3]) for key in events if key[2] == "app_crash"}
    assert set() == by_platform(shown(bad.page)["failures"], "2.2.0")


def test_bad_slow_download(bad: Result) -> None:
    """A slow download takes minutes on its platform, seconds elsewhere, and completes."""
    figures = shown(bad.page)
    means = {
        key[1]: figures["downloads in all"][key] / figures["downloads counted"][key] / 1000
        for key in figures["downloads counted"]
        if key[2] == "2.3.0"
    }
    assert means["ios"] > 120
    assert means["android"] < 30
    assert {"completed"} == {key[4] for key in figures["attempts"] if key[2] == "2.3.0"}


def test_bad_is_the_truth(bad: Result) -> None:
    """With nothing else that goes wrong, every figure is exact but the few that workers without an app spoil."""
    expected, actual = happened(bad.fleet.truth.tally(END_MS)), shown(bad.page)
    for figure in (*EXACT, *GUESSED):
        assert expected[figure] == {key: value for key, value in actual[figure].items() if value}, figure


# --- the files --------------------------------------------------------------------------------------------------------


def test_the_same_plan_gives_the_same(tmp_path: Path) -> None:
    """Points and the fleet's figures are the same to the byte; another seed gives others."""
    plan = Plan(month(devices=15, days=0.5), END_MS, 0.5, step_seconds=3600, fine_hours=0.0)
    pages, points = [], []
    for number, seed in enumerate((1, 1, 2)):
        directory = tmp_path / str(number)
        directory.mkdir()
        filled = run(replace(plan, scenario=replace(plan.scenario, seed=seed)), directory)
        points.append(filled.lines.read_bytes())
        pages.append(
            [line for line in filled.result.page.splitlines() if line.startswith("capgo_") and "exporter" not in line]
        )
    assert (points[0], pages[0]) == (points[1], pages[1])
    assert points[0] != points[2]


@pytest.mark.server("promtool", "prometheus")
async def test_prometheus_takes_the_samples(filled: Filled, tmp_path: Path) -> None:
    """Prometheus' own tool makes blocks of the file, and a Prometheus has in the end what the page shows."""
    prometheus = Prometheus(tmp_path / "prometheus", [])
    prometheus.process.argv.append("--storage.tsdb.retention.time=100y")
    data = tmp_path / "prometheus" / "data"
    await rulebackfill.promtool(
        *("tsdb", "create-blocks-from", "--quiet", "--max-block-duration=1458h"),
        *("openmetrics", str(filled.openmetrics), str(data)),
    )
    async with prometheus:
        found = await prometheus.query(
            '{__name__=~"capgo_.+_total|capgo_.+_count", __name__!~"capgo_exporter_.+"}', END_MS / 1000
        )
        up = await prometheus.query_range("up", END_MS / 1000 - 3000, END_MS / 1000, 60)
    assert {1.0} == {value for series in up for _, value in series.samples}
    assert 51 == len(up[0].samples)
    served = {frozenset(series.labels.items()): series.samples[-1][1] for series in found}
    page = {
        frozenset({**sample.labels, "__name__": sample.name, **SCRAPE_LABELS}.items()): sample.value
        for sample in parse_samples(filled.result.page)
        if sample.name.startswith("capgo_")
        and sample.name.endswith(("_total", "_count"))
        and not sample.name.startswith("capgo_exporter_")
    }
    assert page == served


@pytest.mark.server("influxd")
async def test_influxdb_takes_the_points(filled: Filled, influxdb: InfluxDB16) -> None:
    """InfluxDB accepts each line, and has one point for each event, and for each mark of a release."""
    with filled.lines.open(encoding="utf-8") as file:
        while chunk := "".join(itertools.islice(file, 2000)):
            assert (204, "") == await influxdb.write(chunk)
    truth = filled.result.fleet.truth
    assert truth.delivered == len(await influxdb.query("SELECT * FROM capgo_stats"))
    marked = await influxdb.query("SELECT * FROM capgo_releases")
    assert {release.version for release in PLAN.scenario.releases} == {row["version"] for row in marked}
    assert filled.result.lines == truth.delivered + len(marked)


def test_thinned_series_say_the_same() -> None:
    """Of a series that hardly changes few samples are written, but Prometheus gives the same at every moment."""
    minutes = 600
    values: dict[str, list[int | None]] = {
        "steady": [1 for _ in range(minutes)],
        "steps": [minute // 100 for minute in range(minutes)],
        "gone": [7 if minute < 250 else None for minute in range(minutes)],
        "late": [None if minute < 430 else 3 for minute in range(minutes)],
    }
    recorder = Recorder({"job": "a"})
    for minute in range(minutes):
        lines = [f'm{{name="{name}"}} {each[minute]}' for name, each in values.items() if each[minute] is not None]
        page = "\n".join(("# HELP m Help.", "# TYPE m gauge", *lines, "# EOF", ""))
        recorder.record("all", page, minute * 60_000, around=2, is_fine=True)
    file = io.StringIO()
    count = recorder.write(file)
    written: dict[str, dict[int, str]] = {name: {} for name in values}
    for line in file.getvalue().splitlines():
        if not line.startswith("#"):
            series, text, seconds = line.split(" ")
            written[series.removeprefix('m{job="a",name="').removesuffix('"}')][int(seconds) // 60] = text
    assert count == sum(map(len, written.values())) < 1000
    for name, each in values.items():
        for minute, value in enumerate(each):
            recent = [written[name][at] for at in range(minute, max(minute - 5, -1), -1) if at in written[name]]
            if value is not None:
                assert str(value) == recent[0], (name, minute)
    changes = {minute for minute in range(1, minutes) if values["steps"][minute] != values["steps"][minute - 1]}
    assert changes | {minute - 1 for minute in changes} | {0, minutes - 1} <= set(written["steps"])
    assert (249, 430) == (max(written["gone"]), min(written["late"]))


def test_small_families_are_written_like_prometheus_client_does() -> None:
    """The quick way to write OpenMetrics gives the very text of prometheus-client."""
    registry = CollectorRegistry()
    Counter("one", 'Help with "quotes", a \\ and\na line.', ["b", "a"], registry=registry).labels('x"\\\n', "ü").inc(
        1e9
    )
    Gauge("two", "Help.", registry=registry).set(float("nan"))
    Histogram("three", "Help.", ["a"], registry=registry, buckets=(0.1, 5)).labels("").observe(0.25)
    Info("four", "Help.", registry=registry).info({"version": "1"})
    assert generate_latest(registry).decode() == openmetrics(registry) + EOF
    assert [] != list(text_string_to_metric_families(openmetrics(registry)))
