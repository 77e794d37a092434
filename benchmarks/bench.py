"""Compares the exporter with what people would write otherwise: naive aiohttp, express and fastify (peers/).

All run with InfluxDB on, pinned to one core, against an nginx that takes every write; wrk and nginx have the other
core. The exporter runs with its defaults, and without derived figures. An aiohttp handler that does nothing shows the
limit. Every event is distinct; rounds are interleaved; medians are printed. CPU seconds are those of all the work for
all events, counted until the server is idle again. Each server's own count is checked against what was sent, and in a
run of its own what reached InfluxDB is counted.

Needs Linux with two cores, `wrk`, `nginx`, and for two of the peers `node` and `npm`.

Usage: make bench [ARGS="--quick"]; python -m benchmarks.bench --help.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks import loads, plots, report
from benchmarks.contenders import CONTENDERS, Contender, counted, install_peers
from benchmarks.machine import (
    LOAD_CORE,
    SERVER_CORE,
    cpu_seconds,
    describe,
    fsync_milliseconds,
    get,
    process,
    require,
    resident_bytes,
    wait_until_idle,
)
from benchmarks.sinks import counter, lines, nginx
from tests.support.ports import free_port, wait_for_sync

CONNECTIONS: Final = 16
BATCHES: Final = (1, 50, 200)
KEPT: Final = "kept"
CLOSED: Final = "closed"
_DEVICES_A_RUN: Final = 100_000_000
_UNDER_WAY: Final = 2 * CONNECTIONS
_PROOF_SECONDS: Final = 1
_DELIVERY_SECONDS: Final = 120.0


class Case(NamedTuple):
    """What is sent: events in a body, and whether connections are `kept` or `closed` after each."""

    batch: int
    connections: str


@dataclass(frozen=True, slots=True)
class Round:
    """What one round showed."""

    events_per_second: float
    cpu_seconds_per_million: float
    p50_ms: float
    p99_ms: float
    rss_mib: float
    busy: float


class Server(NamedTuple):
    """A running contender."""

    contender: Contender
    port: int
    pid: int

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def running(contender: Contender, sink: str) -> Iterator[Server]:
    """Run a contender on the server's core, with a directory of its own."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        command = contender.argv(port, sink)
        environment = contender.environment(port, sink, Path(directory))
        with process(
            command, core=SERVER_CORE, environment=environment, ready=lambda: get(f"{url}/metrics")
        ) as started:
            yield Server(contender, port, started.pid)


class Wrk:
    """The load: sends bodies, each request of a new device."""

    def __init__(self, directory: Path, bodies: Sequence[str], *, connections: str = KEPT, devices: int = 0) -> None:
        """Write the bodies to a file.

        Args:
            directory: where.
            bodies: as `loads` makes them.
            connections: whether they are kept.
            devices: so many, which come again; 0: each request has a new one.
        """
        self._path = directory / "bodies"
        self._path.write_text("\n".join(bodies) + "\n")
        closes = str(int(connections == CLOSED))
        self._environment = {**os.environ, "BODIES": str(self._path), "CLOSE": closes, "DEVICES": str(devices)}
        self._runs = 0

    def send(self, url: str, seconds: float) -> dict[str, float]:
        """Send as fast as the server takes it; gives what wrk says."""
        environment = {**self._environment, "FIRST": str(self._runs * _DEVICES_A_RUN)}
        self._runs += 1
        script = str(Path(__file__).parent / "load.lua")
        whole = max(round(seconds), 1)
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{whole}s", "--timeout", "20s", "-s", script, f"{url}/stats"]
        done = subprocess.run(
            ["taskset", "-c", str(LOAD_CORE), *command], env=environment, capture_output=True, text=True, check=True
        )
        result: dict[str, float] = json.loads(done.stdout.rpartition("JSON ")[2])
        if result["errors"]:
            sys.exit(f"{result['errors']:.0f} requests failed")
        return result


def bodies_of(case: Case, load: str) -> list[str]:
    """Make the bodies of a case; their events are of the last hour, so they are made shortly before they are sent."""
    return loads.bodies(load, case.batch, kinds=loads.KINDS * (4 if case.batch == 1 else 1))


def check_count(server: Server, batch: int, requests: float, runs: int) -> int:
    """End if a server did not count what was sent; wrk ends with some requests counted but not answered."""
    events = counted(server.url, batch)
    if not requests * batch <= events <= (requests + runs * _UNDER_WAY) * batch:
        sys.exit(f"{server.contender.title}: sent {requests * batch:,.0f} events, counted {events:,}")
    return events


def measure(contender: Contender, case: Case, options: argparse.Namespace, sink: str) -> Round:
    """Run one round."""
    with tempfile.TemporaryDirectory() as directory, running(contender, sink) as server:
        wrk = Wrk(Path(directory), bodies_of(case, options.load), connections=case.connections)
        begun = cpu_seconds(server.pid)
        warm_up = wrk.send(server.url, options.warm_up)
        before = cpu_seconds(server.pid)
        result = wrk.send(server.url, options.seconds)
        busy = cpu_seconds(server.pid) - before
        rss = resident_bytes(server.pid)
        wait_until_idle(server.pid, 0.5 if options.quick else contender.puts_off_seconds)
        cpu = cpu_seconds(server.pid) - begun
        events = check_count(server, case.batch, warm_up["requests"] + result["requests"], runs=2)
    seconds = result["microseconds"] / 1e6
    return Round(
        events_per_second=result["requests"] * case.batch / seconds,
        cpu_seconds_per_million=cpu / events * 1e6,
        p50_ms=result["p50"] / 1e3,
        p99_ms=result["p99"] / 1e3,
        rss_mib=rss / 2**20,
        busy=busy / seconds,
    )


