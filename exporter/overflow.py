"""Tells of label overflow once, not per event."""

from collections.abc import Callable
from typing import Final

import structlog

from exporter.telemetry import Telemetry

_LOG_AGAIN_SECONDS: Final = 3600.0

log = structlog.get_logger()


class OverflowLog:
    """Counts each event that is counted as `other`, and logs at most one line an hour for each capped label."""

    def __init__(self, telemetry: Telemetry, monotonic: Callable[[], float]) -> None:
        """Set where to count."""
        self._telemetry = telemetry
        self._monotonic = monotonic
        self._last: dict[str, float] = {}

    def __call__(self, label: str, value: str) -> None:
        """Note one event whose value did not get a series of its own."""
        self._telemetry.label_overflow[label].inc()
        now = self._monotonic()
        if now - self._last.get(label, -_LOG_AGAIN_SECONDS) >= _LOG_AGAIN_SECONDS:
            self._last[label] = now
            log.warning("a cap on labels is reached; events are counted as `other`", label=label, first_value=value)
