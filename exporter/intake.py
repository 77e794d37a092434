"""Intake: stages the events of a batch, and waits until they are on disk."""

import asyncio
from copy import copy
from dataclasses import dataclass, field
from typing import Final, Literal

from exporter.actions import BY_NAME
from exporter.clock import Clock
from exporter.commit import Committer
from exporter.counters import Cell, Counters
from exporter.dedupe import DedupeWindow
from exporter.derived.derivation import Derivation
from exporter.events import UNKNOWN, Batch, Event, Rejection
from exporter.group import Group, NotStoredError
from exporter.identity import identity
from exporter.labels import LabelPolicy, Labels, Placement
from exporter.legacy import is_legacy_download_fail
from exporter.points import PointEncoder
from exporter.telemetry import Telemetry

MAX_STAGED_EVENTS: Final = 200_000
"""While so many wait for a slow disk, new requests are refused; it takes some 150 MB."""

SLOW_DISK: Final = "too many events wait for the disk"
FULL_JOURNAL: Final = "the journal is full"
_EVENTS_AT_ONCE: Final = 1000
_CELL_CACHE_FACTOR: Final = 4
_UNKNOWN_ACTION: Final = Rejection("unknown_action", "This endpoint accepts known actions only")

_Key = tuple[str, str | None, str, str | None, bool | None, bool | None]


class UnavailableError(Exception):
    """Events cannot be stored now; the sender should try again."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Which events are counted.

    Attributes:
        allowed_apps: the apps that may report; empty: all.
        unknown_actions: whether actions that the catalogue does not know are accepted or rejected.
        legacy_download_fail: whether the false `download_fail` of old plugins are kept or dropped.
        reject_when_full: past so many bytes in the journal new events are refused; None: never.
    """

    allowed_apps: frozenset[str]
    unknown_actions: Literal["accept", "reject"]
    legacy_download_fail: Literal["keep", "drop"]
    reject_when_full: int | None

    def allows(self, app_id: str) -> bool:
        """Tell whether an app may report; `unknown` may unless `-unknown` excludes it."""
        names = self.allowed_apps - {f"-{UNKNOWN}"}
        if app_id == UNKNOWN:
            return f"-{UNKNOWN}" not in self.allowed_apps
        return not names or app_id in names


@dataclass(slots=True)
class _Staged:
    """What became of a batch's events so far."""

    waiters: dict[Group, asyncio.Future[NotStoredError | None]] = field(default_factory=dict)
    rejections: dict[int, Rejection] = field(default_factory=dict)
    duplicates: int = 0


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
        self._cells: dict[_Key, Cell] = {}
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

    def forget_cells(self) -> None:
        """Drop the shortcuts to cells, after some were removed."""
        self._cells.clear()

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
        events = group.events
        for index in range(start, min(start + _EVENTS_AT_ONCE, len(batch.events))):
            event = batch.events[index]
            if isinstance(event, Rejection):
                staged.rejections[index] = event
                continue
            event_id = identity(event)
            if event_id is not None:
                pending = self._pending(event_id)
                if pending is not None or event_id in self._dedupe:
                    staged.duplicates += 1
                    if pending is not None:
                        self._wait(pending, staged)
                    continue
            rejection = self._count(event, event_id, group, now_ms, is_plain=batch.is_plain)
            if rejection is not None:
                staged.rejections[index] = rejection
        if group.events > events:
            self._wait(group, staged)

    def _count(
        self, event: Event, event_id: int | None, group: Group, now_ms: int, *, is_plain: bool
    ) -> Rejection | None:
        """Stage one event that is no duplicate: its increment, its id and its point."""
        raw: tuple[tuple[str, str], ...] = ()
        cell = self._cells.get(
            (event.app_id, event.platform, event.action, event.version_name, event.is_prod, event.is_emulator)
        )
        if cell is None:
            placed = self._place(event, now_ms)
            if placed is None or isinstance(placed, Rejection):
                return placed
            cell, raw = placed
        derivation = self.derivation
        device = 0 if derivation is None else derivation.device_hash(event.device_id)
        sent = event if is_plain or derivation is None else copy(event)
        # The line comes first: if it could not be made, nothing of the event is staged.
        line = self._points.encode(event, cell.prefix, raw, event_id, is_plain=is_plain)
        group.deltas[cell] = group.deltas.get(cell, 0) + 1
        if derivation is not None:
            derivation.observe(sent, cell, device, group, now_ms)
        if event_id is not None:
            group.event_ids[event_id] = None
        group.lines.append(line)
        group.events += 1
        return None

    def _wait(self, group: Group, staged: _Staged) -> None:
        """Let the batch wait for a group, from now on: it may be stored before the next slice is staged."""
        if group not in staged.waiters:
            staged.waiters[group] = self._committer.wait(group)

    def _pending(self, event_id: int) -> Group | None:
        """Find the group that has an id staged."""
        committer = self._committer
        if event_id in committer.group.event_ids:
            return committer.group
        if committer.in_flight is not None and event_id in committer.in_flight.event_ids:
            return committer.in_flight
        return None

    def _place(self, event: Event, now_ms: int) -> tuple[Cell, tuple[tuple[str, str], ...]] | Rejection | None:
        """Find an event's cell the long way: may it be counted, its capped labels, its series. None: filtered out."""
        if not self._rules.allows(event.app_id):
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
        if len(self._cells) >= self._max_cached:
            self._cells.clear()
        # The labels' own texts, which are the same: those of the event would take as much room again for each key.
        app_id, platform, action, version, _ = cell.labels
        version_name = version if event.version_name else event.version_name
        self._cells[app_id, platform, action, version_name, event.is_prod, event.is_emulator] = cell


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
