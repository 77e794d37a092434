"""Every query of the dashboards on real servers that hold a simulated month, and the key numbers against the truth.

Prometheus has two replicas that show the same. Where a number is compared with the truth, one of them is chosen.

`increase()` over the month is exact here: each counter begins at 0, below which Prometheus does not extrapolate, and
has a sample at the very end of the time range. Over shorter windows a bound is stated.
"""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Final

import pytest
import pytest_asyncio

from exporter.simulate.reports import DAY_MS
from exporter.simulate.tally import Tally
from exporter.simulate.truth import DevicesByDay
from grafana.generate import thresholds
from grafana.generate.catalogue import files
from grafana.generate.downloads import STEPS
from grafana.generate.queries import Asked, Values, of_source, queries
from tests.support.month import APP, BAD_VERSION, DESKTOP_APP, Month, instance, month
from tests.support.prometheus import Series
from tests.support.truth import happened

pytestmark = pytest.mark.server("promtool", "prometheus", "influxd")

BOARDS: Final = sorted(name.removesuffix(".json") for name in files())
HOUR: Final = 3600.0

MAY_BE_EMPTY: Final = {
    ("capgo-exporter", "Oldest point waits"): "InfluxDB takes every point at once, so none waits",
    ("capgo-exporter", "Alerts"): "nothing is wrong with the exporter, so none of its alerts fires",
}
"""Panels and annotations without data in this month, with the reason."""

MAY_BE_ZERO: Final = {
    ("capgo-exporter", "Exporters down"): "both are up",
    ("capgo-exporter", "Cannot store"): "the disk works",
    ("capgo-exporter", "Points lost"): "InfluxDB takes every point",
    ("capgo-exporter", "Rejected events"): "devices send what the contract says",
    ("capgo-exporter", "Not accepted, by reason"): "devices send what the contract says",
    ("capgo-exporter", "Bodies refused"): "devices send what the contract says",
    ("capgo-exporter", "Requests put off"): "nobody sends more than is allowed",
    ("capgo-exporter", "Failures of the journal"): "the disk works",
    ("capgo-exporter", "Failing, and why"): "InfluxDB takes every point",
    ("capgo-exporter", "Points refused for good"): "InfluxDB takes every point",
    ("capgo-exporter", "Dead letters"): "InfluxDB takes every point",
    ("capgo-exporter", "Writes sent again"): "InfluxDB takes every point",
    ("capgo-exporter", "Counted as `other`"): "no cap is reached",
}
"""Panels that show nothing but 0 in this month, with the reason."""

BY_CHANCE: Final = {("capgo-downloads", "Under way")}
"""Panels of which nobody knows whether they show 0: the number of one moment."""

BOTH: Final = f"({APP}|{DESKTOP_APP})"
CHOICES: Final = {
    "everything": {"app": BOTH},
    "one app": {"app": APP},
    "one platform": {"app": BOTH, "platform": "ios"},
    "one version": {"app": BOTH, "version": BAD_VERSION},
    "production": {"app": BOTH, "environment": "prod"},
    "several at once": {"app": APP, "platform": "android", "version": f"({BAD_VERSION}|2.2.0)", "environment": "prod"},
}
"""Values of the dashboards' variables, as Grafana writes them.

Android's download worker often does not know its app and says `unknown`. Of these downloads the end is never heard, so
that nobody can tell one from the next: they are left out where downloads are counted.
"""

PERCENTILES: Final = {
    "capgo-downloads": ("90th percentile of the time", "downloads", "capgo_download_duration_seconds"),
    "capgo-health": ("90th percentile of launches", "launches", "capgo_launch_duration_seconds"),
}
"""Panels with a percentile of the whole month: their title, what it is of, and the histogram."""

TAGS: Final = ("app_id", "platform", "action", "version", "environment")
LABELS: Final = ("app_id", "platform", "version", "environment")
TRACK: Final = ("app", "platform", "version", "environment")
EVENT: Final = ("app", "platform", "action", "version", "environment")

