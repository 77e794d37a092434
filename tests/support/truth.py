"""What a page shows against what really happened in a simulated fleet."""

from collections import Counter, defaultdict
from typing import cast

from exporter.simulate.tally import Durations, Labels, Tally
from exporter.simulate.truth import Truth
from tests.support.exporter import parse_samples

Values = dict[tuple[str, ...], float]

_COUNTERS = {
    "events": ("capgo_stats_events_total", ("app_id", "platform", "action", "version", "environment")),
    "installs": ("capgo_installs_total", ("app_id", "platform", "version", "environment")),
    "uninstalls": ("capgo_uninstalls_total", ("app_id", "platform", "version", "environment")),
    "failures": ("capgo_update_failures_total", ("app_id", "platform", "version", "environment", "reason")),
    "late": ("capgo_late_events_total", ("app_id", "platform", "version", "environment", "kind")),
    "attempts": (
        "capgo_download_attempts_total",
        ("app_id", "platform", "version", "environment", "outcome", "reached"),
    ),
    "in_flight": ("capgo_downloads_in_flight", ("app_id", "platform", "version", "environment")),
    "channel_updates": ("capgo_channel_updates_total", ("app_id", "platform", "channel", "environment", "outcome")),
}
_HISTOGRAMS = {
    "downloads": ("capgo_download_duration_seconds", ("app_id", "platform", "version")),
    "downloads_by_kind": ("capgo_download_kind_duration_seconds", ("app_id", "platform", "kind")),
    "launches": ("capgo_launch_duration_seconds", ("app_id", "platform", "version")),
    "page_loads": ("capgo_webview_load_duration_seconds", ("app_id", "platform", "version")),
}


def shown(page: str) -> dict[str, Values]:
    """Give the figures of a page that are not 0, by the names that `Tally` has for them; of durations count and sum."""
    samples: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
    for sample in parse_samples(page):
        if sample.value:
            samples[sample.name].append((sample.labels, sample.value))
    figures: dict[str, Values] = {}
    for figure, (name, labels) in _COUNTERS.items():
        figures[figure] = _values(samples[name], labels)
    for figure, (name, labels) in _HISTOGRAMS.items():
        figures[f"{figure} counted"] = _values(samples[f"{name}_count"], labels)
        sums = _values(samples[f"{name}_sum"], labels)
        figures[f"{figure} in all"] = {key: round(value * 1000) for key, value in sums.items()}
    return figures


def happened(tally: Tally) -> dict[str, Values]:
    """Give the figures of a tally in the form of `shown`."""
    figures: dict[str, Values] = {}
    for figure in _COUNTERS:
        counted = cast("Counter[Labels]", getattr(tally, figure))
        figures[figure] = {tuple(key): float(value) for key, value in counted.items() if value}
    for figure in _HISTOGRAMS:
        durations = cast("Durations", getattr(tally, figure))
        figures[f"{figure} counted"] = {tuple(key): float(len(values)) for key, values in durations.items() if values}
        figures[f"{figure} in all"] = {
            tuple(key): float(sum(values)) for key, values in durations.items() if sum(values)
        }
    return figures


def shown_devices(page: str, window: str) -> Values:
    """Give the active devices that a page shows, by app and platform."""
    return {
        (sample.labels["app_id"], sample.labels["platform"]): sample.value
        for sample in parse_samples(page)
        if sample.name == "capgo_devices" and sample.labels["window"] == window and sample.value
    }


def active_devices(truth: Truth, today: int, days: int) -> Values:
    """Give the devices that were active on the last days, by app and platform; a day is counted from 1970."""
    found: Values = {}
    for labels, by_day in truth.devices.items():
        active = set().union(*(by_day.get(day, set()) for day in range(today - days + 1, today + 1)))
        if active:
            found[labels[0], labels[1]] = float(len(active))
    return found


def _values(samples: list[tuple[dict[str, str], float]], labels: tuple[str, ...]) -> Values:
    return {tuple(sample[label] for label in labels): value for sample, value in samples}
