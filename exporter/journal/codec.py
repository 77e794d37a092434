"""Blobs as they are stored: lines of points joined and compressed, as they are sent too, and others with a checksum."""

import zlib
from typing import Final

from isal import igzip, isal_zlib

_COMPRESSION_LEVEL: Final = 1
_CHECKSUM_BYTES: Final = 4


def compress(lines: list[str]) -> bytes:
    """Join lines and compress them into one gzip member."""
    return pack("\n".join(lines).encode())


def pack(data: bytes) -> bytes:
    """Compress bytes into one gzip member."""
    return bytes(igzip.compress(data, _COMPRESSION_LEVEL))


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
    try:
        return bytes(igzip.decompress(blob))
    except (OSError, EOFError, isal_zlib.error) as error:  # type: ignore[misc]  # its stub says `Any`
        msg = f"damaged: {error}"
        raise ValueError(msg) from error


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
