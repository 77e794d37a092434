"""App health: does the app run well, once a bundle is activated?"""

from typing import Final

from grafana_foundation_sdk.models.dashboard import Panel

from grafana.generate import annotations, promql, thresholds, variables
from grafana.generate.board import Board, Row
from grafana.generate.metrics import select
from grafana.generate.panels import RED, About, Bad, bars, graph, heat, stat_panel
from grafana.generate.tables import Column, table_panel
from grafana.generate.targets import Prom

_EVENTS: Final = "capgo_stats_events_total"
_CRASHES: Final = 'action=~"app_crash|app_crash_native"'
_ANR: Final = 'action="app_anr"'
_KILLS: Final = 'action=~"app_killed_.+|app_initialization_failure|app_memory_warning"'
_WEBVIEW: Final = (
    'action=~"webview_(javascript_error|unhandled_rejection|resource_error|security_policy_violation|unclean_restart'
    '|render_process_gone|content_process_terminated)"'
)
_STARTS: Final = 'action="app_launch_start"'
_TIMEOUTS: Final = 'action="app_launch_timeout"'
_LAUNCH: Final = "capgo_launch_duration_seconds_bucket"
_PAGE: Final = "capgo_webview_load_duration_seconds_bucket"
_ISSUE_FREE: Final = "capgo_version_issue_free_ratio"
_BY_VERSION: Final = ("app_id", "version")
_PROD: Final = "Production only, whatever the environment above."
_NO_SUM: Final = (
    "Distinct devices are estimated to about 2 %, and cannot be added up over versions, windows or replicas; of "
    "replicas the highest is shown, or the sum if the rules say so."
)
_NEXT: Final = "Crashes are reported at the next launch, against the version that runs then."
_PERCENTILES: Final = ((0.5, "50th"), (0.9, "90th"), (0.99, "99th"))


def board() -> Board:
    """Describe the dashboard."""
    return Board(
        uid="capgo-health",
        title="Capgo / App health",
        description="Does the app run well once a bundle is activated: crashes, ANR, WebView errors, launch times.",
        variables=variables.of_devices(),
        rows=[
            Row("Now", [*_now(), _versions()]),
            Row("Crashes and errors", _errors()),
            Row("Launch and load times", _times()),
        ],
        annotations=[annotations.releases(), annotations.first_seen(), annotations.alerts()],
    )


def _count(matcher: str, *by: str) -> str:
    return promql.total(promql.increase(select(_EVENTS, matcher)), *by)


def _now() -> list[Panel]:
    return [
        stat_panel(
            About(
                "Issue-free devices, worst version",
                "Share of a version's devices of today without a failed update or an app-health failure, of the worst "
                f"version with {thresholds.ISSUE_FREE_DEVICES} devices or more. {_NO_SUM}",
                "red. The table below says which version.",
            ),
            "percentunit",
            Prom(f"min({promql.highest(_issue_free_of_many(), *_BY_VERSION)})"),
            Bad(thresholds.ISSUE_FREE_RATIO, below=True),
        ),
        stat_panel(
            About("Crashes", f"Crashes of the app, in native code too. {_NEXT}", "more than in the same time before."),
            "short",
            Prom(_count(_CRASHES)),
        ),
        stat_panel(
            About("ANR", "Times that Android closed the app because it did not respond.", "more than before."),
            "short",
            Prom(_count(_ANR)),
        ),
        stat_panel(
            About("WebView errors", "Errors in the bundle's page, and ends of its process.", "more than before."),
            "short",
            Prom(_count(_WEBVIEW)),
        ),
        stat_panel(
            About(
                "90th percentile of launches",
                f"Nine of ten launches in the time range took less. {_PROD}",
                "red: people wait for the app.",
            ),
            "s",
            Prom(promql.quantile(0.9, select(_LAUNCH), window=promql.RANGE)),
            Bad(thresholds.LAUNCH_SECONDS),
        ),
        stat_panel(
            About("Launch time-outs", "Launches in which the app was not ready in time.", "any, after a release."),
            "short",
            Prom(_count(_TIMEOUTS)),
        ),
    ]


def _issue_free_of_many() -> str:
    """Leave out versions of so few devices that one with trouble is a bad share."""
    devices = promql.joined(select("capgo_version_devices", 'window="1d"'), *_BY_VERSION)
    share = promql.highest(select(_ISSUE_FREE, 'window="1d"'), *_BY_VERSION)
    return f"{share} and ({devices} >= {thresholds.ISSUE_FREE_DEVICES})"


