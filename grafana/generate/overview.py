"""Overview: is everything well?"""

from grafana_foundation_sdk.models.dashboard import Panel

from grafana.generate import annotations, promql, thresholds, variables
from grafana.generate.board import Board, Row
from grafana.generate.metrics import select
from grafana.generate.panels import RED, About, Bad, bars, graph, stat_panel
from grafana.generate.tables import FAILURES_LINK, Column, linked, table_panel
from grafana.generate.targets import Prom

_NO_SUM = (
    "Distinct devices cannot be added up over versions, windows or replicas; "
    "of replicas the highest is shown, or the sum if the rules say so."
)


def board() -> Board:
    """Describe the dashboard."""
    return Board(
        uid="capgo-overview",
        title="Capgo / Overview",
        description="Is everything well? If not: which app, which version, since when.",
        variables=variables.of_devices(),
        rows=[
            Row("Now", [*_now(), _apps()]),
            Row("Since when", [_rollbacks(), _alerts(), *_shares()]),
            Row("Releases and devices", [_versions(), _devices()]),
        ],
        annotations=[annotations.releases(), annotations.first_seen(), annotations.alerts()],
        refresh="30s",
    )


def _now() -> list[Panel]:
    newest_share = promql.of_rank(
        promql.highest(select("capgo_version_adoption_ratio", without=("version",)), "app_id", "version"), 1
    )
    return [
        stat_panel(
            About(
                "Roll-backs, last 15 minutes",
                "Devices on which a bundle was activated and did not come up, so that the plugin went back "
                "(`update_fail`, electron's `set_fail`).",
                "red: a release is hurting people right now. Go on to *Update failures*.",
            ),
            "short",
            Prom(promql.rollbacks(window="15m")),
            Bad(thresholds.ROLLBACKS),
        ),
        stat_panel(
            About(
                "Alerts firing",
                "Capgo's alerts that fire now, for the chosen apps or for the exporter.",
                "any. The table below says which; each has a runbook. A dash: Prometheus has not loaded our rules.",
            ),
            "short",
            Prom(promql.firing_or_none()),
            Bad(1),
        ),
        stat_panel(
            About(
                "Success rate",
                "Installs as a share of all updates that were tried, in the time range.",
                "red: the release, or the way to the devices, is broken.",
            ),
            "percentunit",
            Prom(promql.share(promql.installs(), promql.attempts())),
            Bad(1 - thresholds.FAIL_RATIO, below=True),
        ),
        stat_panel(
            About(
                "Failed updates",
                "Updates that failed in the time range, each once, whatever the reason.",
                "a number that is out of proportion to the installs beside it.",
            ),
            "short",
            Prom(promql.fails()),
        ),
        stat_panel(
            About(
                "Active devices today",
                f"Distinct production devices since midnight UTC, estimated to about 2 %. {_NO_SUM}",
                "far fewer than at the same hour of other days: devices, or the way to us, are down.",
            ),
            "short",
            Prom(promql.devices("1d")),
        ),
        stat_panel(
            About(
                "Newest version's share",
                "Share of today's devices that were seen with the newest version of their app; of several apps the "
                f"lowest. {_NO_SUM}",
                "a share that stands still while a rollout goes on: devices do not get the release, or go back.",
            ),
            "percentunit",
            Prom(f"min({newest_share})"),
        ),
    ]


def _apps() -> Panel:
    adoption = promql.highest(select("capgo_version_adoption_ratio", without=("version",)), "app_id", "version")
    about = About(
        "Apps",
        f"One row for each app. {_NO_SUM}",
        "a red cell. Click on the app to see its failures.",
    )
    columns = [
        Column("Roll-backs", promql.rollbacks("app_id"), bad=Bad(thresholds.ROLLBACKS)),
        Column(
            "Success rate",
            promql.share(promql.installs("app_id"), promql.attempts("app_id")),
            "percentunit",
            Bad(1 - thresholds.FAIL_RATIO, below=True),
        ),
        Column("Installs", promql.installs("app_id")),
        Column("Failed", promql.fails("app_id")),
        Column("Active devices today", promql.devices("1d", "app_id")),
        Column("Newest version's share", f"max by (app_id) ({promql.of_rank(adoption, 1)})", "percentunit"),
        Column("Alerts", promql.firing("app_id", alerts=promql.APP_ALERTS), bad=Bad(1)),
    ]
    panel = table_panel(about, ["app_id"], columns, sort="Roll-backs", height=6)
    return linked(panel, "App", f"{FAILURES_LINK}&var-app=${{__value.raw}}", "Failures of this app")


def _rollbacks() -> Panel:
    return bars(
        About(
            "Roll-backs over time",
            "Roll-backs in each interval, by app and version. Lines mark releases, new versions and alerts.",
            "bars that begin, or grow, right after a release marker.",
        ),
        "short",
        [Prom(promql.rollbacks_per_step("app_id", "version"), "{{app_id}} {{version}}")],
        color=RED,
    )


def _shares() -> list[Panel]:
    success = promql.share(promql.installs("app_id", window="1h"), promql.attempts("app_id", window="1h"))
    adoption = promql.highest(select("capgo_version_adoption_ratio", without=("version",)), "app_id", "version")
    return [
        graph(
            About(
                "Success rate, last hour",
                "Installs as a share of all updates of the hour before, by app.",
                "a line below the dashed one, or one that falls after a release marker.",
            ),
            "percentunit",
            [Prom(success, "{{app_id}}")],
            bad=Bad(1 - thresholds.FAIL_RATIO, below=True),
        ),
        graph(
            About(
                "Newest version's share over time",
                f"Share of the day's devices that were seen with the newest version of their app. {_NO_SUM}",
                "a line that stands still, or falls, while a rollout goes on.",
            ),
            "percentunit",
            [Prom(promql.of_rank(adoption, 1), "{{app_id}} {{version}}")],
        ),
    ]


def _devices() -> Panel:
    return graph(
        About(
            "Active devices",
            f"Distinct production devices of the last 7 days, by app, estimated to about 2 %. {_NO_SUM}",
            "a line that falls: devices are lost, or their events.",
        ),
        "short",
        [Prom(promql.devices("7d", "app_id"), "{{app_id}}")],
    )


def _versions() -> Panel:
    first_seen = promql.highest(select("capgo_version_first_seen_timestamp_seconds"), "app_id", "version")
    about = About(
        "Versions by first sight",
        "When the first event of a production device with each version arrived.",
        "a version that nobody released.",
    )
    columns = [Column("First seen", f"{first_seen} * 1000", "dateTimeAsIso")]
    panel = table_panel(about, ["app_id", "version"], columns, sort="First seen", width=12)
    url = f"{FAILURES_LINK}&var-app=${{__data.fields.App}}&var-version=${{__value.raw}}"
    return linked(panel, "Version", url, "Failures of this version")


def _alerts() -> Panel:
    about = About(
        "Alerts",
        "Capgo's alerts that fire now. An empty table is a quiet one.",
        "any row. What to do stands in the alert's runbook, `docs/runbooks.md`.",
    )
    labels = ["alertname", "severity", "app_id", "version"]
    panel = table_panel(about, labels, [Column("Series", promql.firing(*labels))], sort="Series", width=12)
    linked(panel, "App", f"{FAILURES_LINK}&var-app=${{__value.raw}}", "Failures of this app")
    url = f"{FAILURES_LINK}&var-app=${{__data.fields.App}}&var-version=${{__value.raw}}"
    return linked(panel, "Version", url, "Failures of this version")
