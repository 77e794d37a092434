"""Times: the clock that is passed in, and the time that an event's point gets."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MAX_AHEAD_MS: Final = 10 * 60 * 1000
"""A device's clock is believed up to ten minutes ahead of ours."""

_MAX_INT64: Final = (1 << 63) - 1
_BACKWARDS_TOLERANCE_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Clock:
    """The two clocks of the system; tests pass others.

    Attributes:
        wall_ns: nanoseconds since 1970, which may jump.
        monotonic: seconds since some moment, which never go back.
    """

    wall_ns: Callable[[], int] = time.time_ns
    monotonic: Callable[[], float] = time.monotonic

    def wall_ms(self) -> int:
        """Give milliseconds since 1970."""
        return self.wall_ns() // 1_000_000


class ArrivalTimes:
    """Arrival times in nanoseconds, unique within the process."""

    def __init__(self, clock: Clock) -> None:
        """Start from the clock's present time."""
        self._clock = clock
        self._last_ns = 0

    def next_ns(self) -> int:
        """Give the arrival time of one event: the clock's time, moved on where it was given out already.

        A clock that was set back by more than a second is followed, rather than waiting for it to catch up.
        """
        now_ns = self._clock.wall_ns()
        if self._last_ns - _BACKWARDS_TOLERANCE_NS < now_ns <= self._last_ns:
            now_ns = self._last_ns + 1
        self._last_ns = now_ns
        return now_ns


def clock_error(timestamp_ms: int, now_ms: int, max_age_ms: int) -> str | None:
    """Tell how a device's time is wrong: `past`, `future`, or None if it is believed."""
    if timestamp_ms > now_ms + MAX_AHEAD_MS:
        return "future"
    if timestamp_ms < now_ms - max_age_ms:
        return "past"
    return None


def fits_int64(value: int) -> bool:
    """Tell whether an integer field of InfluxDB can hold the value."""
    return -_MAX_INT64 <= value <= _MAX_INT64
