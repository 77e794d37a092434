"""The dashboards: generated, valid, readable, and every query of theirs understood by a real server."""

import itertools
import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from ruamel.yaml import YAML

from grafana.generate import promql, thresholds
from grafana.generate.__main__ import main
from grafana.generate.catalogue import files
from grafana.generate.metrics import FAMILIES, VARIABLES
from grafana.generate.panels import RED
from grafana.generate.queries import Values, of_source, queries, substitute
from tests.conftest import StartPrometheus
from tests.support import everything
from tests.support.dashboards import (
    DIRECTORY,
    ROOT,
    Json,
    all_panels,
    committed,
    data_panels,
    selectors,
    targets,
    units,
    violations,
)
from tests.support.influxdb import InfluxDB16
from tests.support.inprocess import running
from tests.test_telemetry import full_page, label_names

UIDS = {
    *("capgo-overview", "capgo-downloads", "capgo-failures", "capgo-rollout", "capgo-health"),
    *("capgo-devices", "capgo-events", "capgo-exporter"),
}
BOARDS = committed()
PROVISIONING = ROOT / "grafana" / "provisioning"
LINT = YAML(typ="safe").load((DIRECTORY / ".lint").read_text())["exclusions"]
DATA_SOURCE_VARIABLES = {
    "datasource": ("prometheus", "Data source"),
    "influxdb_datasource": ("influxdb", "Influxdb data source"),
}
# Metrics that are not ours.
FOREIGN = {"ALERTS", "up", "process_resident_memory_bytes", "process_cpu_seconds_total"}
# What `AnnotationQuery` of the SDK has no field for, though Grafana reads it.
MARKER_KEYS = {"step", "titleFormat", "textFormat", "tagKeys", "useValueForTime", "target"}
# Series that are bad are red; everything else has no colour that could be taken for it.
NEUTRAL_COLORS = {"blue", "text", "purple"}
MAX_PANELS_IN_A_ROW = 12
# Fields of the points that queries may ask for; README.md lists them.
POINT_FIELDS = {
    *("count", "device_id", "custom_id", "version_build", "version_code", "version_os", "plugin_version"),
    *("old_version", "channel", "install_source", "key_id", "file", "bundle_id", "message", "metadata", "duration_ms"),
    *("device_time_ms", "version_raw", "action_raw", "app_id_raw"),
}
TAGS = {"app_id", "platform", "action", "version", "environment"}

OVERRIDABLE = {
    "unit",
    "color",
    "thresholds",
    "links",
    "custom.cellOptions",
    *(f"custom.{name}" for name in ("drawStyle", "fillOpacity", "lineWidth", "stacking")),
}

boards = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)


# --- generated --------------------------------------------------------------------------------------------------------


def test_committed_files_are_what_the_code_makes() -> None:
    """`make dashboards` was run after the last change: each file is the same, byte for byte, and there is no other."""
    assert files() == {path.name: path.read_text() for path in DIRECTORY.glob("*.json")}


def test_generation_is_the_same_each_time(tmp_path: Path) -> None:
    """Two runs write the same, and a file that is not made any more goes."""
    (tmp_path / "capgo-gone.json").touch()
    main(tmp_path)
    assert files() == {path.name: path.read_text() for path in tmp_path.iterdir()}


def test_the_dashboards_are_there() -> None:
    """There are eight, each with its fixed uid, in a file of that name, with a title of its own."""
    assert UIDS == {board["uid"] for board in BOARDS.values()}
    assert {f"{uid}.json" for uid in UIDS} == set(BOARDS)
    assert len(UIDS) == len({board["title"] for board in BOARDS.values()})


# --- Grafana's schemas ------------------------------------------------------------------------------------------------


@boards
def test_dashboard_fits_the_schema(board: Json) -> None:
    """The dashboard, its rows and its panels fit Grafana's schema."""
    assert [] == violations(board | {"panels": []}, "dashboard")
    for panel in all_panels(board):
        kind = "RowPanel" if panel["type"] == "row" else "Panel"
        assert [] == violations(panel | {"panels": []} if kind == "RowPanel" else panel, "dashboard", kind)


