"""Panels, drawn with matplotlib."""

import math
import re
from collections.abc import Sequence
from typing import Any, Final

import matplotlib.dates
from matplotlib.axes import Axes

from grafana.pictures.asking import Json, Line
from grafana.pictures.tables import Cell, Table
from grafana.pictures.texts import number

COLOURS: Final = {"red": "#d62f3b", "blue": "#3274d9", "green": "#37872d", "orange": "#e0752d", "text": "#2b2f36"}
_SHADES: Final = ("#3274d9", "#8ab8ff", "#1f3f77", "#5794f2", "#a7c7ff", "#0f2750", "#7a8fb0", "#c0d8ff")
_REDS: Final = ("#d62f3b", "#ff7383", "#8b0f1a", "#f2a1a8", "#5c0810", "#c4636b")
_GREY: Final = "#8e96a3"
_DAY: Final = 86_400
_MOST_BARS: Final = 12
_NARROW: Final = 0.2
_LONGEST_TITLE: Final = 27
_MOST_ROWS: Final = 8
_LONGEST_CELL: Final = 24
_MOST_NAMES: Final = 6


def title(axes: Axes, text: str) -> None:
    """Write a panel's title."""
    narrow = axes.get_position().width < _NARROW
    size = min(8.0, 8.0 * _LONGEST_TITLE / len(text)) if narrow else 8.0
    axes.set_title(text, loc="left", fontsize=size, color=COLOURS["text"], pad=4, fontweight="bold")


def stat(axes: Axes, panel: Json, lines: Sequence[Line]) -> None:
    """Draw a number; its background is coloured if that is how the panel says that it is bad."""
    defaults = panel["fieldConfig"]["defaults"]
    empty(axes)
    value = lines[0].samples[-1][1] if lines else None
    colour = _threshold_colour(value, defaults)
    is_filled = panel["options"]["colorMode"] == "background" and colour != "text"
    if is_filled:
        axes.set_facecolor(COLOURS[colour])
    decimals = defaults.get("decimals", 9)
    text = defaults["noValue"] if value is None else number(round(value, decimals), defaults["unit"])
    ink = "white" if is_filled else COLOURS[colour]
    axes.text(0.5, 0.45, text, ha="center", va="center", fontsize=19, color=ink, transform=axes.transAxes)


def graph(axes: Axes, panel: Json, lines: Sequence[Line], step_seconds: int) -> None:
    """Draw series over time, as lines or as bars, on top of each other if the panel says so."""
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults["custom"]
    palette = _REDS if defaults["color"].get("fixedColor") == "red" else _SHADES
    is_stacked = custom.get("stacking", {}).get("mode") == "normal"
    drawn = sorted(lines, key=_highest, reverse=True)
    bottom: dict[float, float] = {}
    for index, line in enumerate(drawn):
        colour = _override_colour(panel, line.name) or palette[index % len(palette)]
        label = line.name if index < _MOST_NAMES and _highest(line) else None
        if _field(panel, line.name).get("custom.drawStyle", custom.get("drawStyle")) == "bars":
            times = [_days(at) for at, _ in line.samples]
            below = [bottom.get(at, 0.0) for at, _ in line.samples]
            values = [value for _, value in line.samples]
            axes.bar(times, values, step_seconds / _DAY, bottom=below, color=colour, label=label)
            if is_stacked:
                bottom |= {at: bottom.get(at, 0.0) + value for at, value in line.samples}
        else:
            times, values = _with_gaps(line.samples, step_seconds)
            axes.plot(times, values, color=colour, linewidth=1.1, label=label)
    for step in defaults["thresholds"]["steps"][1:]:
        if "thresholdsStyle" in custom and step["value"] is not None:
            axes.axhline(step["value"], color=COLOURS["red"], linestyle="--", linewidth=0.8)
    _decorate(axes, defaults["unit"])
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=5.5, loc="upper left", ncols=2, framealpha=0.85, edgecolor="white", borderpad=0.2)


def marks(axes: Axes, times: Sequence[float]) -> None:
    """Draw the lines of annotations."""
    for at in times:
        axes.axvline(_days(at), color=COLOURS["orange"], linewidth=0.7, linestyle=":", zorder=0)


def bars(axes: Axes, panel: Json, lines: Sequence[Line]) -> None:
    """Draw a bar for each series, the first on top."""
    defaults = panel["fieldConfig"]["defaults"]
    shown = list(lines)[:_MOST_BARS]
    values = [line.samples[-1][1] for line in shown]
    fixed = defaults["color"].get("fixedColor")
    colours = [COLOURS.get(fixed or _threshold_colour(value, defaults), _GREY) for value in values]
    axes.barh(
        range(len(shown)), values, color=[_GREY if each == COLOURS["text"] else each for each in colours], height=0.7
    )
    axes.set_yticks(range(len(shown)), [line.name for line in shown], fontsize=6)
    axes.set_xticks([])
    axes.invert_yaxis()
    axes.set_xlim(0, max([*values, 1e-9]) * 1.15)
    for index, value in enumerate(values):
        axes.text(value, index, f" {number(value, defaults['unit'])}", va="center", fontsize=6)
    _frame(axes)


