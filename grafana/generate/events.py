"""Events in InfluxDB: download progress and update failures from points, for teams that have no Prometheus."""

from typing import Final

from grafana_foundation_sdk.models.dashboard import DataTransformerConfig, Panel

from grafana.generate import annotations, influxql, thresholds, variables
from grafana.generate.board import Board, Row
from grafana.generate.downloads import STEPS
from grafana.generate.influxql import ask
from grafana.generate.panels import RED, About, Bad, bars, colored, funnel, graph, stat_panel
from grafana.generate.tables import points_table
from grafana.generate.targets import Influx

_EVENTS: Final = 'SUM("count")'
_DEVICES: Final = 'COUNT(DISTINCT("device_id"))'
_STARTED: Final = r'"action" =~ /^download_(0|zip_start|manifest_start)$/'
_DOWNLOAD_FAILURE: Final = f"{influxql.FAILURE} AND \"action\" != 'update_fail' AND \"action\" != 'set_fail'"
_GROWING: Final = "a number that grows from one look to the next."
_NOBODY: Final = "0 while a rollout goes on: the release reaches nobody."
_RAW: Final = "Counted from the events as they were sent: one failure can send two or three."


def board() -> Board:
    """Describe the dashboard."""
    return Board(
        uid="capgo-events",
        title="Capgo / Events in InfluxDB",
        description="Download progress and update failures, counted exactly from the points in InfluxDB.",
        variables=variables.of_points(),
        rows=[
            Row("Now", _now()),
            Row("Update failures", _failures()),
            Row("Download progress", _downloads()),
        ],
        annotations=[annotations.releases_in_points()],
    )


def _now() -> list[Panel]:
    numbers = (
        ("Devices hurt", _DEVICES, influxql.FAILURE, "Distinct devices with a failed update.", _GROWING),
        ("Roll-backs", _EVENTS, influxql.ROLLBACK, "Bundles that did not come up on a device.", _GROWING),
        ("Failures", _EVENTS, influxql.FAILURE, f"Events that report a failed update. {_RAW}", _GROWING),
        ("Installs", _EVENTS, influxql.INSTALL, "Bundles activated; electron's at every launch.", _NOBODY),
        ("Downloads completed", _DEVICES, influxql.FINISHED, "Distinct devices that got a whole bundle.", _NOBODY),
        (
            "Devices",
            _DEVICES,
            "",
            "Distinct devices that sent anything.",
            "far fewer than at the same hour of other days.",
        ),
    )
    return [
        stat_panel(About(title, meaning, bad), "short", Influx(ask(what, *filter(None, [condition]))))
        for title, what, condition, meaning, bad in numbers
    ]


def _failures() -> list[Panel]:
    return [
        bars(
            About("Roll-backs by version", "Roll-backs in each interval.", "bars that begin after a release marker."),
            "short",
            [_over_time(influxql.ROLLBACK, "version")],
            color=RED,
        ),
        _share(),
        bars(
            About("Failures by action", f"Failure events in each interval. {_RAW}", "an action that is new."),
            "short",
            [_over_time(influxql.FAILURE, "action")],
            color=RED,
        ),
        bars(
            About("Failures by platform", f"Failure events in each interval. {_RAW}", "one platform alone."),
            "short",
            [_over_time(influxql.FAILURE, "platform")],
            color=RED,
        ),
        points_table(
            About(
                "Versions",
                "Devices with a failed update, and with an install, by version, counted exactly; a device can be in "
                "both, and with more than one version.",
                "a version with nearly as many devices in the one column as in the other.",
            ),
            ("app_id", "version", "platform"),
            {
                "Devices that failed": ask(
                    _by_device("failed"), influxql.FAILURE, by=("app_id", "version", "platform")
                ),
                "Devices that installed": ask(
                    _by_device("installed"), influxql.INSTALL, by=("app_id", "version", "platform")
                ),
            },
        ),
    ]


def _share() -> Panel:
    """Divide in Grafana: InfluxQL cannot divide what has different conditions."""
    panel = graph(
        About(
            "Share that failed",
            f"Roll-backs as a share of the installs of each interval. {_RAW}",
            "a line above the dashed one.",
        ),
        "percentunit",
        [
            Influx(ask(f'{_EVENTS} AS "rollbacks"', influxql.ROLLBACK, over_time=True), "rollbacks"),
            Influx(ask(f'{_EVENTS} AS "installs"', influxql.INSTALL, over_time=True), "installs"),
        ],
        bad=Bad(thresholds.ROLLBACK_RATIO),
    )
    panel.interval = "15m"
    binary = {"left": "rollbacks", "operator": "/", "right": "installs"}
    panel.transformations = [
        DataTransformerConfig("joinByField", options={"byField": "Time", "mode": "outer"}),
        DataTransformerConfig(
            "calculateField",
            options={"mode": "binary", "binary": binary, "alias": "share that failed", "replaceFields": True},
        ),
    ]
    return panel


def _downloads() -> list[Panel]:
    outcome = bars(
        About(
            "Started, completed, failed",
            f"Events in each interval. {_RAW}",
            "red bars that grow, or starts that no ends follow.",
        ),
        "short",
        [
            Influx(ask(_EVENTS, _STARTED, over_time=True), "started"),
            Influx(ask(_EVENTS, influxql.FINISHED, over_time=True), "completed"),
            Influx(ask(_EVENTS, _DOWNLOAD_FAILURE, over_time=True), "failed"),
        ],
    )
    colored(outcome, "started", "text")
    colored(outcome, "failed", RED)
    return [
        funnel(
            About(
                "Devices that reached at least",
                "Distinct devices with an event of this step or of a later one, as steps differ by platform.",
                "one bar much shorter than the one above it: that is where downloads break off.",
            ),
            "short",
            [Influx(ask(_DEVICES, _reached(step)), _step_name(step)) for step in STEPS],
        ),
        outcome,
        points_table(
            About(
                "Devices that reached at least, by version and platform",
                "Distinct devices with an event of this step or of a later one.",
                "a row whose numbers fall off at a step where those of other versions do not.",
            ),
            ("app_id", "version", "platform"),
            {
                _step_name(step): ask(_by_device(f"step_{step}"), _reached(step), by=("app_id", "version", "platform"))
                for step in ("10", "50", "90", "complete")
            },
        ),
        bars(
            About("Failed downloads by action", f"Failure events in each interval. {_RAW}", "an action that is new."),
            "short",
            [_over_time(_DOWNLOAD_FAILURE, "action")],
            color=RED,
        ),
        bars(
            About(
                "Zip and manifest",
                "Starts and ends of downloads as one archive, and file by file, in each interval.",
                "starts of a kind without its ends.",
            ),
            "short",
            [_over_time(r'"action" =~ /^download_(zip|manifest)_(start|complete)$/', "action")],
        ),
    ]


def _by_device(name: str) -> str:
    return f'{_DEVICES} AS "{name}"'


def _over_time(condition: str, tag: str) -> Influx:
    return Influx(ask(_EVENTS, condition, by=(tag,), over_time=True), f"$tag_{tag}")


def _reached(step: str) -> str:
    """Match the events that show that a download reached at least a step."""
    numbers = [number for number in STEPS[STEPS.index(step) :] if number != "complete"]
    ends = ["complete", "zip_complete", "manifest_complete"]
    starts = ["zip_start", "manifest_start"] if step == "0" else []
    return rf'"action" =~ /^download_({"|".join([*starts, *numbers, *ends])})$/'


def _step_name(step: str) -> str:
    return "completed" if step == "complete" else f"≥ {step} %"