@boards
def test_panels_fit_their_schemas(board: Json) -> None:
    """Options and field settings of each panel, and its PromQL targets, fit the schema of its type."""
    found = []
    for panel in data_panels(board):
        kind = panel["type"]
        custom = panel["fieldConfig"]["defaults"].get("custom", {})
        found += violations(panel["options"], kind, "Options", optional=True)
        # These have no settings of fields.
        found += [] if kind in {"stat", "bargauge"} else violations(custom, kind, "FieldConfig", optional=True)
        found += [
            line
            for target in panel["targets"]
            if target["datasource"]["type"] == "prometheus"
            for line in violations(target, "prometheus")
        ]
    assert [] == found


@boards
def test_overrides_are_grafanas(board: Json) -> None:
    """What the schema leaves open: overrides find their fields in a way, and set properties, that Grafana knows."""
    for panel in data_panels(board):
        columns = _columns(panel)
        for override in panel["fieldConfig"]["overrides"]:
            matcher = override["matcher"]
            assert matcher["id"] in {"byName", "byRegexp"}, panel["title"]
            assert matcher["id"] == "byRegexp" or matcher["options"] in columns, panel["title"]
            assert {each["id"] for each in override["properties"]} <= OVERRIDABLE, panel["title"]


def _columns(panel: Json) -> set[str]:
    """Give the headers of a table."""
    changes = [change for change in panel.get("transformations", []) if change["id"] == "organize"]
    return {title for change in changes for title in change["options"]["renameByName"].values()}


@boards
def test_sdk_reads_what_it_wrote(board: Json) -> None:
    """Reading a dashboard into the SDK's models and writing it again loses nothing: no key is misspelt."""
    register_default_plugins()
    again = json.loads(json.dumps(Dashboard.from_json(json.loads(json.dumps(board))), cls=JSONEncoder))
    without = [
        {key: value for key, value in annotation.items() if key not in MARKER_KEYS}
        for annotation in board["annotations"]["list"]
    ]
    markers = [
        {key: value for key, value in annotation.items() if key not in MARKER_KEYS}
        for annotation in again["annotations"]["list"]
    ]
    assert without == markers
    assert board | {"annotations": None} == again | {"annotations": None}


# --- what all dashboards have in common -------------------------------------------------------------------------------


@boards
def test_dashboard_is_provisionable(board: Json) -> None:
    """It is not editable, has our tag, and needs nothing that an import would ask for."""
    assert board["editable"] is False
    assert ["capgo"] == board["tags"]
    assert set() == {"__inputs", "__requires", "id"} & board.keys()
    assert board["description"]


@boards
def test_links_keep_variables_and_time(board: Json) -> None:
    """Each dashboard links to all of ours, and takes the variables and the time along."""
    (link,) = board["links"]
    assert ("dashboards", ["capgo"], True, True) == (
        link["type"],
        link["tags"],
        link["includeVars"],
        link["keepTime"],
    )


@boards
def test_links_of_panels_lead_to_our_dashboards(board: Json) -> None:
    """What is clicked in a table opens a dashboard that is there, with variables that it has, and keeps the time."""
    names = {one["uid"]: {variable["name"] for variable in one["templating"]["list"]} for one in BOARDS.values()}
    here = names[board["uid"]]
    for url in _links_of_fields(board):
        match = re.match(r"/d/([\w-]+)\?\$\{__url_time_range\}&", url)
        assert match, url
        assert set(re.findall(r"var-(\w+)=", url)) <= names[match[1]], url
        carried = set(re.findall(r"\$\{(\w+):queryparam\}", url))
        assert carried <= here & names[match[1]], url


def _links_of_fields(board: Json) -> Iterator[str]:
    for panel in data_panels(board):
        for override in panel["fieldConfig"]["overrides"]:
            for each in override["properties"]:
                if each["id"] == "links":
                    yield from (link["url"] for link in each["value"])


