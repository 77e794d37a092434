"""Devices: which ones fail, so that somebody can reproduce it. Asks InfluxDB."""

from typing import Final

from grafana_foundation_sdk.models.dashboard import Panel

from grafana.generate import annotations, influxql, variables
from grafana.generate.board import Board, Row
from grafana.generate.influxql import ask, last
from grafana.generate.panels import About, bars, stat_panel
from grafana.generate.tables import rows_panel, top_panel
from grafana.generate.targets import Influx

_LAST: Final = 200
_SAMPLE: Final = 5000
_SAMPLED: Final = f"Added up from the newest {_SAMPLE} failures."
_FAILURE_COLUMNS: Final = {
    "app_id": "App",
    "platform": "Platform",
    "version": "Version",
    "action": "Action",
    "device_id": "Device",
    "version_os": "OS",
    "version_build": "Native version",
    "plugin_version": "Plugin",
    "channel": "Channel",
    "file": "File",
    "message": "Message",
}
_HEALTH_COLUMNS: Final = {
    **{name: title for name, title in _FAILURE_COLUMNS.items() if name not in {"channel", "file", "message"}},
    "metadata": "Metadata",
}
_HISTORY_COLUMNS: Final = {
    "app_id": "App",
    "platform": "Platform",
    "action": "Action",
    "version": "Version",
    "old_version": "Replaced version",
    "environment": "Environment",
    "version_os": "OS",
    "version_build": "Native version",
    "plugin_version": "Plugin",
    "channel": "Channel",
    "duration_ms": "Duration in ms",
    "file": "File",
    "message": "Message",
    "metadata": "Metadata",
}
# Clients may write the same id in capitals; it is stored in small letters.
_DEVICE: Final = '"device_id" =~ /(?i)^${device:regex}$/'


def board() -> Board:
    """Describe the dashboard."""
    meaning = "A device's random install id, as the tables below show it; its history stands at the end."
    return Board(
        uid="capgo-devices",
        title="Capgo / Devices",
        description="Which devices fail, with all that is needed to reproduce it, and the history of one of them.",
        variables=[*variables.of_points(), variables.text("device", "Device", meaning)],
        rows=[
            Row("Failing devices", [*_now(), *_top()]),
            Row("Last failures", _failures()),
            Row("History of one device", _history()),
        ],
        annotations=[annotations.releases_in_points()],
    )


def _now() -> list[Panel]:
    failing = 'COUNT(DISTINCT("device_id"))'
    return [
        stat_panel(
            About(
                "Devices with a failed update",
                "Distinct devices, counted exactly, in the time range.",
                "a number that grows from one look to the next.",
            ),
            "short",
            Influx(ask(failing, influxql.FAILURE)),
            width=6,
        ),
        stat_panel(
            About(
                "Devices with a roll-back",
                "Distinct devices whose new bundle did not come up.",
                "a number that grows from one look to the next.",
            ),
            "short",
            Influx(ask(failing, influxql.ROLLBACK)),
            width=6,
        ),
        stat_panel(
            About(
                "Devices with a crash or an error",
                "Distinct devices with an app-health failure.",
                "many, of the devices beside.",
            ),
            "short",
            Influx(ask(failing, influxql.HEALTH)),
            width=6,
        ),
        stat_panel(
            About("Devices", "Distinct devices that sent anything.", "far fewer than at the same hour of other days."),
            "short",
            Influx(ask(failing)),
            width=6,
        ),
    ]


def _top() -> list[Panel]:
    """Show what failing devices have in common."""
    columns = (
        (
            "device_id",
            "Top failing devices",
            "a few devices that fail over and over: look at their history, by a click.",
        ),
        ("version_os", "Failures by OS version", "one version far above its share of the devices."),
        ("plugin_version", "Failures by plugin version", "one version of the plugin that makes nearly all of them."),
    )
    return [
        top_panel(About(title, _SAMPLED, bad), Influx(last((field, "count"), _SAMPLE, influxql.FAILURE)), field)
        for field, title, bad in columns
    ]


def _failures() -> list[Panel]:
    return [
        rows_panel(
            About(
                "Last failed updates",
                f"The newest {_LAST} events that report a failed update. Click on a device to see its history.",
                "the same message, OS or plugin in all rows: that is what to reproduce.",
            ),
            Influx(last(tuple(_FAILURE_COLUMNS), _LAST, influxql.FAILURE)),
            _FAILURE_COLUMNS,
        ),
        rows_panel(
            About(
                "Last crashes and errors",
                f"The newest {_LAST} app-health failures; the metadata has the message, the source and the stack.",
                "one stack that comes again and again.",
            ),
            Influx(last(tuple(_HEALTH_COLUMNS), _LAST, influxql.HEALTH)),
            _HEALTH_COLUMNS,
        ),
    ]


def _history() -> list[Panel]:
    empty = "Empty until a device is chosen at the top, or clicked on in a table."
    return [
        bars(
            About(
                "Events of the device",
                f"Events in each interval, by action. {empty}",
                "a failure that follows each `set`: the device is caught in a loop.",
            ),
            "short",
            [Influx(ask('SUM("count")', _DEVICE, by=("action",), over_time=True), "$tag_action")],
            width=24,
        ),
        rows_panel(
            About(
                "History of the device",
                f"Its newest {_LAST} events. {empty}",
                "downloads that begin and never end; `set` followed by `update_fail`.",
            ),
            Influx(last(tuple(_HISTORY_COLUMNS), _LAST, _DEVICE)),
            _HISTORY_COLUMNS,
        ),
    ]
