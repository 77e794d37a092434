"""A plain model of the derived figures: it keeps every event, and works each figure out from all of them when asked.

It shares no code with `exporter.derived`, knows no bound and forgets nothing. An event is placed once, by its own time,
whenever it arrived; so the model says what the figures mean, and the exporter has to find that out bit by bit. Only
labels, identities and the rules about clocks and legacy plugins are the exporter's own: they have tests of their own.

It is right for fleets that stay below the caps on labels, and whose events arrive in a reasonable order: everything
that happens to a device and a version within half a minute arrives within ten seconds, or is late altogether.
"""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from exporter.actions import BY_NAME, Kind
from exporter.clock import clock_error
from exporter.events import Event, decode
from exporter.identity import identity
from exporter.labels import LabelPolicy, Labels, normalise, split_version
from exporter.legacy import is_legacy_download_fail
from tests.support.exporter import parse_samples

LabelSet = frozenset[tuple[str, str]]
Figures = dict[str, dict[LabelSet, float]]
"""Samples that are not 0, by their name and labels; durations and moments are in milliseconds."""

Arrivals = Sequence[tuple[Mapping[str, Any], int]]
"""Events as they were sent, duplicates included, and our clock in milliseconds when each arrived."""

DAY_MS: Final = 86_400_000
LATE_MS: Final = 3_600_000
STALLED_MS: Final = 7_200_000
SETTLED_MS: Final = 10_000
STRAGGLER_MS: Final = 10_000
UNPACKED_MS: Final = 120_000
RETRY_MS: Final = 2_000
SAME_FAILURE_MS: Final = 30_000
LONGEST_MS: Final = 7_200_000
MAX_EVENT_AGE_MS: Final = 7 * DAY_MS

STARTS: Final = ("download_zip_start", "download_manifest_start", "download_0")
STEPS: Final = tuple(f"download_{step}" for step in range(10, 100, 10))
COMPLETES: Final = ("download_manifest_complete", "download_zip_complete", "download_complete")
PROGRESS: Final = (*STARTS, *STEPS, *COMPLETES)
ACTIVATION_FAILURES: Final = ("update_fail", "set_fail")

_MOST_SPECIFIC: Final = (
    *("checksum_required", "download_manifest_checksum_fail", "download_manifest_brotli_fail"),
    *("download_manifest_file_fail", "manifest_path_fail", "checksum_fail", "decrypt_fail", "unzip_fail"),
    *("canonical_path_fail", "windows_path_fail", "directory_path_fail", "insufficient_disk_space", "low_mem_fail"),
)
_LEAST_SPECIFIC: Final = ("finish_download_fail", "download_fail", *ACTIVATION_FAILURES)
_NO_ISSUES: Final = frozenset(
    {
        *("app_launch_start", "app_launch_ready", "webview_dom_content_loaded", "webview_page_loaded"),
        *("os_version_changed", "native_app_version_changed"),
    }
)
ISSUES: Final = frozenset(
    name for name, action in BY_NAME.items() if action.kind is Kind.APP_HEALTH and name not in _NO_ISSUES
)
_SIGNS_OF_LIFE: Final = ("set", "update_fail", "app_moved_to_foreground", "app_moved_to_background", "ping")
_NO_RELEASES: Final = ("builtin", "unknown", "other")
_WINDOWS: Final = {"1d": 1, "7d": 7, "30d": 30}
_SHOWN_VERSIONS: Final = 10
_SHOWN_RANKS: Final = 5
_SEMVER: Final = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:-([0-9A-Za-z.-]+))?(?:\+.*)?", re.ASCII)