@boards
def test_panels_have_numbers_of_their_own(board: Json) -> None:
    """No two panels of a dashboard have the same id, and none has none."""
    ids = [panel["id"] for panel in all_panels(board)]
    assert 0 not in ids
    assert len(ids) == len(set(ids))


@boards
def test_panels_do_not_overlap(board: Json) -> None:
    """On the grid of 24 columns no panel lies on another one or sticks out, and rows go from side to side."""
    for panels in (board["panels"], *(panel.get("panels", []) for panel in board["panels"])):
        cells = Counter(cell for panel in panels for cell in _cells(panel))
        assert [] == [cell for cell, count in cells.items() if count > 1]
    assert {24} == {panel["gridPos"]["w"] for panel in board["panels"] if panel["type"] == "row"}


def _cells(panel: Json) -> Iterator[tuple[int, int]]:
    place = panel["gridPos"]
    assert place["x"] + place["w"] <= 24, panel["title"]
    return itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))


@boards
def test_rows_are_short(board: Json) -> None:
    """A row holds twelve panels at most, and the first panel of a dashboard is a number at the top left."""
    first, *rest = board["panels"]
    assert "row" == first["type"]
    sizes = [0]
    for panel in rest:
        if panel["type"] == "row":
            sizes.append(0)
        else:
            sizes[-1] += 1
    sizes += [len(panel["panels"]) for panel in board["panels"] if panel.get("panels")]
    assert max(sizes) <= MAX_PANELS_IN_A_ROW
    assert ("stat", 0, 1) == (rest[0]["type"], rest[0]["gridPos"]["x"], rest[0]["gridPos"]["y"])


@boards
def test_panels_explain_themselves(board: Json) -> None:
    """Every panel has a title of its own and a description that says what a bad picture looks like."""
    titles = [panel["title"] for panel in data_panels(board)]
    assert len(titles) == len(set(titles))
    for panel in data_panels(board):
        meaning, _, bad = panel["description"].partition("\n\n**Bad:** ")
        assert len(meaning) > 10, panel["title"]
        assert len(bad) > 5, panel["title"]


@boards
def test_units_are_grafanas(board: Json) -> None:
    """Every panel, and every column with a unit of its own, has one that Grafana knows."""
    known = units()
    for panel in data_panels(board):
        of_fields = [
            each["value"]
            for override in panel["fieldConfig"]["overrides"]
            for each in override["properties"]
            if each["id"] == "unit"
        ]
        for unit in [panel["fieldConfig"]["defaults"]["unit"], *of_fields]:
            assert unit in known, (panel["title"], unit)


@boards
def test_red_means_bad_alone(board: Json) -> None:
    """No palette has red in it by chance, and no other colour warns."""
    for panel in data_panels(board):
        defaults = panel["fieldConfig"]["defaults"]
        colors = _colors(panel)
        assert colors <= {RED, *NEUTRAL_COLORS}, panel["title"]
        assert defaults.get("color", {}).get("mode") in {None, "thresholds", "fixed", "shades"}, panel["title"]
    for annotation in board["annotations"]["list"]:
        assert (annotation["iconColor"] == RED) == (annotation["name"] == "Alerts")


def _colors(part: object) -> set[str]:
    """Find all colours that are named in a part of a dashboard."""
    if isinstance(part, list):
        return set().union(*map(_colors, part))
    if not isinstance(part, dict):
        return set()
    own = {part[key] for key in ("fixedColor", "color") if isinstance(part.get(key), str)}
    return own.union(*(_colors(value) for value in part.values()))


