"""Selectors: a metric with the matchers of the dashboard's variables, as far as it has their labels."""

from typing import Final

VARIABLES: Final = {
    "app_id": "app",
    "platform": "platform",
    "version": "version",
    "environment": "environment",
}
"""The variable that each label is filtered by."""

_TRACK: Final = ("app_id", "platform", "version", "environment")

FAMILIES: Final = {
    "capgo_stats_events_total": _TRACK,
    "capgo_installs_total": _TRACK,
    "capgo_uninstalls_total": _TRACK,
    "capgo_update_failures_total": _TRACK,
    "capgo_late_events_total": _TRACK,
    "capgo_download_attempts_total": _TRACK,
    "capgo_downloads_in_flight": _TRACK,
    "capgo_channel_updates_total": ("app_id", "platform", "environment"),
    "capgo_download_duration_seconds": ("app_id", "platform", "version"),
    "capgo_download_kind_duration_seconds": ("app_id", "platform"),
    "capgo_launch_duration_seconds": ("app_id", "platform", "version"),
    "capgo_webview_load_duration_seconds": ("app_id", "platform", "version"),
    "capgo_devices": ("app_id", "platform"),
    "capgo_version_devices": ("app_id", "version"),
    "capgo_version_affected_devices": ("app_id", "version"),
    "capgo_version_issue_free_ratio": ("app_id", "version"),
    "capgo_version_adoption_ratio": ("app_id", "version"),
    "capgo_device_day_outcomes": ("app_id",),
    "capgo_version_first_seen_timestamp_seconds": ("app_id", "version"),
    "capgo_version_rank_info": ("app_id", "version"),
    "capgo_release_timestamp_seconds": ("app_id", "version"),
    "capgo_release_rollout_ratio": ("app_id", "version"),
}
"""The families about devices, with those of their labels that a variable filters; the exporter's own have none."""

_SUFFIXES: Final = ("_bucket", "_sum", "_count")
_OWN_PREFIXES: Final = ("capgo_exporter_", "process_", "up")


def select(name: str, *matchers: str, without: tuple[str, ...] = ()) -> str:
    """Write the selector of a metric: job, instance, the variables of its labels, and more matchers.

    Args:
        name: the metric.
        matchers: more matchers, such as `reason="update_fail"`.
        without: labels that are not filtered by their variable.

    Raises:
        KeyError: nobody said which labels the metric has.
    """
    filters = [f'{label}=~"${VARIABLES[label]}"' for label in _labels(name) if label not in without]
    written = ", ".join(['job=~"$job"', 'instance=~"$instance"', *filters, *matchers])
    return f"{name}{{{written}}}"


def _labels(name: str) -> tuple[str, ...]:
    if name in FAMILIES:
        return FAMILIES[name]
    if name.startswith(_OWN_PREFIXES):
        return ()
    base = next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), name)
    return FAMILIES[base]