# --- what an event says -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """A distinct event, its labels, and when it arrived."""

    event: Event
    at_ms: int
    labels: Labels

    @cached_property
    def device(self) -> str:
        """The device, or "" if the event does not say."""
        return (self.event.device_id or "").lower()

    @cached_property
    def device_ms(self) -> int | None:
        """The device's own time, if it has said one that can be believed."""
        time_ms = self.event.timestamp
        if time_ms is None or clock_error(time_ms, self.at_ms, MAX_EVENT_AGE_MS) is not None:
            return None
        return time_ms

    @cached_property
    def time_ms(self) -> int:
        """When it happened, as far as we know."""
        return self.at_ms if self.device_ms is None else self.device_ms

    @cached_property
    def is_late(self) -> bool:
        """Whether it says that it happened more than an hour before it arrived, be that believed or not."""
        return self.event.timestamp is not None and self.at_ms - self.event.timestamp > LATE_MS

    @cached_property
    def is_prod(self) -> bool:
        """Whether it comes from a production build on a real device."""
        return self.labels.environment == "prod"

    @cached_property
    def is_legacy(self) -> bool:
        """Whether it is a `download_fail` that may mean nothing."""
        return self.event.action == "download_fail" and is_legacy_download_fail(
            self.event.platform, self.event.plugin_version
        )

    @cached_property
    def kind(self) -> str:
        """The sort of action, `other` if the catalogue does not know it."""
        action = BY_NAME.get(self.event.action)
        return "other" if action is None else action.kind.value

    @cached_property
    def is_failure(self) -> bool:
        """Whether an update failed."""
        said = self.kind == Kind.UPDATE_FAILURE.value or self.event.action.endswith("_fail")
        return said and not self.is_legacy

    @cached_property
    def is_progress(self) -> bool:
        """Whether it is a step of a download."""
        return self.event.action in PROGRESS

    @cached_property
    def is_electron(self) -> bool:
        """Whether it comes from electron's plugin, which said that it was android before 0.0.5."""
        return self.labels.platform == "electron" or (self.event.plugin_version or "").startswith("0.0.")

    @cached_property
    def reason(self) -> str:
        """Why an update failed: the action; a roll-back of electron's that says it is android is called as there."""
        is_hidden = self.is_electron and self.labels.platform != "electron"
        return "update_fail" if is_hidden and self.labels.action == "set_fail" else self.labels.action

    @cached_property
    def channel(self) -> str:
        """The channel."""
        return normalise(self.event.channel or self.event.default_channel or "") or "unknown"

    @cached_property
    def duration_ms(self) -> float | None:
        """The duration in the metadata, if it is one."""
        try:
            duration = float((self.event.metadata or {}).get("duration_ms", ""))
        except ValueError:
            return None
        return duration if math.isfinite(duration) and duration >= 0 else None

    @cached_property
    def old_version(self) -> str:
        """The version that a `set` replaced, or "" if that is not known or the same."""
        old, _ = split_version(self.event.old_version_name or "")
        old = normalise(old)
        return "" if old in {"unknown", self.labels.version} else old


def distinct(arrivals: Arrivals) -> list[Seen]:
    """Give the events without those that were sent again, in the order of arrival."""
    policy = LabelPolicy(
        max_apps=1000,
        max_versions_per_app=1000,
        max_unknown_actions=1000,
        reserved_apps=(),
        is_marked=lambda _app_id, _version: False,
        monotonic=lambda: 0.0,
        on_overflow=lambda _label, _value: None,
    )
    identities: set[int] = set()
    seen = []
    for fields, at_ms in arrivals:
        (event,) = decode(json.dumps(fields).encode()).events
        assert isinstance(event, Event), event
        event_id = identity(event)
        if event_id in identities:
            continue
        if event_id is not None:
            identities.add(event_id)
        seen.append(Seen(event, at_ms, policy.place(event).labels))
    return seen


# --- figures ----------------------------------------------------------------------------------------------------------


