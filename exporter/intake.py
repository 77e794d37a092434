"""Intake: stages the events of a batch, and waits until they are on disk."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from exporter.access import AllowList
from exporter.actions import BY_NAME
from exporter.clock import Clock
from exporter.commit import Committer
from exporter.counters import Cell, Counters
from exporter.dedupe import DedupeWindow
from exporter.derived.derivation import Derivation
from exporter.events import Batch, Event, Rejection
from exporter.group import Group, NotStoredError
from exporter.identity import identities
from exporter.labels import LabelPolicy, Labels, Placement
from exporter.legacy import is_legacy_download_fail
from exporter.points import PointEncoder, Raw
from exporter.telemetry import Telemetry

MAX_STAGED_EVENTS: Final = 200_000
"""While so many wait for a slow disk, new requests are refused; it takes some 150 MB."""

SLOW_DISK: Final = "too many events wait for the disk"
FULL_JOURNAL: Final = "the journal is full"
_EVENTS_AT_ONCE: Final = 1000
_CELL_CACHE_FACTOR: Final = 4
NOT_ALLOWED: Final = Rejection("app_not_allowed", "This endpoint takes no events of this app")
_UNKNOWN_ACTION: Final = Rejection("unknown_action", "This endpoint accepts known actions only")

_Origin = tuple[str, str | None, str | None, bool | None, bool | None]


class UnavailableError(Exception):
    """Events cannot be stored now; the sender should try again."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Which events are counted.

    Attributes:
        allowed_apps: the apps that may report.
        unlisted_apps: whether events of other apps are left out in silence or rejected.
        unknown_actions: whether actions that the catalogue does not know are accepted or rejected.
        legacy_download_fail: whether the false `download_fail` of old plugins are kept or dropped.
        reject_when_full: past so many bytes in the journal new events are refused; None: never.
    """

    allowed_apps: AllowList
    unlisted_apps: Literal["ignore", "reject"]
    unknown_actions: Literal["accept", "reject"]
    legacy_download_fail: Literal["keep", "drop"]
    reject_when_full: int | None


@dataclass(slots=True)
class _Staged:
    """What became of a batch's events so far."""

    waiters: dict[Group, asyncio.Future[NotStoredError | None]] = field(default_factory=dict)
    rejections: dict[int, Rejection] = field(default_factory=dict)
    duplicates: int = 0


@dataclass(slots=True)
class _Fresh:
    """Events that are to be counted.

    Attributes:
        events: the events.
        ids: for each, its identity, or None if it has none.
        cells: for each, where it is counted.
        raw: by the index in these lists, what the labels do not say.
    """

    events: list[Event] = field(default_factory=list)
    ids: list[int | None] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    raw: dict[int, Raw] = field(default_factory=dict)


