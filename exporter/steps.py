"""Steps: long work on the event loop is cut into short ones, between which everyone else has a turn."""

import asyncio
import time
from typing import Final

_STEP_SECONDS: Final = 0.0005
_PAUSE_SECONDS: Final = 0.002
"""Time for a transaction, and the replies after it.

A turn of the event loop would not do: the journal's thread needs the interpreter several times in a transaction, and
gets it while the event loop sleeps, or after waiting for 5 ms each time.
"""

_SHARE: Final = _STEP_SECONDS / _PAUSE_SECONDS


class Steps:
    """The steps of one piece of work.

    A step takes half a millisecond, and a pause two. While requests pour in, a pause takes as long as the work of all
    that wait, some 100 ms; then a step takes a quarter of the last pause, so that the whole takes five times its own
    time at most, however much there is to do and however busy the loop is.
    """

    __slots__ = ("_until",)

    def __init__(self) -> None:
        """Begin the first step."""
        self._until = time.perf_counter() + _STEP_SECONDS

    async def pause(self) -> None:
        """Let others have their turn if this step has taken long enough."""
        now = time.perf_counter()
        if now < self._until:
            return
        await asyncio.sleep(_PAUSE_SECONDS)
        resumed = time.perf_counter()
        self._until = resumed + max(_STEP_SECONDS, (resumed - now) * _SHARE)
