"""Serving: sockets, signals and the end."""

import asyncio
import contextlib
import functools
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final, cast

import structlog
from aiohttp import web

from exporter import __version__
from exporter.app import Exporter, create_exporter
from exporter.configuration import Source, mask_url
from exporter.connections import Connections, allow_files
from exporter.heap import frozen
from exporter.notify import ServiceManager
from exporter.reload import Reloader
from exporter.settings import Settings, split_address, unix_path
from exporter.tls import Tls, TlsListener

FORCED_EXIT_CODE: Final = 130
_BACKLOG: Final = 1024
_KEEPALIVE_SECONDS: Final = 75.0
_LAST_REPLY_SECONDS: Final = 1.0
_INTERVALS_KEPT_ALIVE: Final = 4.0  # a scraper is known by its connection, also one that is slower than it should be

log = structlog.get_logger()


class ListenError(Exception):
    """An address cannot be listened on."""


async def serve(settings: Settings, source: Source) -> None:
    """Run an exporter until SIGTERM or SIGINT, then drain it; on SIGHUP read settings anew.

    On the way out `/readyz` says so first, and everything is still taken for the shutdown delay, each reply ending its
    connection: so proxies find somebody else before the listeners close. Requests under way are answered, and what can
    be delivered is. A second signal ends the process at once; then, too, nothing that was answered is lost.

    Args:
        settings: what to run.
        source: where they come from.

    Raises:
        ListenError: if an address cannot be listened on.
        SettingsError: if certificate or key cannot be used.
        LockedError: if another process uses the data directory.
        UnusableError: if the journal cannot be opened.
        OSError: if the data directory cannot be made or written.
    """
    with _listening(settings.listen, "EXPORTER_LISTEN") as public, contextlib.ExitStack() as stack:
        private = None
        if settings.metrics_listen is not None:
            private = stack.enter_context(_listening(settings.metrics_listen, "EXPORTER_METRICS_LISTEN"))
        tls = Tls.of(settings)
        fitting = _fit_connections(settings, listeners=1 if private is None else 2)
        stop, hangup = asyncio.Event(), asyncio.Event()
        _handle_signals(stop, hangup)
        async with create_exporter(fitting) as exporter, _serving(settings, exporter, public, private, tls):
            log.info(
                "listening",
                url=_url(public, tls),
                stats_path=settings.stats_path,
                metrics_url=_url(private or public, tls),
                influxdb=None if settings.influx_url is None else mask_url(settings.influx_url),
                version=__version__,
            )
            manager = ServiceManager.from_environment(os.environ, os.getpid())

            def apply(changed: Settings) -> None:
                exporter.apply(changed)  # first: a token is taken back also while a certificate is wrong
                if tls is not None:
                    tls.read()

            reloader = Reloader(settings, source, apply, manager, exporter.telemetry, hangup)
            async with manager.running(f"listening on {_url(public, tls)}", exporter.is_alive), reloader.running():
                await stop.wait()
            exporter.drain.begun = True
            log.info("stopping; a second signal ends the process at once", delay_seconds=settings.shutdown_delay)
            await asyncio.sleep(settings.shutdown_delay)
    log.info("stopped")


def _fit_connections(settings: Settings, listeners: int) -> Settings:
    wanted = settings.max_connections * listeners
    allowed = allow_files(wanted)
    if allowed < wanted:
        log.warning(
            "the system's limit of open files allows fewer connections than EXPORTER_MAX_CONNECTIONS",
            connections=allowed // listeners,
        )
    return settings.model_copy(update={"max_connections": max(allowed // listeners, 1)})


@contextlib.contextmanager
def _listening(address: str, setting: str) -> Iterator[socket.socket]:
    path = unix_path(address)
    with _unix_listener(path, setting) if path is not None else _tcp_listener(address, setting) as listener:
        listener.setblocking(False)  # noqa: FBT003 -- the standard library's signature
        yield listener


@contextlib.contextmanager
def _unix_listener(path: Path, setting: str) -> Iterator[socket.socket]:
    """Listen at a path, whose directory, and the process's umask, say who may connect; it is removed in the end."""
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            _remove_stale(path)
            listener.bind(str(path))
            listener.listen(_BACKLOG)
            made = path.lstat()
        except OSError as error:
            msg = f"{setting}: {path}: {error.strerror or error}"
            raise ListenError(msg) from error
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                # While this exporter drains, the next one may have put its own socket there.
                if os.path.samestat(made, path.lstat()):
                    path.unlink()


def _remove_stale(path: Path) -> None:
    """Remove the socket of a process that was killed; one that somebody listens at stays, as does any other file."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(0)  # who listens and is too busy to take a connection listens
        try:
            client.connect(str(path))
        except BlockingIOError:
            return
        except ConnectionRefusedError:
            path.unlink()


@contextlib.contextmanager
def _tcp_listener(address: str, setting: str) -> Iterator[socket.socket]:
    host, port = split_address(address)
    try:
        family, kind, protocol, _, bound = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        msg = f"{setting}: {address}: {error.strerror or error}"
        raise ListenError(msg) from error
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(bound)
            listener.listen(_BACKLOG)
        except OSError as error:
            msg = f"{setting}: {address}: {error.strerror or error}"
            raise ListenError(msg) from error
        yield listener


@contextlib.asynccontextmanager
async def _serving(
    settings: Settings, exporter: Exporter, public: socket.socket, private: socket.socket | None, tls: Tls | None
) -> AsyncIterator[None]:
    """Serve both applications; on the way out the listeners close first, and requests under way are waited for."""
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(frozen())
        servers: list[asyncio.Server | TlsListener] = []
        for app, connections, listener in zip(
            (exporter.public, exporter.private), exporter.connections, (public, private), strict=True
        ):
            if app is None or listener is None:
                continue
            runner = web.AppRunner(
                app,
                access_log=None,
                auto_decompress=False,
                handle_signals=False,
                logger=exporter.http_log,
                keepalive_timeout=max(_KEEPALIVE_SECONDS, settings.scrape_interval * _INTERVALS_KEPT_ALIVE),
                shutdown_timeout=_LAST_REPLY_SECONDS,
            )
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            servers.append(await _start(connections, cast("web.Server", runner.server), listener, tls))
        yield
        for server in servers:
            server.close()
        await exporter.drain.wait(settings.shutdown_timeout)


async def _start(
    connections: Connections, server: web.Server, listener: socket.socket, tls: Tls | None
) -> asyncio.Server | TlsListener:
    loop = asyncio.get_running_loop()
    make = functools.partial(connections.make, server)
    if listener.family == socket.AF_UNIX:
        return await loop.create_unix_server(make, sock=listener, backlog=_BACKLOG)
    if tls is None:
        return await loop.create_server(make, sock=listener, backlog=_BACKLOG)
    return TlsListener(listener, functools.partial(connections.take, server, tls.context))


def _handle_signals(stop: asyncio.Event, hangup: asyncio.Event) -> None:
    def handle() -> None:
        if stop.is_set():
            log.warning("ended by a second signal; what was answered is on disk")
            os._exit(FORCED_EXIT_CODE)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, handle)
    loop.add_signal_handler(signal.SIGHUP, hangup.set)


def _url(listener: socket.socket, tls: Tls | None) -> str:
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    scheme = "http" if tls is None else "https"
    host, port = listener.getsockname()[:2]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
