"""Metrics that are read from the state itself at each scrape."""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from exporter.journal.records import Totals


class StateCollector:
    """Metrics that are read from the state itself at each scrape."""

    def __init__(
        self,
        totals: Callable[[], Totals],
        series: Callable[[], tuple[int, int]],
        expired_events: Callable[[], int],
        dedupe: Callable[[], tuple[int, float]],
    ) -> None:
        """Remember where to look.

        Args:
            totals: the journal's totals.
            series: the number of series of events, and of derived figures.
            expired_events: events whose series are gone.
            dedupe: the number of remembered events, and the age in seconds of the time since which all are remembered.
        """
        self._totals = totals
        self._series = series
        self._expired_events = expired_events
        self._dedupe = dedupe

    def collect(self) -> Iterator[Metric]:
        """Give the metrics' present values."""
        totals = self._totals()
        remembered, window_seconds = self._dedupe()
        series, derived_series = self._series()
        yield CounterMetricFamily(
            "capgo_exporter_expired_events", "Events of series that were removed.", value=self._expired_events()
        )
        for name, help_text, value in (
            ("series", "Series of capgo_stats_events_total.", series),
            ("derived_series", "Series of derived counters and histograms.", derived_series),
            ("dedupe_events", "Events remembered to recognise re-sent ones.", remembered),
            ("dedupe_window_seconds", "Age of the oldest time since which every event is remembered.", window_seconds),
            ("journal_points", "Points that wait in the journal for InfluxDB.", totals.points),
            ("journal_bytes", "Compressed size of the points that wait in the journal.", totals.bytes),
            ("dead_letter_points", "Points that InfluxDB refused and that are kept.", totals.dead_letter_points),
            ("dead_letter_bytes", "Compressed size of the dead letters.", totals.dead_letter_bytes),
            (
                "journal_oldest_point_timestamp_seconds",
                "When the oldest waiting point was stored; 0 if none waits.",
                (totals.oldest_point_ms or 0) / 1000,
            ),
        ):
            yield GaugeMetricFamily(f"capgo_exporter_{name}", help_text, value=value)
