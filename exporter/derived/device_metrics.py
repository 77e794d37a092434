"""Metrics of distinct devices: which of an app's versions are shown, its adoption, its device-days."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric

from exporter.derived.sketches import DAYS, WINDOWS, DailySketches, Sketch, SketchKind, count, count_added

SHOWN_VERSIONS: Final = 10
"""Versions of an app that have series: those with the most devices today and yesterday."""
_NO_SUM: Final = "estimated to about 2 %; distinct counts cannot be added up over versions, windows or replicas."
_FAMILIES: Final = (
    ("devices", f"Distinct devices seen, {_NO_SUM}", ("platform", "window")),
    ("version_devices", f"Distinct devices seen with a version, {_NO_SUM}", ("version", "window")),
    ("version_affected_devices", f"Distinct devices with a failure of a version, {_NO_SUM}", ("version", "window")),
    (
        "version_issue_free_ratio",
        f"Share of a version's distinct devices without a failure, {_NO_SUM}",
        ("version", "window"),
    ),
    (
        "version_adoption_ratio",
        f"Share of an app's distinct devices of the UTC day that were seen with a version, {_NO_SUM}",
        ("version",),
    ),
    (
        "device_day_outcomes",
        f"Days of devices on which an update succeeded, or updates only failed (less exact), {_NO_SUM}",
        ("outcome", "window"),
    ),
)
_Gauges = dict[str, GaugeMetricFamily]
_ZERO: Final = (0, 0, 0)


class AppSketches:
    """The sketches of one app."""

    def __init__(self) -> None:
        """Start without sketches."""
        self._things: dict[tuple[SketchKind, str], DailySketches] = {}
        self._outcomes: dict[int, tuple[int, int]] = {}
        self._total: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[Sketch]:
        """Give all sketches."""
        for days in self._things.values():
            yield from days.sketches.values()

    def __bool__(self) -> bool:
        """Tell whether there is any sketch."""
        return bool(self._things)

    def get(self, kind: SketchKind, name: str, day: int) -> Sketch | None:
        """Give the sketch of a thing and a day."""
        days = self._things.get((kind, name))
        return None if days is None else days.sketches.get(day)

    def add(self, sketch: Sketch) -> None:
        """Take a sketch; there must be none of the same thing and day."""
        self._things.setdefault((sketch.kind, sketch.name), DailySketches()).sketches[sketch.day] = sketch
        self.changed(sketch)

    def discard(self, sketch: Sketch) -> None:
        """Take a sketch out."""
        self.changed(sketch)
        days = self._things[sketch.kind, sketch.name]
        del days.sketches[sketch.day]
        if not days.sketches:
            del self._things[sketch.kind, sketch.name]

    def changed(self, sketch: Sketch) -> None:
        """Forget the estimates that a sketch had a part in."""
        self._things[sketch.kind, sketch.name].changed(sketch.day)
        if sketch.kind is SketchKind.PLATFORM:
            self._total = None
        elif sketch.kind is SketchKind.SUCCEEDED or sketch.kind is SketchKind.FAILED:
            self._outcomes.pop(sketch.day, None)

    def names(self, kind: SketchKind) -> list[str]:
        """Give the names of the things of one kind that may be shown, sorted."""
        return sorted(name for (each, name), days in self._things.items() if each is kind and days.shown)

    def windows(self, kind: SketchKind, name: str, today: int) -> tuple[int, int, int]:
        """Estimate the devices of a thing in each of the windows."""
        days = self._things.get((kind, name))
        return _ZERO if days is None else days.windows(today)

    def top_versions(self, today: int) -> list[str]:
        """Give the versions that are shown: most devices in the last two days first, then the last seen."""
        ranked = []
        for name in self.names(SketchKind.VERSION):
            days = self._things[SketchKind.VERSION, name]
            ranked.append((-days.recent(today), -max(days.sketches), name))
        return [name for _, _, name in sorted(ranked)[:SHOWN_VERSIONS]]

    def total(self, today: int) -> int:
        """Estimate today's devices on all platforms together."""
        if self._total is None or self._total[0] != today:
            sketches = [self.get(SketchKind.PLATFORM, name, today) for name in self.names(SketchKind.PLATFORM)]
            self._total = (today, count([sketch.hll for sketch in sketches if sketch is not None]))
        return self._total[1]

    def device_days(self, today: int) -> tuple[list[int], list[int]]:
        """Estimate the device-days with a success and those with failures only, in each of the windows."""
        window_days = range(today - DAYS + 1, today + 1)
        self._outcomes = {day: self._outcomes.get(day) or self._outcome(day) for day in window_days}
        windows = [[self._outcomes[day] for day in window_days[-length:]] for _, length in WINDOWS]
        return [sum(won for won, _ in days) for days in windows], [sum(lost for _, lost in days) for days in windows]

    def _outcome(self, day: int) -> tuple[int, int]:
        succeeded = self.get(SketchKind.SUCCEEDED, "", day)
        failed = self.get(SketchKind.FAILED, "", day)
        if failed is None or succeeded is None:
            return (succeeded.devices if succeeded else 0, failed.devices if failed else 0)
        return (succeeded.devices, count_added(succeeded.hll, failed.hll))


def metrics(apps: Mapping[str, AppSketches], today: int) -> Iterator[Metric]:
    """Give the metrics of all apps."""
    gauges = {
        name: GaugeMetricFamily(f"capgo_{name}", help_text, labels=("app_id", *labels))
        for name, help_text, labels in _FAMILIES
    }
    for app_id, app in sorted(apps.items()):
        for platform in app.names(SketchKind.PLATFORM):
            _add(gauges["devices"], (app_id, platform), app.windows(SketchKind.PLATFORM, platform, today))
        for version in app.top_versions(today):
            _add_version(gauges, (app_id, version), app, today)
        if app.names(SketchKind.SUCCEEDED) or app.names(SketchKind.FAILED):
            successes, failures = app.device_days(today)
            _add(gauges["device_day_outcomes"], (app_id, "success"), successes)
            _add(gauges["device_day_outcomes"], (app_id, "failure"), failures)
    yield from gauges.values()


def _add_version(gauges: _Gauges, labels: tuple[str, str], app: AppSketches, today: int) -> None:
    seen = app.windows(SketchKind.VERSION, labels[1], today)
    affected = app.windows(SketchKind.AFFECTED, labels[1], today)
    issue_free = [_ratio(every - bad, every) for every, bad in zip(seen, affected, strict=True)]
    _add(gauges["version_devices"], labels, seen)
    _add(gauges["version_affected_devices"], labels, affected)
    _add(gauges["version_issue_free_ratio"], labels, issue_free)
    adoption = _ratio(seen[0], app.total(today))
    if adoption is not None:
        gauges["version_adoption_ratio"].add_metric(labels, adoption)


def _ratio(part: int, whole: int) -> float | None:
    """Give a share; estimates may contradict each other. Of nothing there is none."""
    return min(1.0, max(0.0, part / whole)) if whole else None


def _add(family: GaugeMetricFamily, labels: tuple[str, str], values: Sequence[float | None]) -> None:
    """Add the values of all windows."""
    for (window, _), value in zip(WINDOWS, values, strict=True):
        if value is not None:
            family.add_metric((*labels, window), value)