class Tally:
    """Figures in the making."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._values: dict[str, dict[LabelSet, float]] = defaultdict(lambda: defaultdict(float))
        self._durations: dict[str, dict[LabelSet, list[int]]] = defaultdict(lambda: defaultdict(list))

    def add(self, name: str, amount: float = 1, /, **labels: str) -> None:
        """Add to a sample."""
        self._values[name][frozenset(labels.items())] += amount

    def observe(self, name: str, duration_ms: float, /, **labels: str) -> None:
        """Add a duration to a histogram."""
        self._durations[name][frozenset(labels.items())].append(round(duration_ms))

    def figures(self, bounds: Mapping[str, Sequence[str]]) -> Figures:
        """Give all samples that are not 0.

        Args:
            bounds: by the histogram's name, the values of its label `le`.
        """
        figures: Figures = {name: dict(values) for name, values in self._values.items()}
        for name, durations in self._durations.items():
            for labels, of_all in durations.items():
                figures.setdefault(f"{name}_count", {})[labels] = len(of_all)
                figures.setdefault(f"{name}_sum", {})[labels] = sum(of_all)
                for bound in bounds.get(name, ()):
                    at_most = sum(duration <= float(bound) * 1000 for duration in of_all)
                    figures.setdefault(f"{name}_bucket", {})[labels | {("le", bound)}] = at_most
        return _tidy(figures)


def figures(arrivals: Arrivals, now_ms: int, bounds: Mapping[str, Sequence[str]] | None = None) -> Figures:
    """Work out every figure.

    Args:
        arrivals: all events that have arrived.
        now_ms: our clock.
        bounds: by the histogram's name, the values of its label `le`; none: no buckets.
    """
    tally = Tally()
    seen = distinct(arrivals)
    in_time = [one for one in seen if not one.is_late]
    for one in seen:
        tally.add("capgo_stats_events_total", **one.labels._asdict())
        if one.is_late:
            tally.add("capgo_late_events_total", **_where(one), version=one.labels.version, kind=one.kind)
        elif one.is_legacy:
            tally.add("capgo_exporter_derived_skipped_total", reason="legacy_download_fail")
    installs = count_installs(in_time, tally)
    count_episodes(in_time, now_ms, tally)
    measure_launches(in_time, tally)
    count_devices([one for one in seen if one.is_prod], now_ms // DAY_MS, tally)
    rank_releases([one for one in in_time if one.is_prod], installs, tally)
    return tally.figures(bounds or {})


def read_figures(page: str) -> Figures:
    """Read the same from a page of the exporter."""
    found: Figures = defaultdict(dict)
    for sample in parse_samples(page):
        unit = 1000 if sample.name.endswith("_seconds_sum") or sample.name.endswith("_timestamp_seconds") else 1
        found[sample.name][frozenset(sample.labels.items())] = sample.value * unit
    return _tidy(found)


def read_bounds(page: str) -> dict[str, list[str]]:
    """Read the bounds of the buckets from a page of the exporter, in no order."""
    bounds: dict[str, set[str]] = defaultdict(set)
    for sample in parse_samples(page):
        if "le" in sample.labels:
            bounds[sample.name.removesuffix("_bucket")].add(sample.labels["le"])
    return {name: list(values) for name, values in bounds.items()}


def _tidy(found: Figures) -> Figures:
    """Leave out what is 0, and what a sketch or a float adds in the seventh decimal."""
    rounded = {
        name: {labels: round(float(value), 6) for labels, value in values.items()} for name, values in found.items()
    }
    kept = {name: {labels: value for labels, value in values.items() if value} for name, values in rounded.items()}
    return {name: values for name, values in kept.items() if values}


def _where(one: Seen) -> dict[str, str]:
    return {"app_id": one.labels.app_id, "platform": one.labels.platform, "environment": one.labels.environment}


# --- installs ---------------------------------------------------------------------------------------------------------


def count_installs(in_time: Iterable[Seen], tally: Tally) -> Counter[tuple[str, str]]:
    """Count installs and uninstalls: every `set`, but of electron, which sends it at each launch, a device's first.

    Returns:
        The production installs of each app and version.
    """
    known: set[tuple[str, str, str]] = set()
    production: Counter[tuple[str, str]] = Counter()
    for one in in_time:
        if one.event.action != "set":
            continue
        app_id, version = one.labels.app_id, one.labels.version
        if one.is_electron and one.device:
            pair = (app_id, one.device, version)
            if pair in known:
                tally.add("capgo_exporter_derived_skipped_total", reason="repeated_set")
                continue
            known.add(pair)
        tally.add("capgo_installs_total", **_where(one), version=version)
        tally.add("capgo_channel_updates_total", **_where(one), channel=one.channel, outcome="installed")
        if one.old_version:
            tally.add("capgo_uninstalls_total", **_where(one), version=one.old_version)
        if one.is_prod:
            production[app_id, version] += 1
    return production


# --- episodes: the failures and downloads of one device and version ---------------------------------------------------


def count_episodes(in_time: Iterable[Seen], now_ms: int, tally: Tally) -> None:
    """Count failures and attempts to download, each device and version for itself."""
    episodes: dict[tuple[object, ...], list[Seen]] = defaultdict(list)
    for one in in_time:
        if not one.is_failure and not one.is_progress:
            continue
        if one.device:
            episodes[(*one.labels._replace(action=""), one.device)].append(one)
        elif one.is_failure:
            _add_failure(one, tally)
        else:
            tally.add("capgo_exporter_derived_skipped_total", reason="no_device")
    for entries in episodes.values():
        entries.sort(key=_position)
        count_failures([one for one in entries if is_activation_failure(one)], now_ms, tally)
        count_failures([one for one in entries if is_download_failure(one)], now_ms, tally)
        count_attempts([one for one in entries if not is_activation_failure(one)], now_ms, tally)


def count_failures(entries: Sequence[Seen], now_ms: int, tally: Tally) -> None:
    """Count the failures of one phase: what is reported within half a minute of the first report is one failure."""
    failures: list[list[Seen]] = []
    for one in entries:
        if failures and abs(gap_ms(failures[-1][0], one)) <= SAME_FAILURE_MS:
            failures[-1].append(one)
        else:
            failures.append([one])
    for failure in failures:
        if any(is_settled(one, now_ms) for one in failure):
            _add_failure(min(failure, key=_specificity), tally)
            tally.add("capgo_exporter_derived_skipped_total", len(failure) - 1, reason="same_failure")


def count_attempts(entries: Iterable[Seen], now_ms: int, tally: Tally) -> None:
    """Count attempts to download: those that ended, those that ended never, and those still under way."""
    attempts: list[list[Seen]] = []
    unpacking: list[Seen] = []
    for one in entries:
        if attempts and is_unpacking(unpacking or attempts[-1], one):
            unpacking = [*(unpacking or [entry for entry in attempts[-1] if is_end(entry)]), one]
        elif unpacking and belongs(unpacking, one):
            unpacking.append(one)
        elif not unpacking and attempts and belongs(attempts[-1], one):
            attempts[-1].append(one)
        else:
            attempts.append([one])
            unpacking = []
    open_attempts = []
    for attempt in attempts:
        if (outcome := outcome_of(attempt, now_ms)) is None:
            open_attempts.append(attempt)
            continue
        reached = "complete" if outcome == "completed" else str(max(step_of(one) for one in attempt))
        labels = {**_where(attempt[0]), "version": attempt[0].labels.version}
        tally.add("capgo_download_attempts_total", **labels, outcome=outcome, reached=reached)
        if outcome == "completed" and attempt[0].is_prod:
            measure_download(attempt, tally)
    if open_attempts and not any(is_end(one) for attempt in open_attempts for one in attempt):
        one = open_attempts[0][0]
        tally.add("capgo_downloads_in_flight", **_where(one), version=one.labels.version)


def belongs(attempt: Sequence[Seen], one: Seen) -> bool:
    """Tell whether the next entry belongs to an attempt, or begins another one."""
    ends = [entry for entry in attempt if is_end(entry)]
    if not ends:
        return one.at_ms - max(entry.at_ms for entry in attempt) < STALLED_MS
    longest = STRAGGLER_MS
    if ends[-1].is_failure and one.is_failure:
        longest = SAME_FAILURE_MS
    elif ends[-1].is_failure and one.event.action in STARTS:
        longest = RETRY_MS
    return gap_ms(ends[-1], one) <= longest


def is_unpacking(attempt: Sequence[Seen], one: Seen) -> bool:
    """Tell whether an entry only says that files which came some time ago are unpacked."""
    ends = [entry for entry in attempt if is_end(entry)]
    if not ends or ends[-1].event.action not in COMPLETES[:2]:
        return False
    if not one.is_progress or one.event.action in STARTS:
        return False
    return STRAGGLER_MS < gap_ms(ends[-1], one) <= UNPACKED_MS


def outcome_of(attempt: Sequence[Seen], now_ms: int) -> str | None:
    """Tell how an attempt went; None while that is not known."""
    ends = [one for one in attempt if is_end(one)]
    if ends:
        settled = any(is_settled(one, now_ms) for one in ends)
        return None if not settled else "failed" if ends[-1].is_failure else "completed"
    return "stalled" if now_ms - max(one.at_ms for one in attempt) >= STALLED_MS else None


def measure_download(attempt: Sequence[Seen], tally: Tally) -> None:
    """Measure a completed attempt, from its last start before its end, unless the end says how long it took."""
    completes = [one for one in attempt if one.event.action in COMPLETES]
    end = ([one for one in completes if one.event.action == "download_complete"] or completes)[-1]
    duration_ms = end.duration_ms
    if duration_ms is None:
        before = attempt[: attempt.index(end)]
        starts = [one for one in before if one.event.action in STARTS]
        starts = starts or [one for one in before if one.event.action == "download_10"]
        if not starts:
            return
        duration_ms = gap_ms(starts[-1], end)
    if not 0 <= duration_ms <= LONGEST_MS:
        tally.add("capgo_exporter_derived_skipped_total", reason="duration_out_of_range")
        return
    place = {"app_id": end.labels.app_id, "platform": end.labels.platform}
    tally.observe("capgo_download_duration_seconds", duration_ms, **place, version=end.labels.version)
    kind = kind_of(attempt)
    if kind:
        tally.observe("capgo_download_kind_duration_seconds", duration_ms, **place, kind=kind)


def kind_of(attempt: Iterable[Seen]) -> str:
    """Tell whether a `zip` or a `manifest` was downloaded; "" if no entry says it."""
    actions = {one.event.action for one in attempt}
    if any(action.startswith("download_zip_") for action in actions):
        return "zip"
    by_file = any(action.startswith("download_manifest_") for action in actions) or "manifest_path_fail" in actions
    return "manifest" if by_file else ""


def is_activation_failure(one: Seen) -> bool:
    """Tell whether a bundle could not be activated."""
    return one.event.action in ACTIVATION_FAILURES


def is_download_failure(one: Seen) -> bool:
    """Tell whether a bundle could not be downloaded and made ready; what is not known counts as that."""
    return one.is_failure and not is_activation_failure(one)


def is_end(one: Seen) -> bool:
    """Tell whether an entry ends an attempt to download."""
    return one.event.action in COMPLETES or is_download_failure(one)


def is_settled(one: Seen, now_ms: int) -> bool:
    """Tell whether an end or failure has waited long enough for what belongs to it."""
    return now_ms - one.at_ms >= SETTLED_MS


def step_of(one: Seen) -> int:
    """Give the step in percent that an entry reports; 0 if none."""
    return int(one.event.action.removeprefix("download_")) if one.event.action in STEPS else 0


def gap_ms(first: Seen, second: Seen) -> int:
    """Give the time from one entry to another, on the device's clock if both were read there, else on ours."""
    if first.device_ms is None or second.device_ms is None:
        return second.at_ms - first.at_ms
    return second.device_ms - first.device_ms


