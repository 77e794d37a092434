"""What is to be stored: the events of one transaction, and other writes."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from exporter.derived.staged import Staged
from exporter.journal.derived_records import MarkRow
from exporter.journal.records import Birth, DeadLetter, Edit
from exporter.series import Series


class NotStoredError(Exception):
    """What was to be stored is not, or may not be."""


@dataclass(slots=True, eq=False)
class Group:
    """The events of one transaction, staged and not yet visible.

    Attributes:
        deltas: by how much each series grows.
        event_ids: identities, in order of arrival.
        lines: points.
        events: how many events are staged.
        derived: what changes in the derived state.
        waiters: resolved when the outcome is known: with None if the group is stored, else with the reason.
    """

    deltas: Counter[Series] = field(default_factory=Counter)
    event_ids: dict[int, None] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    events: int = 0
    derived: Staged = field(default_factory=Staged)
    waiters: list[asyncio.Future[NotStoredError | None]] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Tell whether there is nothing to store and nobody to answer."""
        return not (self.events or self.waiters or self.deltas or self.derived.episodes)

    def add(self, series: Series, delta: int) -> None:
        """Stage an increment."""
        self.deltas[series] = self.deltas.get(series, 0) + delta


@dataclass(slots=True, eq=False)
class Write:
    """Something other than events to be stored with the next transaction.

    Attributes:
        births: cells and how much of them may be shown from now on.
        expired: cells to remove, unless an event reached them.
        delivered: numbers of groups that InfluxDB has.
        dead_letters: lines that InfluxDB refuses.
        marks: releases that somebody marked.
        lines: points.
        edits: what an operator changes.
    """

    births: list[tuple[Series, Birth]] = field(default_factory=list)
    expired: list[Series] = field(default_factory=list)
    delivered: list[int] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    marks: list[MarkRow] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
