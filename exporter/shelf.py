"""The shelf: batches on which InfluxDB fails again and again wait there, so that they hold up no other."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from exporter.journal.records import PointsRow
from exporter.pace import MAX_POINTS, Backoff

FIRST_DELAY_SECONDS: Final = 5.0
_LONGEST_DELAY_SECONDS: Final = 300.0
_MAX_DOUBLINGS: Final = 16
_MOST_REQUESTS: Final = 100


@dataclass(frozen=True, slots=True)
class Batch:
    """Groups that are sent together.

    Attributes:
        first: the number of its first group.
        last: the number of its last group.
        points: how many of them go into one request at most.
        start: how many points were tried already in this round; one of their requests failed, unless it is 0.
        answers: how often InfluxDB had answered when it failed last; None: it never did.
        failures: how often it failed since it was last made smaller; None: it was never put aside.
        due: when it may be sent, in the seconds of the monotonic clock.
    """

    first: int
    last: int
    points: int = MAX_POINTS
    start: int = 0
    answers: int | None = None
    failures: int | None = None
    due: float = 0.0


class Shelf:
    """Batches that failed.

    One that fails while others are taken is put aside: it is made smaller, until what is left of it is what InfluxDB
    fails on. Only one of those is under way at a time, and only until a request of it fails: so a sender is always
    free for the others.

    Attributes:
        backoff: how long they all wait after such a failure.
    """

    def __init__(self, monotonic: Callable[[], float], backoff: Backoff) -> None:
        """Start empty; `monotonic` gives seconds that never go back."""
        self._monotonic = monotonic
        self.backoff = backoff
        self._batches: deque[Batch] = deque()
        self._not_before = 0.0
        self._under_way = 0

    def __len__(self) -> int:
        """Count the batches."""
        return len(self._batches)

    def count_aside(self) -> int:
        """Count those that were put aside, with the one that is under way."""
        return self._under_way + sum(batch.failures is not None for batch in self._batches)

    def put_back(self, batch: Batch) -> None:
        """Keep a batch as it is."""
        self._batches.append(batch)

    def put_off(self, batch: Batch, seconds: float) -> None:
        """Keep a batch that failed as everything does now: as it is, but for later; it waits for so long at least."""
        self._batches.append(replace(batch, due=self._monotonic() + max(FIRST_DELAY_SECONDS, seconds)))

    def put_aside(self, batch: Batch, rows: list[PointsRow], tried: int, seconds: float = 0.0) -> None:
        """Keep a batch that failed while others were taken: in halves, or else for smaller requests, later.

        Args:
            batch: what failed.
            rows: its groups.
            tried: how many of its points were tried; of a single group the rest is, before it is made smaller.
            seconds: how long it waits at least.
        """
        now = self._monotonic()
        soon = replace(batch, start=0, failures=0, due=now + max(FIRST_DELAY_SECONDS, seconds))
        if len(rows) > 1:
            middle = len(rows) // 2
            self._batches.append(replace(soon, last=rows[middle - 1].number))
            self._batches.append(replace(soon, first=rows[middle].number))
            return
        if tried < rows[0].points:
            self._batches.append(replace(batch, start=tried, failures=batch.failures or 0, due=now + seconds))
            return
        present = min(batch.points, rows[0].points)
        smaller = max(present // 2, rows[0].points // _MOST_REQUESTS, 1)
        if smaller < present:
            self._batches.append(replace(soon, points=smaller))
            return
        failures = min((batch.failures or 0) + 1, _MAX_DOUBLINGS)
        delay = min(FIRST_DELAY_SECONDS * 2**failures, _LONGEST_DELAY_SECONDS)
        self._batches.append(replace(soon, failures=failures, due=now + max(delay, seconds)))

    def hold(self) -> None:
        """Let all that was put aside wait, because a request of one failed."""
        self._not_before = self._monotonic() + self.backoff.failed()

    def begin(self, batch: Batch) -> None:
        """Note that a batch is under way."""
        self._under_way += batch.failures is not None

    def end(self, batch: Batch) -> None:
        """Note that a batch is no longer under way."""
        self._under_way -= batch.failures is not None

    def take(self, *, is_last_chance: bool) -> Batch | None:
        """Take the first batch that is due, or any one if it is its last chance."""
        now = self._monotonic()
        for index, batch in enumerate(self._batches):
            if is_last_chance or self._due(batch) <= now:
                del self._batches[index]
                return batch
        return None

    def wait_seconds(self) -> float | None:
        """Give the seconds until a batch is due; None if there is none, or another has to end before."""
        due = min(map(self._due, self._batches), default=math.inf)
        return None if due == math.inf else max(0.0, due - self._monotonic())

    def _due(self, batch: Batch) -> float:
        if batch.failures is None:
            return batch.due
        return math.inf if self._under_way else max(batch.due, self._not_before)
