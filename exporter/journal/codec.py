"""Lines of points as they are stored and sent: joined, and compressed into one gzip member."""

from typing import Final

from isal import igzip, isal_zlib

_COMPRESSION_LEVEL: Final = 1


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
