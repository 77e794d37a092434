"""Bounds on series: the values of one label, how fast new ones may come, and how many series there are in all."""

import math
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Final

_FREE_SHARE: Final = 0.8
_LISTED_SHARE: Final = 0.5
_MARKED_SHARE: Final = 0.05
_HOUR_SECONDS: Final = 3600.0


class CappedValues:
    """The values of one label that have series of their own.

    The first 80 % of the cap are taken freely, because an exporter put in front of a living fleet meets all its
    versions at once; the rest only so many an hour, so that a flood of invented values leaves room for real ones.
    """

    def __init__(self, cap: int, new_an_hour: int | None, monotonic: Callable[[], float]) -> None:
        """Set the bounds; `new_an_hour` None means that the whole cap is taken freely."""
        self._cap = cap
        self._new_an_hour = new_an_hour
        self._monotonic = monotonic
        self._values: set[str] = set()
        self._recent: deque[float] = deque()

    def __len__(self) -> int:
        """Count the values."""
        return len(self._values)

    @property
    def crowding(self) -> int:
        """Count the values past the freely taken share, with one more for the next."""
        return max(0, len(self._values) + 1 - math.ceil(self._cap * _FREE_SHARE))

    def add(self, value: str) -> None:
        """Take a value whatever the bounds say: one that the journal holds, or that was marked."""
        self._values.add(value)

    def discard(self, value: str) -> None:
        """Give a value's place back."""
        self._values.discard(value)

    def admit(self, value: str) -> bool:
        """Tell whether a value has series of its own, after giving it a place if the bounds allow."""
        if value in self._values:
            return True
        if len(self._values) >= self._cap or (
            self._new_an_hour is not None and self.crowding and not self._take_turn()
        ):
            return False
        self._values.add(value)
        return True

    def _take_turn(self) -> bool:
        now = self._monotonic()
        while self._recent and self._recent[0] <= now - _HOUR_SECONDS:
            self._recent.popleft()
        if len(self._recent) >= (self._new_an_hour or 0):
            return False
        self._recent.append(now)
        return True


class SeriesRoom:
    """How many series there may be in all.

    Half of them are kept for the listed apps, in equal parts: whatever is sent in the name of other apps, or of another
    listed one, an app has room for its part. What an app needs beyond that it takes from what is kept for nobody. The
    few series of `other` labels, where everything past the bound is counted, take no room.

    Marked releases may go past the bound by 5 %: whatever is sent in an app's own name, its next release has room.
    """

    def __init__(
        self,
        max_series: int,
        listed_apps: Iterable[str] = (),
        is_marked: Callable[[str, str], bool] = lambda _app_id, _version: False,
    ) -> None:
        """Set the bound, the apps that have a part, and what tells whether a version of an app was marked."""
        self._max_series = max_series
        self._is_marked = is_marked
        self._max_past = int(max_series * _MARKED_SHARE)
        self._past: set[Hashable] = set()
        self._counts = dict.fromkeys(listed_apps, 0)
        self._part = int(max_series * _LISTED_SHARE / len(self._counts)) if self._counts else 0
        self._kept = self._part * len(self._counts)
        self._taken = 0

    def allows(self, app_id: str, version: str, series: int) -> bool:
        """Tell whether there is room for so many new series of a version of an app."""
        room = self._room(app_id)
        return series <= room or (
            series <= max(0, room) + self._max_past - len(self._past) and self._is_marked(app_id, version)
        )

    def _room(self, app_id: str) -> int:
        count = self._counts.get(app_id)
        kept_for_others = self._kept if count is None else self._kept - max(0, self._part - count)
        return self._max_series - kept_for_others - self._taken

    def take(self, series: Hashable, app_id: str, version: str) -> None:
        """Note a new series of a version of an app."""
        if self._room(app_id) < 1 and self._is_marked(app_id, version):
            self._past.add(series)
            return
        self._taken += 1
        count = self._counts.get(app_id)
        if count is not None:
            self._counts[app_id] = count + 1
            self._kept -= count < self._part

    def give_back(self, series: Hashable, app_id: str) -> None:
        """Note that a series is gone."""
        if series in self._past:
            self._past.remove(series)
            return
        self._taken -= 1
        count = self._counts.get(app_id)
        if count is not None:
            self._counts[app_id] = count - 1
            self._kept += count <= self._part