@boards
def test_distinct_devices_say_that_they_cannot_be_added_up(board: Json) -> None:
    """Each panel of distinct devices takes the highest of the replicas, and says so; or their sum, by choice."""
    summed = re.compile(r"sum (by \([\w, ]+\) \(capgo_[^()]*\)) and on \(\) capgo:devices_summed:const == 1 or max \1")
    gauges = re.compile(r"capgo_(devices|version_(affected_)?devices|version_\w+_ratio|device_day_outcomes)\{")
    for panel in data_panels(board):
        expressions = [target.get("expr", "") for target in panel["targets"]]
        shown = [summed.sub(r"max \1", text) for text in expressions if gauges.search(text)]
        for text in shown:
            assert len(gauges.findall(text)) == len(re.findall(rf"max by \([\w, ]+\) \({gauges.pattern}", text)), text
        if shown and not panel["title"].startswith("Time to"):
            assert "cannot be added up" in panel["description"], panel["title"]


# --- variables --------------------------------------------------------------------------------------------------------


@boards
def test_variables_are_refreshed_and_chosen(board: Json) -> None:
    """Variables follow the time range, take several values, can mean all; production is chosen at the beginning."""
    for variable in board["templating"]["list"]:
        if variable["type"] != "query":
            continue
        name = variable["name"]
        assert (2, True, True, ".+") == (
            variable["refresh"],
            variable["multi"],
            variable["includeAll"],
            variable["allValue"],
        )
        assert isinstance(variable["query"], str)
        assert (["prod"] if name == "environment" else ["$__all"]) == variable["current"]["value"]
        assert (
            f"${{{'datasource' if 'label_values' in variable['query'] else 'influxdb_datasource'}}}"
            == (variable["datasource"]["uid"])
        )


@boards
def test_variables_are_those_that_the_queries_use(board: Json) -> None:
    """A dashboard has each variable that its queries name, and none that nothing names."""
    named = {variable["name"] for variable in board["templating"]["list"]}
    without_own = json.dumps({key: value for key, value in board.items() if key != "templating"})
    used = {name for name in named if re.search(rf"\$\{{?{name}\b", without_own)}
    assert named == used
    expected = {"datasource", "job", "instance", *VARIABLES.values()}
    if board["uid"] == "capgo-exporter":
        assert {"datasource", "job", "instance"} == named
    elif board["uid"] in {"capgo-devices", "capgo-events"}:
        assert {"influxdb_datasource", *VARIABLES.values()} == named - {"device"}
    else:
        assert expected == named - {"influxdb_datasource"}


# --- rules of grafana/dashboard-linter --------------------------------------------------------------------------------
# Source: https://github.com/grafana/dashboard-linter/tree/main/docs/rules


def _excluded(rule: str, board: Json, panel: Json | None = None, index: int = 0) -> bool:
    """Tell whether the `.lint` file excepts something from a rule."""
    here = {"dashboard": board["title"], "panel": panel["title"] if panel else None, "targetIdx": index}
    entries = LINT.get(rule, {}).get("entries", [])
    return any(all(here[key] == value for key, value in entry.items()) for entry in entries)


@boards
def test_template_datasource_rule(board: Json) -> None:
    """Data sources are variables, named and labelled as the linter wants them."""
    sources = [variable for variable in board["templating"]["list"] if variable["type"] == "datasource"]
    for variable in sources:
        assert DATA_SOURCE_VARIABLES[variable["name"]] == (variable["query"], variable["label"])
    assert sources
    assert (len(sources) > 1) == _excluded("template-datasource-rule", board)


@boards
def test_template_job_and_instance_rules(board: Json) -> None:
    """A dashboard whose first data source is Prometheus has the variables job and instance."""
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    if "datasource" in variables:
        for name, label in (("job", "Job"), ("instance", "Instance")):
            assert (label, "query") == (variables[name]["label"], variables[name]["type"])
        for variable in variables.values():
            assert variable["type"] != "query" or re.fullmatch(r"label_values\(.+, \w+\)", variable["query"])


