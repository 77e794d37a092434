"""Distinct devices: the bounded store of all sketches, and what the journal has and lacks of them.

A sketch takes about 0.5 KiB while it is small and 4.5 KiB when it is large. Estimates are kept until a device changes a
sketch or the day turns. 10 apps with 3 platforms and 10 versions each, and 30 large days, cost a scrape 1.5 ms when
nothing changed, 10 ms when all of today did, and 40 ms once a day; 20,000 sketches of 50 flooded apps cost it 16 ms.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import Metric

from exporter.derived.device_metrics import AppSketches, metrics
from exporter.derived.sketches import DAYS, Sketch, SketchKind
from exporter.derived.worth import BY_VERSION, PARTNERS, Worth, small_versions, worth_of
from exporter.journal.derived_records import SketchRow


class Devices:
    """All sketches, by what they are of.

    `find`, `retire` and `forget` decide what the next transaction inserts and deletes; `mark_stored`, `apply`,
    `mark_snapshot` and `remove` follow its COMMIT, `mark_stored` first. When one fails, `clear` and `restore` start
    anew from the journal. To apply devices to a sketch that was given out before that, or was removed, does nothing.

    Attributes:
        unstored: sketches that the next transaction must insert.
        dirty: sketches whose last snapshot lacks devices.
        doomed: sketches that the next transaction must delete; until they are removed they are shown, but not found.
    """

    def __init__(self, max_sketches: int, on_drop: Callable[[], None]) -> None:
        """Make an empty store.

        Args:
            max_sketches: the bound; doomed ones do not count, as those that take their place are empty until they go.
            on_drop: called for each sketch that had to make room, and each time that one was asked for in vain.
        """
        self._max_sketches = max_sketches
        self._on_drop = on_drop
        self._next_id = 1
        self.clear()

    def clear(self) -> None:
        """Forget all sketches; their ids are not used again."""
        self._apps: dict[str, AppSketches] = {}
        self._by_id: dict[int, Sketch] = {}
        self._shelves: defaultdict[Worth, dict[Sketch, None]] = defaultdict(dict)
        self._victims: list[Sketch] = []
        self.unstored: dict[Sketch, None] = {}
        self.dirty: dict[Sketch, None] = {}
        self.doomed: dict[Sketch, None] = {}

    def __len__(self) -> int:
        """Count the sketches, without doomed ones."""
        return len(self._by_id) - len(self.doomed)

    def by_id(self, sketch_id: int) -> Sketch | None:
        """Give a sketch by its key in the journal."""
        return self._by_id.get(sketch_id)

    def find(self, app_id: str, kind: SketchKind, name: str, day: int, today: int) -> Sketch | None:
        """Give the sketch of a thing on a day, and make it if it is new.

        A device whose clock is ahead over midnight counts today.

        Returns:
            The sketch; None for a day that no window holds any more, and if there is no room for it.
        """
        day = min(day, today)
        if day <= today - DAYS:
            return None
        app = self._apps.get(app_id)
        sketch = None if app is None else app.get(kind, name, day)
        if sketch in self.doomed or (sketch is None and not self._make_room(worth_of(kind, day))):
            self._on_drop()
            return None
        if sketch is None:
            sketch = Sketch(self._next_id, app_id, kind, name, day)
            self._take(sketch)
            self.unstored[sketch] = None
        return sketch

    def mark_stored(self, sketch_ids: Iterable[int]) -> None:
        """Note which new sketches a transaction has inserted."""
        for sketch_id in sketch_ids:
            sketch = self._by_id.get(sketch_id)
            if sketch is not None and sketch in self.unstored:
                del self.unstored[sketch]
                sketch.stored = True
                self._shelves[worth_of(sketch.kind, sketch.day)][sketch] = None

    def apply(self, sketch: Sketch, hashes: Iterable[int]) -> None:
        """Add devices whose sightings are committed; they are hashes below 2^63."""
        if self._by_id.get(sketch.sketch_id) is sketch and sketch.add(hashes):
            sketch.written = False
            self.dirty[sketch] = None
            self._apps[sketch.app_id].changed(sketch)

    def replay(self, sketch_id: int, hashes: Iterable[int]) -> None:
        """Add devices whose sightings the journal's log holds, after `restore`.

        Those of a sketch that is deleted are skipped, and its id is not given again, lest they reach another one later.
        """
        self._next_id = max(self._next_id, sketch_id + 1)
        sketch = self._by_id.get(sketch_id)
        if sketch is not None:
            self.apply(sketch, hashes)

    def snapshot(self) -> list[tuple[bytes, int]]:
        """Give the serialised form and the id of each sketch that changed since its last snapshot."""
        for sketch in self.dirty:
            sketch.written = True
        return [(sketch.dump(), sketch.sketch_id) for sketch in self.dirty]

    def mark_snapshot(self, sketch_ids: Iterable[int]) -> None:
        """Note whose last snapshot a transaction has stored; one that changed in the meantime stays dirty."""
        for sketch_id in sketch_ids:
            sketch = self._by_id.get(sketch_id)
            if sketch is not None and sketch.written:
                self.dirty.pop(sketch, None)

    def retire(self, today: int) -> list[Sketch]:
        """Doom what no figure needs any more: days before all windows, small versions of days before yesterday.

        Returns:
            The stored sketches that are doomed now.
        """
        gone: list[Sketch] = []
        for (day, is_whole), shelf in self._shelves.items():
            if day <= today - DAYS:
                gone += shelf
            elif day < today - 1 and not is_whole:
                gone += small_versions(shelf)
        self._doom(gone)
        return gone

    def forget(self, app_id: str, version: str | None = None) -> list[Sketch]:
        """Doom what is known of a version, or of a whole app, because its series are gone.

        Returns:
            The stored sketches that are doomed now.
        """
        gone = [
            sketch
            for sketch in self._apps.get(app_id, ())
            if (version is None or (sketch.kind in BY_VERSION and sketch.name == version))
            and sketch.stored
            and sketch not in self.doomed
        ]
        self._doom(gone)
        return gone

    def remove(self, sketch_ids: Iterable[int]) -> None:
        """Take out sketches whose deletion is committed."""
        for sketch_id in sketch_ids:
            sketch = self._by_id.pop(sketch_id, None)
            if sketch is None:
                continue
            self._unshelve(sketch)
            for held in (self.unstored, self.dirty, self.doomed):
                held.pop(sketch, None)
            app = self._apps[sketch.app_id]
            app.discard(sketch)
            if not app:
                del self._apps[sketch.app_id]

    def restore(self, rows: Iterable[SketchRow]) -> None:
        """Take over what the journal holds, whatever the bound is now; `replay` its sightings afterwards.

        Raises:
            ValueError: if a row is damaged.
        """
        for row in rows:
            sketch = Sketch.from_row(row)
            self._take(sketch)
            self._shelves[worth_of(sketch.kind, sketch.day)][sketch] = None

    def collect(self, today: int) -> Iterator[Metric]:
        """Give the metrics of a day; see the module for what that costs."""
        return metrics(self._apps, today)

    def _take(self, sketch: Sketch) -> None:
        self._next_id = max(self._next_id, sketch.sketch_id + 1)
        self._by_id[sketch.sketch_id] = sketch
        self._apps.setdefault(sketch.app_id, AppSketches()).add(sketch)

    def _doom(self, sketches: Iterable[Sketch]) -> None:
        for sketch in list(sketches):
            self._unshelve(sketch)
            self.doomed[sketch] = None

    def _unshelve(self, sketch: Sketch) -> None:
        worth = worth_of(sketch.kind, sketch.day)
        self._shelves[worth].pop(sketch, None)
        if not self._shelves[worth]:
            del self._shelves[worth]

    def _make_room(self, worth: Worth) -> bool:
        """Doom sketches until there is room for one more, but only what is worth less than that one.

        As each of them makes room for one of greater worth, nobody can have sketches dropped in a circle. Those the
        journal lacks stay: the transaction under way may be about to insert them.
        """
        while len(self) >= self._max_sketches:
            least = min(self._shelves, default=worth)
            if least >= worth:
                return False
            victim = self._next_victim(least)
            partner = self._partner(victim)
            self._doom([victim] if partner is None else [victim, partner])
            for _ in range(1 if partner is None else 2):
                self._on_drop()
        return True

    def _next_victim(self, worth: Worth) -> Sketch:
        """Give one of the smallest sketches of a worth; they are sorted once for many."""
        shelf = self._shelves[worth]
        while self._victims:
            victim = self._victims.pop()
            if victim in shelf:
                return victim
        self._victims = sorted(shelf, key=self._size, reverse=True)
        return self._victims.pop()

    def _size(self, sketch: Sketch) -> int:
        partner = self._partner(sketch)
        return max(sketch.devices, 0 if partner is None else partner.devices)

    def _partner(self, sketch: Sketch) -> Sketch | None:
        kind = PARTNERS.get(sketch.kind)
        partner = None if kind is None else self._apps[sketch.app_id].get(kind, sketch.name, sketch.day)
        return partner if partner is not None and partner.stored else None
