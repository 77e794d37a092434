"""Histograms that are observed with every request: as prometheus-client's, at a quarter of the cost.

They are observed and read on one thread, the event loop's, so they need no locks.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_INFINITE: Final = "+Inf"


class Observed:
    """One histogram's numbers."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """Start with nothing observed; the bounds are upper ones, without infinity."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Give the numbers."""
        names = [*map(floatToGoString, self._bounds), _INFINITE]
        family.add_metric(labels, list(zip(names, accumulate(self._counts), strict=True)), self._sum)


class Histogram(Collector):
    """A family of histograms, told apart by one label, or of a single one without a label."""

    def __init__(
        self,
        name: str,
        help_text: str,
        bounds: Sequence[float],
        registry: CollectorRegistry,
        *,
        label: str = "",
        values: Sequence[str] = ("",),
    ) -> None:
        """Register the family.

        Args:
            name: its name.
            help_text: one sentence for people.
            bounds: upper bounds of the buckets, without infinity.
            registry: where it is shown.
            label: the label's name; empty: there is none.
            values: all values of the label.
        """
        self._name = name
        self._help = help_text
        self._label = label
        self._observed = {value: Observed(bounds) for value in values}
        registry.register(self)

    def labels(self, value: str) -> Observed:
        """Give the histogram of a label's value."""
        return self._observed[value]

    def observe(self, value: float) -> None:
        """Count a value in the family that has no label."""
        self._observed[""].observe(value)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Give the family."""
        family = HistogramMetricFamily(self._name, self._help, labels=[self._label] if self._label else [])
        for value, observed in self._observed.items():
            observed.add_to(family, [value] if self._label else [])
        yield family