choices = pytest.mark.parametrize("chosen", CHOICES.values(), ids=CHOICES)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Month]:
    """Both servers with the month; Prometheus has two replicas of the exporter."""
    async with month(tmp_path_factory.mktemp("month"), replicas=2) as made:
        yield made


@pytest.fixture
def truth(servers: Month) -> Tally:
    """What really happened."""
    return servers.result.fleet.truth.tally(servers.plan.end_ms)


# --- every query has data ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uid", BOARDS)
async def test_every_query_has_data(uid: str, servers: Month) -> None:
    """Each query of each panel, variable and annotation has data; those that have none are listed, and no others."""
    values = servers.values()
    empty, zero = set(), defaultdict(list)
    for asked in queries(values):
        if asked.dashboard == uid:
            answer = await servers.ask(asked, values)
            numbers = [value for series in answer for _, value in series.samples if not math.isnan(value)]
            if not numbers:
                empty.add((uid, asked.title))
            if asked.kind == "panel":
                zero[uid, asked.title].append(not any(numbers))
    assert {key for key in MAY_BE_EMPTY if key[0] == uid} == empty
    silent = {key for key, are in zero.items() if all(are)} - empty - BY_CHANCE
    assert {key for key in MAY_BE_ZERO if key[0] == uid} == silent


async def test_close_scrapes_are_answered(servers: Month) -> None:
    """Over the last hours, with a point a minute, every query is answered too, and the bad release is seen."""
    values = servers.values(2)
    for asked in queries(values):
        await servers.ask(asked, values)
    (spikes,) = [each for each in _asked(values, "capgo-failures", "Roll-backs of 15 minutes") if ">= 5" in each.query]
    assert {(APP, BAD_VERSION)} == {_label(one, "app_id", "version") for one in await servers.ask(spikes, values)}


async def test_alerts_are_about_the_bad_release(servers: Month) -> None:
    """The markers of alerts show the spike of the bad release, and nothing else that would page somebody."""
    values = servers.values(1)
    (asked,) = _asked(values, "capgo-failures", "Alerts")
    answer = [_label(one, "alertname", "app_id", "version", "severity") for one in await servers.ask(asked, values)]
    assert ("CapgoUpdateFailSpike", APP, BAD_VERSION, "critical") in answer
    assert {(APP, BAD_VERSION)} == {(app, version) for _, app, version, severity in answer if severity == "critical"}


async def test_variables_offer_what_there_is(servers: Month) -> None:
    """The variables offer each app, platform, version and environment that devices reported, in both data sources."""
    events = servers.result.fleet.truth.tally(servers.plan.end_ms).events
    values = servers.values()
    for uid, sql in (("capgo-overview", False), ("capgo-events", True)):
        for name in TRACK:
            (asked,) = [one for one in _asked(values, uid, name) if one.kind == "variable"]
            answer = await servers.ask(asked, values)
            label = {"app": "app_id"}.get(name, name)
            offered = {one.labels["value"] if sql else one.labels[label] for one in answer}
            assert {key[EVENT.index(name)] for key in events} == offered


# --- two replicas -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uid", [uid for uid in BOARDS if uid not in {"capgo-exporter", "capgo-devices", "capgo-events"}]
)
async def test_a_replica_changes_no_row(uid: str, servers: Month) -> None:
    """Counts of two replicas add up; shares, times and distinct devices stay; no row is there for each of them."""
    alone = servers.values(instance=instance(servers.plan, 1))
    both = servers.values()
    for one, two in zip(_panels(alone, uid), _panels(both, uid), strict=True):
        first, second = await servers.ask(one, alone), await servers.ask(two, both)
        low, high = _factor(one.query)
        if low < high:  # such as a comparison with a number, which a row may pass now
            assert {_key(series) for series in first} <= {_key(series) for series in second}, one
            continue
        assert {_key(series) for series in first} == {_key(series) for series in second}, one
        for before, after in zip(sorted(first, key=_key), sorted(second, key=_key), strict=True):
            values = [value * low for _, value in before.samples]
            assert values == pytest.approx([value for _, value in after.samples], rel=1e-6, nan_ok=True), one


