"""Label overflow: counted for each event, told of once."""

from exporter.telemetry import Telemetry


class OverflowLog:
    """Counts each event that is counted as `other`, and logs at most one line an hour for each capped label."""

    def __init__(self, telemetry: Telemetry) -> None:
        """Set where to count."""
        self._telemetry = telemetry

    def __call__(self, label: str, value: str) -> None:
        """Note one event whose value did not get a series of its own."""
        self._telemetry.label_overflow[label].inc()
        self._telemetry.notices.warn(
            "a cap on labels is reached; events are counted as `other`", label, first_value=value
        )
