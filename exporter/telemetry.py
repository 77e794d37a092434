"""What the exporter tells about itself: every metric that starts with `capgo_exporter_`."""

import platform
import time
from collections.abc import Callable
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Info, ProcessCollector
from prometheus_client import disable_created_metrics as leave_out_created_series

from exporter import __version__
from exporter.histograms import Histogram
from exporter.notices import Notices
from exporter.rules import Filtered

EVENT_OUTCOMES: Final = (
    ("accepted", ""),
    ("duplicate", ""),
    ("unavailable", ""),
    ("rejected", "invalid_event"),
    ("rejected", "missing_action"),
    ("rejected", "missing_app_id"),
    ("rejected", "unknown_action"),
    ("rejected", "app_not_allowed"),
    *(("filtered", reason) for reason in Filtered),
)
SKIP_REASONS: Final = (
    "legacy_download_fail",
    "repeated_set",
    "same_failure",
    "no_device",
    "duration_out_of_range",
    "too_many_steps",
    "forgotten_download",
    "no_sketch",
)
LIMIT_SKIPS: Final = frozenset({"too_many_steps", "forgotten_download", "no_sketch"})
"""Those of them that a limit is the reason for."""

BODY_PROBLEMS: Final = (
    "invalid_json",
    "invalid_shape",
    "invalid_encoding",
    "too_large",
    "too_slow",
    "no_room",
    "unauthorized",
)
LIMITS: Final = ("client", "app", "waiting", "journal")
CLOSING_REASONS: Final = ("idle", "slow", "refused", "unread")
REPLIES: Final = {
    "stats": (200, 400, 401, 403, 413, 415, 500, 503),
    "metrics": (200, 401, 500),
    "healthz": (200, 503),
    "readyz": (200, 503),
    "index": (200,),
    "releases": (200, 400, 401, 413, 415, 500, 503),
    "none": (400, 404, 405),
}
"""The statuses that each handler is known to answer with."""
DELIVERY_FAILURES: Final = (
    "network",
    "timeout",
    "throttled",
    "server_error",
    "rejected_credentials",
    "not_found",
    "refused",
)
_Metric = TypeVar("_Metric", Counter, Gauge)
_LATENCY_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCH_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Telemetry:
    """All metrics about the exporter, in a registry of their own; label values that are known start at 0."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Register the metrics.

        Args:
            monotonic: seconds that never go back.
        """
        self.notices = Notices(monotonic)
        leave_out_created_series()
        self.registry = registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=registry)
        Info("capgo_exporter_build", "Version of the exporter and of Python.", registry=registry).info(
            {"version": __version__, "python_version": platform.python_version()}
        )
        self._make_http_metrics(registry)
        self._make_event_metrics(registry)
        self._make_journal_metrics(registry)
        self._make_delivery_metrics(registry)

    def skip(self, reason: str, count: int) -> None:
        """Count what derived figures left out, and tell of it if a limit is the reason."""
        self.derived_skipped[reason].inc(count)
        if reason in LIMIT_SKIPS:
            self.notices.warn("a limit is reached; some derived figures are less exact", reason)

    def _make_http_metrics(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "capgo_exporter_http_requests", "HTTP requests answered.", ["handler", "code"], registry=registry
        )
        self.request_duration = Histogram(
            "capgo_exporter_http_request_duration_seconds",
            "Time from a request's head to its reply.",
            _LATENCY_BUCKETS,
            registry,
            label="handler",
            values=tuple(REPLIES),
        )
        for handler, codes in REPLIES.items():
            for code in codes:
                self.requests.labels(handler, str(code))
        self.connections = Gauge(
            "capgo_exporter_connections",
            "Open connections, by whether they have a request under way.",
            ["state"],
            registry=registry,
        )
        self.connections_closed = _labelled(
            Counter(
                "capgo_exporter_connections_closed",
                "Connections closed: one that was idle, one with a slow request, or the new one, for want of room; "
                "one whose client did not read a page in time.",
                ["reason"],
                registry=registry,
            ),
            CLOSING_REASONS,
        )
        self.bodies_rejected = _labelled(
            Counter(
                "capgo_exporter_bodies_rejected", "Bodies refused as a whole, by reason.", ["reason"], registry=registry
            ),
            BODY_PROBLEMS,
        )
        self.requests_shed = _labelled(
            Counter(
                "capgo_exporter_requests_shed",
                "Requests answered 503 because of a limit: of a client, of an app, or of what waits.",
                ["limit"],
                registry=registry,
            ),
            LIMITS,
        )
        self.reload_successful = Gauge(
            "capgo_exporter_settings_reload_successful",
            "0 while files hold settings that are wrong, so that the old ones stay; else 1.",
            registry=registry,
        )
        self.reload_successful.set(1)
        self.scrape_gap = Gauge(
            "capgo_exporter_scrape_gap_max_seconds",
            "Longest time between two scrapes of one Prometheus server since the start.",
            registry=registry,
        )
        self.slow_scrapes = Counter(
            "capgo_exporter_slow_scrapes",
            "Scrapes that came later than EXPORTER_SCRAPE_INTERVAL after the same server's last one.",
            registry=registry,
        )
        self.scrape_interval = Gauge(
            "capgo_exporter_scrape_interval_seconds", "The setting EXPORTER_SCRAPE_INTERVAL.", registry=registry
        )

    def _make_event_metrics(self, registry: CollectorRegistry) -> None:
        events = Counter(
            "capgo_exporter_events", "Events received, by outcome.", ["outcome", "reason"], registry=registry
        )
        self.events = {pair: events.labels(*pair) for pair in EVENT_OUTCOMES}
        self.batch_events = Histogram("capgo_exporter_batch_events", "Events in a POST.", _BATCH_BUCKETS, registry)
        self.label_overflow = _labelled(
            Counter(
                "capgo_exporter_label_overflow",
                "Events counted as `other` because a cap was reached, by what was capped.",
                ["label"],
                registry=registry,
            ),
            ("app_id", "action", "version", "channel", "series"),
        )
        self.clock_corrected = _labelled(
            Counter(
                "capgo_exporter_clock_corrected",
                "Events whose device time was not believed, by direction.",
                ["direction"],
                registry=registry,
            ),
            ("past", "future"),
        )
        self.derived_skipped = _labelled(
            Counter(
                "capgo_exporter_derived_skipped",
                "Events, or durations, that a derived figure left out, by reason.",
                ["reason"],
                registry=registry,
            ),
            SKIP_REASONS,
        )
        self.derived_resets = Counter(
            "capgo_exporter_derived_resets",
            "Starts that found what is known of devices damaged, and began it anew.",
            registry=registry,
        )
        self.fields_truncated = Counter(
            "capgo_exporter_fields_truncated", "Fields cut to the bounds of a point.", registry=registry
        )
        self.series_expired = Counter(
            "capgo_exporter_series_expired", "Series removed because they were silent.", registry=registry
        )

    def _make_journal_metrics(self, registry: CollectorRegistry) -> None:
        self.commit_duration = Histogram(
            "capgo_exporter_journal_commit_duration_seconds",
            "Time of one transaction, with its fsync.",
            (0.0005, *_LATENCY_BUCKETS),
            registry,
        )
        self.commit_failures = Counter(
            "capgo_exporter_journal_commit_failures", "Transactions that could not be stored.", registry=registry
        )
        self.journal_writable = Gauge(
            "capgo_exporter_journal_writable", "1 while events can be stored, else 0.", registry=registry
        )
        self.journal_set_aside = Gauge(
            "capgo_exporter_journal_set_aside",
            "1 if this start set a damaged journal aside, else 0.",
            registry=registry,
        )
        self.dropped_points = Counter(
            "capgo_exporter_journal_dropped_points", "Points dropped because the journal was full.", registry=registry
        )
        self.journal_read_failures = Counter(
            "capgo_exporter_journal_read_failures", "Reads of points for delivery that failed.", registry=registry
        )
        self.journal_repairs = Counter(
            "capgo_exporter_journal_repairs",
            "Times that a damaged journal was replaced by a new file with all of it that could be read.",
            registry=registry,
        )
        self.journal_lost_points = Counter(
            "capgo_exporter_journal_lost_points",
            "Points, dead letters among them, that could not be read when the journal was repaired.",
            registry=registry,
        )

    def _make_delivery_metrics(self, registry: CollectorRegistry) -> None:
        self.delivery_requests = Counter(
            "capgo_exporter_delivery_requests",
            "Writes sent to InfluxDB, by its status; `network` and `timeout` if there was no answer.",
            ["status"],
            registry=registry,
        )
        for status in ("204", "network", "timeout"):
            self.delivery_requests.labels(status)
        self.delivery_retries = _labelled(
            Counter(
                "capgo_exporter_delivery_retries", "Writes to be sent again, by reason.", ["reason"], registry=registry
            ),
            DELIVERY_FAILURES,
        )
        self.delivery_failing = _labelled(
            Gauge(
                "capgo_exporter_delivery_failing",
                "1 while the last write failed for this reason, else 0.",
                ["reason"],
                registry=registry,
            ),
            DELIVERY_FAILURES,
        )
        self.delivered_points = Counter(
            "capgo_exporter_delivered_points", "Points that InfluxDB acknowledged.", registry=registry
        )
        self.rejected_points = _labelled(
            Counter(
                "capgo_exporter_rejected_points",
                "Points refused for good, by reason; all but those beyond retention are kept as dead letters.",
                ["reason"],
                registry=registry,
            ),
            ("beyond_retention", "refused", "too_large", "damaged"),
        )
        self.dropped_dead_letters = Counter(
            "capgo_exporter_dead_letters_dropped_points",
            "Dead letters dropped because there were too many.",
            registry=registry,
        )
        self.delivery_set_aside = Gauge(
            "capgo_exporter_delivery_set_aside_batches",
            "Batches on which InfluxDB fails while it takes others: they wait in the journal, and are tried later.",
            registry=registry,
        )
        self.delivery_configured = Gauge(
            "capgo_exporter_delivery_configured",
            "1 if points go to InfluxDB, 0 if they wait in the journal until the oldest make room.",
            registry=registry,
        )
        self.delivery_last_success = Gauge(
            "capgo_exporter_delivery_last_success_timestamp_seconds",
            "When InfluxDB last acknowledged a write; 0 if it never did.",
            registry=registry,
        )

    def mark_delivered(self) -> None:
        """Note that InfluxDB acknowledged a write now."""
        self.delivery_last_success.set(time.time())


def _labelled(metric: _Metric, values: tuple[str, ...]) -> dict[str, _Metric]:
    return {value: metric.labels(value) for value in values}
