"""Panels, all made alike: a title, what it shows, what a bad picture looks like, a unit, and red for bad alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from grafana_foundation_sdk.builders import bargauge, common, dashboard, heatmap, stat, timeseries
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models.dashboard import (
    DashboardFieldConfigSourceOverrides,
    DynamicConfigValue,
    FieldColorModeId,
    FieldConfigSource,
    GridPos,
    MatcherConfig,
    Panel,
    Threshold,
    ThresholdsMode,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode

from grafana.generate.sources import INFLUXDB, PROMETHEUS
from grafana.generate.targets import Format, Influx, Query, targets
from grafana.generate.thresholds import percent

RED: Final = "red"
"""Bad, and nothing else."""

NEUTRAL: Final = "blue"
CALM: Final = "text"
STAT_HEIGHT: Final = 4
GRAPH_HEIGHT: Final = 8
_STEP: Final = "1m"


@dataclass(frozen=True, slots=True)
class About:
    """What a person reads about a panel.

    Attributes:
        title: a few words.
        meaning: what is shown.
        bad: what a bad picture looks like.
    """

    title: str
    meaning: str
    bad: str

    @property
    def description(self) -> str:
        """The text behind the panel's `i`."""
        return f"{self.meaning}\n\n**Bad:** {self.bad}"


@dataclass(frozen=True, slots=True)
class Bad:
    """From where on a value is red; `below` turns it round."""

    limit: float
    below: bool = False


def thresholds(bad: Bad | None) -> dashboard.ThresholdsConfig:
    """Make the steps of a threshold: calm on one side, red on the other."""
    first, second = (RED, CALM) if bad is not None and bad.below else (CALM, RED)
    steps = [Threshold(value=None, color=first)]
    if bad is not None:
        steps.append(Threshold(value=bad.limit, color=second))
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def stat_panel(about: About, unit: str, query: Query, bad: Bad | None = None, *, width: int = 4) -> Panel:
    """Show one number, red where it is bad."""
    builder = (
        stat.Panel()
        .color_mode(options.BigValueColorMode.VALUE if bad is None else options.BigValueColorMode.BACKGROUND)
        .graph_mode(options.BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))  # noqa: FBT003 -- the SDK's way
        .thresholds(thresholds(bad))
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .no_value("-")
    )
    if unit == "short":  # A count is whole; Prometheus extrapolates.
        builder = builder.decimals(0)
    return finish(builder.build(), _with_limit(about, unit, bad), unit, [query], Shape("number", width, STAT_HEIGHT))


def graph(
    about: About, unit: str, queries: Sequence[Query], *, bad: Bad | None = None, color: str = NEUTRAL, width: int = 12
) -> Panel:
    """Draw lines over time.

    Args:
        about: what a person reads.
        unit: of all values.
        queries: what is asked.
        bad: draws a dashed red line.
        color: of whose shades the lines are.
        width: in 24ths of the page.
    """
    builder = _time_series(color).thresholds(thresholds(bad)).axis_soft_min(0)
    if bad is not None:
        style = common.GraphThresholdsStyleConfig().mode(options.GraphThresholdsStyleMode.DASHED)
        builder = builder.thresholds_style(style)
    return finish(builder.build(), _with_limit(about, unit, bad), unit, queries, Shape("graph", width, GRAPH_HEIGHT))


def bars(about: About, unit: str, queries: Sequence[Query], *, color: str = NEUTRAL, width: int = 12) -> Panel:
    """Draw stacked bars over time: what is counted in each interval."""
    builder = (
        _time_series(color)
        .draw_style(options.GraphDrawStyle.BARS)
        .fill_opacity(70)
        .line_width(0)
        .stacking(common.StackingConfig().mode(options.StackingMode.NORMAL))
        .thresholds(thresholds(None))
    )
    panel = builder.build()
    panel.interval = _STEP
    return finish(panel, about, unit, queries, Shape("graph", width, GRAPH_HEIGHT))


