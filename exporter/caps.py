"""The values of one label that get series of their own, and how fast new ones may come."""

import math
from collections import deque
from collections.abc import Callable
from typing import Final

_FREE_SHARE: Final = 0.8
_HOUR_SECONDS: Final = 3600.0


class CappedValues:
    """The values of one label that have series of their own.

    The first 80 % of the cap are taken freely, because an exporter put in front of a living fleet meets all its
    versions at once; the rest only so many an hour, so that a flood of invented values leaves room for real ones.
    """

    def __init__(self, cap: int, new_an_hour: int | None, monotonic: Callable[[], float]) -> None:
        """Set the bounds; `new_an_hour` None means that the whole cap is taken freely."""
        self._cap = cap
        self._new_an_hour = new_an_hour
        self._monotonic = monotonic
        self._values: set[str] = set()
        self._recent: deque[float] = deque()

    def __len__(self) -> int:
        """Count the values."""
        return len(self._values)

    @property
    def crowding(self) -> int:
        """Count the values past the freely taken share, with one more for the next."""
        return max(0, len(self._values) + 1 - math.ceil(self._cap * _FREE_SHARE))

    def restore(self, value: str) -> None:
        """Take a value that the journal holds, whatever the cap is now."""
        self._values.add(value)

    def discard(self, value: str) -> None:
        """Give a value's place back."""
        self._values.discard(value)

    def admit(self, value: str) -> bool:
        """Tell whether a value has series of its own, after giving it a place if the bounds allow."""
        if value in self._values:
            return True
        if len(self._values) >= self._cap or (
            self._new_an_hour is not None and self.crowding and not self._take_turn()
        ):
            return False
        self._values.add(value)
        return True

    def _take_turn(self) -> bool:
        now = self._monotonic()
        while self._recent and self._recent[0] <= now - _HOUR_SECONDS:
            self._recent.popleft()
        if len(self._recent) >= (self._new_an_hour or 0):
            return False
        self._recent.append(now)
        return True
