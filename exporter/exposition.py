"""The `/metrics` page: Prometheus's text format or OpenMetrics.

The small families are rendered by prometheus-client. The families that are stored may have a hundred thousand series,
for which `generate_latest` stops the event loop for about a second; they are rendered from text that is kept, in steps.
Both ways give the same page when parsed; a test compares them.
"""

from collections.abc import AsyncIterator, Iterable, Iterator
from functools import lru_cache
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from exporter.blocks import histogram_values, sample_text, shown_value
from exporter.counters import EVENTS, Counters
from exporter.derived.families import FAMILIES
from exporter.derived.figures import Figures
from exporter.pieces import Piece
from exporter.series import Family, MetricType, Series
from exporter.steps import Steps

OPENMETRICS_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_EOF: Final = b"# EOF\n"
_SAMPLES_AT_ONCE: Final = 40
_MAX_KEPT: Final = 2048  # texts of small families


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
                values = histogram_values(histogram.series, to_scraper=self._to_scraper)
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

    def render(self, *, openmetrics: bool, to_scraper: bool) -> bytes:
        """Render the page as a whole, without pauses; the arguments are those of `pieces`."""
        pieces = self._pieces(openmetrics=openmetrics, to_scraper=to_scraper)
        return b"".join([piece.text for piece in pieces if piece is not None])

    async def pieces(self, *, openmetrics: bool, to_scraper: bool) -> AsyncIterator[Piece]:
        """Render the page piece by piece, with pauses in which others have their turn.

        Args:
            openmetrics: whether to write OpenMetrics rather than the text format.
            to_scraper: whether births are to be held back.
        """
        steps = Steps()
        for piece in self._pieces(openmetrics=openmetrics, to_scraper=to_scraper):
            if piece is not None:
                yield piece
            await steps.pause()

    def _pieces(self, *, openmetrics: bool, to_scraper: bool) -> Iterator[Piece | None]:
        """Give the pieces, and None where there may be a pause besides."""
        texts: list[bytes] = []
        for metric in self._small.collect():
            for text in _small_family(metric, openmetrics=openmetrics):
                texts.append(text)
                yield None
        yield Piece(b"".join(texts))
        blocks = self._counters.lifecycle.blocks
        for family in (EVENTS, *FAMILIES):
            name = family.name if openmetrics else family.sample_name
            yield Piece(f"# HELP {name} {family.help}\n# TYPE {name} {family.type}\n".encode())
            for block in blocks[family]:
                yield block.piece(to_scraper=to_scraper)
        if openmetrics:
            yield Piece(_EOF)


class _Alone:
    """A registry of one family."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        """Give the family."""
        yield self._metric


def _small_family(metric: Metric, *, openmetrics: bool) -> Iterator[bytes]:
    """Render a family's head as prometheus-client does, and its samples as that would, which takes a tenth as long."""
    yield _head(metric.name, metric.documentation, metric.type, metric.unit, openmetrics=openmetrics)
    for start in range(0, len(metric.samples), _SAMPLES_AT_ONCE):
        lines = [_sample_line(sample) for sample in metric.samples[start : start + _SAMPLES_AT_ONCE]]
        yield "".join(lines).encode()


@lru_cache(maxsize=_MAX_KEPT)
def _head(name: str, documentation: str, kind: str, unit: str, *, openmetrics: bool) -> bytes:
    alone = _Alone(Metric(name, documentation, kind, unit))
    page: bytes = generate_openmetrics(alone) if openmetrics else generate_latest(alone)
    return page.removesuffix(_EOF)


def _sample_line(sample: Sample) -> str:
    return f"{_sample_head(sample.name, tuple(sample.labels.items()))}{floatToGoString(sample.value)}\n"


@lru_cache(maxsize=_MAX_KEPT)
def _sample_head(name: str, labels: tuple[tuple[str, str], ...]) -> str:
    return sample_text(name, *zip(*sorted(labels), strict=True)) if labels else f"{name} "
