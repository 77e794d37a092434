"""Request bodies: read whole, decompressed within a bound."""

import zlib
from typing import Final

from aiohttp import web

_WINDOWS: Final = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # zlib's wbits: gzip and zlib containers
_RAW_DEFLATE: Final = -15
_ZLIB_METHOD: Final = 8
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


async def read_body(request: web.Request, max_bytes: int) -> bytes:
    """Read the body of a request, and decompress it if it says that it is compressed.

    The server must run without automatic decompression.

    Raises:
        BodyError: if the body is larger than `max_bytes`, before or after decompression, or is not what its encoding
            says.
    """
    try:
        body = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(max_bytes) from None
    except ConnectionResetError:  # With phones that is no error worth a log line; nobody is left to answer.
        raise web.HTTPBadRequest(reason="Incomplete body") from None
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding in {"", "identity"}:
        return body
    if encoding not in _WINDOWS:
        raise BodyError(
            415,
            "invalid_encoding",
            "unsupported_content_encoding",
            "Content-Encoding must be gzip, deflate or identity",
        )
    return decompress(body, encoding, max_bytes)


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
    return BodyError(413, "too_large", "body_too_large", f"The body is larger than {max_bytes} bytes")
