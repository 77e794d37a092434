"""The cells of `capgo_stats_events_total`: one per series, holding the committed value and what is cached for speed."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, cast

from exporter.actions import KEY_ACTIONS
from exporter.caps import SeriesRoom
from exporter.labels import OTHER, Labels
from exporter.lineprotocol import series_prefix_parts
from exporter.series import Family, Lifecycle, MetricType, Series

if TYPE_CHECKING:
    from exporter.derived.tracks import Role, Track

EVENTS: Final = Family(
    "capgo_stats_events", MetricType.COUNTER, "Distinct events accepted from devices.", Labels._fields
)


class Cell(Series):
    """One series of the events.

    Attributes:
        labels: its labels.
        head: what its lines begin with: all series of an action have it in common.
        tags: what follows that, before the fields: all actions of a version have it in common.
        track: what the derived figures know of its app, platform, version and environment; None until they looked.
        role: what its action means to the derived figures.
    """

    __slots__ = ("head", "role", "tags", "track")

    labels: Labels

    def __init__(self, labels: Labels, now_ms: int) -> None:
        """Make a series that nobody knows yet."""
        super().__init__(EVENTS, labels, now_ms)
        self.head, self.tags = series_prefix_parts(*labels)
        self.track: Track | None = None
        self.role: Role | None = None


def _is_overflow(labels: Labels) -> bool:
    """Tell whether labels are those of a series in which events past the bound are counted."""
    return labels.app_id == OTHER and labels.version == OTHER


class SharedTexts:
    """Texts that many series have in common, each kept once."""

    __slots__ = ("_texts",)

    def __init__(self) -> None:
        """Start without any."""
        self._texts: dict[str, str] = {}

    def share(self, texts: Iterable[str]) -> list[str]:
        """Give the same texts, as they are kept."""
        return [self._texts.setdefault(text, text) for text in texts]

    def forget(self) -> None:
        """Begin anew: texts that no series has any more would stay for ever."""
        self._texts.clear()


class Counters:
    """All cells, by their labels.

    Attributes:
        lifecycle: where new series enter.
        texts: what labels have in common.
        expired_events: the events of series that are gone.
    """

    def __init__(self, lifecycle: Lifecycle, room: SeriesRoom, on_overflow: Callable[[str, str], None]) -> None:
        """Make an empty store.

        Args:
            lifecycle: where new series enter.
            room: how many series there may be; past it, events of a new one are counted in a series of `other` labels.
            on_overflow: called with `series` and the labels for each such event.
        """
        self.lifecycle = lifecycle
        self._room = room
        self._on_overflow = on_overflow
        self._cells: dict[Labels, Cell] = {}
        self.texts = SharedTexts()
        self.expired_events = 0

    def __len__(self) -> int:
        """Count the series, those included that are not stored yet."""
        return len(self._cells)

    def __iter__(self) -> Iterator[Cell]:
        """Give the stored cells, in the order of their making."""
        return iter([cell for cell in self._cells.values() if cell.stored])

    def all(self) -> Iterable[Cell]:
        """Give all cells, stored or not."""
        return self._cells.values()

    def restore(self, cells: Iterable[Cell], expired_events: int) -> None:
        """Take over what the journal holds."""
        for cell in cells:
            self._add(cell)
            self.lifecycle.restore(cell)
        self.expired_events = expired_events

    def find(self, labels: Labels, now_ms: int) -> Cell:
        """Give the cell of some labels, and make it, with its siblings of the key actions, if it is new.

        Past the bound on series, the cell is one of few with `other` labels, and its labels differ from those asked
        for.
        """
        cell = self._cells.get(labels)
        if cell is not None:
            return cell
        if not self._room.allows(labels.app_id, labels.version, len(KEY_ACTIONS) + 1):
            self._on_overflow("series", "/".join(labels))
            labels = labels._replace(app_id=OTHER, version=OTHER)
            return self._cells.get(labels) or self._make(labels, now_ms)
        for action in KEY_ACTIONS:
            sibling = labels._replace(action=action)
            if sibling not in self._cells:
                self._make(sibling, now_ms)
        return self._cells.get(labels) or self._make(labels, now_ms)

    def _make(self, labels: Labels, now_ms: int) -> Cell:
        cell = Cell(Labels._make(self.texts.share(labels)), now_ms)
        self._add(cell)
        self.lifecycle.enter(cell)
        return cell

    def _add(self, cell: Cell) -> None:
        cell.head, cell.tags = self.texts.share((cell.head, cell.tags))
        self._cells[cell.labels] = cell
        self._take_room(cell)

    def _take_room(self, cell: Cell) -> None:
        if not _is_overflow(cell.labels):
            self._room.take(cell, cell.labels.app_id, cell.labels.version)

    def note_expired(self, expired: Iterable[Series]) -> None:
        """Add the values of cells whose deletion is committed to the total of expired events, before they are reset."""
        self.expired_events += sum(series.value for series in expired if series.family is EVENTS)

    def remove(self, gone: Iterable[Series]) -> None:
        """Take out cells that are gone; series of other families are left alone."""
        self.texts.forget()
        for series in gone:
            if series.family is EVENTS:
                labels = cast("Cell", series).labels
                del self._cells[labels]
                if not _is_overflow(labels):
                    self._room.give_back(series, labels.app_id)
