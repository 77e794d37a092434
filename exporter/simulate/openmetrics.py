"""Recorded pages as one OpenMetrics text with times, for `promtool tsdb create-blocks-from openmetrics`.

Every sample of every page would be gigabytes, of which hardly anything changes. So a constant series is thinned out:
its samples around each change are all written, those in between only now and then.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TextIO

from exporter.blocks import label_text

_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 86_400_000
_OFTEN_AFTER_CHANGE_MS: Final = 6 * _HOUR_MS
_LOOKBACK_MS: Final = 300_000
"""Prometheus finds no value for a moment without a sample in the five minutes before."""

_ALWAYS: Final = frozenset({"up"})


@dataclass(slots=True)
class _Series:
    """What changed when: indices of scrapes, and the values from then on; None: it was not there."""

    family: str
    text: str
    changes: list[int] = field(default_factory=list)
    values: list[str | None] = field(default_factory=list)


@dataclass(slots=True)
class _Part:
    """Families that are scraped together.

    Attributes:
        around: so many samples are kept on either side of a change.
        times_ms: of the scrapes.
        often, seldom: indices of scrapes at which constant series are written, when they changed lately or long ago.
        lines: of the last page.
        series: by the text before the value.
    """

    around: int
    times_ms: list[int] = field(default_factory=list)
    often: list[int] = field(default_factory=list)
    seldom: list[int] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    series: dict[str, _Series] = field(default_factory=dict)


class Recorder:
    """Takes pages, and writes them as one text."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        """Set the labels that a scrape would add, such as `job` and `instance`."""
        self._labels = label_text(labels, labels.values())
        self._metadata: dict[str, list[str]] = {}
        self._owner: dict[str, str] = {}
        self._parts: dict[str, _Part] = {}

    @property
    def series(self) -> int:
        """Count the series."""
        return sum(len(part.series) for part in self._parts.values())

    def record(self, name: str, page: str, at_ms: int, *, around: int, is_fine: bool) -> None:
        """Take a page, or a part of one.

        Args:
            name: of the part; a family belongs to the part that had it first.
            page: in OpenMetrics.
            at_ms: when it was scraped, in milliseconds since 1970; later than the one before.
            around: so many samples are kept on either side of a change.
            is_fine: whether scrapes come so close that a constant series must not be left out for long.
        """
        part = self._parts.setdefault(name, _Part(around))
        index = len(part.times_ms)
        part.times_ms.append(at_ms)
        often_ms, seldom_ms = (_LOOKBACK_MS // 5 * 2, _LOOKBACK_MS // 5 * 4) if is_fine else (_HOUR_MS, _DAY_MS)
        if at_ms % often_ms == 0:
            part.often.append(index)
        if at_ms % seldom_ms == 0:
            part.seldom.append(index)
        lines = page.split("\n")
        if len(lines) != len(part.lines) or not self._note_changes(part, index, lines):
            self._note_all(name, part, index, lines)
        part.lines = lines

    def write(self, file: TextIO) -> int:
        """Write everything, family by family.

        Returns:
            The number of samples.
        """
        families: dict[str, list[tuple[_Part, _Series]]] = {family: [] for family in self._metadata}
        stamps: dict[str, list[str]] = {}
        for name, part in self._parts.items():
            stamps[name] = [
                f" {at_ms / 1000:.3f}\n" if at_ms % 1000 else f" {at_ms // 1000}\n" for at_ms in part.times_ms
            ]
            for series in part.series.values():
                families[series.family].append((part, series))
        count = 0
        for family, members in families.items():
            if not members:
                continue
            file.write("".join(f"{line}\n" for line in self._metadata[family]))
            times = stamps[self._owner[family]]
            is_gauge = any(line == f"# TYPE {family} gauge" for line in self._metadata[family])
            for part, series in members:
                lines = [
                    f"{series.text}{value}{times[index]}" for index, value in _samples(part, series, is_gauge=is_gauge)
                ]
                count += len(lines)
                file.write("".join(lines))
        file.write("# EOF\n")
        return count

    def _note_changes(self, part: _Part, index: int, lines: list[str]) -> bool:
        """Note which values changed; False if the page has other lines than the one before."""
        changed: list[tuple[_Series, str]] = []
        for before, line in zip(part.lines, lines, strict=True):
            if before == line:
                continue
            text, _, value = line.rpartition(" ")
            series = part.series.get(text)
            if before.rpartition(" ")[0] != text or line.startswith("#"):
                return False
            if series is not None:  # else it belongs to another part
                changed.append((series, value))
        for series, value in changed:
            series.changes.append(index)
            series.values.append(value)
        return True

    def _note_all(self, name: str, part: _Part, index: int, lines: list[str]) -> None:
        """Note a page that has new lines, or lacks some."""
        family = ""
        is_ours = False
        seen: set[str] = set()
        for line in lines:
            if line.startswith("#"):
                _, kind, family, *_ = [*line.split(" ", 3), "", ""]
                if kind in {"HELP", "TYPE", "UNIT"}:
                    is_ours = self._owner.setdefault(family, name) == name
                    known = self._metadata.setdefault(family, [])
                    if is_ours and line not in known:
                        known.append(line)
                continue
            text, _, value = line.rpartition(" ")
            if not text or not is_ours:
                continue
            seen.add(text)
            series = part.series.get(text)
            if series is None:
                series = part.series[text] = _Series(family, self._labelled(text))
            if not series.values or series.values[-1] != value:
                series.changes.append(index)
                series.values.append(value)
        for text, series in part.series.items():
            if text not in seen and series.values[-1] is not None:
                series.changes.append(index)
                series.values.append(None)

    def _labelled(self, text: str) -> str:
        name, brace, rest = text.partition("{")
        if not brace:
            return f"{name}{{{self._labels}}} "
        return f"{name}{{{self._labels},{rest} "


def _samples(part: _Part, series: _Series, *, is_gauge: bool) -> Iterator[tuple[int, str]]:
    """Give the samples to be written: indices of scrapes, and values."""
    end = len(part.times_ms)
    for number, (first, value) in enumerate(zip(series.changes, series.values, strict=True)):
        if value is None:
            continue
        is_last = number + 1 == len(series.changes)
        after = end if is_last else series.changes[number + 1]
        for index in _kept(part, first, after, is_gauge=is_gauge, is_always=series.family in _ALWAYS):
            yield index, value


def _kept(part: _Part, first: int, after: int, *, is_gauge: bool, is_always: bool) -> Iterator[int]:
    """Choose from a run of scrapes with the same value: the first ones, the last ones, and some in between."""
    head = min(first + part.around + 1, after)
    tail = max(head, after - part.around - 1)
    yield from range(first, head)
    if is_always:
        yield from range(head, tail)
    else:
        lately = tail if is_gauge else bisect_right(part.times_ms, part.times_ms[first] + _OFTEN_AFTER_CHANGE_MS)
        lately = max(head, min(lately, tail))
        yield from part.often[bisect_left(part.often, head) : bisect_left(part.often, lately)]
        yield from part.seldom[bisect_left(part.seldom, lately) : bisect_left(part.seldom, tail)]
    yield from range(tail, after)