@boards
def test_panel_datasource_rule(board: Json) -> None:
    """Panels and targets ask the data source of the dashboard's variable, and that of their own kind."""
    kinds = {f"${{{name}}}": kind for name, (kind, _) in DATA_SOURCE_VARIABLES.items()}
    for panel in data_panels(board):
        assert panel["targets"], panel["title"]
        for part in (panel, *panel["targets"]):
            assert kinds[part["datasource"]["uid"]] == part["datasource"]["type"], panel["title"]
            assert panel["datasource"] == part["datasource"], panel["title"]
        letters = [target["refId"] for target in panel["targets"]]
        assert len(letters) == len(set(letters)), panel["title"]


def test_target_job_and_instance_rules() -> None:
    """Every selector is filtered by job and instance."""
    for each in targets("prometheus"):
        for selector in selectors(each.target["expr"]):
            for name in ("job", "instance"):
                is_there = f'{name}=~"${name}"' in selector.matchers
                excluded = _excluded(f"target-{name}-rule", each.dashboard, each.panel, each.position)
                assert is_there or (excluded and selector.name == "ALERTS"), each.where


def test_target_rate_interval_rule() -> None:
    """`rate()` takes Grafana's own interval, and nobody sets a step by hand."""
    for each in targets("prometheus"):
        assert set() == {"step", "interval", "intervalFactor"} & each.target.keys(), each.where
        for selector in selectors(each.target["expr"]):
            if selector.function in {"rate", "irate"}:
                assert "$__rate_interval" == selector.window, each.where
        assert not re.search(r"\b(irate|delta|idelta)\(", each.target["expr"]), each.where


def test_target_counter_agg_rule() -> None:
    """Counters, and what histograms count, stand under `rate` or `increase`."""
    for each in targets("prometheus"):
        for selector in selectors(each.target["expr"]):
            is_counter = selector.name.endswith(("_total", "_bucket", "_sum", "_count"))
            assert is_counter == (selector.function in {"rate", "increase"}), each.where
            assert is_counter == bool(selector.window), each.where


def test_selectors_are_filtered_by_all_variables() -> None:
    """A metric is filtered by the variable of each of its labels; versions that are compared with others are not."""
    for each in targets("prometheus"):
        variables = {variable["name"] for variable in each.dashboard["templating"]["list"]}
        ranked = "capgo_version_rank_info" in each.target["expr"]
        for selector in selectors(each.target["expr"]):
            base = re.sub("_(bucket|sum|count)$", "", selector.name)
            labels = set(FAMILIES.get(base, ())) - ({"version"} if ranked else set())
            wanted = {f'{label}=~"${VARIABLES[label]}"' for label in labels if VARIABLES[label] in variables}
            assert wanted <= selector.matchers, (each.where, selector)


# --- what queries ask for ---------------------------------------------------------------------------------------------


async def test_metrics_exist() -> None:
    """Every metric that a query names is one that the exporter has, and the generator knows the labels that it has."""
    page = await full_page()
    known = {name: set(label_names(family)) for name, family in page.items()}
    for name, labels in FAMILIES.items():
        assert set(labels) == known[name] & VARIABLES.keys(), name
    for each in targets("prometheus"):
        for selector in selectors(each.target["expr"]):
            base = re.sub("_(bucket|sum|count)$", "", selector.name)
            assert base in known.keys() | FOREIGN, (each.where, selector.name)
            if base in known:
                assert selector.labels <= {*known[base], "job", "instance"}, (each.where, selector)
        bare = re.sub(r'"[^"]*"|\{[^}]*\}', "", each.target["expr"])
        assert len(re.findall(r"\bcapgo_\w+", bare)) == len(
            [one for one in selectors(each.target["expr"]) if one.name.startswith("capgo_")]
        ), each.where


def test_points_have_what_is_asked_for() -> None:
    """Every field and tag that an InfluxQL query names is one of the points."""
    readme = (ROOT / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in POINT_FIELDS | TAGS)
    for each in targets("influxdb"):
        named = set(re.findall(r'"(\w+)"', each.target["query"]))
        own = set(re.findall(r' AS "(\w+)"', each.target["query"]))
        assert named - own <= POINT_FIELDS | TAGS | {"capgo_stats"}, each.where


