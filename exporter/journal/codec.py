"""Blobs as they are stored: lines of points joined and compressed, as they are sent too, and others with a checksum."""

import zlib
from collections.abc import Iterable
from typing import Final

from isal import isal_zlib

_COMPRESSION_LEVEL: Final = 1
_GZIP_WINDOW_BITS: Final = 31
_CHECKSUM_BYTES: Final = 4


def compress(lines: list[str]) -> bytes:
    """Join lines and compress them into one gzip member."""
    return pack("\n".join(lines).encode())


def pack(data: bytes) -> bytes:
    """Compress bytes into one gzip member."""
    return bytes(isal_zlib.compress(data, _COMPRESSION_LEVEL, _GZIP_WINDOW_BITS))


def pack_all(parts: Iterable[bytes]) -> bytes:
    """Compress bytes that come in parts into one gzip member."""
    member = isal_zlib.compressobj(_COMPRESSION_LEVEL, isal_zlib.DEFLATED, _GZIP_WINDOW_BITS)
    pieces = [member.compress(part) for part in parts]
    pieces.append(member.flush())
    return b"".join(pieces)


def decompress(blob: bytes) -> list[str]:
    """Give the lines of one gzip member.

    Raises:
        ValueError: if the bytes are damaged.
    """
    return unpack(blob).decode().split("\n")


def unpack(blob: bytes) -> bytes:
    """Give the bytes of one gzip member.

    Raises:
        ValueError: if they are damaged.
    """
    member = isal_zlib.decompressobj(_GZIP_WINDOW_BITS)
    try:
        data = member.decompress(blob)
    except isal_zlib.error as error:  # type: ignore[misc]  # its stub says `Any`
        msg = f"damaged: {error}"
        raise ValueError(msg) from error
    if not member.eof or member.unused_data:
        msg = "damaged: it is cut off" if not member.eof else "damaged: something follows"
        raise ValueError(msg)
    return bytes(data)


def seal(data: bytes) -> bytes:
    """Put a CRC-32 before bytes that would not get shorter by compression."""
    return zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "little") + data


def unseal(blob: bytes) -> bytes:
    """Give the bytes behind their checksum.

    Raises:
        ValueError: if they are damaged.
    """
    data = blob[_CHECKSUM_BYTES:]
    if seal(data) != blob:
        msg = f"damaged: the checksum of {len(blob)} bytes does not match"
        raise ValueError(msg)
    return data