def _factor(query: str) -> tuple[float, float]:
    """Tell by how much a query's answer grows with a second replica: at least, and at most."""
    if "ALERTS" in query:
        return 1, 1
    if "3.8416" in query or ">= 5)" in query or " or 1 / " in query:
        return 1, 2
    if " / " in query.replace("/ 1000", "") or "histogram_quantile" in query:
        return 1, 1
    counts = re.search(r"increase\(|rate\(|capgo_downloads_in_flight", query)
    return (2, 2) if counts else (1, 1)


# --- Prometheus against the truth -------------------------------------------------------------------------------------


async def test_raw_samples_are_the_truth(servers: Month, truth: Tally) -> None:
    """The last sample of each counter minus its first is exactly what happened, from the first event of a series on."""
    families_of = {
        "events": ("capgo_stats_events_total", TAGS),
        "installs": ("capgo_installs_total", LABELS),
        "uninstalls": ("capgo_uninstalls_total", LABELS),
        "failures": ("capgo_update_failures_total", (*LABELS, "reason")),
        "late": ("capgo_late_events_total", (*LABELS, "kind")),
        "attempts": ("capgo_download_attempts_total", (*LABELS, "outcome", "reached")),
        "downloads counted": ("capgo_download_duration_seconds_count", LABELS[:3]),
        "launches counted": ("capgo_launch_duration_seconds_count", LABELS[:3]),
    }
    expected = happened(truth)
    for figure, (name, labels) in families_of.items():
        selector = f'{name}{{instance="{instance(servers.plan, 1)}"}}[{servers.plan.days:.0f}d]'
        answer = await servers.prometheus.query(selector, servers.end)
        rises = {_label(one, *labels): one.rise for one in answer if one.rise}
        chosen = {} if figure != "attempts" else {"app": BOTH}
        known, found = (
            {key: value for key, value in each.items() if _fits(key, chosen)} for each in (expected[figure], rises)
        )
        assert known == found, figure


@choices
async def test_totals_are_the_truth(chosen: Mapping[str, str], servers: Month, truth: Tally) -> None:
    """Installs, uninstalls, failures, roll-backs and downloads of the month are exactly those that happened."""
    installs, failures = _sum(truth.installs, chosen), _sum(truth.failures, chosen)
    expected = {
        ("capgo-rollout", "Installs"): installs,
        ("capgo-rollout", "Uninstalls"): _sum(truth.uninstalls, chosen),
        ("capgo-overview", "Failed updates"): failures,
        ("capgo-failures", "Failed updates"): failures,
        ("capgo-failures", "Roll-backs"): _sum(truth.failures, chosen, _is_rollback),
        ("capgo-failures", "Share that failed"): failures / (failures + installs),
        ("capgo-overview", "Success rate"): installs / (failures + installs),
        ("capgo-downloads", "Ended"): _sum(truth.attempts, chosen),
        ("capgo-downloads", "Failed"): _sum(truth.attempts, chosen, lambda key: key[4] == "failed"),
    }
    assert installs
    assert failures
    if "platform" not in chosen and chosen["app"] == BOTH and "version" not in chosen:
        assert _sum(truth.failures, chosen, lambda key: key[1] == "electron" and key[4] == "set_fail")
    for (uid, title), number in expected.items():
        assert number == pytest.approx(await _number(servers, uid, title, chosen), rel=1e-9), title


