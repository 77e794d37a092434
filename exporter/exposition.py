"""The `/metrics` page: Prometheus's text format or OpenMetrics.

The small families are rendered by prometheus-client. The families that are stored may have a hundred thousand series,
for which `generate_latest` stops the event loop for about a second; they are rendered from text that is kept, in steps.
Both ways give the same page when parsed; a test compares them.
"""

from collections.abc import AsyncIterator, Iterable, Iterator
from copy import copy
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from exporter.blocks import sample_text, shown_value
from exporter.counters import EVENTS, Counters
from exporter.derived.families import FAMILIES
from exporter.derived.figures import Figures, Histogram
from exporter.series import Family, MetricType, Series
from exporter.steps import Steps

OPENMETRICS_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_EOF: Final = b"# EOF\n"
_SAMPLES_AT_ONCE: Final = 40


class StoredCollector:
    """The stored families for a prometheus-client registry."""

    def __init__(self, counters: Counters, figures: Figures, *, to_scraper: bool = False) -> None:
        """Show series as a scraper may see them, or as everyone else may."""
        self._counters = counters
        self._figures = figures
        self._to_scraper = to_scraper

    def collect(self) -> Iterator[Metric]:
        """Give the families with their present values."""
        yield self._scalars(EVENTS, self._counters)
        for family in FAMILIES:
            if family.type is not MetricType.HISTOGRAM:
                yield self._scalars(family, self._figures.of(family))
                continue
            metric = HistogramMetricFamily(family.name, family.help, labels=family.labels)
            for histogram in self._figures.histograms(family):
                values = histogram_values(histogram, to_scraper=self._to_scraper)
                if values is not None:
                    bounds = [bucket.labels[-1] for bucket in histogram.buckets]
                    buckets = list(zip(bounds, values[:-1], strict=True))
                    metric.add_metric(list(histogram.sum.labels[:-1]), buckets, values[-1] / 1000)
            yield metric

    def _scalars(self, family: Family, stored: Iterable[Series]) -> Metric:
        kind = CounterMetricFamily if family.type is MetricType.COUNTER else GaugeMetricFamily
        metric = kind(family.name, family.help, labels=family.labels)
        for series in stored:
            value = shown_value(series, to_scraper=self._to_scraper)
            if value is not None:
                metric.add_metric(list(series.labels), value)
        return metric


def histogram_values(histogram: Histogram, *, to_scraper: bool) -> list[int] | None:
    """Give a histogram's cumulative counts and, at the end, its sum in milliseconds; None if it must not appear."""
    values: list[int] = []
    count = 0
    for series in (*histogram.buckets, histogram.sum):
        value = shown_value(series, to_scraper=to_scraper)
        if value is None:
            return None
        count += value
        values.append(count)
    values[-1] = count - values[-2]
    return values


class Page:
    """The page of all metrics."""

    def __init__(self, small: CollectorRegistry, counters: Counters, figures: Figures) -> None:
        """Set what is shown.

        Args:
            small: the registry of the small families.
            counters: the events.
            figures: the derived figures.
        """
        self._small = small
        self._counters = counters
        self._figures = figures

    def registry(self, *, to_scraper: bool = False) -> CollectorRegistry:
        """Give one registry that holds all families, for use with prometheus-client's own tools."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self._small)
        registry.register(StoredCollector(self._counters, self._figures, to_scraper=to_scraper))
        return registry

    async def render(self, *, openmetrics: bool, to_scraper: bool) -> bytes:
        """Render the page as a whole; the arguments are those of `parts`."""
        return b"".join([part async for part in self.parts(openmetrics=openmetrics, to_scraper=to_scraper)])

    async def parts(self, *, openmetrics: bool, to_scraper: bool) -> AsyncIterator[bytes]:
        """Render the page part by part, with pauses in which others have their turn.

        Args:
            openmetrics: whether to write OpenMetrics rather than the text format.
            to_scraper: whether births are to be held back.
        """
        steps = Steps()
        for metric in self._small.collect():
            for lines in _small_family(metric, openmetrics=openmetrics):
                yield lines
                await steps.pause()
        for family in (EVENTS, *FAMILIES):
            name = family.name if openmetrics else family.sample_name
            yield f"# HELP {name} {family.help}\n# TYPE {name} {family.type}\n".encode()
            for lines in self._lines(family, to_scraper=to_scraper):
                yield lines
                await steps.pause()
        if openmetrics:
            yield _EOF

    def _lines(self, family: Family, *, to_scraper: bool) -> Iterator[bytes]:
        if family.type is MetricType.HISTOGRAM:
            for histogram in self._figures.histograms(family):
                values = histogram_values(histogram, to_scraper=to_scraper)
                if values is not None:
                    *counts, sum_ms = values
                    total = floatToGoString(sum_ms / 1000).encode()
                    yield histogram.template % (*counts, counts[-1], total)
        else:
            lifecycle = self._counters.lifecycle
            for block in lifecycle.blocks[family]:
                # Once all are born a scraper is shown what everyone is.
                yield block.lines(to_scraper=to_scraper and bool(lifecycle.unborn))


class _Alone:
    """A registry of one family."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        """Give the family."""
        yield self._metric


def _small_family(metric: Metric, *, openmetrics: bool) -> Iterator[bytes]:
    """Render a family's head as prometheus-client does, and its samples as that would, which takes a third as long."""
    head = copy(metric)
    head.samples = []
    page: bytes = generate_openmetrics(_Alone(head)) if openmetrics else generate_latest(_Alone(head))
    yield page.removesuffix(_EOF)
    for start in range(0, len(metric.samples), _SAMPLES_AT_ONCE):
        lines = [_sample_line(sample) for sample in metric.samples[start : start + _SAMPLES_AT_ONCE]]
        yield "".join(lines).encode()


def _sample_line(sample: Sample) -> str:
    names = sorted(sample.labels)
    text = sample_text(sample.name, names, [sample.labels[name] for name in names]) if names else f"{sample.name} "
    return f"{text}{floatToGoString(sample.value)}\n"
