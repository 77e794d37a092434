"""Series of samples at even steps, as Prometheus would have scraped them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


def selector(name: str, **labels: str) -> str:
    """Write the name of a series, with the labels that Prometheus adds to those of the exporter."""
    every = {**labels, "job": "capgo-stats-exporter", "instance": "exporter:9747"}
    text = ",".join(f'{label}="{value}"' for label, value in every.items())
    return f"{name}{{{text}}}"


@dataclass(slots=True)
class History:
    """What Prometheus scraped.

    Attributes:
        step_seconds: between two scrapes.
        length: how many scrapes there were; the first is at second 0, a midnight.
        series: the samples of each series, NaN where it was not there.
    """

    step_seconds: int
    length: int
    series: dict[str, Values] = field(default_factory=dict)

    @property
    def seconds(self) -> int:
        """The time of the last scrape."""
        return (self.length - 1) * self.step_seconds

    def between(self, begin_seconds: int, end_seconds: int) -> "History":
        """Cut a part out; it begins at a midnight if `begin_seconds` is one."""
        first, after = begin_seconds // self.step_seconds, end_seconds // self.step_seconds + 1
        parts = {name: values[first:after] for name, values in self.series.items()}
        there = {name: values for name, values in parts.items() if not np.isnan(values).all()}
        return History(self.step_seconds, min(after, self.length) - first, there)

    def total(self, metric: str) -> int:
        """Add the last values of all series of a metric up."""
        return sum(int(values[-1]) for name, values in self.series.items() if name.startswith(f"{metric}{{"))

    def renamed(self, app: str) -> "History":
        """Give it to an app and an exporter of another name, so that many can be judged at once."""
        series = {
            name.replace('app_id="com.example.shop"', f'app_id="{app}"').replace("exporter:9747", app): values
            for name, values in self.series.items()
        }
        return History(self.step_seconds, self.length, series)

    def without_label(self, metric: str, label: str) -> "History":
        """Add the series of a metric up over a label, as every rule does: fewer series for promtool."""
        merged: dict[str, Values] = {}
        pattern = re.compile(rf'(?<=[{{,]){label}="[^"]*",?')
        for name, values in self.series.items():
            short = pattern.sub("", name).replace(",}", "}") if name.startswith(f"{metric}{{") else name
            before = merged.get(short)
            if before is None:
                merged[short] = values
            else:
                both = np.nan_to_num(before) + np.nan_to_num(values)
                merged[short] = np.where(np.isnan(before) & np.isnan(values), np.nan, both)
        return History(self.step_seconds, self.length, merged)

    def inputs(self, names: frozenset[str]) -> Iterator[Mapping[str, str]]:
        """Write the series of some metrics as promtool reads them."""
        for name, values in self.series.items():
            if name.partition("{")[0] in names:
                yield {"series": name, "values": notation(values)}


class Changes:
    """Takes the samples of series that change seldom."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._changes: dict[str, tuple[list[int], list[float]]] = {}
        self._lines: list[str] = []

    def record(self, page: str, index: int, prefixes: tuple[str, ...]) -> None:
        """Take a page.

        Args:
            page: in OpenMetrics.
            index: of the scrape.
            prefixes: what the names of wanted series begin with.
        """
        lines = page.split("\n")
        if len(lines) != len(self._lines):
            fresh = lines
        else:
            fresh = [line for line, before in zip(lines, self._lines, strict=True) if line != before]
        for line in fresh:
            if line.startswith(prefixes):
                text, _, value = line.rpartition(" ")
                indices, values = self._changes.setdefault(text, ([], []))
                number = float(value)
                if not values or values[-1] != number:
                    indices.append(index)
                    values.append(number)
        self._lines = lines

    def history(self, step_seconds: int, length: int, labels: str) -> History:
        """Give all samples, each series until the end; `labels` are added to those of each series."""
        history = History(step_seconds, length)
        for text, (indices, values) in self._changes.items():
            runs = np.diff([*indices, length])
            samples = np.full(length, np.nan)
            samples[indices[0] :] = np.repeat(values, runs)
            name, _, rest = text.partition("{")
            history.series[f"{name}{{{labels}" + (f",{rest}" if rest else "}")] = samples
        return history


def notation(values: Values) -> str:
    """Write samples in promtool's notation: `3x4` is five times 3, `_x4` four times nothing."""
    codes = np.where(np.isnan(values), -np.inf, values)
    starts = np.concatenate(([0], np.flatnonzero(codes[1:] != codes[:-1]) + 1))
    runs = np.diff(np.append(starts, len(codes)))
    return " ".join(_run(value, count) for value, count in zip(codes[starts].tolist(), runs.tolist(), strict=True))


def _run(value: float, count: int) -> str:
    if value == -np.inf:
        return f"_x{count}"
    number = f"{value:.10g}"
    return number if count == 1 else f"{number}x{count - 1}"
