"""The command line: `capgo-exporter simulate live`, `… demo` and `… backfill`."""

import asyncio
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast

import click

from exporter.parameters import Duration, Url
from exporter.progress import Show, progress
from exporter.simulate import summary
from exporter.simulate.backfill import Plan, backfill
from exporter.simulate.fleet import Fleet
from exporter.simulate.live import Live, Target
from exporter.simulate.options import (
    NOTHING_BAD,
    fail,
    fleet_options,
    releases_url,
    stats_url,
    time_options,
    tokens,
)
from exporter.simulate.scenario import Bad, demo, month
from exporter.simulate.throwaway import NotStartedError, throwaway_exporter
from exporter.units import parse_duration_seconds

OPENMETRICS_NAME: Final = "metrics.om"
POINTS_NAME: Final = "points.lp"
FORCED_EXIT_CODE: Final = 130


@click.group("simulate", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def simulate() -> None:
    """Simulate a fleet of devices: the demo, and data to try dashboards on."""


@simulate.command("live")
@click.argument("url", type=Url())
@fleet_options
@time_options
@click.option("--timeout", type=Duration(), default="20s", show_default=True, help="How long devices await an answer.")
@click.option(
    "--connections", type=click.IntRange(1, 10_000), default=100, show_default=True, help="POSTs at once, at most."
)
@click.option("--releases-url", type=Url(), help="Where releases are marked; by default /releases on URL's host.")
def live_command(url: str, **options: Any) -> None:  # noqa: ANN401 -- each was checked by its option's type
    """Let a fleet post to URL, such as http://localhost:9746/stats, in real time.

    A good release comes at once, six hours later the one that may be bad, six hours later its repair; with --speed 60
    an hour takes a minute.

    If EXPORTER_INGEST_TOKEN is set, it is added to the path of URL, as in the plugins' statsUrl. If
    EXPORTER_RELEASES_TOKEN is set, releases are marked. Both may be in files, named by variables that end in _FILE.

    Exit codes: 0 done, or stopped by a first signal; 2 wrong options; 130 ended by a second signal.
    """
    ingest_token, releases_token = tokens()
    target = Target(
        url=stats_url(url, ingest_token),
        timeout_seconds=options["timeout"],
        connections=options["connections"],
        releases_url=(options["releases_url"] or releases_url(url)) if releases_token else None,
        releases_token=releases_token,
    )
    asyncio.run(_live(_fleet(**options), target, options["duration"]))


@simulate.command("demo")
@fleet_options
@time_options
@click.option(
    "--listen", default="127.0.0.1:9746", show_default=True, help="Address and port of the exporter; port 0: any."
)
def demo_command(listen: str, **options: Any) -> None:  # noqa: ANN401 -- each was checked by its option's type
    """Start an exporter whose data is gone afterwards, and let a fleet post to it.

    What happens is that of `simulate live`.

    Exit codes: 0 done, or stopped by a first signal; 2 wrong options, or an exporter that does not start; 130 ended by
    a second signal.
    """
    try:
        with throwaway_exporter(listen) as url:
            click.echo(f"The exporter shows what happens at {url}/metrics, until Ctrl-C.", err=True)
            asyncio.run(_live(_fleet(**options), Target(f"{url}/stats"), options["duration"]))
    except NotStartedError as error:
        fail(f"the exporter does not start: {error}")


@simulate.command("backfill")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@fleet_options
@click.option("--days", type=click.FloatRange(0.1, 366.0), default=30.0, show_default=True, help="How many.")
@click.option(
    "--end", type=click.DateTime(["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d"]), help="When they end, in UTC; by default now."
)
@click.option(
    "--step",
    type=click.Choice(["1m", "5m", "15m", "1h", "2h"]),
    default="5m",
    show_default=True,
    help="Time between two scrapes.",
)
@click.option(
    "--fine-hours",
    type=click.FloatRange(0.0, 48.0),
    default=3.0,
    show_default=True,
    help="The last hours, in which scrapes come more often.",
)
@click.option(
    "--fine-step",
    type=click.Choice(["10s", "15s", "30s", "1m"]),
    default="15s",
    show_default=True,
    help="Time between two scrapes then.",
)
def backfill_command(directory: Path, **options: Any) -> None:  # noqa: ANN401 -- each was checked by its option's type
    """Let weeks pass within a minute or two, and write what the databases would hold into DIRECTORY.

    It writes metrics.om for `promtool tsdb create-blocks-from openmetrics` and points.lp, line protocol for InfluxDB,
    and says how to load them. There is a release of each kind of badness, the last one with that of --bad.

    Exit codes: 0 done; 2 wrong options, or files that cannot be written; 130 ended by SIGINT.
    """
    openmetrics, points = directory / OPENMETRICS_NAME, directory / POINTS_NAME
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with progress("backfill") as show:
            result = asyncio.run(backfill(_plan(**options), openmetrics, points, lambda share: show(share, "")))
    except OSError as error:
        fail(f"{error.filename or directory}: {error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit(FORCED_EXIT_CODE)
    click.echo(summary.of_backfill(result, openmetrics, points))


def _fleet(**options: Any) -> Fleet:  # noqa: ANN401 -- each was checked by its option's type
    scenario = demo(
        seed=options["seed"],
        devices=options["devices"],
        bad=_bad(options["bad"]),
        speed=options["speed"],
        app_id=options["app_id"],
    )
    return Fleet(scenario, time.time_ns() // 1_000_000)


async def _live(fleet: Fleet, target: Target, duration_seconds: float | None) -> None:
    """Run the fleet until its time is over or a signal comes, and sum up."""
    began = time.monotonic()
    live = Live(fleet, target, lambda: fleet.start_ms + int((time.monotonic() - began) * 1000))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, stop)
    if duration_seconds is not None:
        loop.call_later(duration_seconds, stop.set)
    with progress("simulate") as show:
        await live.run(stop, lambda: _tell(show, live, time.monotonic() - began, duration_seconds))
    click.echo(summary.of_live(fleet, live.sent))


def _stop(stop: asyncio.Event) -> None:
    if stop.is_set():
        os._exit(FORCED_EXIT_CODE)
    stop.set()


def _tell(show: Show, live: Live, seconds: float, duration_seconds: float | None) -> None:
    share = None if duration_seconds is None else min(seconds / duration_seconds, 1.0)
    show(share, summary.in_short(live.fleet, live.sent))


def _plan(**options: Any) -> Plan:  # noqa: ANN401 -- each was checked by its option's type
    step_seconds = int(parse_duration_seconds(options["step"]))
    end = options["end"].replace(tzinfo=UTC) if options["end"] else datetime.now(UTC)
    scenario = month(
        seed=options["seed"],
        devices=options["devices"],
        days=options["days"],
        bad=_bad(options["bad"]),
        app_id=options["app_id"],
    )
    return Plan(
        scenario,
        end_ms=int(end.timestamp()) // step_seconds * step_seconds * 1000,
        days=options["days"],
        step_seconds=step_seconds,
        fine_hours=options["fine_hours"],
        fine_step_seconds=int(parse_duration_seconds(options["fine_step"])),
    )


def _bad(name: str) -> Bad | None:
    return None if name == NOTHING_BAD else cast("Bad", name)
