"""The variables at the top of the dashboards."""

from collections.abc import Sequence
from typing import Final

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    VariableModel,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from grafana.generate.metrics import VARIABLES
from grafana.generate.sources import INFLUXDB, PROMETHEUS

ALL: Final = ".+"
"""The value of a variable that filters nothing: every label is set."""

DEFAULT_ENVIRONMENT: Final = "prod"

_EVENTS: Final = "capgo_stats_events_total"
_LABELS: Final = {"app": "App", "platform": "Platform", "version": "Version", "environment": "Environment"}
# Each narrows the choice of those after it.
_ORDER: Final = ("environment", "app_id", "platform", "version")


def of_devices() -> list[VariableModel]:
    """Make the variables of a dashboard about devices, which asks Prometheus."""
    filters = [f'{label}=~"${VARIABLES[label]}"' for label in _ORDER]
    narrowed = ['job=~"$job"', 'instance=~"$instance"', *filters]
    return [
        *of_exporter(),
        *(
            _choice(label, f"label_values({_EVENTS}{{{', '.join(narrowed[: number + 2])}}}, {label})", PROMETHEUS)
            for number, label in enumerate(_ORDER)
        ),
    ]


def of_exporter() -> list[VariableModel]:
    """Make the variables that each dashboard has which asks Prometheus."""
    jobs = "label_values(capgo_exporter_build_info, job)"
    instances = 'label_values(capgo_exporter_build_info{job=~"$job"}, instance)'
    return [
        data_source("prometheus"),
        _query("job", "Job", jobs, PROMETHEUS),
        _query("instance", "Instance", instances, PROMETHEUS),
    ]


def of_points() -> list[VariableModel]:
    """Make the variables of a dashboard that asks InfluxDB."""
    conditions = [f'"{label}" =~ /^${VARIABLES[label]}$/' for label in _ORDER]
    variables = [data_source("influxdb")]
    for number, label in enumerate(_ORDER):
        where = f" WHERE {' AND '.join(conditions[:number])}" if number else ""
        variables.append(_choice(label, f'SHOW TAG VALUES FROM "capgo_stats" WITH KEY = "{label}"{where}', INFLUXDB))
    return variables


def data_source(kind: str) -> VariableModel:
    """Make the variable of a data source; a link to a dashboard with another one must not carry its value there."""
    name, label = ("datasource", "Data source") if kind == "prometheus" else (f"{kind}_datasource", _INFLUXDB_LABEL)
    return dashboard.DatasourceVariable(name).label(label).type(kind).build()


def text(name: str, label: str, meaning: str) -> VariableModel:
    """Make a variable that a person types in."""
    empty = VariableOption(text="", value="")
    return dashboard.TextBoxVariable(name).label(label).description(meaning).default_value("").current(empty).build()


_INFLUXDB_LABEL: Final = "Influxdb data source"  # as dashboard-linter wants it


def _choice(label: str, query: str, source: DataSourceRef) -> VariableModel:
    name = VARIABLES[label]
    current: Sequence[str] | None = [DEFAULT_ENVIRONMENT] if name == "environment" else None
    return _query(name, _LABELS[name], query, source, current)


def _query(
    name: str, label: str, query: str, source: DataSourceRef, current: Sequence[str] | None = None
) -> VariableModel:
    """Make a variable with the values that there are in the time range; by default all of them are chosen."""
    chosen = VariableOption(text=["All"], value=["$__all"])
    if current is not None:
        chosen = VariableOption(text=list(current), value=list(current))
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(source)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.NATURAL_DESC if name == "version" else VariableSort.ALPHABETICAL_ASC)
        .multi(True)  # noqa: FBT003 -- the SDK's way
        .include_all(True)  # noqa: FBT003 -- the SDK's way
        .all_value(ALL)
        .current(chosen)
        .build()
    )
