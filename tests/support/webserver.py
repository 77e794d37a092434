"""A small aiohttp server on a fixed port that can go away and come back."""

import asyncio
from abc import abstractmethod

from aiohttp import web

from tests.support.ports import free_port
from tests.support.process import Entered

_MAX_BODY_BYTES = 1 << 30


class WebServer(Entered):
    """An aiohttp application on 127.0.0.1 in the event loop of the test.

    Subclasses add routes in `build`. Request bodies arrive as they were sent, compressed ones too.
    """

    def __init__(self) -> None:
        """Take a port; nothing listens before `start`."""
        self.port = free_port()
        self._runner: web.AppRunner | None = None
        self._stopping = asyncio.Event()

    @property
    def url(self) -> str:
        """The base URL, the same after every start."""
        return f"http://127.0.0.1:{self.port}"

    @abstractmethod
    def build(self, app: web.Application) -> None:
        """Add the routes to a new application."""

    async def start(self) -> None:
        """Listen."""
        assert self._runner is None, f"{type(self).__name__} is already running"
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        self.build(app)
        self._stopping = asyncio.Event()
        self._runner = web.AppRunner(
            app, auto_decompress=False, access_log=None, shutdown_timeout=1.0, handler_cancellation=True
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        """Stop listening and close every connection; calling it again does no harm."""
        self._stopping.set()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def hang(self, seconds: float | None = None) -> None:
        """Wait, at most until the server stops; without a number, until then."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass


def drop_connection(request: web.Request) -> web.Response:
    """Cut the client's connection so that it gets no answer; the response returned is never sent."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
