"""The virtual time of a fleet: what happens next, in order."""

import heapq
from collections.abc import Callable


class Timeline:
    """What is to happen, the earliest first; at the same moment, in the order in which it was planned.

    Attributes:
        now_ms: the present, in milliseconds since 1970.
    """

    def __init__(self, start_ms: int) -> None:
        """Begin at a moment with nothing planned."""
        self.now_ms = start_ms
        self._planned: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0

    def after(self, delay_ms: int, act: Callable[[], None]) -> None:
        """Plan something for later."""
        self._count += 1
        heapq.heappush(self._planned, (self.now_ms + delay_ms, self._count, act))

    def next_ms(self) -> int | None:
        """Tell when something happens next; None: never again."""
        return self._planned[0][0] if self._planned else None

    def catch_up(self, at_ms: int) -> None:
        """Let time pass without anything happening; nothing may be planned before that moment."""
        self.now_ms = max(self.now_ms, at_ms)

    def advance(self) -> None:
        """Move to the next moment, and let happen what is planned for it first."""
        self.now_ms, _, act = heapq.heappop(self._planned)
        act()