@choices
async def test_funnel_is_the_truth(chosen: Mapping[str, str], servers: Month, truth: Tally) -> None:
    """Each bar is the share of the downloads that reached at least its step, which never rises from step to step."""
    ended = _sum(truth.attempts, chosen)
    reached = [
        _sum(truth.attempts, chosen, lambda key, rest=STEPS[number:]: key[5] in rest) / ended  # type: ignore[misc]
        for number in range(len(STEPS))
    ]
    bars = await _numbers(servers, "capgo-downloads", "Reached at least", chosen)
    assert reached == pytest.approx(bars, rel=1e-9)
    assert bars == sorted(bars, reverse=True)
    assert 1 == bars[0]


async def test_health_is_the_truth(servers: Month, truth: Tally) -> None:
    """Crashes, ANR and launch time-outs are exactly those that devices reported."""
    actions = {
        "Crashes": {"app_crash", "app_crash_native"},
        "ANR": {"app_anr"},
        "Launch time-outs": {"app_launch_timeout"},
    }
    for title, names in actions.items():
        happened_so_often = sum(count for key, count in truth.events.items() if key[2] in names)
        assert happened_so_often == pytest.approx(await _number(servers, "capgo-health", title, {}), rel=1e-9), title


async def test_worst_versions_are_the_truth(servers: Month, truth: Tally) -> None:
    """The table has each version with its failures and installs; the bad release is the worst, and it is sure."""
    at_least, share, _, failed, installs, _ = await _columns(servers, "capgo-failures", "Worst versions")
    for counter, column in ((truth.failures, failed), (truth.installs, installs)):
        assert _by_version(counter) == pytest.approx({key: value for key, value in column.items() if value}, rel=1e-9)
    for key, number in share.items():
        assert at_least[key] < number or number == 0
    lately = await _columns(servers, "capgo-failures", "Worst versions", servers.values(2))
    for column in (lately[0], lately[2], lately[5]):
        assert (APP, BAD_VERSION) == max(column, key=lambda key: column[key])
    assert thresholds.FAIL_RATIO < lately[0][APP, BAD_VERSION]


async def test_rollbacks_of_the_last_minutes(servers: Month) -> None:
    """The number at the top left is that of the roll-backs of 15 minutes.

    Between a report and its count lie 10 seconds, for which the exporter waits, and up to two scrapes, a minute each.
    Samples that change nothing are two minutes apart: Prometheus extrapolates by a sixth at most.
    """
    shown = await _number(servers, "capgo-overview", "Roll-backs, last 15 minutes", {"environment": "prod", "app": APP})
    times = [one.at_ms / 1000 for one in servers.result.fleet.truth.rollbacks if one.track.app_id == APP]
    surely = sum(servers.end - 15 * 60 < at for at in times)  # the fleet is silent at the end: all are counted
    perhaps = sum(servers.end - 15 * 60 - 130 < at for at in times)
    assert surely - 1e-6 <= shown <= perhaps * 7 / 6
    assert surely


@pytest.mark.parametrize("chosen", [{}, {"app": APP, "platform": "ios"}, {"version": "2.2.0"}], ids=str)
@pytest.mark.parametrize("uid", PERCENTILES)
async def test_percentiles_are_in_their_bucket(
    uid: str, chosen: Mapping[str, str], servers: Month, truth: Tally
) -> None:
    """A percentile lies in the same bucket as the real one: nothing closer can be known."""
    title, figure, metric = PERCENTILES[uid]
    durations: Mapping[tuple[str, ...], list[int]] = getattr(truth, figure)
    seconds = sorted(ms / 1000 for key, every in durations.items() if _fits(key, chosen) for ms in every)
    real = seconds[math.ceil(0.9 * len(seconds)) - 1]
    buckets = await servers.prometheus.query(f"group by (le) ({metric}_bucket)", servers.end)
    bounds = sorted({0.0, *(float(one.labels["le"]) for one in buckets)})
    low, high = next((low, high) for low, high in itertools.pairwise(bounds) if low < real <= high)
    assert low <= await _number(servers, uid, title, chosen) <= high