def _add_failure(one: Seen, tally: Tally) -> None:
    tally.add("capgo_update_failures_total", **_where(one), version=one.labels.version, reason=one.reason)
    tally.add("capgo_channel_updates_total", **_where(one), channel=one.channel, outcome="failed")


def _position(one: Seen) -> tuple[object, ...]:
    """Give where an entry stands: by time, and at the same time as a download goes."""
    rank = PROGRESS.index(one.event.action) if one.is_progress else len(PROGRESS) + is_activation_failure(one)
    return (one.time_ms, rank, one.event.action, one.channel, one.at_ms)


def _specificity(one: Seen) -> tuple[int, str]:
    """Give what the most specific reason is least in."""
    reason = one.reason
    if reason in _MOST_SPECIFIC:
        return (_MOST_SPECIFIC.index(reason), "")
    if reason in _LEAST_SPECIFIC:
        return (len(_MOST_SPECIFIC) + 1 + _LEAST_SPECIFIC.index(reason), "")
    return (len(_MOST_SPECIFIC), reason)


# --- launches ---------------------------------------------------------------------------------------------------------


def measure_launches(in_time: Iterable[Seen], tally: Tally) -> None:
    """Measure launches and page loads in production, as the devices say how long they took."""
    families = {
        "app_launch_ready": "capgo_launch_duration_seconds",
        "webview_page_loaded": "capgo_webview_load_duration_seconds",
    }
    for one in in_time:
        family = families.get(one.event.action)
        if not family or not one.is_prod or one.duration_ms is None:
            continue
        if one.duration_ms > LONGEST_MS:
            tally.add("capgo_exporter_derived_skipped_total", reason="duration_out_of_range")
        else:
            place = {"app_id": one.labels.app_id, "platform": one.labels.platform, "version": one.labels.version}
            tally.observe(family, one.duration_ms, **place)


