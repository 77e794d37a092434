"""The control socket: how the operator's commands have a running exporter change its journal.

A Unix socket in the data directory, which only the exporter's own user, and root, can open. There is one writer of the
journal, always: the process that holds the directory's lock.
"""

import contextlib
import os
import socket
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import structlog
from aiohttp import web

from exporter.chores import ChoreError, Chores
from exporter.group import NotStoredError

SOCKET_NAME: Final = "control.sock"
MAX_BODY_BYTES: Final = 64 << 20
_MAX_PATH_BYTES: Final = 100  # of a socket, which the system bounds
_JSON: Final = "application/json"

log = structlog.get_logger()


class Letters(msgspec.Struct):
    """Which dead letters are meant: ids, or None for all."""

    ids: list[int] | None = None


class Lines(msgspec.Struct):
    """Points to deliver."""

    lines: list[str]


class Device(msgspec.Struct):
    """The ids of a device, as they stand in lines."""

    ids: tuple[str, ...]


_json = msgspec.json.Encoder()


@contextlib.asynccontextmanager
async def controlled(data_dir: Path, chores: Chores, vacuum: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Listen on the control socket; an exporter that cannot goes on without.

    Args:
        data_dir: the directory, whose lock is held.
        chores: what can be asked for.
        vacuum: puts the journal into a new file, and raises ChoreError if it cannot.
    """
    runner = web.AppRunner(_make(chores, vacuum), access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    path = data_dir / SOCKET_NAME
    listener = socket.socket(socket.AF_UNIX)
    try:
        try:
            path.unlink(missing_ok=True)
            with _only_mine(), socket_address(data_dir) as address:
                listener.bind(address)
            await web.SockSite(runner, listener).start()
        except OSError as error:
            log.warning("operators' commands cannot reach this exporter", error=str(error), socket=str(path))
        yield
    finally:
        await runner.cleanup()
        listener.close()
        chores.close()
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def socket_address(data_dir: Path) -> Iterator[str]:
    """Give the address of the control socket; a longer path than the system takes is shortened, where Linux can.

    Raises:
        OSError: if that is not possible.
    """
    path = (data_dir / SOCKET_NAME).absolute()
    if len(os.fsencode(path)) <= _MAX_PATH_BYTES:
        yield str(path)
        return
    directory = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{SOCKET_NAME}"
    finally:
        os.close(directory)


@contextlib.contextmanager
def _only_mine() -> Iterator[None]:
    """Let nobody else open what is made meanwhile."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def _make(chores: Chores, vacuum: Callable[[], Awaitable[None]]) -> web.Application:
    async def retry(request: web.Request) -> object:
        return await chores.retry(msgspec.json.decode(await request.read(), type=Letters).ids)

    async def discard(request: web.Request) -> object:
        return await chores.discard(msgspec.json.decode(await request.read(), type=Letters).ids)

    async def forget(request: web.Request) -> object:
        return await chores.forget(msgspec.json.decode(await request.read(), type=Device).ids)

    async def add(request: web.Request) -> object:
        lines = msgspec.json.decode(await request.read(), type=Lines).lines
        await chores.add(lines)
        return len(lines)

    async def vacuumed(_: web.Request) -> object:
        await vacuum()
        return True

    app = web.Application(client_max_size=MAX_BODY_BYTES)
    handlers = {
        "/dead-letters/retry": retry,
        "/dead-letters/discard": discard,
        "/forget": forget,
        "/points": add,
        "/vacuum": vacuumed,
    }
    app.add_routes([web.post(path, _answering(handler)) for path, handler in handlers.items()])
    return app


def _answering(
    handler: Callable[[web.Request], Awaitable[object]],
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Answer with what a handler gives as JSON, or with why it could not."""

    async def answer(request: web.Request) -> web.Response:
        try:
            return web.Response(body=_json.encode(await handler(request)), content_type=_JSON)
        except msgspec.DecodeError as error:
            return _refuse(400, str(error))
        except (NotStoredError, ChoreError, sqlite3.Error, OSError) as error:
            return _refuse(503, str(error))

    return answer


def _refuse(status: int, reason: str) -> web.Response:
    return web.Response(body=_json.encode({"error": reason}), status=status, content_type=_JSON)
