"""A TCP proxy that cuts connections in the middle of a request or of its answer."""

import asyncio
import contextlib
from dataclasses import dataclass

from tests.support.process import Entered

_CHUNK_BYTES = 4096


@dataclass(frozen=True)
class Cut:
    """Where a connection ends.

    Attributes:
        request_bytes: After so many bytes of the request; None: never.
        answer_bytes: After so many bytes of the answer; None: never.
        keeps_waiting: Whether the client is left without the rest instead of being cut off.
    """

    request_bytes: int | None = None
    answer_bytes: int | None = None
    keeps_waiting: bool = False


class CuttingProxy(Entered):
    """Passes connections on; the first ones are cut as the list says, one after another.

    Attributes:
        cuts: What happens to the next connections.
    """

    def __init__(self, upstream_url: str, cuts: list[Cut]) -> None:
        """Set where to pass connections on to, and the cuts."""
        host, _, port = upstream_url.removeprefix("http://").rpartition(":")
        self._upstream = (host, int(port))
        self.cuts = cuts
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where it listens."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def stop(self) -> None:
        """Stop listening and cut what is left."""
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        cut = self.cuts.pop(0) if self.cuts else Cut()
        task = asyncio.get_running_loop().create_task(self._pass(cut, reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass(self, cut: Cut, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(*self._upstream)
        try:
            there = asyncio.create_task(_copy(reader, upstream_writer, cut.request_bytes))
            back = asyncio.create_task(_copy(upstream_reader, writer, cut.answer_bytes))
            await asyncio.wait([there, back], return_when=asyncio.FIRST_COMPLETED)
            if cut.keeps_waiting:
                await there
            there.cancel()
            back.cancel()
            await asyncio.gather(there, back, return_exceptions=True)
        finally:
            upstream_writer.transport.abort()
            writer.transport.abort() if cut != Cut() else writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most_bytes: int | None) -> None:
    """Copy until the end, or until so many bytes are copied."""
    left = _CHUNK_BYTES if most_bytes is None else most_bytes
    with contextlib.suppress(ConnectionError):
        if most_bytes == 0:
            await reader.read(1)
        while left and (chunk := await reader.read(min(left, _CHUNK_BYTES))):
            writer.write(chunk)
            await writer.drain()
            left = _CHUNK_BYTES if most_bytes is None else left - len(chunk)