# --- devices ----------------------------------------------------------------------------------------------------------


class Days:
    """Which devices did something, by what is asked and by UTC day."""

    def __init__(self, seen: Iterable[Seen], key: Callable[[Seen], tuple[str, ...]]) -> None:
        """Gather the devices of events, by a key and the day on which they happened."""
        self._days: dict[tuple[str, ...], dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        for one in seen:
            if one.device:
                self._days[key(one)][one.time_ms // DAY_MS].add(one.device)

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        """Go through the keys."""
        return iter(sorted(self._days))

    def on(self, key: tuple[str, ...], day: int) -> set[str]:
        """Give the devices of a day."""
        return self._days.get(key, {}).get(day, set())

    def window(self, key: tuple[str, ...], today: int, days: int) -> set[str]:
        """Give the devices of the last days, today included."""
        return set().union(*(self.on(key, day) for day in range(today - days + 1, today + 1)))


def _app(one: Seen) -> tuple[str, ...]:
    return (one.labels.app_id,)


def _app_platform(one: Seen) -> tuple[str, ...]:
    return (one.labels.app_id, one.labels.platform)


def _app_version(one: Seen) -> tuple[str, ...]:
    return (one.labels.app_id, one.labels.version)


def count_devices(production: Sequence[Seen], today: int, tally: Tally) -> None:
    """Count production devices, late events included: an event belongs to the day on which it happened."""
    by_platform = Days(production, _app_platform)
    for app_id, platform in by_platform:
        for window, days in _WINDOWS.items():
            devices = by_platform.window((app_id, platform), today, days)
            tally.add("capgo_devices", len(devices), app_id=app_id, platform=platform, window=window)
    _count_versions(production, today, tally)
    apps = Days(production, _app)
    succeeded = Days([one for one in production if one.event.action == "set"], _app)
    failed = Days([one for one in production if one.is_failure], _app)
    for app in apps:
        for window, length in _WINDOWS.items():
            for day in range(today - length + 1, today + 1):
                success = succeeded.on(app, day)
                failure = failed.on(app, day) - success
                tally.add("capgo_device_day_outcomes", len(success), app_id=app[0], outcome="success", window=window)
                tally.add("capgo_device_day_outcomes", len(failure), app_id=app[0], outcome="failure", window=window)


def _count_versions(production: Sequence[Seen], today: int, tally: Tally) -> None:
    """Count the devices of the versions that most devices had today and yesterday, and which of them had an issue."""
    apps = Days(production, _app)
    versions = Days(production, _app_version)
    affected = Days([one for one in production if one.is_failure or one.event.action in ISSUES], _app_version)
    for app in apps:
        recent = {key: len(versions.window(key, today, 2)) for key in versions if key[0] == app[0]}
        for key in sorted(recent, key=lambda key: -recent[key])[:_SHOWN_VERSIONS]:
            labels = {"app_id": key[0], "version": key[1]}
            for window, days in _WINDOWS.items():
                devices = len(versions.window(key, today, days))
                issues = len(affected.window(key, today, days))
                tally.add("capgo_version_devices", devices, **labels, window=window)
                tally.add("capgo_version_affected_devices", issues, **labels, window=window)
                if devices:
                    tally.add("capgo_version_issue_free_ratio", 1 - issues / devices, **labels, window=window)
            if of_app := len(apps.on(app, today)):
                tally.add("capgo_version_adoption_ratio", len(versions.on(key, today)) / of_app, **labels)


# --- releases ---------------------------------------------------------------------------------------------------------


def rank_releases(production: Iterable[Seen], installs: Counter[tuple[str, str]], tally: Tally) -> None:
    """Tell when each version was first seen in production, and which of those in real use are the newest."""
    first_seen: dict[tuple[str, str], int] = {}
    reached: dict[tuple[str, str], set[str]] = defaultdict(set)
    for one in production:
        key = (one.labels.app_id, one.labels.version)
        if key[1] in _NO_RELEASES:
            continue
        first_seen[key] = min(one.at_ms, first_seen.get(key, one.at_ms))
        if one.device and (one.event.action in _SIGNS_OF_LIFE or one.kind == Kind.APP_HEALTH.value):
            reached[key].add(one.device)
    for (app_id, version), at_ms in first_seen.items():
        tally.add("capgo_version_first_seen_timestamp_seconds", at_ms, app_id=app_id, version=version)
    for app in {app_id for app_id, _ in first_seen}:
        of_app = sum(count for (app_id, _), count in installs.items() if app_id == app)
        established = [
            version
            for app_id, version in first_seen
            if app_id == app and is_established(len(reached[app, version]), installs[app, version], of_app)
        ]
        by_semver = sorted(established, key=_precedence, reverse=True)
        by_first_seen = sorted(by_semver, key=lambda version: -first_seen[app, version])
        for order, ranked in (("semver", by_semver), ("first_seen", by_first_seen)):
            for rank, version in enumerate(ranked[:_SHOWN_RANKS], 1):
                tally.add("capgo_version_rank_info", app_id=app, version=version, order=order, rank=str(rank))


def is_established(devices: int, installs: int, installs_of_app: int) -> bool:
    """Tell whether a version is in real use, rather than on one developer's phone."""
    return devices >= 20 or (devices >= 2 and installs > 0 and installs * 100 >= installs_of_app)


def _precedence(version: str) -> tuple[object, ...]:
    """Give the precedence of a version; what is no semantic version comes before all that are.

    Source: https://semver.org/#spec-item-11
    """
    match = _SEMVER.fullmatch(version)
    if match is None:
        return (0, version)
    before = [
        (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in (match[4].split(".") if match[4] else ())
    ]
    return (1, int(match[1]), int(match[2]), int(match[3]), not before, before)
