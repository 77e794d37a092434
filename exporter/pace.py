"""Pace: when delivery sends its next request, and how many points it puts into one."""

from collections.abc import Callable
from typing import Final

MAX_POINTS: Final = 25_000
MIN_DELAY_SECONDS: Final = 0.5
MAX_DELAY_SECONDS: Final = 60.0
_MAX_DOUBLINGS: Final = 16
_GROWTH: Final = 8


class Backoff:
    """Exponential delays with jitter, shared by all writers: one server, one pace."""

    def __init__(self, jitter: Callable[[float, float], float], monotonic: Callable[[], float]) -> None:
        """Start without a delay.

        Args:
            jitter: picks a number between its arguments.
            monotonic: seconds that never go back.
        """
        self._jitter = jitter
        self._monotonic = monotonic
        self._failures = 0
        self._not_before = 0.0

    def succeeded(self) -> None:
        """Start anew from the shortest delay; what the server asked for still holds."""
        self._failures = 0

    def failed(self, retry_after_seconds: float) -> None:
        """Put off the next request: never less than the server asks for.

        Requests that fail while the next one is put off already were under way together; they count as one failure.
        """
        now = self._monotonic()
        delay = retry_after_seconds
        if now >= self._not_before:
            ceiling = min(MIN_DELAY_SECONDS * 2**self._failures, MAX_DELAY_SECONDS)
            self._failures = min(self._failures + 1, _MAX_DOUBLINGS)
            delay = max(delay, self._jitter(ceiling / 2, ceiling))
        self._not_before = max(self._not_before, now + delay)

    def wait_seconds(self) -> float:
        """Give the seconds until the next request may be sent."""
        return max(0.0, self._not_before - self._monotonic())


class RequestSize:
    """How many points go into one request.

    Halved when the server says or shows that it was too much, and grown by an eighth with each full request that it
    stored.
    """

    def __init__(self) -> None:
        """Start with the largest size."""
        self.points = MAX_POINTS

    def shrink(self, sent: int, floor: int = 1) -> None:
        """Note that so many points were too many; the size does not fall below the floor for that."""
        self.points = min(self.points, max(sent // 2, floor))

    def grow(self, sent: int) -> None:
        """Note that so many points were stored."""
        if sent >= self.points:
            self.points = min(self.points + self.points // _GROWTH + 1, MAX_POINTS)
