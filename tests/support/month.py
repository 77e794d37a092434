"""A simulated month on real servers: a Prometheus and an InfluxDB that hold it, and the truth about it.

At its end a release goes wrong, so that there is something to see. Which alerts fire is worked out from the rules for
the last hour alone; no dashboard asks for anything else that rules record.

A script can have it too, to draw what the dashboards show:

    async with month(Path(directory)) as servers:
        print(servers.prometheus.url, servers.influxdb.url, servers.influxdb.database)
        for asked in queries(servers.values()):
            answer = await servers.ask(asked)
"""

import contextlib
import itertools
import math
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from exporter.simulate.backfill import Plan, Result, backfill
from exporter.simulate.scenario import AT_ONCE
from exporter.simulate.scenario import month as month_scenario
from grafana.generate.queries import Asked, Values
from tests.support import rulebackfill
from tests.support.influxdb import InfluxDB16, Scalar
from tests.support.prometheus import Prometheus, Series

DAYS: Final = 30.0
END_MS: Final = 1_751_313_600_000
"""The evening of 2025-06-30, 20:00 UTC: the same month in each run, and an evening on which devices are in use."""

BAD_VERSION: Final = "2.3.0"
"""The last release: it came out within the last hour, to everybody, and most devices roll it back."""

APP: Final = "com.example.shop"
DESKTOP_APP: Final = "com.example.desk"

_BAD_SINCE_HOURS: Final = 0.4
_BAD_SHARE: Final = 0.9
_BLOCK: Final = "1458h"  # one of Prometheus's own ranges; in blocks of 2h, promtool would read the file 360 times
_RULES: Final = tuple(
    Path(__file__).parents[2] / "prometheus" / "rules" / f"{name}.yml"
    for name in ("thresholds", "updates", "downloads", "health")  # the exporter is well
)
_RULES_SECONDS: Final = 3600
_FOREVER: Final = "100y"
_LINES_AT_ONCE: Final = 2_000


def plan(devices: int = 150, *, step_seconds: int = 7200, fine_step_seconds: int = 60) -> Plan:
    """Plan a month at whose end a release goes wrong.

    The default has as few devices and scrapes as still have something to show in every panel: some panels want to see a
    hundred devices of a version in a day.

    Args:
        devices: how many there are.
        step_seconds: time between two scrapes.
        fine_step_seconds: the same in the last two hours.
    """
    scenario = month_scenario(devices=devices, days=DAYS)
    first, *others, last = scenario.releases
    assert last.version == BAD_VERSION
    start_hours = DAYS * 24 - _BAD_SINCE_HOURS
    # Electron tells of a roll-back in its own way; it has few devices, so that the last release would hit none.
    first = replace(first, bad="update_fail", bad_platform="electron", bad_share=0.5)
    bad = replace(last, start_hours=start_hours, rollout=AT_ONCE, bad="update_fail", bad_share=_BAD_SHARE)
    return Plan(
        replace(scenario, releases=(first, *others, bad), desktop_app_id=DESKTOP_APP, sessions_per_day=6.0),
        END_MS,
        DAYS,
        step_seconds=step_seconds,
        fine_hours=2.0,
        fine_step_seconds=fine_step_seconds,
    )


