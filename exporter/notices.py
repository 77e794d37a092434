"""Notices: what is told in the log once an hour at most, however often it happens."""

from collections.abc import Callable
from typing import Final

import structlog

_AGAIN_SECONDS: Final = 3600.0

log = structlog.get_logger()


class Notices:
    """Logs that a limit is reached: the first time, and then when an hour has passed since it was last told."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        """Start with nothing told.

        Args:
            monotonic: seconds that never go back.
        """
        self._monotonic = monotonic
        self._told: dict[tuple[str, str], float] = {}

    def warn(self, event: str, reason: str = "", **values: object) -> None:
        """Log a warning, unless the same was told within the hour.

        Args:
            event: the message; there are a few of them.
            reason: what it is about; each is told for itself, so there must be a few of them too.
            values: what else is said; of what happened first.
        """
        now = self._monotonic()
        if now - self._told.get((event, reason), -_AGAIN_SECONDS) < _AGAIN_SECONDS:
            return
        self._told[event, reason] = now
        if reason:
            values = {"reason": reason, **values}
        log.warning(event, **values)