async def test_active_devices_are_the_truth(servers: Month) -> None:
    """Distinct devices are exact up to some tens, and within 5 % (three standard errors) above."""
    devices = servers.result.fleet.truth.devices
    panels = {
        ("capgo-overview", "Active devices today"): 1,
        ("capgo-rollout", "Active devices, 7 days"): 7,
        ("capgo-rollout", "Active devices, 30 days"): 30,
    }
    for chosen in ({}, {"app": APP}, {"app": DESKTOP_APP}, {"platform": "ios"}, {"app": APP, "platform": "android"}):
        for (uid, title), days in panels.items():
            expected = sum(len(active) for key, active in _active(devices, servers, days).items() if _fits(key, chosen))
            assert _about(expected) == await _number(servers, uid, title, chosen), (title, chosen)


async def test_adoption_is_the_truth(servers: Month) -> None:
    """A version's share is that of today's devices which were seen with it."""
    today: dict[str, set[str]] = defaultdict(set)
    for (app, _), active in _active(servers.result.fleet.truth.devices, servers, 1).items():
        today[app] |= active
    versions = _active(servers.result.fleet.truth.version_devices, servers, 1)
    (shares,) = await _columns(servers, "capgo-rollout", "Adoption by version")
    shown = {key: value for key, value in shares.items() if value}
    assert {(app, version) for (app, version) in versions} >= shown.keys()
    assert {(APP, "2.2.0"), (APP, BAD_VERSION), (DESKTOP_APP, "2.2.0")} <= shown.keys()
    for (app, version), value in shown.items():
        assert pytest.approx(len(versions[app, version]) / len(today[app]), rel=0.07) == value
    apps = await _columns(servers, "capgo-overview", "Apps")
    assert shown[APP, BAD_VERSION] == apps[5][APP,]


async def test_devices_hurt_are_the_truth(servers: Month) -> None:
    """Devices with a failure of a version today, and the share of those without, are those that there were."""
    affected = _active(servers.result.fleet.truth.affected, servers, 1)
    versions = _active(servers.result.fleet.truth.version_devices, servers, 1)
    (hurt,) = await _columns(servers, "capgo-failures", "Devices hurt")
    assert {key for key, value in hurt.items() if value} == set(affected)
    assert {key: _about(len(devices)) for key, devices in affected.items()} == {key: hurt[key] for key in affected}
    (free,) = await _columns(servers, "capgo-health", "Issue-free devices by version")
    for key in affected:
        assert pytest.approx(1 - len(affected[key]) / len(versions[key]), abs=0.07) == free[key]


async def test_releases_are_marked_when_they_happened(servers: Month) -> None:
    """Both kinds of markers stand where a version was released, and where it was seen first."""
    values = servers.values(instance=instance(servers.plan, 1))
    marks = {}
    for name in ("Releases", "First seen"):
        (asked,) = _asked(values, "capgo-overview", name)
        marks[name] = {_label(one, "app_id", "version"): one.samples[-1][1] for one in await servers.ask(asked, values)}
    scenario = servers.plan.scenario
    last_raised = {
        (APP, release.version): servers.plan.start_ms + (release.start_hours + release.rollout[-1][0]) * HOUR * 1000
        for release in scenario.releases
    }
    assert last_raised == pytest.approx(marks["Releases"], abs=1)
    seen = servers.result.fleet.truth.first_seen_ms
    assert seen[APP, BAD_VERSION] == pytest.approx(marks["First seen"][APP, BAD_VERSION], abs=1000)
    assert set(marks["First seen"]) <= set(seen)


# --- InfluxDB against the truth ---------------------------------------------------------------------------------------


