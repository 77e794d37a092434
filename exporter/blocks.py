"""Blocks: the stored series of a family, some together, with the text of their lines kept for the page."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from exporter.journal.records import Birth

if TYPE_CHECKING:
    from exporter.series import Series

_SERIES_A_BLOCK: Final = 256  # 30 µs of work for the page, 300 µs when the text is made

_FULL: Final = Birth.FULL  # an enumeration's members take long to look up


class Block:
    """Some series of one family.

    Attributes:
        series: the series, in the order of their storing.
    """

    __slots__ = ("_template", "series")

    def __init__(self, series: list["Series"]) -> None:
        """Take series; their text is made when it is first needed."""
        self.series = series
        self._template: bytes | None = None

    def add(self, series: "Series") -> None:
        """Take one more series."""
        self.series.append(series)
        self._template = None

    def remove(self, gone: set["Series"]) -> None:
        """Take series out, also of a page that is being rendered."""
        if not gone.isdisjoint(self.series):
            self.series = [each for each in self.series if each not in gone]
            self._template = None

    def lines(self, *, to_scraper: bool) -> bytes:
        """Write the lines of the page, as a scraper may see them, or everyone else."""
        if self._template is None:
            self._template = b"".join([_template(each) for each in self.series])
        if not to_scraper:
            return self._template % tuple([each.value for each in self.series])
        values = [each.value for each in self.series if each.birth is _FULL]
        if len(values) == len(self.series):
            return self._template % tuple(values)
        shown = [shown_value(each, to_scraper=True) for each in self.series]
        lines = zip(self._template.split(b"\n"), shown, strict=False)  # behind the last line break there is nothing
        template = b"".join([line + b"\n" for line, value in lines if value is not None])
        return template % tuple([value for value in shown if value is not None])


class Blocks:
    """All stored series of one family."""

    __slots__ = ("_blocks",)

    def __init__(self) -> None:
        """Start without any."""
        self._blocks: list[Block] = []

    def __iter__(self) -> Iterator[Block]:
        """Give the blocks that there are now."""
        return iter(self._blocks.copy())

    def add(self, series: "Series") -> None:
        """Take a series that is stored."""
        if self._blocks and len(self._blocks[-1].series) < _SERIES_A_BLOCK:
            self._blocks[-1].add(series)
        else:
            self._blocks.append(Block([series]))

    def remove(self, gone: set["Series"]) -> None:
        """Take series out."""
        for block in self._blocks:
            block.remove(gone)
        self._blocks = [block for block in self._blocks if block.series]


def shown_value(series: "Series", *, to_scraper: bool) -> int | None:
    """Give the value that may be shown of a series: None if it must not appear at all."""
    if not to_scraper or series.birth is Birth.FULL:
        return series.value
    return 0 if series.birth is Birth.ZERO else None


def sample_text(name: str, label_names: Iterable[str], values: Iterable[str]) -> str:
    """Write a sample's name and labels in the exposition formats, with the space before the value."""
    return f"{name}{{{label_text(label_names, values)}}} "


def label_text(names: Iterable[str], values: Iterable[str]) -> str:
    """Write labels as they stand between the braces of the exposition formats."""
    escaped = (value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for value in values)
    return ",".join([f'{name}="{value}"' for name, value in zip(names, escaped, strict=True)])


def _template(series: "Series") -> bytes:
    text = sample_text(series.family.sample_name, series.family.labels, series.labels)
    return text.replace("%", "%%").encode() + b"%d\n"
