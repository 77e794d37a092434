"""The `/metrics` page: Prometheus's text format or OpenMetrics.

The small families are rendered by prometheus-client. The families that are stored may have a hundred thousand series,
for which `generate_latest` stops the event loop for more than a second; they are joined from text that each series
keeps, in chunks, with a pause for other requests between them. The pauses are few: while requests pour in, each lasts
as long as the work of all that wait, some 100 ms, which made 10 s for 200,000 series. Both ways give the same page when
parsed; a test compares them.
"""

import asyncio
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.utils import floatToGoString

from exporter.counters import EVENTS, Counters
from exporter.derived.families import FAMILIES
from exporter.derived.figures import Figures, Histogram
from exporter.journal.records import Birth
from exporter.series import Family, MetricType, Series

OPENMETRICS_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SERIES_A_CHUNK: Final = 2000
_HISTOGRAMS_A_CHUNK: Final = 200
_MOST_CHUNKS: Final = 16
_EOF: Final = b"# EOF\n"
_Thing = TypeVar("_Thing")


def shown_value(series: Series, *, to_scraper: bool) -> int | None:
    """Give the value that may be shown of a series: None if it must not appear at all."""
    if not to_scraper or series.birth is Birth.FULL:
        return series.value
    return 0 if series.birth is Birth.ZERO else None


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
        """Render the page.

        Args:
            openmetrics: whether to write OpenMetrics rather than the text format.
            to_scraper: whether births are to be held back.
        """
        if openmetrics:
            chunks = [generate_openmetrics(self._small).removesuffix(_EOF)]
        else:
            chunks = [generate_latest(self._small)]
        for family in (EVENTS, *FAMILIES):
            name = family.name if openmetrics else family.sample_name
            chunks.append(f"# HELP {name} {family.help}\n# TYPE {name} {family.type}\n".encode())
            if family.type is MetricType.HISTOGRAM:
                for some in _parts(self._figures.histograms(family), _HISTOGRAMS_A_CHUNK):
                    chunks.append("".join([_histogram_lines(each, to_scraper=to_scraper) for each in some]).encode())
                    await asyncio.sleep(0)
                continue
            series: list[Series] = [*self._counters] if family is EVENTS else self._figures.of(family)
            for part in _parts(series, _SERIES_A_CHUNK):
                chunks.append(_lines(part, to_scraper=to_scraper).encode())
                await asyncio.sleep(0)
        if openmetrics:
            chunks.append(_EOF)
        return b"".join(chunks)


def _parts(things: Sequence[_Thing], least: int) -> Iterator[Sequence[_Thing]]:
    """Cut a sequence into parts of so many things at least, and of more where there would be too many parts."""
    size = max(least, math.ceil(len(things) / _MOST_CHUNKS))
    for start in range(0, len(things), size):
        yield things[start : start + size]


def _lines(chunk: Sequence[Series], *, to_scraper: bool) -> str:
    if not to_scraper:
        return "".join([f"{series.text}{series.value}\n" for series in chunk])
    values = ((series.text, shown_value(series, to_scraper=True)) for series in chunk)
    return "".join([f"{text}{value}\n" for text, value in values if value is not None])


def _histogram_lines(histogram: Histogram, *, to_scraper: bool) -> str:
    values = histogram_values(histogram, to_scraper=to_scraper)
    if values is None:
        return ""
    *counts, sum_ms = values
    buckets = "".join([f"{bucket.text}{count}\n" for bucket, count in zip(histogram.buckets, counts, strict=True)])
    total = floatToGoString(sum_ms / 1000)
    return f"{buckets}{histogram.count_text}{counts[-1]}\n{histogram.sum.text}{total}\n"
