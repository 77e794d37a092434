"""Rollout: how far a release has come, and how fast."""

from typing import Final

from grafana_foundation_sdk.models.dashboard import Panel

from grafana.generate import annotations, promql, thresholds, variables
from grafana.generate.board import Board, Row
from grafana.generate.metrics import select
from grafana.generate.panels import About, Bad, bars, graph, stat_panel
from grafana.generate.tables import Column, table_panel
from grafana.generate.targets import Prom

_ADOPTION: Final = "capgo_version_adoption_ratio"
_BY_VERSION: Final = ("app_id", "version")
_NO_SUM: Final = (
    "Distinct devices are estimated to about 2 %, and cannot be added up over versions, windows or replicas: a device "
    "that was seen with two versions counts for both. Of replicas the highest is shown."
)
_RESOLUTION: Final = "5m"


def board() -> Board:
    """Describe the dashboard."""
    return Board(
        uid="capgo-rollout",
        title="Capgo / Rollout",
        description="How far a release has come, how fast, and what it replaces.",
        variables=variables.of_devices(),
        rows=[
            Row("Now", [*_now(), _marks()]),
            Row("Adoption", _adoption()),
            Row("Installs and devices", _installs()),
        ],
        annotations=[annotations.releases(), annotations.first_seen(), annotations.alerts()],
        start="now-7d",
        refresh="5m",
    )


def _adoption_of(*, without: tuple[str, ...] = ()) -> str:
    return promql.highest(select(_ADOPTION, without=without), *_BY_VERSION)


def _now() -> list[Panel]:
    every = ("version",)
    outcome = promql.joined(select("capgo_device_day_outcomes", 'window="7d"'), "app_id", "outcome")
    good = promql.joined(select("capgo_device_day_outcomes", 'outcome="success"', 'window="7d"'), "app_id")
    return [
        stat_panel(
            About(
                "Newest version's share",
                f"Share of today's devices with the newest version; of several apps the lowest. {_NO_SUM}",
                "a share that stands still, or falls, while a rollout goes on.",
            ),
            "percentunit",
            Prom(f"min({promql.of_rank(_adoption_of(without=every), 1)})"),
        ),
        stat_panel(
            About("Installs", "Bundles that were activated in the time range.", "0 while a rollout goes on."),
            "short",
            Prom(promql.installs()),
        ),
        stat_panel(
            About(
                "Uninstalls",
                "Bundles that another one replaced in the time range.",
                "uninstalls of the newest version: somebody released again, or devices went back.",
            ),
            "short",
            Prom(promql.total(promql.increase(select("capgo_uninstalls_total")))),
        ),
        *(
            stat_panel(
                About(f"Active devices, {name}", f"Distinct production devices. {_NO_SUM}", "a number that falls."),
                "short",
                Prom(promql.devices(window)),
            )
            for name, window in (("7 days", "7d"), ("30 days", "30d"))
        ),
        stat_panel(
            About(
                "Days of devices with success",
                "Of the days in the week on which a device updated, the share on which it succeeded at least once; of "
                f"several apps with {thresholds.MIN_DEVICES} such days or more the lowest. {_NO_SUM}",
                "red: devices that try again and again in vain.",
            ),
            "percentunit",
            Prom(f"min({good} / (sum by (app_id) ({outcome}) >= {thresholds.MIN_DEVICES}))"),
            Bad(1 - thresholds.FAIL_RATIO, below=True),
        ),
    ]


def _marks() -> Panel:
    about = About(
        "Rollouts that were marked",
        "What `POST /releases` told of each release: when, and to what share of the devices. Empty if nobody does.",
        "a rollout that is meant to be complete and is not 100 %.",
    )
    labels = ("app_id", "version", "channel")
    columns = [
        Column("Share", promql.highest(select("capgo_release_rollout_ratio"), *labels), "percentunit"),
        Column(
            "Marked", f"{promql.highest(select('capgo_release_timestamp_seconds'), *labels)} * 1000", "dateTimeAsIso"
        ),
    ]
    return table_panel(about, labels, columns, sort="Marked", height=6)


