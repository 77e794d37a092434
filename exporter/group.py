"""What is to be stored: the events of one transaction, and other writes."""

import asyncio
from dataclasses import dataclass, field

from exporter.counters import Cell
from exporter.journal.records import Birth, DeadLetter


class NotStoredError(Exception):
    """What was to be stored is not, or may not be."""


@dataclass(slots=True, eq=False)
class Group:
    """The events of one transaction, staged and not yet visible.

    Attributes:
        deltas: by how much each cell grows.
        event_ids: identities, in order of arrival.
        lines: points.
        events: how many events are staged.
        waiters: resolved when the outcome is known: with None if the group is stored, else with the reason.
    """

    deltas: dict[Cell, int] = field(default_factory=dict)
    event_ids: dict[int, None] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    events: int = 0
    waiters: list[asyncio.Future[NotStoredError | None]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Write:
    """Something other than events to be stored with the next transaction.

    Attributes:
        births: cells and how much of them may be shown from now on.
        expired: cells to remove, unless an event reached them.
        delivered: numbers of groups that InfluxDB has.
        dead_letters: lines that InfluxDB refuses.
    """

    births: list[tuple[Cell, Birth]] = field(default_factory=list)
    expired: list[Cell] = field(default_factory=list)
    delivered: list[int] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