async def test_points_are_the_truth(servers: Month, truth: Tally) -> None:
    """InfluxDB holds exactly one point for each event that was delivered, with its tags."""
    tags = ", ".join(TAGS)
    rows = await servers.influxdb.query(f'SELECT SUM("count") FROM "capgo_stats" GROUP BY {tags}')  # noqa: S608
    counted = {tuple(str(row[tag]) for tag in TAGS): row["sum"] for row in rows}
    assert truth.events == counted
    assert servers.result.fleet.truth.delivered == sum(truth.events.values())


@choices
async def test_numbers_of_points_are_the_truth(chosen: Mapping[str, str], servers: Month, truth: Tally) -> None:
    """Roll-backs, failures and installs in InfluxDB are exactly the events that were delivered."""
    wanted: dict[str, Callable[[tuple[str, ...]], bool]] = {
        "Roll-backs": lambda key: key[2] == "update_fail" or (key[2] == "set_fail" and key[1] == "electron"),
        "Failures": lambda key: key[2].endswith("_fail") or key[2] in {"checksum_required", "insufficient_disk_space"},
        "Installs": lambda key: key[2] == "set",
    }
    for title, fits in wanted.items():
        expected = sum(count for key, count in truth.events.items() if _fits(key, chosen, EVENT) and fits(key))
        assert expected or "version" in chosen, title
        assert expected == await _number(servers, "capgo-events", title, chosen, _all_times(servers)), title
    by_version = _asked(_all_times(servers, chosen), "capgo-events", "Roll-backs by version")[0]
    drawn: dict[str, float] = defaultdict(float)
    for one in await servers.ask(by_version, _all_times(servers, chosen)):
        drawn[one.labels["version"]] += one.samples[0][1]
    expected_by_version: dict[str, int] = defaultdict(int)
    for key, count in truth.events.items():
        if _fits(key, chosen, EVENT) and wanted["Roll-backs"](key):
            expected_by_version[key[3]] += count
    assert expected_by_version == {version: count for version, count in drawn.items() if count}


async def test_devices_of_points_are_the_truth(servers: Month) -> None:
    """Distinct devices are counted exactly from points, in each app and on each platform."""
    devices = servers.result.fleet.truth.devices
    for chosen in ({}, {"app": APP}, {"app": APP, "platform": "ios"}, {"platform": "electron"}):
        every: set[str] = set().union(
            *(ids for key, by_day in devices.items() if _fits(key, chosen) for ids in by_day.values())
        )
        production = {**chosen, "environment": "prod"}
        assert len(every) == await _number(servers, "capgo-events", "Devices", production, _all_times(servers))


async def test_funnel_of_points_never_rises(servers: Month) -> None:
    """Fewer devices reach a later step, where downloads fail; all that got to the end got to the beginning."""
    chosen = {"version": "2.0.0", "platform": "android"}
    bars = await _numbers(servers, "capgo-events", "Devices that reached at least", chosen)
    assert len(STEPS) == len(bars)
    assert bars == sorted(bars, reverse=True)
    assert bars[0] > bars[-1] > 0
    assert bars[-1] == await _number(servers, "capgo-events", "Downloads completed", chosen)


async def test_failing_devices_have_a_history(servers: Month) -> None:
    """A device of the table of failures has a history, which ends in what went wrong."""
    values = servers.values()
    (asked,) = _asked(values, "capgo-devices", "Last failed updates")
    rows = await servers.influxdb.query(asked.query)
    assert 200 == len(rows)
    assert {BAD_VERSION} == {row["version"] for row in rows[:10]}
    device = str(rows[0]["device_id"])
    values = servers.values(device=device.upper())
    (asked,) = _asked(values, "capgo-devices", "History of the device")
    history = await servers.influxdb.query(asked.query)
    assert {"set", "update_fail"} <= {row["action"] for row in history}


# --- helpers ----------------------------------------------------------------------------------------------------------


def _asked(values: Values, uid: str, title: str) -> list[Asked]:
    """Find the queries of a panel, a variable or an annotation."""
    found = [each for each in queries(values) if (each.dashboard, each.title) == (uid, title)]
    assert found, f"{uid} has no {title}"
    return found


