"""The series of derived figures. A histogram is a series for each bucket and one for the sum."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from prometheus_client.utils import floatToGoString

from exporter.blocks import SUM, Block
from exporter.caps import SeriesRoom
from exporter.derived.families import FAMILIES
from exporter.labels import OTHER
from exporter.series import Family, Lifecycle, MetricType, Series

_CAPPED_LABELS: Final = frozenset({"app_id", "version", "channel"})
_Labels = tuple[str, ...]


class Histogram:
    """The series of one histogram.

    Attributes:
        buckets: a series for each bucket, which counts what is in it and in no smaller one.
        sum: the sum of what was observed, in milliseconds.
    """

    __slots__ = ("_bounds_ms", "buckets", "sum")

    def __init__(self, bounds_ms: list[float], buckets: list[Series], total: Series) -> None:
        """Put the series together."""
        self._bounds_ms = bounds_ms
        self.buckets = buckets
        self.sum = total

    @property
    def series(self) -> list[Series]:
        """All its series: the buckets, and the sum at the end."""
        return [*self.buckets, self.sum]

    def bucket(self, duration_ms: float) -> Series:
        """Find the bucket of a duration; an upper bound belongs to its bucket."""
        return self.buckets[bisect_left(self._bounds_ms, duration_ms)]


class Figures:
    """All series of derived figures."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        bounds_seconds: Mapping[Family, tuple[float, ...]],
        room: SeriesRoom,
        on_overflow: Callable[[str, str], None],
    ) -> None:
        """Make an empty store.

        Args:
            lifecycle: where new series enter.
            bounds_seconds: the upper bounds of each histogram family's buckets, without infinity.
            room: how many series there may be; past it, new ones are replaced by those of `other` labels.
            on_overflow: called with `series` and the labels whenever that happens.
        """
        self._lifecycle = lifecycle
        # To the nanosecond: 9 ms as seconds and back is 9.000000000000002 ms, and 1001 ms is less than itself.
        self._bounds_ms = {
            family: [round(bound * 1000, 6) for bound in bounds] for family, bounds in bounds_seconds.items()
        }
        self._buckets = {
            family: [*(floatToGoString(bound / 1000) for bound in bounds), "+Inf"]
            for family, bounds in self._bounds_ms.items()
        }
        self._room = room
        self._on_overflow = on_overflow
        self._count = 0
        self._series: dict[Family, dict[_Labels, Series]] = {family: {} for family in FAMILIES}
        self._histograms: dict[Family, dict[_Labels, Histogram]] = {family: {} for family in bounds_seconds}

    def __len__(self) -> int:
        """Count the series, those included that are not stored yet."""
        return self._count

    def __iter__(self) -> Iterator[Series]:
        """Give the stored series of all families."""
        for family in FAMILIES:
            yield from [series for series in self._series[family].values() if series.stored]

    def all(self) -> Iterator[Series]:
        """Give all series, stored or not."""
        for series in self._series.values():
            yield from series.values()

    def of(self, family: Family) -> list[Series]:
        """Give the stored series of a counter or a gauge."""
        return [series for series in self._series[family].values() if series.stored]

    def histograms(self, family: Family) -> list[Histogram]:
        """Give the stored histograms of a family."""
        return [histogram for histogram in self._histograms[family].values() if histogram.sum.stored]

    def find(self, family: Family, labels: _Labels, now_ms: int) -> Series:
        """Give the series of some labels, and make it if it is new."""
        found = self._series[family].get(labels)
        if found is None and not self._room.allows(labels[0], version_of(family, labels), 1):
            labels = self._overflowed(family, labels)
            found = self._series[family].get(labels)
        return found or self._make(family, labels, now_ms)

    def histogram(self, family: Family, labels: _Labels, now_ms: int) -> Histogram:
        """Give the histogram of some labels, and make its series if it is new."""
        found = self._histograms[family].get(labels)
        if found is None and not self._room.allows(
            labels[0], version_of(family, labels), len(self._buckets[family]) + 1
        ):
            labels = self._overflowed(family, labels)
            found = self._histograms[family].get(labels)
        return found or self._make_histogram(family, labels, now_ms)

    def restore(self, rows: Iterable[Series]) -> list[Series]:
        """Take over what the journal holds.

        Returns:
            Series of histograms whose buckets were set otherwise when they were stored, which are not taken: they
            have to be removed.
        """
        parts: dict[tuple[Family, _Labels], dict[str, Series]] = {}
        for series in rows:
            if series.family.type is MetricType.HISTOGRAM:
                parts.setdefault((series.family, series.labels[:-1]), {})[series.labels[-1]] = series
            else:
                self._add(series)
                self._lifecycle.restore(series)
        stale: list[Series] = []
        for (family, labels), found in parts.items():
            if set(found) != {*self._buckets[family], SUM}:
                stale += found.values()
                for series in found.values():
                    Block().add(series)  # on no page
                continue
            histogram = self._assemble(family, labels, [found[bound] for bound in self._buckets[family]], found[SUM])
            for series in histogram.series:
                self._add(series)
                self._lifecycle.restore(series)
        return stale

    def remove(self, gone: Iterable[Series]) -> None:
        """Take out series that are gone; those of other families are left alone."""
        for series in gone:
            if self._series.get(series.family, {}).pop(series.labels, None) is not None:
                self._count -= 1
                if not _is_overflow(series):
                    self._room.give_back(series, series.labels[0])
                self._histograms.get(series.family, {}).pop(series.labels[:-1], None)

    def _overflowed(self, family: Family, labels: _Labels) -> _Labels:
        self._on_overflow("series", "/".join((family.name, *labels)))
        return tuple(
            OTHER if name in _CAPPED_LABELS else value for name, value in zip(family.labels, labels, strict=True)
        )

    def _make(self, family: Family, labels: _Labels, now_ms: int) -> Series:
        series = Series(family, labels, now_ms)
        self._lifecycle.enter(series)
        self._add(series)
        return series

    def _make_histogram(self, family: Family, labels: _Labels, now_ms: int) -> Histogram:
        buckets = [self._make(family, (*labels, bound), now_ms) for bound in self._buckets[family]]
        total = self._make(family, (*labels, SUM), now_ms)
        return self._assemble(family, labels, buckets, total)

    def _assemble(self, family: Family, labels: _Labels, buckets: list[Series], total: Series) -> Histogram:
        histogram = self._histograms[family][labels] = Histogram(self._bounds_ms[family], buckets, total)
        return histogram

    def _add(self, series: Series) -> None:
        self._series[series.family][series.labels] = series
        self._count += 1
        if not _is_overflow(series):
            self._room.take(series, series.labels[0], version_of(series.family, series.labels))


def version_of(family: Family, labels: _Labels) -> str:
    """Give the version among the labels; none if the family has no such label."""
    return labels[family.labels.index("version")] if "version" in family.labels else ""


def _is_overflow(series: Series) -> bool:
    """Tell whether a series is one that stands in for those past the bound."""
    named = zip(series.family.labels, series.labels, strict=False)  # a histogram's series have `le` besides
    return all(value == OTHER for name, value in named if name in _CAPPED_LABELS)
