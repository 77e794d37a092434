"""Draining: on the way out, requests under way are answered, bodies that are still arriving included."""

import asyncio
import contextlib


class Drain:
    """Knows the requests under way, and whether the exporter is stopping.

    aiohttp's own shutdown takes no more data from a connection, so that a body that is still arriving would be lost;
    this comes before it.

    Attributes:
        begun: whether the exporter is stopping; each reply then ends its connection.
    """

    def __init__(self) -> None:
        """Start with no request."""
        self.begun = False
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        """Note that a request is under way."""
        self._under_way += 1
        self._idle.clear()

    def leave(self) -> None:
        """Note that a request is answered."""
        self._under_way -= 1
        if not self._under_way:
            self._idle.set()

    async def wait(self, timeout_seconds: float) -> None:
        """Wait until no request is under way, but not for ever."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_seconds)
