"""Pace: when the next request to InfluxDB may be sent, and how many points go into one."""

from collections.abc import Callable
from typing import Final

MAX_POINTS: Final = 25_000
MIN_DELAY_SECONDS: Final = 0.5
MAX_DELAY_SECONDS: Final = 60.0
_MAX_DOUBLINGS: Final = 16
_GROWTH: Final = 8


class Pace:
    """What the server can take, known to all senders.

    A request is halved when the server says or shows that it was too much, and grown by an eighth with each full one
    that it stored.

    Attributes:
        points: how many go into one request.
        answers: how often the server took a request, or refused lines of it.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        """Start with the largest request, at once; `monotonic` gives seconds that never go back."""
        self._monotonic = monotonic
        self._not_before = 0.0
        self.points = MAX_POINTS
        self.answers = 0

    def hold(self, seconds: float) -> None:
        """Note that the server asks not to be asked again for so long."""
        self._not_before = max(self._not_before, self._monotonic() + seconds)

    def wait_seconds(self) -> float:
        """Give the seconds until the server may be asked again."""
        return max(0.0, self._not_before - self._monotonic())

    def shrink(self, sent: int, floor: int = 1) -> None:
        """Note that so many points were too many; requests do not fall below the floor for that."""
        self.points = min(self.points, max(sent // 2, floor))

    def grow(self, sent: int) -> None:
        """Note that so many points were stored."""
        if sent >= self.points:
            self.points = min(self.points + self.points // _GROWTH + 1, MAX_POINTS)


class Backoff:
    """Exponential delays with jitter, for one sender: a request that fails for ever delays no other."""

    def __init__(self, jitter: Callable[[float, float], float]) -> None:
        """Start with the shortest delay; `jitter` picks a number between its arguments."""
        self._jitter = jitter
        self._failures = 0

    def succeeded(self) -> None:
        """Start anew from the shortest delay."""
        self._failures = 0

    def failed(self) -> float:
        """Give the seconds to wait before the request is sent again."""
        ceiling = min(MIN_DELAY_SECONDS * 2**self._failures, MAX_DELAY_SECONDS)
        self._failures = min(self._failures + 1, _MAX_DOUBLINGS)
        return self._jitter(ceiling / 2, ceiling)