@dataclass(frozen=True)
class Month:
    """A month on running servers.

    Attributes:
        prometheus: has what an exporter showed.
        influxdb: has the points.
        plan: what was simulated.
        result: what came of it, with the truth.
    """

    prometheus: Prometheus
    influxdb: InfluxDB16
    plan: Plan
    result: Result

    @property
    def end(self) -> float:
        """The last moment, in seconds since 1970."""
        return self.plan.end_ms / 1000

    def values(self, hours: float | None = None, **variables: str) -> Values:
        """Give the values of a dashboard's variables for the last hours, by default for the whole month.

        Args:
            hours: how far back the time range begins; within the close scrapes, or the whole month.
            variables: values of the dashboards' own variables; the others filter nothing.
        """
        plan = self.plan
        is_fine = hours is not None and hours <= plan.fine_hours
        start = plan.start_ms / 1000 if hours is None else self.end - hours * 3600
        step = plan.fine_step_seconds if is_fine else plan.step_seconds
        return Values(start, self.end, step_seconds=step, scrape_seconds=step, variables=variables)

    async def ask(self, asked: Asked, values: Values) -> list[Series]:
        """Ask as Grafana does, and give what has a value; each row of InfluxDB becomes a series.

        Args:
            asked: one of `grafana.generate.queries.queries`.
            values: what that was given.
        """
        if asked.source == "influxdb":
            return [series for row in await self.influxdb.query(asked.query) for series in _series(row)]
        if asked.is_instant:
            answer = await self.prometheus.query(asked.query, values.end)
        else:
            answer = await self.prometheus.query_range(asked.query, values.start, values.end, values.step_seconds)
        return [series for series in answer if not all(math.isnan(value) for _, value in series.samples)]


@contextlib.asynccontextmanager
async def month(directory: Path, planned: Plan | None = None, *, replicas: int = 1) -> AsyncIterator[Month]:
    """Simulate a month, and start both servers with it.

    Args:
        directory: an empty or missing one, for everything.
        planned: what to simulate; by default that of `plan`.
        replicas: so many exporters show the same to Prometheus, as if every device posted everything to each of them:
            counts are so many times the truth, and distinct devices are the same.
    """
    directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 -- nothing else runs yet
    planned = planned or plan()
    openmetrics, lines = directory / "month.openmetrics", directory / "month.lines"
    result = await backfill(planned, openmetrics, lines)
    prometheus = Prometheus(directory / "prometheus", [])
    prometheus.process.argv.append(f"--storage.tsdb.retention.time={_FOREVER}")
    data = directory / "prometheus" / "data"
    await _import(_replicated(openmetrics, planned, replicas), data)
    async with InfluxDB16(directory / "influxdb") as influxdb, prometheus:
        made = Month(prometheus, influxdb, planned, result)
        await _write(lines, influxdb)
        await rulebackfill.backfill(prometheus, data, _RULES, made.end - _RULES_SECONDS, made.end)
        yield made


def instance(planned: Plan, number: int) -> str:
    """Name one of the replicas, the first of which is number 1."""
    name = planned.labels["instance"]
    return name if number == 1 else f"replica-{number}.{name}"


def _replicated(openmetrics: Path, planned: Plan, replicas: int) -> Path:
    """Let each sample be followed by those of the other replicas."""
    if replicas == 1:
        return openmetrics
    path = openmetrics.with_suffix(f".{replicas}")
    first, *others = (f'instance="{instance(planned, number)}"' for number in range(1, replicas + 1))
    with openmetrics.open(encoding="utf-8") as source, path.open("w", encoding="utf-8") as copy:
        for line in source:
            copy.write(line)
            if not line.startswith("#"):
                copy.writelines(line.replace(first, other, 1) for other in others)
    return path


async def _import(openmetrics: Path, data: Path) -> None:
    """Make blocks of the file, which a Prometheus reads when it starts."""
    await rulebackfill.promtool(
        *("tsdb", "create-blocks-from", "--quiet", f"--max-block-duration={_BLOCK}"),
        *("openmetrics", str(openmetrics), str(data)),
    )


async def _write(lines: Path, influxdb: InfluxDB16) -> None:
    with lines.open(encoding="utf-8") as file:
        while chunk := "".join(itertools.islice(file, _LINES_AT_ONCE)):
            assert await influxdb.write(chunk) == (204, "")


def _series(row: Mapping[str, Scalar]) -> Iterator[Series]:
    """Give the numbers of a row, each with its texts as labels; a row with nothing but texts counts as 1."""
    at = float(row.get("time") or 0) / 1e9
    labels = {name: value for name, value in row.items() if isinstance(value, str)}
    numbers = {name: float(value) for name, value in row.items() if name != "time" and isinstance(value, int | float)}
    if labels and not numbers:
        numbers["row"] = 1.0
    for name, value in numbers.items():
        yield Series({**labels, "__name__": name}, [(at, value)])
