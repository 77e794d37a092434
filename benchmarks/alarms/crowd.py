"""Devices in aggregate: how many there are, and how much they use the app."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from exporter.simulate.scenario import Scenario

Counts = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float64]

CLASSES: Final = 5
"""Devices that use the app more or less, in parts of equal size."""


def classes(scenario: Scenario) -> Shares:
    """Give the sessions a day of each class: the simulated fleet's distribution, cut into parts of equal size."""
    draws = np.random.default_rng(0).lognormal(-0.32, 0.8, 100_000)
    means = np.sort(draws).reshape(CLASSES, -1).mean(axis=1)
    return np.asarray(scenario.sessions_per_day * means)


def whole(values: npt.NDArray[np.floating[Any]]) -> Counts:
    """Round to whole devices."""
    counts: Counts = np.rint(values).astype(np.int64)
    return counts
