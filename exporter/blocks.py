"""Blocks: the stored series of a family, some together, with the piece of the page that they made last.

Most series do not change between two scrapes, so a block keeps its piece until one of its series changes. What the
lines have in common is kept besides, compressed while the block is at rest.
"""

from array import array
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from isal import isal_zlib
from prometheus_client.utils import floatToGoString

from exporter.journal.records import Birth
from exporter.pieces import Piece

if TYPE_CHECKING:
    from exporter.series import Series

SUM: Final = "sum"
"""The last label of the series that holds a histogram's sum; it stands behind the buckets."""

_SERIES_A_BLOCK: Final = 256  # 30 µs of work for the page, 300 µs when the template is made

_FULL: Final = Birth.FULL  # an enumeration's members take long to look up


class Block:
    """Some series of one family.

    Attributes:
        series: the series, in the order of their storing.
    """

    __slots__ = ("_is_born", "_packed", "_pieces", "_template", "_values", "series")

    def __init__(self) -> None:
        """Start without any series; text is made when it is first needed."""
        self.series: list[Series] = []
        self._values = array("q")  # those of the series, side by side: to gather them takes longer than to write them
        self._pieces: dict[bool, Piece] = {}
        self._is_born: bool | None = None
        self._template: bytes | None = None
        self._packed: bytes | None = None

    @property
    def is_full(self) -> bool:
        """Whether the next series goes into another block."""
        return len(self.series) >= _SERIES_A_BLOCK

    def add(self, series: "Series") -> None:
        """Take one more series."""
        series.block = self
        series.place = len(self.series)
        self.series.append(series)
        self._values.append(series.value)
        self._forget_template()

    def remove(self, gone: Container["Series"]) -> None:
        """Take series out, also of a page that is being rendered."""
        self.series = [each for each in self.series if each not in gone]
        self._values = array("q", [each.value for each in self.series])
        for place, each in enumerate(self.series):
            each.place = place
        self._forget_template()

    def note_value(self, place: int, value: int) -> None:
        """Take another value of a series, and forget what was written."""
        self._values[place] = value
        self._pieces.clear()

    def note_birth(self) -> None:
        """Forget what was written: more of a series may be shown."""
        self._pieces.clear()
        self._is_born = None

    def piece(self, *, to_scraper: bool) -> Piece:
        """Give the lines of the page, as a scraper may see them, or everyone else."""
        to_scraper = to_scraper and not self._all_born()  # once all are born a scraper is shown what everyone is
        piece = self._pieces.get(to_scraper)
        if piece is None:
            piece = self._pieces[to_scraper] = Piece(self._lines(to_scraper=to_scraper))
        else:
            self._template = None  # at rest
        return piece

    def _all_born(self) -> bool:
        if self._is_born is None:
            self._is_born = all(each.birth is _FULL for each in self.series)
        return self._is_born

    def _lines(self, *, to_scraper: bool) -> bytes:
        template = self._open_template()
        values = self._shown_values(to_scraper=to_scraper)
        if to_scraper and None in values:
            lines = zip(template.split(b"\n"), values, strict=False)  # behind the last line break there is nothing
            template = b"".join([line + b"\n" for line, value in lines if value is not None])
            values = [value for value in values if value is not None]
        return template % tuple(values)

    def _shown_values(self, *, to_scraper: bool) -> Sequence[object]:
        """Give what stands in each line of the template; None if the line must not appear."""
        if not to_scraper:
            return self._values
        return [shown_value(each, to_scraper=True) for each in self.series]

    def _template_of(self, series: "Series") -> str:
        """Write the line of a series with a place for the value."""
        family = series.family
        return f"{_template_text(family.sample_name, family.labels, series.labels)}%d\n"

    def _open_template(self) -> bytes:
        if self._template is not None:
            return self._template
        if self._packed is None:
            template = "".join([self._template_of(each) for each in self.series]).encode()
            self._packed = isal_zlib.compress(template, 1)
            return template
        # It changes while it is looked at, and may again before the next page.
        self._template = isal_zlib.decompress(self._packed)
        return self._template

    def _forget_template(self) -> None:
        self.note_birth()
        self._template = None
        self._packed = None


class HistogramBlock(Block):
    """Series of some whole histograms; each one's stand together, the sum at their end."""

    __slots__ = ()

    @property
    def is_full(self) -> bool:
        """Whether the next series goes into another block."""
        return super().is_full and self.series[-1].labels[-1] == SUM

    def _shown_values(self, *, to_scraper: bool) -> Sequence[object]:
        values: list[object] = []
        histogram: list[Series] = []
        for each in self.series:
            histogram.append(each)
            if each.labels[-1] == SUM:
                found = histogram_values(histogram, to_scraper=to_scraper)
                if found is None:
                    values += [None] * (len(histogram) + 1)
                else:
                    values += found[:-1]
                    values += (found[-2], floatToGoString(found[-1] / 1000).encode())
                histogram = []
        return values

    def _template_of(self, series: "Series") -> str:
        family, labels = series.family, series.labels
        if labels[-1] != SUM:
            return f"{_template_text(f'{family.name}_bucket', (*family.labels, 'le'), labels)}%d\n"
        count, total = (_template_text(f"{family.name}_{each}", family.labels, labels[:-1]) for each in ("count", SUM))
        return f"{count}%d\n{total}%b\n"


class Blocks:
    """All stored series of one family."""

    __slots__ = ("_blocks", "_kind")

    def __init__(self, kind: type[Block]) -> None:
        """Start without any."""
        self._kind = kind
        self._blocks: list[Block] = []

    def __iter__(self) -> Iterator[Block]:
        """Give the blocks that there are now."""
        return iter(self._blocks.copy())

    def add(self, series: "Series") -> None:
        """Take a series that is stored."""
        if not self._blocks or self._blocks[-1].is_full:
            self._blocks.append(self._kind())
        self._blocks[-1].add(series)

    def drop_empty(self) -> None:
        """Let go of blocks without series."""
        self._blocks = [block for block in self._blocks if block.series]


def shown_value(series: "Series", *, to_scraper: bool) -> int | None:
    """Give the value that may be shown of a series: None if it must not appear at all."""
    if not to_scraper or series.birth is _FULL:
        return series.value
    return 0 if series.birth is Birth.ZERO else None


def histogram_values(histogram: Iterable["Series"], *, to_scraper: bool) -> list[int] | None:
    """Give a histogram's cumulative counts and, at the end, its sum in milliseconds; None if it must not appear."""
    values: list[int] = []
    count = 0
    for series in histogram:
        value = shown_value(series, to_scraper=to_scraper)
        if value is None:
            return None
        count += value
        values.append(count)
    values[-1] = count - values[-2]
    return values


def sample_text(name: str, label_names: Iterable[str], values: Iterable[str]) -> str:
    """Write a sample's name and labels in the exposition formats, with the space before the value."""
    return f"{name}{{{label_text(label_names, values)}}} "


def label_text(names: Iterable[str], values: Iterable[str]) -> str:
    """Write labels as they stand between the braces of the exposition formats."""
    escaped = (value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for value in values)
    return ",".join([f'{name}="{value}"' for name, value in zip(names, escaped, strict=True)])


def _template_text(name: str, label_names: Iterable[str], values: Iterable[str]) -> str:
    return sample_text(name, label_names, values).replace("%", "%%")
