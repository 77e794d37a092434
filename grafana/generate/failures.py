"""Update failures: which release hurts whom, since when and why."""

from typing import Final

from grafana_foundation_sdk.models.dashboard import Panel

from grafana.generate import annotations, influxql, promql, thresholds, variables
from grafana.generate.board import Board, Row
from grafana.generate.metrics import select
from grafana.generate.panels import RED, About, Bad, bars, colored, graph, stat_panel
from grafana.generate.tables import DEVICE_LINK, FAILURES_LINK, Column, linked, table_panel, top_panel
from grafana.generate.targets import Influx, Prom

_AFFECTED: Final = "capgo_version_affected_devices"
_FAILURES: Final = "capgo_update_failures_total"
_BY_VERSION: Final = ("app_id", "version")
_NO_SUM: Final = (
    "Distinct devices cannot be added up over versions, windows or replicas; "
    "of replicas the highest is shown, or the sum if the rules say so."
)
_BOUND: Final = "lower end of its 95 % interval (Wilson's): where few updates were tried it stays low"
_SAMPLE: Final = 5000


def board() -> Board:
    """Describe the dashboard."""
    return Board(
        uid="capgo-failures",
        title="Capgo / Update failures",
        description="Which release hurts whom, on which platform, since when and why.",
        variables=[*variables.of_devices(), variables.data_source("influxdb")],
        rows=[
            Row("Now", [*_now(), _worst()]),
            Row("Over time", _over_time()),
            Row("By platform, OS and plugin version", _breakdown()),
            Row("New version against the previous one", _versions()),
        ],
        annotations=[annotations.releases(), annotations.first_seen(), annotations.alerts()],
        refresh="30s",
    )


def _now() -> list[Panel]:
    affected = promql.joined(select(_AFFECTED, 'window="1d"'), *_BY_VERSION)
    return [
        stat_panel(
            About(
                "Roll-backs, last 15 minutes",
                "Devices on which a bundle did not come up, so that the plugin went back to the one before.",
                "red: pause the rollout of the worst version below, now.",
            ),
            "short",
            Prom(promql.rollbacks(window="15m")),
            Bad(thresholds.ROLLBACKS),
        ),
        stat_panel(
            About("Roll-backs", "Roll-backs in the time range.", "a number that grows from one look to the next."),
            "short",
            Prom(promql.rollbacks()),
        ),
        stat_panel(
            About("Failed updates", "Updates that failed, each once, whatever the reason.", "many, for the installs."),
            "short",
            Prom(promql.fails()),
        ),
        stat_panel(
            About(
                "Share that failed",
                "Failed updates as a share of all that were tried, in the time range.",
                "red: the release, or the way to the devices, is broken.",
            ),
            "percentunit",
            Prom(promql.fail_ratio()),
            Bad(thresholds.FAIL_RATIO),
        ),
        stat_panel(
            About(
                "Share, last hour, at least",
                f"Of the worst app, the share of the last hour's updates that failed, as the {_BOUND}.",
                "red: it is no accident any more.",
            ),
            "percentunit",
            Prom(f"max({promql.wilson_of_fails('app_id', window='1h')})"),
            Bad(thresholds.FAIL_RATIO),
        ),
        stat_panel(
            About(
                "Devices hurt by the worst version",
                "Distinct production devices that had a failed update or an app-health failure of it today, estimated "
                f"to about 2 %. {_NO_SUM}",
                "a number that climbs while you watch.",
            ),
            "short",
            Prom(f"max({affected})"),
        ),
    ]


def _worst() -> Panel:
    about = About(
        "Worst versions",
        f"Versions by the share of their updates that failed; *at least* is the {_BOUND}. {_NO_SUM}",
        "a red cell at the top. Click on the version to see it alone.",
    )
    columns = [
        Column("At least", promql.wilson_of_fails(*_BY_VERSION), "percentunit", Bad(thresholds.FAIL_RATIO)),
        Column("Share failed", promql.fail_ratio(*_BY_VERSION), "percentunit"),
        Column("Roll-backs", promql.rollbacks(*_BY_VERSION)),
        Column("Failed", promql.fails(*_BY_VERSION)),
        Column("Installs", promql.installs(*_BY_VERSION)),
        Column("Devices hurt today", promql.joined(select(_AFFECTED, 'window="1d"'), *_BY_VERSION)),
    ]
    panel = table_panel(about, _BY_VERSION, columns, sort="At least")
    url = f"{FAILURES_LINK}&var-app=${{__data.fields.App}}&var-version=${{__value.raw}}"
    linked(panel, "Version", url, "This version alone")
    row = "var-app=${__data.fields.App}&var-version=${__data.fields.Version}"
    devices = f"{DEVICE_LINK}&${{environment:queryparam}}&{row}"
    return linked(panel, "Devices hurt today", devices, "Which devices")


