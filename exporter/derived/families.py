"""The families of derived figures: counters, gauges and histograms that are stored like the events themselves."""

from typing import Final

from exporter.series import Family, MetricType

_TRACK: Final = ("app_id", "platform", "version", "environment")

INSTALLS: Final = Family(
    "capgo_installs", MetricType.COUNTER, "Bundles that an app activated; electron's repeats left out.", _TRACK
)
UNINSTALLS: Final = Family(
    "capgo_uninstalls", MetricType.COUNTER, "Bundles that were replaced by another when that was activated.", _TRACK
)
UPDATE_FAILURES: Final = Family(
    "capgo_update_failures",
    MetricType.COUNTER,
    "Updates that failed, each once, by its most specific reason.",
    (*_TRACK, "reason"),
)
LATE_EVENTS: Final = Family(
    "capgo_late_events",
    MetricType.COUNTER,
    "Events that came more than an hour late, which the other derived figures leave out.",
    (*_TRACK, "kind"),
)
DOWNLOAD_ATTEMPTS: Final = Family(
    "capgo_download_attempts",
    MetricType.COUNTER,
    "Downloads that ended, failed or stalled, by the highest step they reached.",
    (*_TRACK, "outcome", "reached"),
)
DOWNLOADS_IN_FLIGHT: Final = Family(
    "capgo_downloads_in_flight", MetricType.GAUGE, "Downloads that began and have not ended.", _TRACK
)
CHANNEL_UPDATES: Final = Family(
    "capgo_channel_updates",
    MetricType.COUNTER,
    "Installs and failed updates by channel.",
    ("app_id", "platform", "channel", "environment", "outcome"),
)
DOWNLOAD_DURATION: Final = Family(
    "capgo_download_duration_seconds",
    MetricType.HISTOGRAM,
    "Time from the last start of a download to its completion, in production.",
    ("app_id", "platform", "version"),
)
DOWNLOAD_KIND_DURATION: Final = Family(
    "capgo_download_kind_duration_seconds",
    MetricType.HISTOGRAM,
    "The same by kind: one zip archive, or a manifest of files.",
    ("app_id", "platform", "kind"),
)
LAUNCH_DURATION: Final = Family(
    "capgo_launch_duration_seconds",
    MetricType.HISTOGRAM,
    "Time from an app's launch to its being ready, in production.",
    ("app_id", "platform", "version"),
)
WEBVIEW_LOAD_DURATION: Final = Family(
    "capgo_webview_load_duration_seconds",
    MetricType.HISTOGRAM,
    "Time in which the WebView loaded its page, in production.",
    ("app_id", "platform", "version"),
)

FAMILIES: Final = (
    INSTALLS,
    UNINSTALLS,
    UPDATE_FAILURES,
    LATE_EVENTS,
    DOWNLOAD_ATTEMPTS,
    DOWNLOADS_IN_FLIGHT,
    CHANNEL_UPDATES,
    DOWNLOAD_DURATION,
    DOWNLOAD_KIND_DURATION,
    LAUNCH_DURATION,
    WEBVIEW_LOAD_DURATION,
)
"""In the order in which they are shown."""

KEY_REASONS: Final = ("update_fail", "set_fail", "download_fail")
"""The reasons of failures that are born at 0 with the first event, so that alerts see their first one."""