def test_columns_of_tables_are_those_of_their_queries() -> None:
    """What a table renames is there: the labels that its queries keep, or the fields that they select."""
    for board in BOARDS.values():
        for panel in data_panels(board):
            for change in panel.get("transformations", []):
                if change["id"] == "organize":
                    missing = [name for name in change["options"]["renameByName"] if not _has_column(panel, name)]
                    assert [] == missing, panel["title"]


def _has_column(panel: Json, name: str) -> bool:
    letters = [target["refId"] for target in panel["targets"]]
    values = {"Value"} if len(letters) == 1 else {f"Value #{letter}" for letter in letters}
    texts = [target.get("expr") or target["query"] for target in panel["targets"]]
    column = name.removesuffix(" (sum)")
    return (
        name == "Time"
        or name in values
        or all(re.search(rf"\b{column}\b", text) for text in texts)
        or any(f' AS "{column}"' in text for text in texts)
    )


def test_thresholds_are_those_of_the_alerts() -> None:
    """A number that is red on a dashboard is the one that an alert compares with."""
    rules = YAML(typ="safe").load((ROOT / "prometheus" / "rules" / "thresholds.yml").read_text())
    recorded = {
        rule["record"].split(":")[1]: float(re.fullmatch(r"vector\((.+)\)", rule["expr"])[1])  # type: ignore[index]
        for group in rules["groups"]
        for rule in group["rules"]
    }
    assert {
        "threshold_rollbacks_min": thresholds.ROLLBACKS,
        "threshold_rollback_ratio": thresholds.ROLLBACK_RATIO,
        "threshold_fail_ratio_lower": thresholds.FAIL_RATIO,
        "threshold_worse_factor": thresholds.WORSE_FACTOR,
        "threshold_worse_attempts_min": thresholds.WORSE_ATTEMPTS,
        "threshold_download_fail_ratio": thresholds.DOWNLOAD_FAIL_RATIO,
        "threshold_download_stalled_ratio": thresholds.STALLED_RATIO,
        "threshold_issue_free_ratio": thresholds.ISSUE_FREE_RATIO,
        "threshold_issue_free_devices_min": thresholds.ISSUE_FREE_DEVICES,
        "threshold_rejected_ratio": thresholds.REJECTED_RATIO,
        "threshold_oldest_point_seconds": thresholds.OLDEST_POINT_SECONDS,
    }.items() <= recorded.items()


# --- every query on a real server -------------------------------------------------------------------------------------


def test_a_variable_without_a_value_is_found() -> None:
    """Variables are replaced in all three forms of writing, and a name that nobody gives a value is an error."""
    assert "a b c" == substitute("$x ${y} ${z:regex}", {"x": "a", "y": "b", "z": "c"})
    with pytest.raises(KeyError):
        substitute("$unknown", {})


@pytest.mark.server("promtool")
def test_promql_parses(tmp_path: Path) -> None:
    """Prometheus's own parser takes every PromQL query, with the variables' values in it."""
    now = time.time()
    asked = of_source(queries(Values(now - 86_400, now)), "prometheus")
    rules = [{"record": f"query:{number}", "expr": each.query} for number, each in enumerate(asked)]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", "--lint=none", path], capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    assert {each["uid"] for each in BOARDS.values()} - {"capgo-devices", "capgo-events"} == {
        each.dashboard for each in asked
    }


async def test_promql_is_answered(prometheus_server: StartPrometheus) -> None:
    """A real Prometheus that scrapes an exporter answers every query: no match of vectors is ambiguous."""
    async with running(everything.SETTINGS) as exporter:
        await exporter.post(_fleet())
        prometheus = await prometheus_server([exporter.metrics_url])
        await prometheus.wait_up()
        now = time.time()
        for each in of_source(queries(Values(now - 3600, now)), "prometheus"):
            await prometheus.query(each.query)


