"""Markers over the graphs: releases, new versions, alerts."""

from typing import Final

from grafana_foundation_sdk.models.dashboard import AnnotationQuery, DataSourceRef

from grafana.generate.metrics import select
from grafana.generate.panels import RED
from grafana.generate.promql import ALERTS, EXPORTER_ALERTS, highest
from grafana.generate.sources import INFLUXDB, PROMETHEUS

_STEP: Final = "1m"
_RELEASE_COLOR: Final = "purple"
_FIRST_SEEN_COLOR: Final = "blue"


class Marker(AnnotationQuery):
    """An annotation with what its data source wants to know, which the SDK has no fields for."""

    def __init__(self, name: str, source: DataSourceRef, color: str, settings: dict[str, object]) -> None:
        """Take the settings of the data source.

        Args:
            name: of the switch at the top of the dashboard.
            source: where the annotations are.
            color: of the markers.
            settings: more properties of the annotation.
        """
        super().__init__(name=name, datasource=source, icon_color=color)
        self.settings = settings

    def to_json(self) -> dict[str, object]:
        """Write the annotation as Grafana stores it."""
        return super().to_json() | self.settings


def releases() -> Marker:
    """Mark what `POST /releases` told."""
    timestamp = select("capgo_release_timestamp_seconds")
    return _at_value("Releases", timestamp, ("app_id", "version", "channel"), _RELEASE_COLOR)


def first_seen() -> Marker:
    """Mark when a version was first seen in production."""
    timestamp = select("capgo_version_first_seen_timestamp_seconds")
    return _at_value("First seen", timestamp, ("app_id", "version"), _FIRST_SEEN_COLOR)


def alerts() -> Marker:
    """Mark the time in which alerts fire: the spikes."""
    settings = {
        "expr": highest(ALERTS, "alertname", "severity", "app_id", "version"),
        "step": _STEP,
        "titleFormat": "{{alertname}}",
        "textFormat": "{{app_id}} {{version}}",
        "tagKeys": "severity",
        "useValueForTime": False,
    }
    return Marker("Alerts", PROMETHEUS, RED, settings)


def exporter_alerts() -> Marker:
    """Mark the time in which alerts about the exporter itself fire: they are about no app."""
    settings = {
        "expr": highest(EXPORTER_ALERTS, "alertname", "severity", "instance"),
        "step": _STEP,
        "titleFormat": "{{alertname}}",
        "textFormat": "{{instance}}",
        "tagKeys": "severity",
        "useValueForTime": False,
    }
    return Marker("Alerts", PROMETHEUS, RED, settings)


def releases_in_points() -> Marker:
    """Mark what `POST /releases` told, for teams that have no Prometheus."""
    query = (
        'SELECT "title", "note", "app_id", "channel" FROM "capgo_releases" WHERE "app_id" =~ /^$app$/ AND $timeFilter'
    )
    target = {
        "query": query,
        "textEditor": True,
        "fromAnnotations": True,
        "rawQuery": True,
        "titleColumn": "title",
        "textColumn": "note",
        "tagsColumn": "app_id,channel",
        "refId": "Anno",
    }
    return Marker("Releases", INFLUXDB, _RELEASE_COLOR, {"target": target})


def _at_value(name: str, timestamp: str, labels: tuple[str, ...], color: str) -> Marker:
    """Mark the times that are a metric's values; Grafana takes them in milliseconds."""
    settings: dict[str, object] = {
        "expr": f"{highest(timestamp, *labels)} * 1000",
        "step": _STEP,
        "titleFormat": f"{name}: {{{{version}}}}",
        "textFormat": " ".join(f"{{{{{label}}}}}" for label in labels if label != "version"),
        "tagKeys": ",".join(labels),
        "useValueForTime": True,
    }
    return Marker(name, PROMETHEUS, color, settings)
