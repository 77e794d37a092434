"""False alarms and detection, with the real rules in the real promtool: the small part of what docs/alerting.md shows.

What this covers: five quiet days instead of a month, an app of 50 devices (simulated one by one, through the real
exporter) and one of 5,000 (in aggregate), scraped and evaluated every five minutes instead of every 15 seconds, only
the critical alerts; an outage of 10,000 devices, through the real exporter, every 15 seconds; one bad release, every 15
seconds. The whole is measured by `python -m benchmarks.alarms`.
"""

import numpy as np
import pytest

from benchmarks.alarms import rules
from benchmarks.alarms.detection import GROUPS, PHASE_SECONDS, Case, detect
from benchmarks.alarms.outage import exporter_down, failures_at_once
from benchmarks.alarms.promtool import PromtoolError, judge
from benchmarks.alarms.quiet import MODEL, SIMULATED, Fleet, history_of, judge_together, quiet
from benchmarks.alarms.rules import Group, Rule
from benchmarks.alarms.series import History, notation, selector

QUIET_DAYS = 5.0
QUIET_STEP_SECONDS = 300


@pytest.fixture(scope="module")
def every_rule() -> list[Group]:
    """All rules, as they are."""
    return rules.read()


@pytest.fixture(scope="module")
def quiet_fleets() -> list[Fleet]:
    """Five quiet days of a small app and of one that is not so small."""
    sizes = {50: SIMULATED, 5_000: MODEL}
    return [
        (scenario, source, history_of(scenario, source=source, days=QUIET_DAYS, step_seconds=QUIET_STEP_SECONDS))
        for devices, source in sizes.items()
        for scenario in (quiet(devices, 1, days=QUIET_DAYS),)
    ]


def is_critical(rule: Rule) -> bool:
    """Tell whether an alert pages."""
    return bool(rule["labels"]["severity"] == "critical")


# --- quiet ------------------------------------------------------------------------------------------------------------


@pytest.mark.server("promtool")
def test_quiet_days_page_nobody(every_rule: list[Group], quiet_fleets: list[Fleet]) -> None:
    """Good releases with the failures of normal times fire no critical alert; without its guard, one of them would."""
    runs = judge_together(quiet_fleets, rules.needed(rules.with_unguarded(every_rule), is_critical))

    unguarded = f"{rules.SPIKE} without low volume"
    assert {unguarded} == set().union(*(run.verdict.count("critical") for run in runs))
    # There was something to be wrong about.
    assert all(run.installs > run.devices for run in runs), runs


def test_the_model_is_like_the_simulated_fleet(quiet_fleets: list[Fleet]) -> None:
    """The days of 50 devices have as many updates in aggregate as one by one, within chance."""
    scenario, _, simulated = quiet_fleets[0]
    model = history_of(scenario, source=MODEL, days=QUIET_DAYS, step_seconds=QUIET_STEP_SECONDS)

    installs = [history.total("capgo_installs_total") for history in (model, simulated)]
    assert 1.0 == pytest.approx(installs[0] / installs[1], abs=0.25)


# --- outage -----------------------------------------------------------------------------------------------------------


@pytest.mark.server("promtool")
async def test_ten_thousand_devices_that_deliver_yesterdays_failures_page_nobody(every_rule: list[Group]) -> None:
    """They are counted as late events, all of them, and no alert fires, not even a warning."""
    found = await failures_at_once(10_000, rules.needed(every_rule), age_hours=20.0)

    assert 40_000 == found.late
    assert {} == found.verdict.starts


@pytest.mark.server("promtool")
async def test_the_same_failures_of_today_page(every_rule: list[Group]) -> None:
    """What keeps yesterday's failures quiet is their age alone."""
    found = await failures_at_once(300, rules.needed(every_rule, is_critical), age_hours=0.02)

    assert 0 == found.late
    assert {"CapgoUpdateFailSpike", "CapgoUpdateFailLikely"} == set(found.verdict.count("critical"))


@pytest.mark.server("promtool")
async def test_an_exporter_that_was_down_is_the_only_page(every_rule: list[Group]) -> None:
    """An exporter that is back after half an hour takes the devices' queues without another alert than its own."""
    found = await exporter_down(300, rules.needed(every_rule, is_critical), down_hours=0.5, around_hours=0.75)

    assert {"CapgoExporterDown": 1} == found.verdict.count("critical")


# --- detection --------------------------------------------------------------------------------------------------------


@pytest.mark.server("promtool")
def test_a_release_that_rolls_back_a_tenth_pages_within_minutes(every_rule: list[Group]) -> None:
    """In an app of 50,000 devices it takes three minutes at most from the first roll-back on, and few are hurt."""
    groups = rules.needed([group for group in every_rule if group["name"].startswith(GROUPS)], is_critical)
    case = Case(50_000, 0.1, "at once")

    found = detect([case], [1, 2], groups, hours=1.25, step_seconds=15)

    for seed in (1, 2):
        detection = found[case, seed]
        assert "CapgoUpdateFailSpike" == detection.alerts["critical"]
        assert 60 + PHASE_SECONDS < detection.seconds["critical"] <= 180
        assert 5 <= detection.hurt["critical"] < 100


# --- the measuring itself ---------------------------------------------------------------------------------------------


def test_samples_are_written_in_runs() -> None:
    """`3x4` is promtool's word for five times 3, `_x4` for four times nothing."""
    assert "_x2 0 3x2 4" == notation(np.array([np.nan, np.nan, 0.0, 3.0, 3.0, 3.0, 4.0]))


def test_what_alerts_need_is_kept_as_it_is(every_rule: list[Group]) -> None:
    """Every alert is still there, with its expression, and everything it is made of, down to the scraped metrics."""
    kept = [rule for group in rules.needed(every_rule) for rule in group["rules"]]
    alerts = [rule for group in every_rule for rule in group["rules"] if "alert" in rule]
    recorded = {rule["record"] for rule in kept if "record" in rule}
    used = {name for name in rules.metrics(rules.needed(every_rule)) if ":capgo" in name or name.startswith("capgo:")}

    assert [(rule["alert"], rule["expr"], rule.get("for")) for rule in alerts] == [
        (rule["alert"], rule["expr"], rule.get("for")) for rule in kept if "alert" in rule
    ]
    assert set() == used - recorded


def test_a_guard_that_is_not_there_cannot_be_taken_away(every_rule: list[Group]) -> None:
    """If the rule is written anew, the measurement says so instead of measuring nothing."""
    spikes = [rule for group in every_rule for rule in group["rules"] if rule.get("alert") == rules.SPIKE]
    rewritten = [{"name": "rewritten", "rules": [{**spikes[0], "expr": "capgo_rewritten > 1"}]}]

    with pytest.raises(ValueError, match="has no guard 'low volume'"):
        rules.with_unguarded(rewritten)


@pytest.mark.server("promtool")
def test_a_rule_that_promtool_refuses_is_an_error() -> None:
    """No alert because of a mistake is not quiet."""
    broken = [{"name": "broken", "rules": [{"alert": "Broken", "expr": "up ==", "labels": {"severity": "critical"}}]}]

    with pytest.raises(PromtoolError, match="parse error"):
        judge(History(15, 10, {selector("up"): np.ones(10)}), broken)