def _versions() -> Panel:
    about = About(
        "Versions",
        f"What happened to each version in the time range. {_NEXT} {_NO_SUM}",
        "a version with few issue-free devices, or with far more crashes for its launches than the others.",
    )
    columns = [
        Column(
            "Issue-free today",
            promql.highest(select(_ISSUE_FREE, 'window="1d"'), *_BY_VERSION),
            "percentunit",
            Bad(thresholds.ISSUE_FREE_RATIO, below=True),
        ),
        Column("Devices today", promql.joined(select("capgo_version_devices", 'window="1d"'), *_BY_VERSION)),
        Column("Crashes", _count(_CRASHES, *_BY_VERSION)),
        Column("ANR", _count(_ANR, *_BY_VERSION)),
        Column("WebView errors", _count(_WEBVIEW, *_BY_VERSION)),
        Column("Launch time-outs", _count(_TIMEOUTS, *_BY_VERSION)),
        Column("Launches", _count(_STARTS, *_BY_VERSION)),
    ]
    return table_panel(about, _BY_VERSION, columns, sort="Crashes")


def _errors() -> list[Panel]:
    kinds = (
        ("Crashes by action", _CRASHES, "Crashes in each interval.", "bars that begin after a release marker."),
        ("ANR by action", _ANR, "Times that Android closed the app in each interval.", "bars that grow."),
        ("WebView errors by action", _WEBVIEW, "Errors of the page in each interval.", "a kind that is new."),
        ("Kills and memory by action", _KILLS, "Times that the system ended the app.", "a leak: bars that grow daily."),
    )
    by_action = [
        bars(
            About(title, f"{meaning} {_NEXT}", bad),
            "short",
            [Prom(promql.per_step(select(_EVENTS, matcher), "action"), "{{action}}")],
            color=RED,
        )
        for title, matcher, meaning, bad in kinds
    ]
    crashes, starts = (
        promql.total(promql.increase(select(_EVENTS, matcher), "6h"), *_BY_VERSION) for matcher in (_CRASHES, _STARTS)
    )
    return [
        *by_action,
        graph(
            About(
                "Crashes for each launch, by version",
                f"Crashes of the 6 hours before, divided by the launches. {_NEXT}",
                "the newest version's line above the others.",
            ),
            "percentunit",
            [Prom(promql.share(crashes, starts), "{{app_id}} {{version}}")],
        ),
        graph(
            About(
                "Issue-free devices by version",
                "Share of a version's devices of the day without a failed update or an app-health failure. It begins "
                f"anew at midnight UTC. {_NO_SUM}",
                "a line below the dashed one.",
            ),
            "percentunit",
            [Prom(promql.highest(select(_ISSUE_FREE, 'window="1d"'), *_BY_VERSION), "{{app_id}} {{version}}")],
            bad=Bad(thresholds.ISSUE_FREE_RATIO, below=True),
        ),
    ]


def _times() -> list[Panel]:
    panels = []
    for name, buckets in (("launch", _LAUNCH), ("page load", _PAGE)):
        what = "from its start to being ready" if name == "launch" else "in which the WebView loaded its page"
        panels += [
            graph(
                About(
                    f"Time of a {name}",
                    f"Half, nine tenths, and 99 of 100 took less: the time {what}. {_PROD}",
                    "a line that rises after a release marker.",
                ),
                "s",
                [Prom(promql.quantile(share, select(buckets)), f"{rank} percentile") for share, rank in _PERCENTILES],
                bad=Bad(thresholds.LAUNCH_SECONDS),
                width=8,
            ),
            graph(
                About(
                    f"90th percentile of a {name} by version",
                    f"Nine of ten took less, over an hour. {_PROD}",
                    "the newest version's line above the others.",
                ),
                "s",
                [Prom(promql.quantile(0.9, select(buckets), *_BY_VERSION, window="1h"), "{{app_id}} {{version}}")],
                width=8,
            ),
            heat(
                About(f"Times of a {name}", f"The darker, the more. {_PROD}", "a second, slower band."),
                "s",
                Prom(promql.per_step(select(buckets), "le"), "{{le}}"),
                width=8,
            ),
        ]
    return panels
