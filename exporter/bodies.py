"""Request bodies: read whole, decompressed within a bound."""

import asyncio
import zlib
from typing import Final

from aiohttp import StreamReader, web

LONGEST_SECONDS: Final = 120.0
"""A phone on a bad network may need a minute for a large batch; whoever needs longer sends it again."""

LARGE_BYTES: Final = 1 << 20
"""More is decompressed, and read, beside the event loop: it takes so long that others want to be answered meanwhile."""

_WINDOWS: Final = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # zlib's wbits: gzip and zlib containers
_RAW_DEFLATE: Final = -15
_ZLIB_METHOD: Final = 8
_SMALL_BYTES: Final = 64 << 10
"""Nearly all bodies are smaller; of those, EXPORTER_MAX_CONNECTIONS is the bound."""

_LARGE_BODIES: Final = 4
"""Larger ones may together take as much as so many of the largest."""

_TOO_LARGE: Final = "too_large"
_MAX_MEMBERS: Final = 16
"""Each member copies what follows it: a body of a million empty ones would take minutes."""


class BodyError(Exception):
    """A body cannot be read.

    Attributes:
        status: the HTTP status of the reply.
        reason: the reason, as the metrics name it.
        error: the error code of the reply.
        message: the message of the reply.
    """

    def __init__(self, status: int, reason: str, error: str, message: str) -> None:
        """Keep what the reply says."""
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.error = error
        self.message = message


class BodyReader:
    """Reads bodies whole, and bounds what all of them take together, from their first byte to their reply.

    They are the one thing that many slow senders, or a slow disk, could make as large as they like.
    """

    def __init__(self, max_bytes: int, *, longest_seconds: float = LONGEST_SECONDS) -> None:
        """Set the bounds.

        Args:
            max_bytes: of one body, before and after decompression.
            longest_seconds: longest time from a request's head to the end of its body.
        """
        self._max_bytes = max_bytes
        self._room = max_bytes * _LARGE_BODIES
        self._longest_seconds = longest_seconds

    async def read(self, request: web.Request) -> tuple[bytes, int]:
        """Read the body of a request, and decompress it if it says that it is compressed.

        The server must run without automatic decompression.

        Returns:
            The body, and the room that it takes until `give_back`.

        Raises:
            BodyError: if the body is larger than allowed, before or after decompression, is not what its encoding says,
                takes too long, or too many others are on their way.
        """
        body = await self._receive(request.content)
        encoding = request.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in {"", "identity"}:
            if encoding not in _WINDOWS:
                raise BodyError(
                    415,
                    "invalid_encoding",
                    "unsupported_content_encoding",
                    "Content-Encoding must be gzip, deflate or identity",
                )
            body = await self._decompress(body, encoding)
        if len(body) <= _SMALL_BYTES:
            return body, 0
        self._take(len(body))
        return body, len(body)

    def give_back(self, taken: int) -> None:
        """Give the room of a body to others."""
        self._room += taken

    async def _decompress(self, body: bytes, encoding: str) -> bytes:
        """Decompress; nobody knows how large that will be, so a large one needs room for the largest."""
        try:
            return decompress(body, encoding, min(LARGE_BYTES, self._max_bytes))
        except BodyError as error:
            if error.reason != _TOO_LARGE or self._max_bytes <= LARGE_BYTES:
                raise
        self._take(self._max_bytes)
        try:
            return await asyncio.to_thread(decompress, body, encoding, self._max_bytes)
        finally:
            self._room += self._max_bytes

    async def _receive(self, content: StreamReader) -> bytes:
        try:
            if content.is_eof():
                body = content.read_nowait()  # it came with the head
            else:
                async with asyncio.timeout(self._longest_seconds):
                    body = await self._receive_slowly(content)
        except TimeoutError:
            raise BodyError(503, "too_slow", "unavailable", "The body took too long; send it again") from None
        except ConnectionResetError:  # With phones that is no error worth a log line; nobody is left to answer.
            raise web.HTTPBadRequest(reason="Incomplete body") from None
        if len(body) > self._max_bytes:
            raise _too_large(self._max_bytes)
        return body

    async def _receive_slowly(self, content: StreamReader) -> bytes:
        received = bytearray()
        taken = 0
        try:
            async for chunk in content.iter_any():
                received += chunk
                if len(received) > self._max_bytes:
                    raise _too_large(self._max_bytes)
                if len(received) > _SMALL_BYTES:
                    self._take(len(received) - taken)
                    taken = len(received)
        finally:
            self._room += taken
        return bytes(received)

    def _take(self, size: int) -> None:
        if size > self._room:
            raise BodyError(503, "no_room", "unavailable", "Too many large bodies are on their way; send it again")
        self._room -= size


def decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Decompress a body; `deflate` may be with or without zlib's header, as both are found in the wild.

    Raises:
        BodyError: if it is larger than `max_bytes` after decompression, damaged or cut off.
    """
    window = _WINDOWS[encoding]
    if encoding == "deflate" and body and body[0] & 0x0F != _ZLIB_METHOD:
        window = _RAW_DEFLATE
    parts: list[bytes] = []
    room = max_bytes + 1
    try:
        for _ in range(_MAX_MEMBERS):
            if not body:
                break
            stream = zlib.decompressobj(window)
            part = stream.decompress(body, room)
            parts.append(part)
            room -= len(part)
            if room <= 0:
                raise _too_large(max_bytes)
            if not stream.eof:
                raise zlib.error("cut off")  # noqa: TRY003, EM101, TRY301 -- zlib's own error, as for any other damage
            body = stream.unused_data
        if body:
            raise zlib.error("too many members")  # noqa: TRY003, EM101, TRY301 -- as for any other damage
    except zlib.error as error:
        raise BodyError(
            400, "invalid_encoding", "invalid_content_encoding", f"The body is not valid {encoding}: {error}"
        ) from None
    return b"".join(parts)


def _too_large(max_bytes: int) -> BodyError:
    return BodyError(413, _TOO_LARGE, "body_too_large", f"The body is larger than {max_bytes} bytes")
