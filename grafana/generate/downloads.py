"""Download progress: how far downloads get, where they stop, and how long they take."""

from typing import Final

from grafana_foundation_sdk.models.dashboard import Panel

from grafana.generate import annotations, download_times, promql, thresholds, variables
from grafana.generate.board import Board, Row
from grafana.generate.metrics import select
from grafana.generate.panels import RED, About, Bad, bars, colored, funnel, graph, lined, stat_panel
from grafana.generate.tables import Column, table_panel
from grafana.generate.targets import Prom

STEPS: Final = ("0", *(str(step) for step in range(10, 100, 10)), "complete")
"""What a download can have reached, in order."""

_ATTEMPTS: Final = "capgo_download_attempts_total"
_DURATION: Final = "capgo_download_duration_seconds_bucket"
_EVENTS: Final = "capgo_stats_events_total"
_STARTS: Final = 'action=~"download_0|download_zip_start|download_manifest_start"'
_DOWNLOAD_FAILURES: Final = 'reason!~"update_fail|set_fail"'


def board() -> Board:
    """Describe the dashboard."""
    return Board(
        uid="capgo-downloads",
        title="Capgo / Download progress",
        description="How far downloads get, on which platform and version they stop, why, and how long they take.",
        variables=variables.of_devices(),
        rows=[
            Row("Now", _now()),
            Row("Funnel", [_funnel(), _drops(), _funnel_by_version()]),
            Row("Over time", _over_time()),
            Row("Duration", download_times.durations()),
            Row("Zip and manifest", download_times.kinds()),
        ],
        annotations=[annotations.releases(), annotations.first_seen(), annotations.alerts()],
    )


def reached(step: str) -> str:
    """Match the downloads that reached at least a step: platforms skip steps."""
    return f'reached=~"{"|".join(STEPS[STEPS.index(step) :])}"'


def _ended(*matchers: str, by: tuple[str, ...] = ()) -> str:
    return promql.total(promql.increase(select(_ATTEMPTS, *matchers)), *by)


def _now() -> list[Panel]:
    return [
        stat_panel(
            About(
                "Downloads completed",
                "Share of the downloads that ended in the time range and got the whole bundle.",
                "red: downloads fail, or stall.",
            ),
            "percentunit",
            Prom(promql.share(_ended('outcome="completed"'), _ended())),
            Bad(1 - thresholds.DOWNLOAD_FAIL_RATIO, below=True),
        ),
        stat_panel(
            About(
                "Failed", "Downloads that failed in the time range.", "a number out of proportion to all that ended."
            ),
            "short",
            Prom(_ended('outcome="failed"')),
        ),
        stat_panel(
            About(
                "Stalled",
                "Share of the downloads of which nothing was heard for two hours.",
                "red: devices begin and never end, as with a slow or broken file server.",
            ),
            "percentunit",
            Prom(promql.share(_ended('outcome="stalled"'), _ended())),
            Bad(thresholds.STALLED_RATIO),
        ),
        stat_panel(
            About(
                "Under way",
                "Downloads that began and have not ended.",
                "a number that only grows: nothing is completed any more.",
            ),
            "short",
            Prom(promql.total(select("capgo_downloads_in_flight"))),
        ),
        stat_panel(
            About(
                "90th percentile of the time",
                f"Nine of ten downloads took less, from their last start to their end. {download_times.PROD}",
                "red: the bundle is too large, or its server too slow.",
            ),
            "s",
            Prom(promql.quantile(0.9, select(_DURATION), window=promql.RANGE)),
            Bad(thresholds.DOWNLOAD_SECONDS),
        ),
        stat_panel(
            About(
                "Ended", "Downloads that completed, failed or stalled in the time range.", "0 while a rollout goes on."
            ),
            "short",
            Prom(_ended()),
        ),
    ]


def _funnel() -> Panel:
    return funnel(
        About(
            "Reached at least",
            "Share of the downloads that got at least so far. Steps differ by platform; who reports 70 has reached 10, "
            "too.",
            "one bar much shorter than the one above it: that is where downloads break off.",
        ),
        "percentunit",
        [Prom(promql.share(_ended(reached(step)), _ended()), _step_name(step)) for step in STEPS],
    )


def _drops() -> Panel:
    stopped = _ended('reached!="complete"', by=("reached", "platform"))
    expression = promql.share(stopped, _ended(by=("platform",)), "on (platform) group_left () ")
    return funnel(
        About(
            "Drop after each step",
            "Share of the downloads, by platform, that reached this step and none after it.",
            "red: on this platform downloads break off here.",
        ),
        "percentunit",
        [Prom(f"sort_desc({expression})", "{{platform}}: last at {{reached}} %")],
        bad=Bad(thresholds.DROP_RATIO),
    )


def _funnel_by_version() -> Panel:
    by = ("app_id", "version", "platform")
    steps = [
        Column(_step_name(step), promql.share(_ended(reached(step), by=by), _ended(by=by)), "percentunit")
        for step in STEPS[1:]
    ]
    about = About(
        "Funnel by version and platform",
        "Share of the downloads that reached at least each step.",
        "a row whose numbers fall off at a step where those of other versions do not.",
    )
    columns = [Column("Ended", _ended(by=by)), *steps]
    return table_panel(about, ["app_id", "version", "platform"], columns, sort="Ended")


def _step_name(step: str) -> str:
    return "completed" if step == "complete" else f"≥ {step} %"


def _over_time() -> list[Panel]:
    outcomes = bars(
        About(
            "Started, completed, failed, stalled",
            "Downloads in each interval. Starts are counted from the events `download_0`, `download_zip_start` and "
            "`download_manifest_start`, of which a device can send two; ends once for each download.",
            "red bars that grow, or starts that no ends follow.",
        ),
        "short",
        [
            Prom(promql.per_step(select(_EVENTS, _STARTS)), "started"),
            Prom(promql.per_step(select(_ATTEMPTS), "outcome"), "{{outcome}}"),
        ],
    )
    lined(colored(outcomes, "started", "text"), "started")
    colored(outcomes, "failed|stalled", RED)
    return [
        outcomes,
        bars(
            About(
                "Failure reasons",
                "Failed downloads in each interval, by their most specific reason.",
                "a reason that was not there before a release marker. `checksum_fail` and `decrypt_fail` speak of the "
                "bundle, `download_fail` of the way, `insufficient_disk_space` of the device.",
            ),
            "short",
            [Prom(promql.per_step(select("capgo_update_failures_total", _DOWNLOAD_FAILURES), "reason"), "{{reason}}")],
            color=RED,
        ),
        bars(
            About(
                "Stalled downloads",
                "Downloads of which nothing was heard for two hours, by version and platform, when they were given up.",
                "bars two hours after a release marker.",
            ),
            "short",
            [
                Prom(
                    promql.per_step(select(_ATTEMPTS, 'outcome="stalled"'), "version", "platform"),
                    "{{version}} {{platform}}",
                )
            ],
            color=RED,
        ),
        graph(
            About(
                "Under way over time",
                "Downloads that began and have not ended, by version.",
                "a line that climbs and does not come down.",
            ),
            "short",
            [Prom(promql.total(select("capgo_downloads_in_flight"), "app_id", "version"), "{{app_id}} {{version}}")],
        ),
    ]
