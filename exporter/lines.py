"""Lines on their way to InfluxDB: texts of whole groups, taken apart only if some lines go without the others."""

from collections.abc import Iterator
from typing import Final, Self

from exporter.journal.codec import pack_all

_TEXTS_AT_ONCE: Final = 32
"""Small ones cost less together, and all of them together would be a copy of many megabytes."""


class Lines:
    """Some lines, in order."""

    __slots__ = ("_count", "_lines", "_texts")

    def __init__(self, texts: list[bytes], count: int) -> None:
        """Take texts of lines, each without a line break at its end, and the number of lines in all of them."""
        self._texts = texts
        self._count = count
        self._lines: list[str] | None = None

    @classmethod
    def of(cls, lines: list[str]) -> Self:
        """Take single lines."""
        made = cls(["\n".join(lines).encode()], len(lines))
        made._lines = lines
        return made

    def __len__(self) -> int:
        """Count the lines."""
        return self._count

    def lines(self) -> list[str]:
        """Give the single lines."""
        if self._lines is None:
            self._lines = [line for text in self._texts for line in text.decode().split("\n")]
        return self._lines

    def part(self, start: int, stop: int) -> "Lines":
        """Give the lines from one number up to another."""
        whole = start <= 0 and stop >= self._count
        return self if whole else Lines.of(self.lines()[start:stop])

    def pack(self) -> bytes:
        """Compress the lines into one gzip member: InfluxDB 3.0 to 3.7 read only the first of several."""
        return pack_all(self._parts())

    def _parts(self) -> Iterator[bytes]:
        for start in range(0, len(self._texts), _TEXTS_AT_ONCE):
            if start:
                yield b"\n"
            yield b"\n".join(self._texts[start : start + _TEXTS_AT_ONCE])