class Intake:
    """The way of events into groups."""

    def __init__(  # noqa: PLR0913 -- intake is where the parts meet
        self,
        *,
        rules: Rules,
        labels: LabelPolicy,
        counters: Counters,
        dedupe: DedupeWindow,
        points: PointEncoder,
        derivation: Derivation | None,
        committer: Committer,
        telemetry: Telemetry,
        clock: Clock,
        max_series: int,
    ) -> None:
        """Take the parts that events pass."""
        self._rules = rules
        self._labels = labels
        self._counters = counters
        self._dedupe = dedupe
        self._points = points
        self.derivation = derivation
        self._committer = committer
        self._telemetry = telemetry
        self._clock = clock
        self._cells: dict[_Origin, dict[str, Cell]] = {}
        self._cached = 0
        self._max_cached = max_series * _CELL_CACHE_FACTOR
        committer.on_expired = self.forget_cells

    @property
    def is_open(self) -> bool:
        """Tell whether events can be stored now, and new requests be taken."""
        return not self.closed_because

    @property
    def closed_because(self) -> str:
        """Why events cannot be stored now; empty if they can."""
        if self._committer.group.events >= MAX_STAGED_EVENTS:
            return SLOW_DISK
        return self._refused_because

    @property
    def _refused_because(self) -> str:
        if not self._committer.writable:
            return "the journal cannot be written"
        limit = self._rules.reject_when_full
        return FULL_JOURNAL if limit is not None and self._committer.journal_bytes >= limit else ""

    def set_rules(self, rules: Rules) -> None:
        """Let other rules hold from now on."""
        self._rules = rules
        self.forget_cells()  # what they lead to is allowed by the old ones

    def forget_cells(self) -> None:
        """Drop the shortcuts to cells, after some were removed."""
        self._cells.clear()
        self._cached = 0

    async def accept(self, batch: Batch) -> dict[int, Rejection]:
        """Store the events of a batch; on return they are on disk and visible.

        Duplicates of events that another request has staged wait for that request's outcome.

        Returns:
            The rejected events, by their index.

        Raises:
            UnavailableError: if not all could be stored; a batch sent again is then counted right.
        """
        staged = _Staged()
        try:
            _check(self.closed_because)
            for start in range(0, len(batch.events), _EVENTS_AT_ONCE):
                if start:
                    await self._make_way()
                self._stage(batch, start, staged)
            for waiter in staged.waiters.values():
                _raise_unless_stored(await waiter)
        except UnavailableError:
            self._telemetry.events["unavailable", ""].inc(len(batch.events))
            raise
        self._telemetry.batch_events.observe(len(batch.events))
        if staged.duplicates:
            self._telemetry.events["duplicate", ""].inc(staged.duplicates)
        for rejection in staged.rejections.values():
            self._telemetry.events["rejected", rejection.error].inc()
        return staged.rejections

    async def _make_way(self) -> None:
        """Let others have their turn in the middle of a large batch; and the disk, if it is slow."""
        group = self._committer.group
        if group.events < MAX_STAGED_EVENTS:
            await asyncio.sleep(0)
        else:
            await self._committer.wait(group)

    def _stage(self, batch: Batch, start: int, staged: _Staged) -> None:
        _check(self._refused_because)
        group = self._committer.group
        now_ms = self._clock.wall_ms()
        events = batch.events[start : start + _EVENTS_AT_ONCE]
        fresh = _Fresh()
        self._sort_out(events, start, fresh, staged, now_ms)
        if fresh.events:
            self._count(fresh, group, now_ms)
            self._wait(group, staged)

    def _sort_out(
        self, events: list[Event | Rejection], start: int, fresh: _Fresh, staged: _Staged, now_ms: int
    ) -> None:
        """Find the events that are to be counted, and their cells."""
        ids = identities(events)
        known = self._known(ids)
        origin: _Origin | None = None
        cells: dict[str, Cell] = {}
        for index, (event, event_id) in enumerate(zip(events, ids, strict=True), start):
            if isinstance(event, Rejection):
                staged.rejections[index] = event
                continue
            if event_id in known:
                self._repeat(event_id, staged)
                continue
            # A batch comes from one device, and most of it from one version.
            found = (event.app_id, event.platform, event.version_name, event.is_prod, event.is_emulator)
            if found != origin:
                origin = found
                cells = self._cells.get(origin, {})
            cell = cells.get(event.action)
            if cell is None:
                origin = None  # there may be more cells now
                placed = self._place(event, now_ms)
                if placed is None:
                    continue
                if isinstance(placed, Rejection):
                    staged.rejections[index] = placed
                    continue
                cell, raw = placed
                if raw:
                    fresh.raw[len(fresh.events)] = raw
            if event_id is not None:
                known.add(event_id)
            fresh.events.append(event)
            fresh.ids.append(event_id)
            fresh.cells.append(cell)

    def _count(self, fresh: _Fresh, group: Group, now_ms: int) -> None:
        """Stage events that are to be counted: increments, ids and points."""
        # The lines come first: if one could not be made, nothing is staged.
        prefixes = [f"{cell.head}{cell.tags}" for cell in fresh.cells]
        lines = self._points.encode(fresh.events, prefixes, fresh.ids, fresh.raw, now_ms)
        group.deltas.update(fresh.cells)
        if self.derivation is not None:
            self.derivation.observe(fresh.events, fresh.cells, group, now_ms)
        group.event_ids.update(dict.fromkeys(event_id for event_id in fresh.ids if event_id is not None))
        group.lines += lines
        group.events += len(lines)

    def _known(self, ids: Iterable[int | None]) -> set[int]:
        """Find the ids that are remembered, or staged."""
        committer = self._committer
        known = self._dedupe.known(ids) | (committer.group.event_ids.keys() & ids)
        return known if committer.in_flight is None else known | (committer.in_flight.event_ids.keys() & ids)

    def _repeat(self, event_id: int, staged: _Staged) -> None:
        """Note a duplicate, and let the batch wait for the group that has its id staged, if one has."""
        staged.duplicates += 1
        in_flight = self._committer.in_flight
        if event_id in self._committer.group.event_ids:
            self._wait(self._committer.group, staged)
        elif in_flight is not None and event_id in in_flight.event_ids:
            self._wait(in_flight, staged)

    def _wait(self, group: Group, staged: _Staged) -> None:
        """Let the batch wait for a group, from now on: it may be stored before the next slice is staged."""
        if group not in staged.waiters:
            staged.waiters[group] = self._committer.wait(group)

    def _place(self, event: Event, now_ms: int) -> tuple[Cell, tuple[tuple[str, str], ...]] | Rejection | None:
        """Find an event's cell the long way: may it be counted, its capped labels, its series. None: filtered out."""
        if not self._rules.allowed_apps.allows(event.app_id):
            if self._rules.unlisted_apps == "reject":
                return NOT_ALLOWED
            self._telemetry.events["filtered", "app_not_allowed"].inc()
            return None
        if self._rules.unknown_actions == "reject" and event.action not in BY_NAME:
            return _UNKNOWN_ACTION
        drops_legacy = self._rules.legacy_download_fail == "drop" and event.action == "download_fail"
        if drops_legacy and is_legacy_download_fail(event.platform, event.plugin_version):
            self._telemetry.events["filtered", "legacy_download_fail"].inc()
            return None
        placement = self._labels.place(event)
        cell = self._counters.find(placement.labels, now_ms)
        raw = placement.raw + _moved(placement.labels, cell.labels, placement)
        if not raw and not drops_legacy and event.platform == cell.labels.platform:
            self._remember(event, cell)
        return cell, raw

    def _remember(self, event: Event, cell: Cell) -> None:
        """Keep the short way to a cell, for events whose texts are the labels themselves; so the number is bounded."""
        if self._cached >= self._max_cached:
            self.forget_cells()
        # The labels' own texts, which are the same: those of the event would take as much room again for each key.
        app_id, platform, action, version, _ = cell.labels
        version_name = version if event.version_name else event.version_name
        origin = (app_id, platform, version_name, event.is_prod, event.is_emulator)
        cells = self._cells.setdefault(origin, {})
        self._cached += action not in cells
        cells[action] = cell


def _check(problem: str) -> None:
    if problem:
        raise UnavailableError(problem)


def _raise_unless_stored(error: NotStoredError | None) -> None:
    if error is not None:
        raise UnavailableError(str(error))


def _moved(wanted: Labels, found: Labels, placement: Placement) -> tuple[tuple[str, str], ...]:
    """Give the raw texts of labels that became `other` because there are too many series in all."""
    named = {name for name, _ in placement.raw}
    pairs = (("app_id_raw", wanted.app_id, found.app_id), ("version_raw", wanted.version, found.version))
    return tuple((name, asked) for name, asked, got in pairs if asked != got and name not in named)
