"""The `/metrics` page: Prometheus's text format or OpenMetrics.

The small families are rendered by prometheus-client. The event family may have a hundred thousand series, for which
`generate_latest` stops the event loop for more than a second; it is joined from text that each cell keeps, in chunks,
with a pause for other requests between them. Both ways give the same page when parsed; a test compares them.
"""

import asyncio
from collections.abc import Iterator
from itertools import islice
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from exporter.counters import METRIC_HELP, METRIC_NAME, Cell, Counters
from exporter.journal.records import Birth
from exporter.labels import Labels

OPENMETRICS_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SERIES_A_CHUNK: Final = 2000
_EOF: Final = b"# EOF\n"


def shown_value(cell: Cell, *, to_scraper: bool) -> int | None:
    """Give the value that may be shown of a series: None if it must not appear at all."""
    if not to_scraper or cell.birth is Birth.FULL:
        return cell.value
    return 0 if cell.birth is Birth.ZERO else None


class EventCollector:
    """The event family for a prometheus-client registry."""

    def __init__(self, counters: Counters, *, to_scraper: bool = False) -> None:
        """Show the cells of a store as a scraper may see them, or as everyone else may."""
        self._counters = counters
        self._to_scraper = to_scraper

    def collect(self) -> Iterator[Metric]:
        """Give the family with its present values."""
        family = CounterMetricFamily(METRIC_NAME, METRIC_HELP, labels=Labels._fields)
        for cell in self._counters:
            value = shown_value(cell, to_scraper=self._to_scraper)
            if value is not None:
                family.add_metric(list(cell.labels), value)
        yield family


def registry_of_everything(small: CollectorRegistry, counters: Counters) -> CollectorRegistry:
    """Give one registry that holds all families, for use with prometheus-client's own tools."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(small)
    registry.register(EventCollector(counters))
    return registry


async def render(small: CollectorRegistry, counters: Counters, *, openmetrics: bool, to_scraper: bool) -> bytes:
    """Render the page.

    Args:
        small: the registry of the small families.
        counters: the event family's cells.
        openmetrics: whether to write OpenMetrics rather than the text format.
        to_scraper: whether births are to be held back.
    """
    if openmetrics:
        head, name = generate_openmetrics(small).removesuffix(_EOF), METRIC_NAME
    else:
        head, name = generate_latest(small), f"{METRIC_NAME}_total"
    chunks = [head, f"# HELP {name} {METRIC_HELP}\n# TYPE {name} counter\n".encode()]
    cells = iter(counters)
    while chunk := list(islice(cells, _SERIES_A_CHUNK)):
        if to_scraper:
            chunks.append(_lines(chunk).encode())
        else:
            chunks.append("".join([f"{cell.text}{cell.value}\n" for cell in chunk]).encode())
        await asyncio.sleep(0)
    if openmetrics:
        chunks.append(_EOF)
    return b"".join(chunks)


def _lines(cells: list[Cell]) -> str:
    values = ((cell.text, shown_value(cell, to_scraper=True)) for cell in cells)
    return "".join([f"{text}{value}\n" for text, value in values if value is not None])