async def test_wilson_bound_is_that_of_the_book(prometheus_server: StartPrometheus) -> None:
    """The expression gives the lower end of Wilson's interval, from the few to the many."""
    prometheus = await prometheus_server([])
    for failed, installed in ((0, 10), (1, 0), (1, 9), (5, 95), (30, 970), (500, 500)):
        expression = promql.wilson(f"vector({failed})", f"vector({installed})")
        (series,) = await prometheus.query(expression)
        assert _wilson(failed, failed + installed) == pytest.approx(series.samples[0][1], abs=1e-9)


def _wilson(failed: int, tried: int) -> float:
    """Work it out as it is usually written."""
    share, z = failed / tried, 1.96
    margin = z * ((share * (1 - share) + z**2 / (4 * tried)) / tried) ** 0.5
    bound: float = (share + z**2 / (2 * tried) - margin) / (1 + z**2 / tried)
    return bound


async def test_influxql_is_answered(influxdb: InfluxDB16) -> None:
    """A real InfluxDB answers every query, and has rows for each, from points as the exporter writes them."""
    async with running(everything.SETTINGS) as exporter:
        assert 200 == (await exporter.post(_fleet())).status
        mark = {"app_id": "com.example.shop", "version": "2.0.0", "note": "a note"}
        headers = {"Authorization": f"Bearer {everything.TOKEN}"}
        assert 200 == (await exporter.request("POST", "/releases", json=mark, headers=headers)).status
        assert (204, "") == await influxdb.write("\n".join(exporter.lines()))
    now = time.time()
    asked = of_source(queries(Values(now - 3600, now + 60)), "influxdb")
    assert {"capgo-devices", "capgo-events", "capgo-failures"} == {each.dashboard for each in asked}
    for each in asked:
        rows = await influxdb.query(each.query)
        assert rows, each


def _fleet() -> list[dict[str, Any]]:
    """Make events of two versions on all platforms, with everything that a query can ask for."""
    now_ms = time.time_ns() // 1_000_000
    actions = (
        *("download_zip_start", "download_0", "download_50", "download_zip_complete", "download_complete"),
        *("download_manifest_start", "download_manifest_complete", "checksum_fail", "set", "update_fail", "set_fail"),
        *("app_crash", "app_anr", "webview_javascript_error", "app_launch_start", "app_launch_ready"),
        *("webview_page_loaded", "app_launch_timeout"),
    )
    return [
        {
            "app_id": "com.example.shop",
            "platform": platform,
            "version_name": version,
            "old_version_name": "0.9.0",
            "version_build": "1.0.0",
            "version_os": "14",
            "plugin_version": "8.51.14",
            "device_id": f"{platform}-{number}",
            "channel": "production",
            "message": "a message",
            "bundle_id": "bundle",
            "is_prod": True,
            "action": action,
            "timestamp": now_ms - 60_000 + index,
            "metadata": {"duration_ms": "700"},
        }
        for platform in ("android", "ios", "electron")
        for version in ("1.0.0", "2.0.0")
        for number in range(8)
        for index, action in enumerate(actions)
    ]


# --- provisioning -----------------------------------------------------------------------------------------------------


def test_provisioning_is_what_compose_mounts() -> None:
    """Both data sources, each of the type that the dashboards' variables look for, and the folder with the files."""
    sources = {}
    for path in (PROVISIONING / "datasources").iterdir():
        (source,) = YAML(typ="safe").load(path.read_text())["datasources"]
        sources[source["type"]] = source
    assert {kind for kind, _ in DATA_SOURCE_VARIABLES.values()} == set(sources)
    influx = sources["influxdb"]
    assert ("InfluxQL", "Authorization") == (influx["jsonData"]["version"], influx["jsonData"]["httpHeaderName1"])
    assert influx["secureJsonData"]["httpHeaderValue1"].startswith("Token ${")
    (provider,) = YAML(typ="safe").load((PROVISIONING / "dashboards" / "capgo.yml").read_text())["providers"]
    assert ("file", False) == (provider["type"], provider["allowUiUpdates"])
    mounts = YAML(typ="safe").load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounts
