"""Batches that have arrived and wait for their turn to be staged."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from exporter.events import Event, Rejection
from exporter.group import Group, NotStoredError
from exporter.rules import Filtered

EVENTS_AT_ONCE: Final = 1000
ENOUGH_EVENTS: Final = 200
"""So many that wait are staged at once: more would not be cheaper together, and their memory is still in the cache."""


@dataclass(slots=True, eq=False)
class Arrival:
    """A batch on its way into groups, and what became of its events so far.

    Attributes:
        events: the batch's, until all of them are staged.
        size: how many there are.
        outcome: resolved when all of them are staged: with None, or with the reason why they are not. If there is one
            group to wait for, as there nearly always is, it is resolved with that group's outcome.
        taken: how many of the events are staged, or about to be.
        waiters: for each group that the batch waits for besides, its outcome.
        rejections: the rejected events, by their index.
        filtered: why events are left out, by their index.
        duplicates: how many are counted already, or will be.
    """

    events: list[Event | Rejection]
    size: int
    outcome: asyncio.Future[NotStoredError | None]
    taken: int = 0
    waiters: dict[Group, asyncio.Future[NotStoredError | None]] = field(default_factory=dict)
    rejections: dict[int, Rejection] = field(default_factory=dict)
    filtered: dict[int, Filtered] = field(default_factory=dict)
    duplicates: int = 0

    @property
    def weight(self) -> int:
        """How many of the events count as waiting: of a large batch, which has a bound of its own, a slice."""
        return min(self.size, EVENTS_AT_ONCE)

    @property
    def is_taken(self) -> bool:
        """Tell whether no event is left to stage."""
        return self.taken == self.size

    def end(self, problem: NotStoredError | None) -> None:
        """Tell the request that all is staged, or why it is not; unless it is gone."""
        if not self.outcome.done():
            self.outcome.set_result(problem)

    def fail(self, error: Exception) -> None:
        """Let the request fail."""
        if not self.outcome.done():
            self.outcome.set_exception(error)


@dataclass(slots=True, eq=False)
class Slice:
    """Events of an arrival that are staged at once.

    Attributes:
        arrival: whose events they are.
        start: the index of the first one.
        events: the events.
        groups: those that the events are in, or are duplicates of events in.
        duplicates: how many are counted already, or will be.
    """

    arrival: Arrival
    start: int
    events: list[Event | Rejection]
    groups: set[Group] = field(default_factory=set)
    duplicates: int = 0


class Arrivals:
    """The queue of batches; one with more events than are staged at once goes to its end after each slice.

    Attributes:
        waiting: events of all batches in it, by their weight.
    """

    def __init__(self) -> None:
        """Start with none."""
        self._queue: deque[Arrival] = deque()
        self.waiting = 0

    def __len__(self) -> int:
        """Count the batches."""
        return len(self._queue)

    @property
    def is_full(self) -> bool:
        """Tell whether enough events wait, but not so many that they have to take turns with others."""
        return ENOUGH_EVENTS <= self.waiting < EVENTS_AT_ONCE

    def add(self, arrival: Arrival) -> None:
        """Let a batch wait."""
        self._queue.append(arrival)
        self.waiting += arrival.weight

    def take(self) -> list[Slice]:
        """Take the events that are staged next."""
        slices: list[Slice] = []
        room = EVENTS_AT_ONCE
        while room and self._queue:
            arrival = self._queue.popleft()
            if arrival.outcome.done():  # a slice before could not be stored, or nobody waits any more
                self.waiting -= arrival.weight
                continue
            start = arrival.taken
            events = arrival.events[start : start + room]
            arrival.taken += len(events)
            room -= len(events)
            slices.append(Slice(arrival, start, events))
            if arrival.is_taken:
                self.waiting -= arrival.weight
            else:
                self._queue.append(arrival)
        return slices
