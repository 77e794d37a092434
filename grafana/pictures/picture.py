"""A dashboard as one picture: each panel where Grafana would put it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from grafana.pictures import drawing
from grafana.pictures.asking import Asker, Json, Line
from grafana.pictures.tables import Table, group, merge, organize

LABEL: Final = "Plotted from the dashboard's own queries with simulated devices; not a screenshot of Grafana."

_COLUMNS: Final = 24
_WIDTH_INCHES: Final = 12.0
_ROW_INCHES: Final = 0.29
_HEAD_ROWS: Final = 2.0
_TITLE_ROWS: Final = 1.2
_GAP: Final = 0.5
# What a panel needs on its left and below for names, in columns and rows.
_MARGINS: Final = {"stat": (0.1, 0.3), "table": (0.3, 0.3), "bargauge": (3.2, 0.3)}
_GRAPH_MARGINS: Final = (0.9, 1.0)


async def draw(dashboard: Json, asker: Asker, variables: Mapping[str, str], rows: int) -> Figure:
    """Draw the upper part of a dashboard.

    Args:
        dashboard: the dashboard, as its file has it.
        asker: asks its queries.
        variables: values of its variables.
        rows: how many of Grafana's rows are shown; panels that end below are left out.
    """
    height = (rows + _HEAD_ROWS) * _ROW_INCHES
    figure = Figure(figsize=(_WIDTH_INCHES, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.012, 1 - 0.75 * _ROW_INCHES / height, dashboard["title"], fontsize=13, va="center", fontweight="bold")
    figure.text(0.988, 1 - 0.75 * _ROW_INCHES / height, LABEL, fontsize=8, va="center", ha="right", color="#8e96a3")
    marks = await _marks(dashboard, asker, variables)
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        if place["y"] + place["h"] > rows:
            continue
        if panel["type"] == "row":
            above = (place["y"] + 0.6 + _HEAD_ROWS) * _ROW_INCHES / height
            figure.text(0.012, 1 - above, panel["title"], fontsize=9, va="center", color="#555b66")
            continue
        axes = figure.add_axes(_rectangle(panel, height))
        drawing.title(axes, panel["title"])
        await _draw_panel(axes, panel, asker, variables)
        if panel["type"] == "timeseries":
            drawing.marks(axes, marks)
            start, end = asker.values.start, asker.values.end
            axes.set_xlim(start / 86_400, end / 86_400)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a picture; the same one has the same bytes."""
    figure.savefig(path, metadata={"Software": ""})


def _rectangle(panel: Json, height: float) -> tuple[float, float, float, float]:
    place = panel["gridPos"]
    left, bottom = _MARGINS.get(panel["type"], _GRAPH_MARGINS)
    x = (place["x"] + _GAP / 2 + left) / _COLUMNS
    width = (place["w"] - _GAP - left) / _COLUMNS
    below = place["y"] + place["h"] + _HEAD_ROWS - bottom
    tall = place["h"] - _TITLE_ROWS - bottom
    return x * 0.98 + 0.01, 1 - below * _ROW_INCHES / height, width * 0.98, tall * _ROW_INCHES / height


async def _draw_panel(axes: Axes, panel: Json, asker: Asker, variables: Mapping[str, str]) -> None:
    if panel["type"] == "table":
        drawing.table(axes, panel, await _table(panel, asker, variables))
        return
    lines: list[Line] = []
    for target in panel["targets"]:
        lines.extend(await asker.lines(target, variables))
    if panel["type"] == "stat":
        drawing.stat(axes, panel, lines)
    elif panel["type"] == "timeseries":
        drawing.graph(axes, panel, lines, asker.values.step_seconds)
    elif panel["type"] == "bargauge":
        drawing.bars(axes, panel, lines)
    else:
        drawing.heatmap(axes, lines)


async def _table(panel: Json, asker: Asker, variables: Mapping[str, str]) -> Table:
    options = {step["id"]: step["options"] for step in panel["transformations"]}
    if "groupBy" in options:
        (target,) = panel["targets"]
        rows = group(await asker.rows(target, variables), options["groupBy"]["fields"])
    else:
        rows = merge([(target["refId"], await asker.lines(target, variables)) for target in panel["targets"]])
    return organize(rows, options["organize"], panel["options"]["sortBy"])


async def _marks(dashboard: Json, asker: Asker, variables: Mapping[str, str]) -> list[float]:
    """Find when versions were first seen: the annotations that Prometheus knows."""
    found: set[float] = set()
    for annotation in dashboard["annotations"]["list"]:
        if annotation["datasource"]["type"] == "prometheus" and annotation.get("useValueForTime"):
            target = {"expr": annotation["expr"], "instant": True, "legendFormat": ""}
            found |= {line.samples[-1][1] / 1000 for line in await asker.lines(target, variables)}
    return sorted(at for at in found if asker.values.start < at < asker.values.end)
