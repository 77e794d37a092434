"""Plots of the figures, in the colours of the dashboards' pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.report import Figures
from grafana.pictures.drawing import COLOURS
from grafana.pictures.texts import number

_GREY: Final = "#8e96a3"
_LINE: Final = "#d8dce1"
_BARS: Final = {"exporter": COLOURS["blue"], "underived": "#8ab8ff"}
_NAMES: Final = {"naive": "naive aiohttp", "underived": "without derived"}


def bench(figures: Figures, path: Path) -> None:
    """Draw events a second and CPU time of each server, for each size of bodies, with connections kept alive."""
    kept = [row for row in figures["results"] if row["connections"] == "kept"] or figures["results"]
    batches = list(dict.fromkeys(row["batch"] for row in kept))
    figure = _figure(
        12.0, 4.6, "Events a second and CPU time on one core, each server with InfluxDB on", figures["machine"]
    )
    for column, batch in enumerate(batches):
        # The limit does nothing: beside it, all others would be short.
        rows = [row for row in kept if row["batch"] == batch and row["server"] != "limit"]
        above, below = (figure.add_subplot(2, len(batches), line * len(batches) + column + 1) for line in (0, 1))
        _bars(above, rows, "events_per_second", f"Events/s, {batch} a POST{_limit(kept, batch)}")
        _bars(below, rows, "cpu_seconds_per_million", "CPU seconds per million events (less is better)")
    figure.subplots_adjust(left=0.1, right=0.97, top=0.82, bottom=0.04, wspace=0.42, hspace=0.4)
    save(figure, path)


def _limit(rows: Sequence[dict[str, Any]], batch: int) -> str:
    found = [row["events_per_second"] for row in rows if (row["server"], row["batch"]) == ("limit", batch)]
    return f" (doing nothing: {number(float(f'{found[0]:.2g}'), 'short')})" if found else ""


def _bars(axes: Axes, rows: Sequence[dict[str, Any]], name: str, title: str) -> None:
    values = [row[name] for row in rows]
    axes.barh(range(len(rows)), values, color=[_BARS.get(row["server"], _GREY) for row in rows], height=0.7)
    axes.set_yticks(range(len(rows)), [_NAMES.get(row["server"], row["server"]) for row in rows], fontsize=7)
    axes.set_xticks([])
    axes.invert_yaxis()
    axes.set_xlim(0, max(values) * 1.2)
    for index, value in enumerate(values):
        axes.text(value, index, f" {number(float(f'{value:.3g}'), 'short')}", va="center", fontsize=7)
    _title(axes, title)
    frame(axes)


def _figure(width: float, height: float, title: str, note: str) -> Figure:
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.012, 1 - 0.24 / height, title, fontsize=13, va="center", fontweight="bold")
    figure.text(0.012, 1 - 0.5 / height, note, fontsize=7, va="center", color=_GREY)
    return figure


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=8.0, color=COLOURS["text"], pad=4, fontweight="bold")


def frame(axes: Axes) -> None:
    """Draw the frame as the dashboards' pictures have it."""
    axes.tick_params(labelsize=6.5, length=2, colors=_GREY, labelcolor=COLOURS["text"])
    for spine in axes.spines.values():
        spine.set_color(_LINE)
        spine.set_linewidth(0.6)


def save(figure: Figure, path: Path) -> None:
    """Write a picture; the same one has the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nobody = {"Software": ""} if path.suffix == ".png" else {"Date": None}
    figure.savefig(path, metadata=nobody)


def scaling(figures: Figures, path: Path) -> None:
    """Draw events a second and CPU time per event over each kind of size."""
    curves = figures["curves"]
    figure = _figure(12.0, 4.6, "Speed over size: one exporter on one core", figures["machine"])
    for column, curve in enumerate(curves):
        # A size of 0 has no logarithm; it stands where 1 would.
        sizes = [max(point["size"], 1) for point in curve["points"]]
        for line, (name, title, colour) in enumerate(
            (
                ("events_per_second", f"events/s by {curve['title']}", COLOURS["blue"]),
                ("cpu_us_per_event", "CPU µs per event", COLOURS["orange"]),
            )
        ):
            axes = figure.add_subplot(2, len(curves), line * len(curves) + column + 1)
            axes.plot(sizes, [point[name] for point in curve["points"]], color=colour, linewidth=1.3, marker=".")
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_ylim(0, max(point[name] for point in curve["points"]) * 1.15)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(lambda value, _: number(value, "short"))
            axes.grid(axis="y", color="#e4e7ea", linewidth=0.5)
            axes.set_axisbelow(True)
            _title(axes, title)
            frame(axes)
    figure.subplots_adjust(left=0.05, right=0.98, top=0.82, bottom=0.07, wspace=0.28, hspace=0.4)
    save(figure, path)
