"""The cells of `capgo_stats_events_total`: one per series, holding the committed value and what is cached for speed."""

from collections.abc import Callable, Container, Iterable, Iterator
from typing import Final

from exporter.actions import KEY_ACTIONS
from exporter.journal.records import Birth
from exporter.labels import OTHER, Labels
from exporter.lineprotocol import series_prefix

METRIC_NAME: Final = "capgo_stats_events"
METRIC_HELP: Final = "Distinct events accepted from devices."


class Cell:
    """One series.

    Attributes:
        series_id: its key in the journal.
        labels: its labels.
        value: events committed, which is all that anyone may be shown.
        birth: how much of it Prometheus may see.
        last_ms: when its last event arrived, in milliseconds since 1970.
        stored: whether the journal has it; before, it is shown to nobody.
        prefix: what stands before the fields of its lines.
        text: its name and labels in the exposition format, with the space before the value.
    """

    __slots__ = ("birth", "labels", "last_ms", "prefix", "series_id", "stored", "text", "value")

    def __init__(self, series_id: int, labels: Labels, now_ms: int) -> None:
        """Make a series that nobody knows yet."""
        self.series_id = series_id
        self.labels = labels
        self.value = 0
        self.birth = Birth.HIDDEN
        self.last_ms = now_ms
        self.stored = False
        self.prefix = series_prefix(*labels)
        self.text = f"{METRIC_NAME}_total{{{_label_text(labels)}}} "


def _label_text(labels: Labels) -> str:
    escaped = (value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for value in labels)
    return ",".join(f'{name}="{value}"' for name, value in zip(Labels._fields, escaped, strict=True))


class Counters:
    """All cells, by their labels."""

    def __init__(self, max_series: int, on_overflow: Callable[[str, str], None]) -> None:
        """Make an empty store.

        `unstored` holds the cells that the journal has not yet, `unborn` the stored ones that Prometheus may not
        see in full, with the moment (monotonic seconds) since when it was shown their 0.

        Args:
            max_series: past so many series, events of a new one are counted in a series of `other` labels.
            on_overflow: called with `series` and the labels for each such event.
        """
        self._max_series = max_series
        self._on_overflow = on_overflow
        self._cells: dict[Labels, Cell] = {}
        self._next_id = 1
        self.unstored: dict[Cell, None] = {}
        self.unborn: dict[Cell, float | None] = {}
        self.expired_events = 0

    def __len__(self) -> int:
        """Count the series, those included that are not stored yet."""
        return len(self._cells)

    def __iter__(self) -> Iterator[Cell]:
        """Give the stored cells, in the order of their making."""
        return iter([cell for cell in self._cells.values() if cell.stored])

    def labels(self) -> Iterable[Labels]:
        """Give the labels of all series, stored or not."""
        return self._cells.keys()

    def restore(self, cells: Iterable[Cell], expired_events: int) -> None:
        """Take over what the journal holds."""
        for cell in cells:
            cell.stored = True
            self._cells[cell.labels] = cell
            if cell.birth is not Birth.FULL:
                self.unborn[cell] = None
            self._next_id = max(self._next_id, cell.series_id + 1)
        self.expired_events = expired_events

    def find(self, labels: Labels, now_ms: int) -> Cell:
        """Give the cell of some labels, and make it, with its siblings of the key actions, if it is new.

        Past the bound on series, the cell is one of few with `other` labels, and its labels differ from those asked
        for.
        """
        cell = self._cells.get(labels)
        if cell is not None:
            return cell
        if len(self._cells) + len(KEY_ACTIONS) >= self._max_series:
            self._on_overflow("series", "/".join(labels))
            labels = labels._replace(app_id=OTHER, version=OTHER)
            return self._cells.get(labels) or self._make(labels, now_ms)
        for action in KEY_ACTIONS:
            sibling = labels._replace(action=action)
            if sibling not in self._cells:
                self._make(sibling, now_ms)
        return self._cells.get(labels) or self._make(labels, now_ms)

    def _make(self, labels: Labels, now_ms: int) -> Cell:
        cell = self._cells[labels] = Cell(self._next_id, labels, now_ms)
        self._next_id += 1
        self.unstored[cell] = None
        return cell

    def mark_stored(self, series_ids: Container[int]) -> None:
        """Note which new series a transaction has stored."""
        for cell in [cell for cell in self.unstored if cell.series_id in series_ids]:
            del self.unstored[cell]
            cell.stored = True
            self.unborn[cell] = None

    def expire(self, cells: Iterable[Cell], staged: Iterable[Cell]) -> int:
        """Take out cells whose deletion is committed.

        A cell that an event reached in the meantime starts again as a new series at 0, in the same object, so that what
        is staged for it stays right.

        Returns:
            The sum of the values taken out.
        """
        alive = set(staged)
        total = 0
        for cell in cells:
            total += cell.value
            cell.value = 0
            cell.birth = Birth.HIDDEN
            cell.stored = False
            self.unborn.pop(cell, None)
            if cell in alive:
                cell.series_id = self._next_id
                self._next_id += 1
                self.unstored[cell] = None
            else:
                del self._cells[cell.labels]
        self.expired_events += total
        return total
