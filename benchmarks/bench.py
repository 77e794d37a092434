"""Compares the exporter with what people would write otherwise, which is naive.py.

All run with InfluxDB on, each pinned to one core, against the same sink; wrk sends distinct events from the other
core. The exporter runs with and without derived figures. Rounds are interleaved, medians and their ratios are printed,
and each server's own count is checked against what was sent.

Needs Linux and `wrk`. Usage: make bench [ARGS="--seconds 5 --rounds 3"].
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
SERVER_CORE: Final = {0}
LOAD_CORE: Final = {1}
BATCHES: Final = (1, 200)
NAIVE: Final = "naive"
EXPORTER: Final = "exporter"
WITHOUT_DERIVED: Final = "exporter without derived figures"


class Sink(BaseHTTPRequestHandler):
    """Answers every write with 204 at once."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Read the body and answer."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's name
        """Say nothing."""


@contextmanager
def sink() -> Iterator[str]:
    """Run the sink in this process, which is pinned to the load's core."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def server(name: str, sink_url: str, port: int, directory: Path) -> Iterator[int]:
    """Run a server on one core; gives its process id."""
    environment = {
        **os.environ,
        "EXPORTER_LISTEN": f"127.0.0.1:{port}",
        "EXPORTER_DATA_DIR": str(directory / "data"),
        "EXPORTER_INFLUX_URL": sink_url,
        "EXPORTER_LOG_LEVEL": "error",
    }
    commands = {
        NAIVE: [sys.executable, str(HERE / "naive.py"), str(port), sink_url],
        EXPORTER: [sys.executable, "-m", "exporter", "serve"],
        WITHOUT_DERIVED: [sys.executable, "-m", "exporter", "serve", "--derived", "off"],
    }
    process = subprocess.Popen(
        commands[name],
        env=environment,
        cwd=HERE.parent,
        preexec_fn=lambda: os.sched_setaffinity(0, SERVER_CORE),  # noqa: PLW1509 -- no threads that matter yet
    )
    try:
        wait_until_ready(port)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def wait_until_ready(port: int) -> None:
    """Wait until `/metrics` answers."""
    deadline = time.monotonic() + 20
    while True:
        try:
            read_metrics(port)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def read_metrics(port: int) -> str:
    """Read the page."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as reply:
        return str(reply.read().decode())


def counted(port: int) -> int:
    """Sum up the events that a server shows."""
    values = re.findall(r"^capgo_(?:stats_)?events_total\{.*\} (\S+)$", read_metrics(port), re.MULTILINE)
    return round(sum(map(float, values)))


def cpu_seconds(pid: int) -> float:
    """Read a process's CPU time, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(port: int, batch: int, seconds: int, run: str) -> tuple[int, float, float]:
    """Send distinct events with wrk; gives the requests answered, the seconds and the p99 in milliseconds."""
    process = subprocess.run(
        ["wrk", "-t1", "-c16", f"-d{seconds}s", "-s", str(HERE / "load.lua"), f"http://127.0.0.1:{port}/stats"],
        env={**os.environ, "BATCH": str(batch), "RUN": run},
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(process.stdout.rpartition("JSON ")[2])
    if result["errors"]:
        sys.exit(f"{result['errors']} requests failed")
    return result["requests"], result["microseconds"] / 1e6, result["p99_microseconds"] / 1e3


def measure(name: str, batch: int, seconds: int, run: str, sink_url: str) -> tuple[float, float, float]:
    """Run one round; gives events a second, CPU seconds per million events, and the p99 in milliseconds."""
    port = 20_000 + os.getpid() % 10_000
    with tempfile.TemporaryDirectory() as directory, server(name, sink_url, port, Path(directory)) as pid:
        load(port, batch, 1, f"{run}-warm-up")
        before, events_before = cpu_seconds(pid), counted(port)
        requests, duration, p99 = load(port, batch, seconds, run)
        cpu = cpu_seconds(pid) - before
        events = counted(port) - events_before
        # wrk ends with up to 16 requests under way, which are counted but not answered to it; so did the warm-up.
        if not requests * batch <= events <= (requests + 32) * batch:
            sys.exit(f"{name}: sent {requests * batch} events, counted {events}")
    return events / duration, cpu / events * 1e6, p99


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5, help="length of a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds for each server and batch size")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed")
    os.sched_setaffinity(0, LOAD_CORE)
    print("| events a POST | server | events/s | CPU s per million events | p99 ms |\n|---|---|---|---|---|")
    for batch in BATCHES:
        rounds: dict[str, list[tuple[float, float, float]]] = {NAIVE: [], EXPORTER: [], WITHOUT_DERIVED: []}
        with sink() as sink_url:
            for number in range(arguments.rounds):
                for name, results in rounds.items():
                    results.append(measure(name, batch, arguments.seconds, f"{name}-{batch}-{number}", sink_url))
        medians = {
            name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in rounds.items()
        }
        for name, (rate, cpu, p99) in medians.items():
            print(f"| {batch} | {name} | {rate:,.0f} | {cpu:.1f} | {p99:.1f} |")
        for other in (NAIVE, WITHOUT_DERIVED):
            ratio = medians[EXPORTER][0] / medians[other][0]
            print(f"| {batch} | {EXPORTER} / {other} | {ratio:.2f} | | |", flush=True)


if __name__ == "__main__":
    main()