def _over_time() -> list[Panel]:
    return [
        _spikes(),
        bars(
            About(
                "Failed updates by reason",
                "Failed updates in each interval, by their most specific reason.",
                "a reason that was not there before a release marker; `update_fail`: the app does not come up.",
            ),
            "short",
            [Prom(promql.per_step(select(_FAILURES), "reason"), "{{reason}}")],
            color=RED,
        ),
        _ratio(),
        graph(
            About(
                "Devices hurt",
                "Distinct production devices of the day with a failed update or an app-health failure of the version, "
                f"estimated to about 2 %; they begin at 0 at midnight UTC. {_NO_SUM}",
                "one version's line that climbs away from the others.",
            ),
            "short",
            [Prom(promql.joined(select(_AFFECTED, 'window="1d"'), *_BY_VERSION), "{{app_id}} {{version}}")],
            color=RED,
        ),
    ]


def _spikes() -> Panel:
    window = "15m"
    enough = f"{promql.rollbacks(*_BY_VERSION, window=window)} >= {thresholds.ROLLBACKS}"
    many = promql.share(promql.rollbacks(*_BY_VERSION, window=window), promql.attempts(*_BY_VERSION, window=window))
    panel = graph(
        About(
            "Roll-backs of 15 minutes",
            "Roll-backs of the 15 minutes before, by version. Red, a spike, where there are "
            f"{thresholds.ROLLBACKS} or more, and more than {thresholds.percent(thresholds.ROLLBACK_RATIO)} of all.",
            "any red, most of all right after a release marker.",
        ),
        "short",
        [
            Prom(promql.rollbacks(*_BY_VERSION, window=window), "{{app_id}} {{version}}"),
            Prom(f"({enough}) and ({many} > {thresholds.ROLLBACK_RATIO})", "spike: {{app_id}} {{version}}"),
        ],
    )
    return colored(panel, "^spike", RED)


def _ratio() -> Panel:
    return graph(
        About(
            "Share that failed, last hour",
            f"Failed updates as a share of the updates of the hour before, by app, and the {_BOUND}. Dashed: where the "
            "alert begins.",
            "an *at least* line above the dashed one.",
        ),
        "percentunit",
        [
            Prom(promql.fail_ratio("app_id", window="1h"), "{{app_id}}"),
            Prom(promql.wilson_of_fails("app_id", window="1h"), "{{app_id}}, at least"),
        ],
        bad=Bad(thresholds.FAIL_RATIO),
    )


def _versions() -> list[Panel]:
    every = ("version",)
    ratio = promql.fail_ratio(*_BY_VERSION, window="6h", without=every)
    tried = promql.attempts(*_BY_VERSION, without=every)
    about = About(
        "Newest and previous version",
        "Of each app, the share of updates to its newest version that failed, to the one before, and how many times "
        "the one is the other; a previous version without a failure is taken to have had one. Versions count once 20 "
        "devices, or 1 % of the installs, run them.",
        f"red: the newest version fails more than {thresholds.WORSE_FACTOR} times as often. Look at the numbers of "
        f"updates, too: under {thresholds.WORSE_ATTEMPTS} they say little.",
    )
    whole = promql.fail_ratio(*_BY_VERSION, without=every)
    newest, previous = (f"max by (app_id) ({promql.of_rank(whole, rank)})" for rank in (1, 2))
    tried_newest, tried_previous = (f"max by (app_id) ({promql.of_rank(tried, rank)})" for rank in (1, 2))
    # Nothing can be divided by 0 failures, and a good version before a bad one is just when this has to be red.
    floor = f"({previous} > 0 or 1 / ({tried_previous} > 0))"
    columns = [
        Column("Times as bad", f"{newest} / {floor}", "none", Bad(thresholds.WORSE_FACTOR)),
        Column("Newest", newest, "percentunit"),
        Column("Previous", previous, "percentunit"),
        Column("Updates to the newest", tried_newest),
        Column("Updates to the previous", tried_previous),
    ]
    return [
        graph(
            About(
                "Share that failed, newest and previous version",
                "Of the updates of the 6 hours before, by the version's rank.",
                "the newest version's line above the previous one's, and staying there.",
            ),
            "percentunit",
            [
                Prom(promql.of_rank(ratio, 1), "{{app_id}} newest: {{version}}"),
                Prom(promql.of_rank(ratio, 2), "{{app_id}} previous: {{version}}"),
            ],
            bad=Bad(thresholds.FAIL_RATIO),
        ),
        table_panel(about, ["app_id"], columns, sort="Times as bad", width=12),
    ]


def _breakdown() -> list[Panel]:
    sampled = f"From the newest {_SAMPLE} failures in InfluxDB."
    note = f"{sampled} Without InfluxDB this panel is empty."
    by_platform = bars(
        About(
            "Failed updates by platform",
            "Failed updates in each interval, by platform.",
            "one platform alone: it is the bundle's code for it, or that platform's plugin.",
        ),
        "short",
        [Prom(promql.per_step(select(_FAILURES), "platform"), "{{platform}}")],
        color=RED,
        width=8,
    )
    return [
        by_platform,
        *(
            top_panel(
                About(f"Failures by {name}", f"Which {name} the failing devices have. {note}", bad),
                Influx(influxql.last((field, "count"), _SAMPLE, influxql.FAILURE)),
                field,
            )
            for field, name, bad in (
                ("version_os", "OS version", "one version far above its share of the devices."),
                ("plugin_version", "plugin version", "one version of the plugin that makes nearly all of them."),
            )
        ),
    ]
