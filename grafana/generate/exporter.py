"""Exporter: can the numbers be trusted?"""

from grafana_foundation_sdk.models.dashboard import Panel

from grafana.generate import annotations, exporter_storage, promql, thresholds, variables
from grafana.generate.board import Board, Row
from grafana.generate.exporter_storage import counts, own, waiting
from grafana.generate.metrics import VARIABLES, select
from grafana.generate.panels import RED, About, Bad, bars, colored, graph, heat, stat_panel
from grafana.generate.targets import Prom


def board() -> Board:
    """Describe the dashboard."""
    return Board(
        uid="capgo-exporter",
        title="Capgo / Exporter",
        description="Can the numbers be trusted: does the exporter take, keep and deliver everything?",
        variables=variables.of_exporter(),
        rows=[
            Row("Now", _now()),
            Row("Intake", _intake()),
            Row("Journal", exporter_storage.journal()),
            Row("Delivery to InfluxDB", exporter_storage.delivery()),
            Row("Cardinality and process", exporter_storage.cardinality()),
        ],
        annotations=[annotations.exporter_alerts()],
        start="now-6h",
    )


def _now() -> list[Panel]:
    lost = " + ".join(
        promql.total(promql.increase(own(name)))
        for name in (
            "journal_dropped_points_total",
            "journal_lost_points_total",
            "rejected_points_total",
            "dead_letters_dropped_points_total",
        )
    )
    return [
        stat_panel(
            About("Exporters down", "Exporters that Prometheus does not reach.", "any. Devices get no answer."),
            "short",
            Prom(f"count({select('up')}) - sum({select('up')})"),
            Bad(1),
        ),
        stat_panel(
            About(
                "Cannot store",
                "Exporters whose journal cannot be written. Devices are told to send again, each second.",
                "any: the disk is full, or fails.",
            ),
            "short",
            Prom(f"count({own('journal_writable')}) - sum({own('journal_writable')})"),
            Bad(1),
        ),
        stat_panel(
            About("Events a second", "Events accepted, each once.", "0, where devices are active."),
            "cps",
            Prom(promql.total(promql.rate(own("events_total", 'outcome="accepted"')))),
        ),
        stat_panel(
            About(
                "Oldest point waits",
                "How long the oldest point has been waiting for InfluxDB; no value: none waits.",
                "red: InfluxDB does not take them.",
            ),
            "s",
            Prom(f"max({waiting()})"),
            Bad(thresholds.OLDEST_POINT_SECONDS),
        ),
        stat_panel(
            About(
                "Points lost",
                "Points that InfluxDB will not have: refused for good, dropped, or unreadable, in the time range.",
                "any. Counters have them all the same.",
            ),
            "short",
            Prom(lost),
            Bad(1),
        ),
        stat_panel(
            About(
                "Rejected events",
                "Share of the events that were not valid, or whose action is not accepted.",
                "red: a client sends what nobody understands.",
            ),
            "percentunit",
            Prom(
                promql.share(
                    promql.total(promql.increase(own("events_total", 'outcome="rejected"'))),
                    promql.total(promql.increase(own("events_total"))),
                )
            ),
            Bad(thresholds.REJECTED_RATIO),
        ),
    ]


def _intake() -> list[Panel]:
    reasons = promql.per_step(own("events_total", 'outcome!~"accepted|duplicate"'), "outcome", "reason")
    seconds = own("http_request_duration_seconds_bucket", 'handler="stats"')
    outcomes = bars(
        About(
            "Events by outcome",
            "Events received in each interval: accepted, duplicates of those, rejected, filtered, and unavailable, "
            "which devices must send again.",
            "red bars: unavailable or rejected events.",
        ),
        "short",
        [Prom(promql.per_step(own("events_total"), "outcome"), "{{outcome}}")],
    )
    colored(outcomes, "unavailable|rejected", RED)
    codes = bars(
        About(
            "Requests by status",
            "HTTP requests answered in each interval.",
            "red: 5xx, after which devices send again.",
        ),
        "short",
        [Prom(promql.per_step(own("http_requests_total"), "handler", "code"), "{{handler}} {{code}}")],
        width=8,
    )
    return [
        outcomes,
        bars(
            About("Not accepted, by reason", "Rejected, filtered and unavailable events.", "a reason that is new."),
            "short",
            [Prom(reasons, "{{outcome}} {{reason}}")],
            color=RED,
        ),
        colored(codes, " 5..$", RED),
        graph(
            About(
                "Time of a POST", "From a request's head to its reply.", "seconds: the disk is slow, or the CPU busy."
            ),
            "s",
            [
                Prom(promql.quantile(share, seconds), name)
                for share, name in ((0.5, "median"), (0.99, "99th percentile"))
            ],
            width=8,
        ),
        heat(
            About("Events in a POST", "The darker, the more.", "thousands: devices send what they could not for long."),
            "short",
            Prom(promql.per_step(own("batch_events_bucket"), "le"), "{{le}}"),
            width=8,
        ),
        *_oddities(),
        *_limits(),
    ]


def _oddities() -> list[Panel]:
    rows = (
        (
            "Bodies refused",
            "Bodies refused as a whole.",
            "any: a client breaks them.",
            "bodies_rejected_total",
            "reason",
        ),
        (
            "Clocks corrected",
            "Device times not believed.",
            "many: our own clock is wrong.",
            "clock_corrected_total",
            "direction",
        ),
        ("Left out of figures", "Events, by why.", "a reason that is new.", "derived_skipped_total", "reason"),
    )
    late = About(
        "Late events",
        "Events that came more than an hour late, by kind; figures leave them out.",
        "a wave: an outage is over, or devices cannot reach us.",
    )
    return [
        *(
            counts(About(title, meaning, bad), own(metric), label, width=6)
            for title, meaning, bad, metric, label in rows
        ),
        counts(late, select("capgo_late_events_total", without=tuple(VARIABLES)), "kind", width=6),
    ]


def _limits() -> list[Panel]:
    return [
        counts(
            About(
                "Requests put off",
                "Requests answered 503 because of a limit: of a client, an app, or what waits for disk or InfluxDB.",
                "any: devices send again, and old plugins lose events.",
            ),
            own("requests_shed_total"),
            "limit",
            width=12,
        ),
        graph(
            About(
                "Settings in force",
                "1 while the settings that files hold are in force, 0 while those files are wrong.",
                "a line at 0: the log says what is wrong. A restart would fail.",
            ),
            "short",
            [Prom(own("settings_reload_successful"), "{{instance}}")],
            width=12,
        ),
    ]