def prove(contender: Contender, batch: int, load: str) -> tuple[int, int]:
    """Send for a second, and count what reaches InfluxDB; gives events counted and points there."""
    case = Case(batch, KEPT)
    with tempfile.TemporaryDirectory() as directory, counter() as sink, running(contender, sink) as server:
        result = Wrk(Path(directory), bodies_of(case, load)).send(server.url, _PROOF_SECONDS)
        events = check_count(server, batch, result["requests"], runs=1)
        with contextlib.suppress(AssertionError):
            wait_for_sync(lambda: lines(sink) >= events, timeout_seconds=_DELIVERY_SECONDS)
        return events, lines(sink)


def run(options: argparse.Namespace) -> report.Figures:
    """Measure everything that is asked for."""
    contenders = [CONTENDERS[name] for name in options.servers]
    cases = [Case(batch, kind) for kind in options.connections for batch in options.batches]
    rounds: dict[tuple[str, Case], list[Round]] = {(each.name, case): [] for case in cases for each in contenders}
    with tempfile.TemporaryDirectory() as directory:
        with nginx(Path(directory)) as sink:
            for number in range(options.rounds):
                for case in cases:
                    # Each round begins with another server, so that none has the quiet moments.
                    for index in range(len(contenders)):
                        contender = contenders[(index + number) % len(contenders)]
                        found = measure(contender, case, options, sink)
                        rounds[contender.name, case].append(found)
                        say(number, case, contender, found)
        fsync = fsync_milliseconds(Path(directory))
    points = {}
    for contender in contenders if options.prove else []:
        if contender.delivers:
            events, there = prove(contender, max(options.batches), options.load)
            points[contender.name] = {"events": events, "points": there}
            print(f"{contender.title}: {events:,} events counted, {there:,} points reached InfluxDB", file=sys.stderr)
    return {
        "machine": describe(),
        "fsync_ms": fsync,
        "when": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "options": {
            **{name: getattr(options, name) for name in ("load", "rounds", "seconds", "warm_up", "quick")},
            "connections": CONNECTIONS,
        },
        "results": [
            {
                "server": name,
                "title": CONTENDERS[name].title,
                "batch": case.batch,
                "connections": case.connections,
                **median(found),
                "rounds": [asdict(each) for each in found],
            }
            for (name, case), found in rounds.items()
        ],
        "points": points,
    }


def median(rounds: list[Round]) -> dict[str, float]:
    """Give the median of each figure."""
    rows = [asdict(each) for each in rounds]
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def say(number: int, case: Case, contender: Contender, found: Round) -> None:
    """Tell how it goes."""
    print(
        f"round {number + 1}, {case.batch} a POST, {case.connections}: {contender.title}: "
        f"{found.events_per_second:,.0f} events/s, {found.cpu_seconds_per_million:.1f} CPU s per million, "
        f"p99 {found.p99_ms:.1f} ms, {found.rss_mib:.0f} MiB, busy {found.busy:.0%}",
        file=sys.stderr,
        flush=True,
    )


def main() -> None:
    """Measure, print, and write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round: good for seeing that it works")
    parser.add_argument("--rounds", type=int, default=3, help="rounds for each server and case (default: 3)")
    parser.add_argument("--seconds", type=int, default=8, help="length of a round (default: 8)")
    parser.add_argument(
        "--warm-up",
        type=int,
        default=11,
        help="load before a round (default: 11, so that the exporter settles old downloads while it is measured)",
    )
    parser.add_argument("--servers", type=_names(CONTENDERS), default=list(CONTENDERS), help=",".join(CONTENDERS))
    parser.add_argument("--batches", type=_numbers, default=list(BATCHES), help="events a POST (default: 1,50,200)")
    parser.add_argument("--connections", type=_names((KEPT, CLOSED)), default=[KEPT, CLOSED], help="kept,closed")
    parser.add_argument("--load", choices=loads.LOADS, default="queue", help="what is sent (docs/performance.md)")
    parser.add_argument("--no-proof", dest="prove", action="store_false", help="do not count points at a receiver")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--plot", type=Path, help="draw them into this PNG or SVG file")
    parser.add_argument("--docs", action="store_true", help="write tables and plot into docs/")
    parser.add_argument("--from-json", type=Path, help="measure nothing; take the figures of an earlier run")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.warm_up = 1, 3, 2
    if options.from_json:
        figures = json.loads(options.from_json.read_text())
    else:
        require("wrk", "nginx", "taskset")
        if {"express", "fastify"} & set(options.servers):
            install_peers()
        figures = run(options)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(report.bench(figures))
    if options.plot:
        plots.bench(figures, options.plot)
    if options.docs:
        picture = "![Events a second and CPU time of each server](pictures/performance.png)"
        report.write("bench", f"{picture}\n\n{report.bench(figures)}")
        plots.bench(figures, report.PICTURES / "performance.png")


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            msg = f"unknown: {', '.join(sorted(unknown))}"
            raise argparse.ArgumentTypeError(msg)
        return names

    return parse


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
