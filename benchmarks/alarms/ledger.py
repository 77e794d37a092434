"""What is counted, step by step, and how it looks to Prometheus in the end."""

import re

import numpy as np
import numpy.typing as npt

from benchmarks.alarms.series import History, Values, selector

_VERSION = re.compile(r'version="([^"]*)"')
_GAUGES = "capgo_version_"


class Ledger:
    """Counters and gauges at even steps."""

    def __init__(self, length: int) -> None:
        """Begin with nothing, for so many steps."""
        self._length = length
        self._series: dict[str, Values] = {}
        self._born: dict[str, int] = {}
        self._later: dict[int, list[tuple[str, int]]] = {}

    def bear(self, version: str, index: int) -> None:
        """Let the counters of a version be there from a step on, at 0; the first call decides."""
        self._born.setdefault(version, index)

    def plan(self, name: str, index: int, count: int) -> None:
        """Count something later; a series of which nothing is counted is there all the same."""
        self._steps(name)
        if count:
            self._later.setdefault(index, []).append((name, count))

    def settle(self, index: int) -> None:
        """Count what was planned for a step."""
        for name, count in self._later.pop(index, ()):
            self.add(name, index, count)

    def add(self, name: str, index: int, count: int) -> None:
        """Count something."""
        steps = self._steps(name)
        if count:
            steps[index] = np.nan_to_num(steps[index]) + count

    def set(self, name: str, index: int, value: float) -> None:
        """Set a gauge."""
        self._steps(name)[index] = value

    def since(self, name: str, first: int, index: int) -> float:
        """Give what a counter counted from one step to another."""
        steps = self._series.get(name)
        return 0.0 if steps is None else float(np.nansum(steps[first : index + 1]))

    def history(self, step_seconds: int) -> History:
        """Give what Prometheus scraped, every time with success."""
        history = History(step_seconds, self._length)
        for name, steps in self._series.items():
            history.series[name] = steps if name.startswith(_GAUGES) else self._counter(name, steps)
        history.series[selector("up")] = np.ones(self._length)
        return history

    def _counter(self, name: str, steps: Values) -> Values:
        match = _VERSION.search(name)
        values: npt.NDArray[np.float64] = np.cumsum(np.nan_to_num(steps))
        values[: self._born[match[1]] if match else 0] = np.nan
        return values

    def _steps(self, name: str) -> Values:
        steps = self._series.get(name)
        if steps is None:
            steps = self._series[name] = np.full(self._length, np.nan)
        return steps
