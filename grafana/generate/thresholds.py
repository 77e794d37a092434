"""From where on a number is bad.

The alerts have the same numbers, in `prometheus/rules/thresholds.yml`; a test compares the two.
"""

from typing import Final

ROLLBACKS: Final = 5
"""Roll-backs in 15 minutes."""

ROLLBACK_RATIO: Final = 0.05
"""Share of the updates that are rolled back."""

FAIL_RATIO: Final = 0.1
"""Share of the updates that fail."""

WORSE_FACTOR: Final = 2
"""The newest version's share of failed updates, in multiples of the previous version's."""

WORSE_ATTEMPTS: Final = 30
"""Updates of both versions before they can be compared."""

DOWNLOAD_FAIL_RATIO: Final = 0.2
"""Share of the downloads that fail."""

STALLED_RATIO: Final = 0.2
"""Share of the downloads of which nothing is heard for two hours."""

ISSUE_FREE_RATIO: Final = 0.93
"""Share of devices without trouble, below which it is bad."""

ISSUE_FREE_DEVICES: Final = 100
"""Devices before that share says something."""

REJECTED_RATIO: Final = 0.05
"""Share of the events that are refused."""

OLDEST_POINT_SECONDS: Final = 600
"""Time that a point waits for InfluxDB."""

# No alert has the following.

DROP_RATIO: Final = 0.05
"""Share of the downloads that break off after one step."""

DOWNLOAD_SECONDS: Final = 300
"""Time of a download."""

LAUNCH_SECONDS: Final = 5
"""Time of an app's launch, or of the WebView's page."""

MIN_DEVICES: Final = 20
"""Devices that an app must have been seen with today before adoption says something."""

COMMIT_SECONDS: Final = 0.5
"""Time of a transaction of the exporter's journal."""


def percent(share: float) -> str:
    """Write a share for people."""
    return f"{share * 100:g} %"
