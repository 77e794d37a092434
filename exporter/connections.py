"""Connections: how many there may be, and which one goes when one more comes.

A client that connects and sends nothing, or sends its request byte by byte, holds a connection as long as it likes: a
few thousand of those must not keep a good client out. So a newcomer gets in at the cost of whoever has been idle
longest; if nobody is idle, of the request that has been under way longest, if that is too long. With TLS, a connection
counts from the moment it is accepted: one that never ends its handshake is as idle as any.
"""

import asyncio
import contextlib
import resource
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Final, cast

from aiohttp import web

from exporter.clock import Clock
from exporter.telemetry import Telemetry

SLOW_SECONDS: Final = 2.0
"""A request that has been under way for so long may lose its connection to a newcomer."""

RESERVED_FILES: Final = 64
"""File descriptors for the journal, for InfluxDB, for listening and for the unforeseen."""

_HANDSHAKE_SECONDS: Final = 10.0


class Connections:
    """The open connections of a listener."""

    def __init__(self, limit: int, telemetry: Telemetry, clock: Clock) -> None:
        """Start with none.

        Args:
            limit: how many there may be.
            telemetry: where the number of open and closed ones is shown.
            clock: our own time.
        """
        self._limit = limit
        self._telemetry = telemetry
        self._clock = clock
        self._open: dict[web.RequestHandler, _Connection] = {}
        # Dictionaries keep their order: the first one has been there longest.
        self._idle: dict[_Connection, None] = {}
        self._busy: dict[_Connection, float] = {}

    @property
    def idle(self) -> int:
        """How many have no request under way; a TLS handshake is none."""
        return len(self._idle)

    @property
    def busy(self) -> int:
        """How many have one."""
        return len(self._busy)

    def make(self, server: web.Server) -> "_Connection":
        """Make the protocol of a new connection."""
        return _Connection(self, server())

    def take(self, server: web.Server, context: ssl.SSLContext, client: socket.socket) -> None:
        """Take a connection that was just accepted, and on which TLS is to be spoken."""
        connection = _Connection(self, server())
        if self.admit(connection):
            connection.shake_hands(context, client)
        else:
            client.close()

    def begin(self, handler: web.RequestHandler) -> None:
        """Note that a request has come whole but for its body."""
        connection = self._open.get(handler)
        if connection is not None:
            self._idle.pop(connection, None)
            self._busy[connection] = self._clock.monotonic()

    def end(self, handler: web.RequestHandler) -> None:
        """Note that a request is answered."""
        connection = self._open.get(handler)
        if connection is not None:
            self._busy.pop(connection, None)
            self._idle[connection] = None

    @contextlib.asynccontextmanager
    async def sending(self, handler: web.RequestHandler, timeout_seconds: float) -> AsyncIterator[None]:
        """Let a long reply be sent within; until it is, its request is under way.

        Raises:
            ConnectionResetError: if the client does not read it in time; it has lost its connection.
        """
        self.begin(handler)
        try:
            async with asyncio.timeout(timeout_seconds):
                yield
        except TimeoutError:
            self._telemetry.connections_closed["unread"].inc()
            self._telemetry.notices.warn("a client did not read the page in time; its connection is closed")
            if handler.transport is not None:
                handler.transport.abort()
            msg = f"the reply was not read within {timeout_seconds} s"
            raise ConnectionResetError(msg) from None
        finally:
            self.end(handler)

    def admit(self, connection: "_Connection") -> bool:
        """Take a new connection, if there is room or somebody to make room."""
        if len(self._open) >= self._limit and not self._make_room():
            self._note("refused")
            return False
        self._open[connection.handler] = connection
        self._idle[connection] = None
        return True

    def forget(self, connection: "_Connection") -> None:
        """Note that a connection is gone."""
        self._open.pop(connection.handler, None)
        self._idle.pop(connection, None)
        self._busy.pop(connection, None)

    def _note(self, reason: str) -> None:
        self._telemetry.connections_closed[reason].inc()
        self._telemetry.notices.warn("EXPORTER_MAX_CONNECTIONS is reached; connections are closed", reason)

    def _make_room(self) -> bool:
        reason = "idle"
        victim = next(iter(self._idle), None)
        if victim is None:
            reason = "slow"
            victim, since = next(iter(self._busy.items()))
            if self._clock.monotonic() - since < SLOW_SECONDS:
                return False
        self._note(reason)
        self.forget(victim)
        victim.abort()
        return True


class _Connection(asyncio.Protocol):
    """Stands between the event loop and aiohttp's protocol, and tells when a connection begins and ends."""

    def __init__(self, connections: Connections, handler: web.RequestHandler) -> None:
        self.handler = handler
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._handshake: asyncio.Task[object] | None = None
        self._is_admitted = False
        # Straight through: these are called for every packet.
        self.data_received = handler.data_received  # type: ignore[method-assign]
        self.eof_received = handler.eof_received  # type: ignore[method-assign]
        self.pause_writing = handler.pause_writing  # type: ignore[method-assign]
        self.resume_writing = handler.resume_writing  # type: ignore[method-assign]

    def abort(self) -> None:
        """Close the connection at once; what is still to be sent is dropped."""
        if self._transport is not None:
            self._transport.abort()
        elif self._handshake is not None:
            self._handshake.cancel()

    def shake_hands(self, context: ssl.SSLContext, client: socket.socket) -> None:
        """Begin TLS on an accepted connection that was let in; `connection_made` comes when its handshake is done."""
        self._is_admitted = True
        loop = asyncio.get_running_loop()
        self._handshake = loop.create_task(
            loop.connect_accepted_socket(lambda: self, client, ssl=context, ssl_handshake_timeout=_HANDSHAKE_SECONDS)
        )
        self._handshake.add_done_callback(lambda handshake: self._end_handshake(handshake, client))

    def _end_handshake(self, handshake: "asyncio.Task[object]", client: socket.socket) -> None:
        self._handshake = None
        if self._transport is None:
            self._connections.forget(self)
            client.close()
        elif handshake.cancelled():  # it was done just when its place was needed
            self._transport.abort()
        # Not TLS, too slow, gone, or its place was needed: none of it is worth a line in the log.
        with contextlib.suppress(OSError, asyncio.CancelledError):
            handshake.result()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let the connection in, or close it."""
        self._transport = cast("asyncio.Transport", transport)
        self._is_admitted = self._is_admitted or self._connections.admit(self)
        if self._is_admitted:
            self.handler.connection_made(transport)
        else:
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Forget the connection."""
        if self._is_admitted:
            self._connections.forget(self)
            self.handler.connection_lost(error)


def allow_files(connections: int) -> int:
    """Let the process open as many files as so many connections need, and give how many connections that allows."""
    wanted = connections + RESERVED_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return max(allowed - RESERVED_FILES, 1)
