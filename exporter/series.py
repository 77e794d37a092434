"""Series of every family: what they hold, and their way from the first event to full sight and to their end."""

from collections.abc import Container, Hashable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from exporter.blocks import Block, Blocks, HistogramBlock
from exporter.journal.records import Birth


class MetricType(StrEnum):
    """The types of Prometheus's exposition formats that series here can have."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """A metric family; it is a key of hot dictionaries, and so is hashed as the object that it is.

    Attributes:
        name: its name, of a counter without `_total`; the journal knows its series by it.
        type: its type.
        help: one sentence for people.
        labels: the names of its labels, without `le`.
    """

    name: str
    type: MetricType
    help: str
    labels: tuple[str, ...]

    @property
    def first_birth(self) -> Birth:
        """How much Prometheus may see of a new series: of a gauge all, as no increase is taken of it."""
        return Birth.FULL if self.type is MetricType.GAUGE else Birth.HIDDEN

    @property
    def sample_name(self) -> str:
        """The name of its samples; of a histogram, what their suffixes are put to."""
        return f"{self.name}_total" if self.type is MetricType.COUNTER else self.name


class Series:
    """One series.

    Attributes:
        series_id: its key in the journal; 0 until it has entered the life cycle.
        family: what it belongs to.
        labels: its label values; of a histogram's series with `le` at the end.
        value: what is committed, which is all that anyone may be shown.
        birth: how much of it Prometheus may see.
        last_ms: when its last event arrived, in milliseconds since 1970.
        block: where its line is kept, once the journal has it; before, it is shown to nobody.
        place: its place in there.
    """

    __slots__ = ("birth", "block", "family", "labels", "last_ms", "place", "series_id", "value")

    def __init__(self, family: Family, labels: tuple[str, ...], now_ms: int) -> None:
        """Make a series that nobody knows yet."""
        self.series_id = 0
        self.family = family
        self.labels = labels
        self.value = 0
        self.birth = family.first_birth
        self.last_ms = now_ms
        self.block: Block | None = None
        self.place = 0

    @property
    def stored(self) -> bool:
        """Whether the journal has it."""
        return self.block is not None

    def change(self, value: int) -> None:
        """Take another value, which is committed."""
        self.value = value
        if self.block is not None:
            self.block.note_value(self.place, value)

    def show(self, birth: Birth) -> None:
        """Let Prometheus see so much of it, which is committed."""
        self.birth = birth
        if self.block is not None:
            self.block.note_birth()


def whole(series: Series) -> Hashable:
    """Name what goes or stays as a whole: all series of a histogram have one name."""
    is_part = series.family.type is MetricType.HISTOGRAM
    return (series.family, series.labels[:-1]) if is_part else series


class _BlocksOfFamilies(dict[Family, Blocks]):
    def __missing__(self, family: Family) -> Blocks:
        blocks = self[family] = Blocks(HistogramBlock if family.type is MetricType.HISTOGRAM else Block)
        return blocks


class Lifecycle:
    """The life of all series: entered, stored, born, expired.

    Attributes:
        unstored: the series that the journal has not yet.
        unborn: the stored ones that Prometheus may not see in full, with the moment (monotonic seconds) since when it
            was shown their 0.
        blocks: the stored ones of each family.
    """

    def __init__(self) -> None:
        """Start without any series."""
        self.unstored: dict[Series, None] = {}
        self.unborn: dict[Series, float | None] = {}
        self.blocks = _BlocksOfFamilies()
        self._next_id = 1

    def enter(self, series: Series) -> None:
        """Let a new series be stored with the next transaction."""
        series.series_id = self._next_id
        self._next_id += 1
        self.unstored[series] = None

    def restore(self, series: Series) -> None:
        """Take a series that the journal holds."""
        self.reserve(series.series_id)
        self._show(series)

    def reserve(self, series_id: int) -> None:
        """Give out no id up to this one."""
        self._next_id = max(self._next_id, series_id + 1)

    def mark_stored(self, series_ids: Container[int]) -> None:
        """Note which new series a transaction has stored."""
        for series in [series for series in self.unstored if series.series_id in series_ids]:
            del self.unstored[series]
            self._show(series)

    def _show(self, series: Series) -> None:
        self.blocks[series.family].add(series)
        if series.birth is not Birth.FULL:
            self.unborn[series] = None

    def all(self) -> Iterator[Block]:
        """Give the stored series of all families."""
        for blocks in tuple(self.blocks.values()):
            yield from blocks

    def expire(self, expired: Iterable[Series], staged: Iterable[Series]) -> list[Series]:
        """Reset series whose deletion is committed.

        One that an event reached in the meantime starts again as a new series at 0, in the same object, so that what is
        staged for it stays right.

        Returns:
            Those that are gone.
        """
        gone = []
        reached = set(map(whole, staged))
        expired = dict.fromkeys(expired)  # in order: a histogram's series stay together
        for block in {series.block for series in expired}:
            if block is not None:
                block.remove(expired.keys())
        for family in {series.family for series in expired}:
            self.blocks[family].drop_empty()
        for series in expired:
            series.block = None
            series.value = 0
            series.birth = series.family.first_birth
            self.unborn.pop(series, None)
            if whole(series) in reached:
                self.enter(series)
            else:
                gone.append(series)
        return gone