def _adoption() -> list[Panel]:
    every = ("version",)
    return [
        graph(
            About(
                "Adoption by version",
                f"Share of the day's devices that were seen with each version, from midnight UTC on. {_NO_SUM}",
                "the newest version's line that turns down: devices go back.",
            ),
            "percentunit",
            [Prom(_adoption_of(), "{{app_id}} {{version}}")],
            width=24,
        ),
        graph(
            About(
                "Newest and previous version",
                f"Adoption of the newest version of each app, and of the one before. {_NO_SUM}",
                "two lines that do not cross, days after the release.",
            ),
            "percentunit",
            [
                Prom(promql.of_rank(_adoption_of(without=every), 1), "{{app_id}} newest: {{version}}"),
                Prom(promql.of_rank(_adoption_of(without=every), 2), "{{app_id}} previous: {{version}}"),
            ],
        ),
        _times(),
    ]


def _times() -> Panel:
    about = About(
        "Time to 50 % and 90 %",
        "From a version's first event to the moment at which half, and nine tenths, of the day's devices had been seen "
        f"with it. Versions that appeared in the time range; of days with {thresholds.MIN_DEVICES} devices or more.",
        "a version that takes much longer than those before it.",
    )
    columns = [Column("To 50 %", _time_to(0.5), "s"), Column("To 90 %", _time_to(0.9), "s")]
    return table_panel(about, _BY_VERSION, columns, sort="To 50 %", width=12)


def _time_to(share: float) -> str:
    """Find when a version first had a share, and subtract when it was first seen; before the range nothing is known."""
    first_seen = promql.highest(select("capgo_version_first_seen_timestamp_seconds"), *_BY_VERSION)
    enough = f"{promql.devices('1d', 'app_id')} >= {thresholds.MIN_DEVICES}"
    reached = f"({_adoption_of()} >= {share}) and on (app_id) ({enough})"
    moment = f"min_over_time((0 * ({reached}) + time())[{promql.RANGE}:{_RESOLUTION}])"
    return f"{moment} - ({first_seen} > time() - $__range_s)"


def _installs() -> list[Panel]:
    return [
        bars(
            About(
                "Installs by version",
                "Bundles that were activated in each interval.",
                "no bars after a release marker: the release does not reach anybody.",
            ),
            "short",
            [Prom(promql.per_step(select("capgo_installs_total"), *_BY_VERSION), "{{app_id}} {{version}}")],
        ),
        bars(
            About(
                "Uninstalls by version",
                "Bundles that another one replaced, in each interval, by the version that went.",
                "bars of the newest version.",
            ),
            "short",
            [Prom(promql.per_step(select("capgo_uninstalls_total"), *_BY_VERSION), "{{app_id}} {{version}}")],
        ),
        graph(
            About(
                "Active devices by platform",
                f"Distinct production devices of the last 7 days. {_NO_SUM}",
                "one platform's line that falls.",
            ),
            "short",
            [Prom(promql.devices("7d", "platform"), "{{platform}}")],
        ),
        graph(
            About(
                "Devices by version",
                f"Distinct production devices of the last 7 days, by version. {_NO_SUM}",
                "an old version that keeps its devices: they do not update.",
            ),
            "short",
            [
                Prom(
                    promql.joined(select("capgo_version_devices", 'window="7d"'), *_BY_VERSION),
                    "{{app_id}} {{version}}",
                )
            ],
        ),
        bars(
            About(
                "Installs and failures by channel",
                "Installs and failed updates in each interval, by the device's channel.",
                "failures on one channel alone: it is the bundle that is on it.",
            ),
            "short",
            [
                Prom(
                    promql.per_step(select("capgo_channel_updates_total"), "channel", "outcome"),
                    "{{channel}} {{outcome}}",
                )
            ],
            width=24,
        ),
    ]