def table(axes: Axes, panel: Json, content: Table) -> None:
    """Draw the first rows of a table; bad cells are red."""
    empty(axes)
    if not content.rows:
        axes.text(0.5, 0.5, "no data", ha="center", va="center", fontsize=8, color=_GREY, transform=axes.transAxes)
        return
    rows = content.rows[:_MOST_ROWS]
    height = 1 / (_MOST_ROWS + 1)
    fields = [_field(panel, name) for name in content.columns]
    texts = [[_cell(cell, field["unit"]) for cell, field in zip(row, fields, strict=True)] for row in rows]
    widths = [max(map(len, column)) + 3 for column in zip(content.columns, *texts, strict=True)]
    left = 0.0
    for column, name in enumerate(content.columns):
        axes.text(left, 1 - height / 2, name, fontsize=6.5, va="center", fontweight="bold", color=_GREY)
        for index, row in enumerate(rows):
            colour = COLOURS[_threshold_colour(row[column], fields[column])]
            place = 1 - height * (index + 1.5)
            axes.text(left, place, texts[index][column], fontsize=6.5, va="center", color=colour)
        left += widths[column] / sum(widths)
    axes.set_xlim(-0.01, 1)


def heatmap(axes: Axes, lines: Sequence[Line]) -> None:
    """Draw how many observations fell into each bucket over time; the series are cumulated over `le`."""
    ordered = sorted(lines, key=lambda line: float(line.labels["le"]))
    times = sorted({at for line in ordered for at, _ in line.samples})
    if len(times) < 2:  # noqa: PLR2004 -- nothing has an extent
        empty(axes)
        return
    below = dict.fromkeys(times, 0.0)
    grid = []
    for line in ordered:
        samples = dict(line.samples)
        grid.append([max(samples.get(at, 0.0) - below[at], 0.0) for at in times])
        below |= {at: max(below[at], value) for at, value in samples.items()}
    axes.pcolormesh([_days(at) for at in times], range(len(ordered)), grid, cmap="Blues", shading="nearest")
    names = [line.labels["le"] for line in ordered]
    axes.set_yticks(range(len(names)), [number(float(name), "s") if name != "+Inf" else "more" for name in names])
    _time_axis(axes)
    _frame(axes)


def empty(axes: Axes) -> None:
    """Leave nothing but the frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    _frame(axes)


def _days(at: float) -> float:
    return at / _DAY


def _highest(line: Line) -> float:
    return max(value for _, value in line.samples)


def _with_gaps(samples: Sequence[tuple[float, float]], step_seconds: int) -> tuple[list[float], list[float]]:
    times: list[float] = []
    values: list[float] = []
    for at, value in samples:
        if times and _days(at) - times[-1] > 1.5 * step_seconds / _DAY:
            times.append(_days(at))
            values.append(math.nan)
        times.append(_days(at))
        values.append(value)
    return times, values


def _decorate(axes: Axes, unit: str) -> None:
    axes.margins(y=0.25)  # room for the legend
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: number(value, unit))
    axes.grid(axis="y", color="#e4e7ea", linewidth=0.5)
    axes.set_axisbelow(True)
    _time_axis(axes)
    _frame(axes)


def _time_axis(axes: Axes) -> None:
    locator = matplotlib.dates.AutoDateLocator(minticks=2)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(matplotlib.dates.ConciseDateFormatter(locator, show_offset=False))
    axes.tick_params(labelsize=6, length=2, colors=_GREY)


def _frame(axes: Axes) -> None:
    for spine in axes.spines.values():
        spine.set_color("#d8dce1")
        spine.set_linewidth(0.6)


def _field(panel: Json, name: str) -> Json:
    fields = dict(panel["fieldConfig"]["defaults"])
    for override in panel["fieldConfig"]["overrides"]:
        if _matches(override["matcher"], name):
            fields |= {each["id"]: each["value"] for each in override["properties"]}
    return fields


def _matches(matcher: Json, name: str) -> bool:
    if matcher["id"] == "byRegexp":
        return re.search(matcher["options"].strip("/"), name) is not None
    return bool(matcher["id"] == "byName" and matcher["options"] == name)


def _override_colour(panel: Json, name: str) -> str | None:
    colour: Any = _field(panel, name)["color"]
    is_own = colour is not panel["fieldConfig"]["defaults"]["color"]
    return COLOURS.get(colour.get("fixedColor", ""), _GREY) if is_own else None


def _threshold_colour(value: Cell | None, fields: Json) -> str:
    if not isinstance(value, float):
        return "text"
    colour = "text"
    for step in fields["thresholds"]["steps"]:
        if step["value"] is None or value >= step["value"]:
            colour = step["color"]
    return colour if colour in COLOURS else "text"


def _cell(cell: Cell | None, unit: str) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell if len(cell) <= _LONGEST_CELL else f"{cell[:_LONGEST_CELL]}…"
    return number(float(cell), unit)
