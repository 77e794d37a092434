"""How the exporter's speed depends on size: events a POST, series, devices, and points that wait.

Each point of a curve is an exporter of its own on one core, prepared with what it has to hold, and loaded by wrk from
the other core as fast as it goes. A cost per event that rises steeply somewhere is a cliff; there should be none.

Needs Linux with two cores, `wrk` and `nginx`.

Usage: python -m benchmarks.scaling [--only batch,series,devices,backlog] [--docs].
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from benchmarks import loads, plots, prefill, report
from benchmarks.bench import Wrk
from benchmarks.machine import cpu_seconds, describe, require, resident_bytes
from benchmarks.running import exporter
from benchmarks.sinks import nginx

BATCH: Final = 50
_HUGE: Final = str(1 << 40)


@dataclass(frozen=True, slots=True)
class Plan:
    """One point of a curve.

    Attributes:
        batch: events a POST.
        bodies: makes what is sent.
        devices: how many come again; 0: each request has a new one.
        series: how many are there before.
        backlog: points that wait, and InfluxDB is not there; None: it is there.
    """

    batch: int
    bodies: Callable[[], Sequence[str]]
    devices: int = 0
    series: int = 0
    backlog: int | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured at one size."""

    size: int
    events_per_second: float
    cpu_us_per_event: float
    rss_mib: float


def by_batch(size: int) -> Plan:
    """Events a POST."""
    return Plan(size, lambda: loads.bodies("queue", size))


def by_series(size: int) -> Plan:
    """Series that are there; the events are spread over them."""
    return Plan(BATCH, lambda: prefill.bodies(size, BATCH), series=size)


def by_devices(size: int) -> Plan:
    """Devices that come again and again."""
    return Plan(BATCH, lambda: loads.returning(BATCH), devices=size)


def by_backlog(size: int) -> Plan:
    """Points that wait for InfluxDB."""
    return Plan(BATCH, lambda: loads.bodies("queue", BATCH), backlog=size)


CURVES: Final[dict[str, tuple[str, Callable[[int], Plan], tuple[int, ...]]]] = {
    "batch": ("events a POST", by_batch, (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)),
    "series": ("series", by_series, (10, 100, 1000, 10_000, 100_000, 300_000)),
    "devices": ("devices", by_devices, (1, 100, 10_000, 1_000_000, 100_000_000)),
    "backlog": ("points that wait", by_backlog, (0, 100_000, 1_000_000, 10_000_000)),
}


def measure(plan: Plan, size: int, sink: str, options: argparse.Namespace) -> Point:
    """Measure one point of a curve."""
    with tempfile.TemporaryDirectory() as directory:
        data_dir = Path(directory) / "data"
        settings = {"max_series": "1000000", "max_versions_per_app": "200", "max_apps": "100"}
        prefill.prefill(data_dir, series=plan.series, points=plan.backlog or 0)
        if plan.backlog is None:
            settings["influx_url"] = sink
        else:
            settings["journal_max_bytes"] = _HUGE
        wrk = Wrk(Path(directory), plan.bodies(), devices=plan.devices)
        with exporter(data_dir, **settings) as server:
            wrk.send(server.url, options.warm_up)
            before = cpu_seconds(server.pid)
            result = wrk.send(server.url, options.seconds)
            cpu = cpu_seconds(server.pid) - before
            rss = resident_bytes(server.pid) / 2**20
            if plan.series:
                size = round(server.sample("capgo_exporter_series"))
    events = result["requests"] * plan.batch
    return Point(size, events / result["microseconds"] * 1e6, cpu / events * 1e6, rss)


def written(figures: report.Figures) -> str:
    """Write a table for each curve."""
    head = (
        f"{figures['machine']}; {figures['when']} UTC. Where nothing else is said, {BATCH} events a POST, each POST of "
        f"a new device; {figures['seconds']} s after {figures['warm_up']} s."
    )
    parts = [head]
    for curve in figures["curves"]:
        columns = [curve["title"], "events/s", "CPU µs per event", "RSS MiB"]
        rows = [
            [
                f"{point['size']:,}",
                f"{point['events_per_second']:,.0f}",
                f"{point['cpu_us_per_event']:.2f}",
                f"{point['rss_mib']:.0f}",
            ]
            for point in curve["points"]
        ]
        parts.append(report.table(columns, rows))
    return "\n\n".join(parts)


def main() -> None:
    """Measure, print, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(CURVES), help=f"curves: {', '.join(CURVES)}")
    parser.add_argument("--seconds", type=int, default=5, help="length of a measurement (default: 5)")
    parser.add_argument("--warm-up", type=int, default=3, help="load before it (default: 3)")
    parser.add_argument("--quick", action="store_true", help="two seconds each, and every second size only")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--plot", type=Path, help="draw them into this PNG or SVG file")
    parser.add_argument("--docs", action="store_true", help="write tables and plot into docs/")
    parser.add_argument("--from-json", type=Path, help="measure nothing; take the figures of an earlier run")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.warm_up = 2, 1
    figures = json.loads(options.from_json.read_text()) if options.from_json else run(options)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(written(figures))
    if options.plot:
        plots.scaling(figures, options.plot)
    if options.docs:
        picture = "![Events a second and CPU time per event over each kind of size](pictures/scaling.png)"
        report.write("scaling", f"{picture}\n\n{written(figures)}")
        plots.scaling(figures, report.PICTURES / "scaling.png")


def run(options: argparse.Namespace) -> report.Figures:
    """Measure all curves that are asked for."""
    require("wrk", "nginx", "taskset")
    curves = []
    with tempfile.TemporaryDirectory() as directory, nginx(Path(directory)) as sink:
        for name in options.only.split(","):
            if name not in CURVES:
                sys.exit(f"unknown curve {name!r}; there are {', '.join(CURVES)}")
            title, plan, sizes = CURVES[name]
            points = []
            for size in sizes[:: 2 if options.quick else 1]:
                points.append(measure(plan(size), size, sink, options))
                print(f"{size:,} {title}: {points[-1]}", file=sys.stderr, flush=True)
            curves.append({"name": name, "title": title, "points": list(map(asdict, points))})
    return {
        "machine": describe(),
        "when": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "seconds": options.seconds,
        "warm_up": options.warm_up,
        "curves": curves,
    }


if __name__ == "__main__":
    main()
