"""What the service manager is told: ready, reloading, stopping, and signs of life for its watchdog.

The protocol is that of `sd_notify(3)` and `sd_watchdog_enabled(3)`: one datagram of lines for each message. systemd
speaks it; where nobody set `NOTIFY_SOCKET`, nothing is sent.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Self

import structlog

_SEND_TIMEOUT_SECONDS: Final = 1.0
_SIGNS_OF_LIFE: Final = 2  # sent so often in the time that the manager waits for one

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ServiceManager:
    """Who started this process and wants to know how it fares.

    Attributes:
        address: where messages go; empty if nobody wants any.
        watchdog_seconds: without a sign of life for so long, the process is restarted; None: there is no watchdog.
    """

    address: str = ""
    watchdog_seconds: float | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], pid: int) -> Self:
        """Read what the manager asks for.

        Args:
            environ: environment variables.
            pid: this process, because the watchdog of a parent is none of its children's.
        """
        address = environ.get("NOTIFY_SOCKET", "")
        if address[:1] not in {"/", "@"}:
            return cls()
        microseconds = environ.get("WATCHDOG_USEC", "")
        watched = environ.get("WATCHDOG_PID") or str(pid)
        if not microseconds.isdecimal() or int(microseconds) == 0 or watched != str(pid):
            return cls(address)
        return cls(address, int(microseconds) / 1_000_000)

    @contextlib.asynccontextmanager
    async def running(self, status: str, is_alive: Callable[[], Awaitable[bool]]) -> AsyncIterator[None]:
        """Tell that the start is over; on the way out, that the end has begun. In between, send signs of life.

        Args:
            status: a line for `systemctl status`.
            is_alive: whether everything that must go on does; where something hangs, so does the answer, and the signs
                stop.
        """
        self._tell("READY=1", f"STATUS={status}")
        watch = asyncio.create_task(self._watch(is_alive))
        try:
            yield
        finally:
            watch.cancel()
            self._tell("STOPPING=1")

    @contextlib.contextmanager
    def reloading(self) -> Iterator[None]:
        """Tell that settings are being read anew, and when that is over, whatever came of it."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            self._tell("READY=1")

    async def _watch(self, is_alive: Callable[[], Awaitable[bool]]) -> None:
        if self.watchdog_seconds is None:
            return
        while True:
            if await is_alive():
                self._tell("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_seconds / _SIGNS_OF_LIFE)

    def _tell(self, *lines: str) -> None:
        """Send a message; the exporter goes on without a manager that cannot be told."""
        if not self.address:
            return
        address = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(_SEND_TIMEOUT_SECONDS)
                sender.connect(address)  # connected, it waits for room instead of asking again and again
                sender.send("\n".join(lines).encode())
        except OSError as error:
            log.warning("the service manager cannot be told", message=lines[0], error=str(error))