def funnel(about: About, unit: str, queries: Sequence[Query], *, bad: Bad | None = None, width: int = 12) -> Panel:
    """Draw one horizontal bar for each value."""
    builder = (
        bargauge.Panel()
        .orientation(options.VizOrientation.HORIZONTAL)
        .display_mode(options.BarGaugeDisplayMode.BASIC)
        .value_mode(options.BarGaugeValueMode.TEXT)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))  # noqa: FBT003 -- the SDK's way
        .min(0)
        .no_value("-")
        .thresholds(thresholds(bad))
    )
    color = dashboard.FieldColor().mode(FieldColorModeId.FIXED).fixed_color(NEUTRAL)
    builder = builder.color_scheme(color if bad is None else dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
    return finish(builder.build(), _with_limit(about, unit, bad), unit, queries, Shape("number", width, GRAPH_HEIGHT))


def heat(about: About, unit: str, query: Query, *, width: int = 12) -> Panel:
    """Draw a histogram over time; the unit is that of its buckets."""
    builder = (
        heatmap.Panel()
        .calculate(False)  # noqa: FBT003 -- the SDK's way
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(32))
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .exemplars_color(NEUTRAL)
        .scale_distribution(common.ScaleDistributionConfig().type(options.ScaleDistribution.LINEAR))
        .show_legend()
        .hide_y_histogram()
    )
    return finish(builder.build(), about, "short", [query], Shape("heatmap", width, GRAPH_HEIGHT))


def colored(panel: Panel, pattern: str, color: str) -> Panel:
    """Give the series whose name fits a regular expression a colour of their own."""
    value = {"mode": FieldColorModeId.FIXED, "fixedColor": color}
    return overridden(panel, "byRegexp", f"/{pattern}/", DynamicConfigValue("color", value))


def lined(panel: Panel, pattern: str) -> Panel:
    """Draw the series whose name fits a regular expression as a line beside the stacked bars."""
    values = {"drawStyle": "line", "fillOpacity": 0, "lineWidth": 2, "stacking": {"group": "A", "mode": "none"}}
    properties = [DynamicConfigValue(f"custom.{name}", value) for name, value in values.items()]
    return overridden(panel, "byRegexp", f"/{pattern}/", *properties)


def overridden(panel: Panel, matcher: str, what: str, *properties: DynamicConfigValue) -> Panel:
    """Override properties of some fields of a panel."""
    config_of(panel).overrides.append(DashboardFieldConfigSourceOverrides(MatcherConfig(matcher, what), [*properties]))
    return panel


@dataclass(frozen=True, slots=True)
class Shape:
    """How a panel asks, and how large it is on the grid of 24 columns."""

    form: Format
    width: int
    height: int


def finish(panel: Panel, about: About, unit: str, queries: Sequence[Query], shape: Shape) -> Panel:
    """Give a panel what all panels have."""
    panel.title = about.title
    panel.description = about.description
    panel.datasource = INFLUXDB if isinstance(queries[0], Influx) else PROMETHEUS
    panel.targets = targets(queries, shape.form)
    panel.grid_pos = GridPos(h=shape.height, w=shape.width)
    config_of(panel).defaults.unit = unit
    return panel


def config_of(panel: Panel) -> FieldConfigSource:
    """Give a panel's settings of fields."""
    if panel.field_config is None:
        panel.field_config = FieldConfigSource()
    return panel.field_config


def _with_limit(about: About, unit: str, bad: Bad | None) -> About:
    """Say from where on a value is red."""
    if bad is None:
        return about
    side = "Red below" if bad.below else "Red from"
    number = percent(bad.limit) if unit == "percentunit" else f"{bad.limit:g}{' s' if unit == 's' else ''}"
    return replace(about, meaning=f"{about.meaning} {side} {number}{'' if bad.below else ' on'}.")


def _time_series(color: str) -> timeseries.Panel:
    legend = common.VizLegendOptions().display_mode(options.LegendDisplayMode.TABLE).calcs(["lastNotNull", "max"])
    tooltip = common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI)
    return (
        timeseries.Panel()
        .line_width(2)
        .fill_opacity(5)
        .show_points(options.VisibilityMode.AUTO)
        .legend(legend.placement(options.LegendPlacement.BOTTOM).show_legend(True))  # noqa: FBT003 -- the SDK's way
        .tooltip(tooltip.sort(options.SortOrder.DESCENDING))
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.SHADES).fixed_color(color))
    )
