"""The shelf: batches on which InfluxDB fails again and again wait there, so that they hold up no other."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from exporter.journal.records import PointsRow
from exporter.pace import MAX_POINTS

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
        failures: how often it failed since it was last made smaller; None: it never did.
        due: when it may be sent, in the seconds of the monotonic clock.
    """

    first: int
    last: int
    points: int = MAX_POINTS
    failures: int | None = None
    due: float = 0.0


class Shelf:
    """Batches that failed.

    One that fails while others are taken is made smaller, until what is left of it is what InfluxDB fails on.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        """Start empty; `monotonic` gives seconds that never go back."""
        self._monotonic = monotonic
        self._batches: deque[Batch] = deque()

    def __len__(self) -> int:
        """Count the batches."""
        return len(self._batches)

    def count_aside(self) -> int:
        """Count those that failed while others were taken."""
        return sum(batch.failures is not None for batch in self._batches)

    def put_back(self, batch: Batch) -> None:
        """Keep a batch that failed as everything does now."""
        self._batches.append(batch)

    def put_aside(self, batch: Batch, rows: list[PointsRow]) -> None:
        """Keep a batch that failed while others were taken: in halves, or else for smaller requests, later."""
        soon = replace(batch, failures=0, due=self._monotonic() + FIRST_DELAY_SECONDS)
        if len(rows) > 1:
            middle = len(rows) // 2
            self._batches.append(replace(soon, last=rows[middle - 1].number))
            self._batches.append(replace(soon, first=rows[middle].number))
            return
        present = min(batch.points, rows[0].points)
        smaller = max(present // 2, rows[0].points // _MOST_REQUESTS, 1)
        if smaller < present:
            self._batches.append(replace(soon, points=smaller))
            return
        failures = min((batch.failures or 0) + 1, _MAX_DOUBLINGS)
        delay = min(FIRST_DELAY_SECONDS * 2**failures, _LONGEST_DELAY_SECONDS)
        self._batches.append(replace(batch, failures=failures, due=self._monotonic() + delay))

    def take(self, *, is_last_chance: bool) -> Batch | None:
        """Take the first batch that is due, or any one if it is its last chance."""
        now = self._monotonic()
        for index, batch in enumerate(self._batches):
            if is_last_chance or batch.due <= now:
                del self._batches[index]
                return batch
        return None

    def wait_seconds(self) -> float | None:
        """Give the seconds until a batch is due; None if there is none."""
        due = min((batch.due for batch in self._batches), default=None)
        return None if due is None else max(0.0, due - self._monotonic())