def _panels(values: Values, uid: str) -> list[Asked]:
    return [each for each in of_source(queries(values), "prometheus") if each.dashboard == uid and each.kind == "panel"]


async def _numbers(
    servers: Month, uid: str, title: str, chosen: Mapping[str, str], values: Values | None = None
) -> list[float]:
    """Ask the queries of a panel that shows one number for each, of one replica and for values of the variables.

    What never happened has no series, and counts as 0; `test_every_query_has_data` sees that no query asks in vain.
    """
    values = _choose(values or servers.values(), servers, chosen)
    found = []
    for asked in _asked(values, uid, title):
        answer = await servers.ask(asked, values)
        assert len(answer) <= 1, asked
        found.append(answer[0].samples[-1][1] if answer else 0.0)
    return found


async def _number(
    servers: Month, uid: str, title: str, chosen: Mapping[str, str], values: Values | None = None
) -> float:
    (number,) = await _numbers(servers, uid, title, chosen, values)
    return number


async def _columns(
    servers: Month, uid: str, title: str, values: Values | None = None
) -> list[dict[tuple[str, ...], float]]:
    """Ask the queries of a panel, of one replica: for each, what it says of the end, by the values of the labels."""
    values = _choose(values or servers.values(), servers, {})
    return [
        {_key(one): one.samples[-1][1] for one in await servers.ask(asked, values) if one.samples[-1][0] == values.end}
        for asked in _asked(values, uid, title)
    ]


def _choose(values: Values, servers: Month, chosen: Mapping[str, str]) -> Values:
    variables = {**chosen, "instance": instance(servers.plan, 1)}
    return Values(values.start, values.end, values.step_seconds, values.scrape_seconds, variables)


def _all_times(servers: Month, chosen: Mapping[str, str] | None = None) -> Values:
    """Let the time range begin a week earlier and end an hour later: devices' clocks are believed so far."""
    start, end = servers.plan.start_ms / 1000 - 8 * 24 * HOUR, servers.end + HOUR
    return Values(start, end, step_seconds=7200, variables=chosen or {})


def _key(series: Series) -> tuple[str, ...]:
    return tuple(value for _, value in sorted(series.labels.items()))


def _label(series: Series, *names: str) -> tuple[str, ...]:
    return tuple(series.labels.get(name, "") for name in names)


def _fits(key: tuple[str, ...], chosen: Mapping[str, str], names: Iterable[str] = TRACK) -> bool:
    """Tell whether the values of labels are among those that are chosen."""
    return all(
        name not in chosen or value in chosen[name].strip("()").split("|")
        for name, value in zip(names, key, strict=False)
    )


def _sum(
    counter: Mapping[tuple[str, ...], int],
    chosen: Mapping[str, str],
    fits: Callable[[tuple[str, ...]], bool] = lambda _: True,
) -> int:
    return sum(count for key, count in counter.items() if _fits(key, chosen) and fits(tuple(key)))


def _is_rollback(key: tuple[str, ...]) -> bool:
    return key[4] == "update_fail" or (key[4] == "set_fail" and key[1] == "electron")


def _by_version(counter: Mapping[tuple[str, ...], int]) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = defaultdict(float)
    for (app, _, version, *_), count in counter.items():
        found[app, version] += count
    return dict(found)


def _active(devices: DevicesByDay, servers: Month, days: int) -> dict[tuple[str, ...], set[str]]:
    """Give the devices of the last days."""
    today = servers.plan.end_ms // DAY_MS
    found = {
        key: set().union(*(by_day.get(day, set()) for day in range(today - days + 1, today + 1)))
        for key, by_day in devices.items()
    }
    return {key: active for key, active in found.items() if active}


def _about(number: int) -> object:
    """Compare with what a sketch says of so many devices."""
    return number if number <= 50 else pytest.approx(number, rel=0.05)
