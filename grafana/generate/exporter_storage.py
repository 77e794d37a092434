"""Exporter, second half: what it keeps, what it delivers, and what that takes."""

from typing import Final

from grafana_foundation_sdk.models.dashboard import Panel

from grafana.generate import promql, thresholds
from grafana.generate.metrics import select
from grafana.generate.panels import RED, About, Bad, bars, colored, graph
from grafana.generate.targets import Prom

_OWN: Final = "capgo_exporter_"


def own(name: str, *matchers: str) -> str:
    """Select a metric of the exporter about itself."""
    return select(f"{_OWN}{name}", *matchers)


def waiting() -> str:
    """Give how long the oldest point has waited; nothing while none waits."""
    stored = own("journal_oldest_point_timestamp_seconds")
    return f"time() - ({stored} > 0)"


def counts(about: About, metric: str, label: str, *, width: int = 8) -> Panel:
    """Draw bars of one counter."""
    return bars(about, "short", [Prom(promql.per_step(metric, label), f"{{{{{label}}}}}")], width=width)


def journal() -> list[Panel]:
    """Show what waits on disk."""
    commits = own("journal_commit_duration_seconds_bucket")
    failures = [
        Prom(promql.per_step(own(f"journal_{name}_total")), legend)
        for name, legend in (
            ("commit_failures", "commits"),
            ("read_failures", "reads"),
            ("dropped_points", "points dropped"),
            ("repairs", "repairs"),
            ("lost_points", "points lost in repairs"),
        )
    ]
    return [
        graph(
            About(
                "Time of a commit", "One transaction, with its fsync.", "a line above the dashed one: the disk is slow."
            ),
            "s",
            [
                Prom(promql.quantile(share, commits), name)
                for share, name in ((0.5, "median"), (0.99, "99th percentile"))
            ],
            bad=Bad(thresholds.COMMIT_SECONDS),
            width=8,
        ),
        bars(
            About(
                "Failures of the journal",
                "Failed commits and reads, repairs, points dropped and points that could not be read.",
                "any: the disk fails, or the journal is full.",
            ),
            "short",
            failures,
            color=RED,
            width=8,
        ),
        graph(
            About("Points that wait", "Points in the journal for InfluxDB.", "a line that climbs and stays up."),
            "short",
            [Prom(own("journal_points"), "{{instance}}")],
            width=8,
        ),
        graph(
            About("Size of the journal", "Compressed size of the points that wait.", "a line near the limit, 1 GiB."),
            "bytes",
            [Prom(own("journal_bytes"), "{{instance}}")],
            width=8,
        ),
        graph(
            About(
                "Window for duplicates",
                "Age of the oldest time since which every event is remembered.",
                "less than a day: events that are sent again after it are counted twice.",
            ),
            "s",
            [Prom(own("dedupe_window_seconds"), "{{instance}}")],
            width=8,
        ),
        counts(
            About(
                "Duplicates", "Events that were sent again, in each interval.", "many: replies do not reach devices."
            ),
            own("events_total", 'outcome="duplicate"'),
            "instance",
        ),
    ]


def delivery() -> list[Panel]:
    """Show what reaches InfluxDB."""
    requests = bars(
        About("Writes by status", "Writes to InfluxDB in each interval.", "red: anything but 2xx."),
        "short",
        [Prom(promql.per_step(own("delivery_requests_total"), "status"), "{{status}}")],
        width=8,
    )
    last_success = own("delivery_last_success_timestamp_seconds")
    return [
        colored(requests, "^([3-5]..|network|timeout)$", RED),
        counts(
            About("Points delivered", "Points that InfluxDB acknowledged.", "none, while points wait."),
            own("delivered_points_total"),
            "instance",
        ),
        graph(
            About(
                "Wait of the oldest point",
                "How long it has waited, by exporter.",
                "a line above the dashed one.",
            ),
            "s",
            [Prom(waiting(), "{{instance}}")],
            bad=Bad(thresholds.OLDEST_POINT_SECONDS),
            width=8,
        ),
        graph(
            About("Failing, and why", "1 while the last write failed for this reason.", "a line at 1."),
            "short",
            [Prom(promql.highest(own("delivery_failing"), "instance", "reason"), "{{instance}} {{reason}}")],
            color=RED,
            width=8,
        ),
        counts(
            About(
                "Points refused for good",
                "Kept as dead letters, but for those beyond retention.",
                "any: look at the log.",
            ),
            own("rejected_points_total"),
            "reason",
        ),
        graph(
            About("Dead letters", "Points that InfluxDB refused and that are kept.", "a line that climbs."),
            "short",
            [Prom(own("dead_letter_points"), "{{instance}}")],
            color=RED,
            width=8,
        ),
        counts(
            About("Writes sent again", "Writes that were to be repeated, by reason.", "bars that do not end."),
            own("delivery_retries_total"),
            "reason",
        ),
        graph(
            About("Since the last success", "Time since InfluxDB last acknowledged a write.", "a line that climbs."),
            "s",
            [Prom(f"time() - ({last_success} > 0)", "{{instance}}")],
            width=8,
        ),
    ]


def cardinality() -> list[Panel]:
    """Show what takes memory."""
    scrapes = [
        Prom(own("scrape_gap_max_seconds"), "longest, {{instance}}"),
        Prom(own("scrape_interval_seconds"), "setting, {{instance}}"),
    ]
    return [
        graph(
            About("Series", "Of the event counter, and of derived figures.", "a line near the limit, 200,000."),
            "short",
            [
                Prom(promql.total(own("series"), "instance"), "events, {{instance}}"),
                Prom(promql.total(own("derived_series"), "instance"), "figures, {{instance}}"),
            ],
            width=8,
        ),
        counts(
            About("Counted as `other`", "Events past a cap, by what was capped.", "`version`: a release is not seen."),
            own("label_overflow_total"),
            "label",
        ),
        graph(
            About("Sketches", "Of distinct devices, and downloads and failures that are followed.", "a line at 5,000."),
            "short",
            [
                Prom(own("sketches"), "sketches, {{instance}}"),
                Prom(own("episodes"), "episodes, {{instance}}"),
            ],
            width=8,
        ),
        graph(
            About(
                "Time between scrapes",
                "Longest of one Prometheus server, and EXPORTER_SCRAPE_INTERVAL.",
                "*longest* above *setting*: the first events of new series may be missed. Raise the setting.",
            ),
            "s",
            scrapes,
            width=8,
        ),
        graph(
            About("Memory", "Resident memory of the process.", "a line that climbs for days."),
            "bytes",
            [Prom(select("process_resident_memory_bytes"), "{{instance}}")],
            width=8,
        ),
        graph(
            About("CPU", "Seconds of CPU a second.", "a line near 1: the exporter uses one core."),
            "short",
            [Prom(promql.rate(select("process_cpu_seconds_total")), "{{instance}}")],
            width=8,
        ),
    ]
