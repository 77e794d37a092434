"""Tables: rows that a person can sort and click."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from grafana_foundation_sdk.builders import common, dashboard, table
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models.dashboard import (
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    Panel,
    Threshold,
    ThresholdsConfig,
    ThresholdsMode,
)

from grafana.generate.panels import CALM, RED, About, Bad, Shape, finish, overridden, thresholds
from grafana.generate.targets import Influx, Prom

HEADERS: Final = {
    "app_id": "App",
    "platform": "Platform",
    "version": "Version",
    "alertname": "Alert",
    "severity": "Severity",
    "reason": "Reason",
    "kind": "Kind",
    "channel": "Channel",
    "action": "Action",
    "device_id": "Device",
    "version_os": "OS",
    "plugin_version": "Plugin",
}
"""What a column of a label, a tag or a field is called."""

FAILURES_LINK: Final = "/d/capgo-failures?${__url_time_range}&${datasource:queryparam}&${environment:queryparam}"
DEVICE_LINK: Final = "/d/capgo-devices?${__url_time_range}&${influxdb_datasource:queryparam}"


@dataclass(frozen=True, slots=True)
class Column:
    """A column with numbers.

    Attributes:
        title: its header.
        expression: what is asked, by the labels of the table.
        unit: of its values.
        bad: from where on they are red.
    """

    title: str
    expression: str
    unit: str = "short"
    bad: Bad | None = None


def table_panel(
    about: About, labels: Sequence[str], columns: Sequence[Column], *, sort: str, width: int = 24, height: int = 8
) -> Panel:
    """Show one row for each set of labels, and one column for each expression.

    Args:
        about: what a person reads.
        labels: of all expressions; they come first.
        columns: the numbers.
        sort: the title of the column by which the rows are sorted, highest first.
        width: in 24ths of the page.
        height: in rows of the grid.
    """
    names = _value_names(len(columns))
    renamed = {label: HEADERS[label] for label in labels} | dict(
        zip(names, [column.title for column in columns], strict=True)
    )
    panel = _table(sort).build()
    panel.transformations = [
        DataTransformerConfig("merge", options={}),
        _organize(renamed),
    ]
    shape = Shape("table", width, height)
    finish(panel, about, columns[0].unit, [Prom(column.expression) for column in columns], shape)
    for column in columns:
        overridden(panel, "byName", column.title, *_properties(column))
    return panel


def rows_panel(about: About, query: Influx, titles: Mapping[str, str], *, unit: str = "string") -> Panel:
    """Show the rows of an InfluxQL query, the newest first.

    Args:
        about: what a person reads.
        query: what is asked.
        titles: the header of each column, in their order.
        unit: of the values.
    """
    panel = _table("Time").build()
    panel.transformations = [_organize({"Time": "Time", **titles})]
    finish(panel, about, unit, [query], Shape("table", 24, 10))
    if "device_id" in titles:
        linked(panel, titles["device_id"], f"{DEVICE_LINK}&var-device=${{__value.raw}}", "History of this device")
    return panel


def top_panel(about: About, query: Influx, field: str, *, width: int = 8, unit: str = "short") -> Panel:
    """Add up the points that have the same value of a field, in Grafana: InfluxQL groups by tags alone.

    Args:
        about: what a person reads.
        query: asks for the field and for `count`.
        field: by which rows are added up.
        width: in 24ths of the page.
        unit: of the sums.
    """
    title = HEADERS[field]
    panel = _table("Events").build()
    panel.transformations = [
        DataTransformerConfig(
            "groupBy",
            options={
                "fields": {
                    field: {"operation": "groupby", "aggregations": []},
                    "count": {"operation": "aggregate", "aggregations": ["sum"]},
                }
            },
        ),
        _organize({field: title, "count (sum)": "Events"}),
    ]
    finish(panel, about, unit, [query], Shape("table", width, 8))
    if field == "device_id":
        linked(panel, title, f"{DEVICE_LINK}&var-device=${{__value.raw}}", "History of this device")
    return panel


def points_table(about: About, tags: Sequence[str], queries: Mapping[str, str], *, unit: str = "short") -> Panel:
    """Show one row for each set of tags, and one column for each InfluxQL query.

    Args:
        about: what a person reads.
        tags: by which all queries group; they come first.
        queries: by the title of their column; the name that a query gives its value is its own.
        unit: of the values.
    """
    titles = list(queries)
    panel = _table(titles[0]).build()
    values = {value_name(query): title for title, query in queries.items()}
    panel.transformations = [
        DataTransformerConfig("merge", options={}),
        _organize({**{tag: HEADERS[tag] for tag in tags}, **values}),
    ]
    return finish(panel, about, unit, [Influx(query) for query in queries.values()], Shape("table", 24, 8))


def value_name(query: str) -> str:
    """Read the name that an InfluxQL query gives its value."""
    return query.partition(' AS "')[2].partition('"')[0]


def linked(panel: Panel, column: str, url: str, title: str) -> Panel:
    """Let a column lead to another dashboard."""
    return overridden(panel, "byName", column, DynamicConfigValue("links", [{"title": title, "url": url}]))


def _table(sort: str) -> table.Panel:
    return (
        table.Panel()
        .cell_height(options.TableCellHeight.SM)
        .filterable(True)  # noqa: FBT003 -- the SDK's way
        .sort_by([common.TableSortByFieldState().display_name(sort).desc(True)])  # noqa: FBT003 -- the SDK's way
        .thresholds(thresholds(None))
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
    )


def _value_names(count: int) -> list[str]:
    """Tell how Grafana names the values of the targets: with their letters, if there is more than one."""
    return ["Value"] if count == 1 else [f"Value #{chr(ord('A') + number)}" for number in range(count)]


def _organize(renamed: Mapping[str, str]) -> DataTransformerConfig:
    """Name and order the columns; the time of an instant query is of no use."""
    hidden = {} if "Time" in renamed else {"Time": True}
    order = {name: number for number, name in enumerate(renamed)}
    return DataTransformerConfig(
        "organize", options={"excludeByName": hidden, "indexByName": order, "renameByName": dict(renamed)}
    )


def _properties(column: Column) -> list[DynamicConfigValue]:
    unit = DynamicConfigValue("unit", column.unit)
    if column.bad is None:
        return [unit]
    first, second = (RED, CALM) if column.bad.below else (CALM, RED)
    steps = [Threshold(None, first), Threshold(column.bad.limit, second)]
    return [
        unit,
        DynamicConfigValue("thresholds", ThresholdsConfig(ThresholdsMode.ABSOLUTE, steps)),
        DynamicConfigValue("custom.cellOptions", {"type": "color-text"}),
    ]
