"""Pieces of the page: text, or that text compressed for itself, so that one that has not changed is used again.

Each piece is compressed without looking at what stands before it, and ends at a whole byte. So pieces of any age make
one gzip member, in any order; it is a tenth larger than if all had been compressed together.
"""

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Final

from isal import isal_zlib

_LEVEL: Final = 1
_RAW: Final = -15  # a window of 32 KiB, without header and trailer
_HEADER: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # gzip, deflate; neither time nor name
_LAST_BLOCK: Final = b"\x03\x00"  # an empty one
_TRAILER: Final = Struct("<II")
_MAX_SIZE: Final = 1 << 32
_BYTES_AT_ONCE: Final = 1 << 16


class Piece:
    """A piece of the page.

    Attributes:
        size: bytes of its text.
    """

    __slots__ = ("_deflated", "_text", "size")

    def __init__(self, text: bytes) -> None:
        """Take a text, of whole lines."""
        self.size = len(text)
        self._text: bytes | None = text
        self._deflated: tuple[bytes, int] | None = None

    @property
    def is_deflated(self) -> bool:
        """Whether it is compressed already."""
        return self._deflated is not None

    @property
    def text(self) -> bytes:
        """Its text; while it is asked for, another thread may compress it."""
        text = self._text
        return isal_zlib.decompressobj(_RAW).decompress(self.deflated()[0]) if text is None else text

    def deflated(self) -> tuple[bytes, int]:
        """Give the compressed text, and the checksum of the text, which is let go of; on one thread at a time."""
        if self._deflated is None:
            text = self.text
            stream = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _RAW)
            deflated = stream.compress(text) + stream.flush(isal_zlib.Z_FULL_FLUSH)
            self._deflated = deflated, isal_zlib.crc32(text)
            self._text = None
        return self._deflated


def gzip_member(pieces: Iterable[Piece]) -> list[bytes]:
    """Put pieces together to one gzip member, in parts of a size that is good to send."""
    return list(_joined(_stream(pieces)))


def _stream(pieces: Iterable[Piece]) -> Iterator[bytes]:
    checksum = size = 0
    yield _HEADER
    for piece in pieces:
        deflated, own = piece.deflated()
        checksum = isal_zlib.crc32_combine(checksum, own, piece.size)
        size += piece.size
        yield deflated
    yield _LAST_BLOCK
    yield _TRAILER.pack(checksum, size % _MAX_SIZE)


def _joined(parts: Iterable[bytes]) -> Iterator[bytes]:
    waiting: list[bytes] = []
    size = 0
    for part in parts:
        waiting.append(part)
        size += len(part)
        if size >= _BYTES_AT_ONCE:
            yield b"".join(waiting)
            waiting, size = [], 0
    yield b"".join(waiting)
