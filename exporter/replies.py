"""The reply that nearly every POST gets: its bytes are known beforehand, and are written at once.

aiohttp needs longer to put a reply's head together than an event needs to be staged.
"""

from typing import Final

from aiohttp import ClientConnectionResetError, HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE

JSON: Final = "application/json"


class ReadyReply(web.StreamResponse):
    """A 200 with JSON for requests that `fits` allows; one object answers any number of them."""

    def __init__(self, body: bytes, *, closes: bool) -> None:
        """Set the body, and whether the connection ends with the reply."""
        super().__init__()
        self._content = body
        lines = [
            "HTTP/1.1 200 OK",
            f"Content-Type: {JSON}",
            f"Content-Length: {len(body)}",
            f"Server: {SERVER_SOFTWARE}",
        ]
        self._head = "".join(f"{line}\r\n" for line in lines).encode()
        self._closes = closes

    @staticmethod
    def fits(request: web.Request) -> bool:
        """Tell whether the usual head is right for a request: HTTP/1.1."""
        return request.version == HttpVersion11

    @property
    def keep_alive(self) -> bool:
        """Whether the connection stays open."""
        return not self._closes

    def force_close(self) -> None:
        """Let this reply, and every later one of this object, end its connection: the exporter is stopping."""
        self._closes = True

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send the reply."""
        transport = request.transport
        if transport is None or transport.is_closing():
            msg = "the client is gone"
            raise ClientConnectionResetError(msg)
        close = b"Connection: close\r\n" if self._closes else b""
        date = f"Date: {rfc822_formatted_time()}\r\n\r\n".encode()
        transport.write(b"".join((self._head, close, date, self._content)))
        await request.writer.drain()
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing more: all is sent."""
