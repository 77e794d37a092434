"""Measures each target that `docs/performance.md` names, and says whether it is met.

Ratios against peers are taken out of a file that `bench.py --json` wrote (`--bench FILE`), or measured here.

Needs Linux with two cores, `wrk`, `nginx`, and for the ratios `node` and `npm`.

Usage: python -m benchmarks.targets [--only posts,page] [--bench FILE] [--docs].
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from benchmarks import bench, loads, report
from benchmarks.contenders import CONTENDERS
from benchmarks.machine import ROOT, describe, fsync_milliseconds, require, resident_bytes
from benchmarks.prefill import prefill
from benchmarks.running import Pacer, Running, exporter
from benchmarks.sinks import nginx
from exporter.dedupe import DedupeWindow

SERIES: Final = 100_000
IDS: Final = 1_000_000
JOURNAL_BYTES: Final = 1 << 30
BACKLOG: Final = 10_000_000
_SCRAPE_SECONDS: Final = 1.0
_MB: Final = 1e6
_FLAT: Final = 1.05


@dataclass(frozen=True, slots=True)
class Target:
    """A target, what was measured, and whether it is met; None: there is nothing to compare with."""

    name: str
    wanted: str
    measured: str
    is_met: bool | None


def at_most(name: str, measured: float, limit: float, unit: str) -> Target:
    """Judge a figure that should be small."""
    return Target(name, f"≤ {limit:g} {unit}", f"{measured:.3g} {unit}", measured <= limit)


def at_least(name: str, measured: float, limit: float, unit: str) -> Target:
    """Judge a figure that should be large."""
    return Target(name, f"≥ {limit:,g} {unit}", f"{float(f'{measured:.3g}'):,g} {unit}", measured >= limit)


def ratios(options: argparse.Namespace) -> Iterator[Target]:
    """Events a second and CPU time against the peers."""
    if options.bench:
        figures = json.loads(options.bench.read_text())
    else:
        command = [sys.executable, "-m", "benchmarks.bench", "--batches=1,200", "--servers=naive,fastify,exporter"]
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "bench.json"
            more = ["--quick"] if options.quick else [f"--rounds={options.rounds}"]
            subprocess.run([*command, *more, "--no-proof", f"--json={path}"], cwd=ROOT, check=True, stdout=sys.stderr)
            figures = json.loads(path.read_text())
    rows = {(row["server"], row["batch"], row["connections"]): row for row in figures["results"]}

    def ratio(peer: str, batch: int, connections: str) -> float:
        names = ("exporter", peer)
        ours, theirs = (rows[name, batch, connections]["events_per_second"] for name in names)
        return float(ours / theirs)

    yield at_least("200 events a POST, events/s", ratio("fastify", 200, "kept"), 3, "times fastify")
    yield at_least("200 events a POST, events/s", ratio("naive", 200, "kept"), 9, "times naive")
    yield at_most(
        "200 events a POST, CPU", rows["exporter", 200, "kept"]["cpu_seconds_per_million"], 2.2, "s per million events"
    )
    yield at_least("1 event a POST, kept alive", ratio("fastify", 1, "kept"), 0.9, "times fastify")
    yield at_least("1 event a POST, not kept alive", ratio("fastify", 1, "closed"), 0.7, "times fastify")
    costs = (
        rows["fastify", batch, connections]["cpu_seconds_per_million"]
        / rows["exporter", batch, connections]["cpu_seconds_per_million"]
        for batch, connections in ((200, "kept"), (1, "kept"), (1, "closed"))
    )
    measured = "; ".join(f"{cost:.3g}" for cost in costs)
    yield Target("  fastify's CPU time by ours, for these three", "", measured, None)


def posts(options: argparse.Namespace) -> Iterator[Target]:
    """p99 of POSTs at 1,000 a second, alone and while 100,000 series are scraped each second."""
    seconds = 5 if options.quick else options.seconds
    with tempfile.TemporaryDirectory() as directory, nginx(Path(directory)) as sink:
        fsync = fsync_milliseconds(Path(directory))
        with bench.running(CONTENDERS["limit"], sink) as limit:
            floor = _paced(limit.port, seconds)
        with exporter(influx_url=sink) as server:
            alone = _paced(server.port, seconds)
        yield at_most(f"p99 of a POST at 1,000/s (fsync {fsync:.2f} ms)", alone["p99"], 3, "ms")
        data_dir = Path(directory) / "data"
        prefill(data_dir, series=SERIES)
        with exporter(data_dir, influx_url=sink) as server, _scraping(server):
            scraped = _paced(server.port, seconds)
        yield at_most("the same while 100,000 series are scraped each second", scraped["p99"], 2, "ms")
        yield Target("  p50, p99.9 and the longest of these", "", _tail(alone, scraped), None)
        yield Target("  p99 of a server that does nothing, here and now", "", f"{floor['p99']:.3g} ms", None)


def _tail(*found: dict[str, float]) -> str:
    return "; ".join(f"{each['p50']:.2g}, {each['p999']:.2g}, {each['max']:.2g} ms" for each in found)


def _paced(port: int, seconds: float) -> dict[str, float]:
    with Pacer(port, rate=1000, seconds=2) as warm_up:
        warm_up.result()
    with Pacer(port, rate=1000, seconds=seconds, first=1_000_000) as pacer:
        return pacer.result()


class _scraping:  # noqa: N801 -- used as a context manager
    """Scrapes once a second while the block runs."""

    def __init__(self, server: Running) -> None:
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(_SCRAPE_SECONDS):
            self._server.scrape()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


def page(options: argparse.Namespace) -> Iterator[Target]:
    """What `/metrics` with 100,000 series costs: CPU on the event loop, the longest step, against `generate_latest`."""
    with tempfile.TemporaryDirectory() as directory:
        data_dir = Path(directory) / "data"
        prefill(data_dir, series=SERIES)
        # A process of its own, so that this one's garbage does not disturb it.
        command = [sys.executable, "-m", "benchmarks.page", str(data_dir), f"--scrapes={5 if options.quick else 20}"]
        output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
        found = json.loads(output.splitlines()[-1])
    some, everything, load = (found["page"][name] for name in ("some", "all", "load"))
    name = "/metrics with 100,000 series, one version in a hundred changed, CPU on the event loop"
    yield at_most(name, some["loop_ms"], 15, "ms")
    yield at_most("  if every series has changed since the last scrape", everything["loop_ms"], 15, "ms")
    yield Target("  if 2,500 have, as in the scrapes above", "", f"{load['loop_ms']:.3g} ms", None)
    yield at_most("  longest step of the event loop meanwhile, in the median", some["longest_ms"], 1, "ms")
    yield at_most("  if every series has changed", everything["longest_ms"], 1, "ms")
    longest = max(each["longest_of_all_ms"] for each in (some, everything, load))
    yield Target("  longest of all scrapes", "", f"{longest:.3g} ms", None)
    usual = found["generate_latest_ms"]
    yield at_least(f"  against generate_latest ({usual:.0f} ms)", usual / some["loop_ms"], 80, "times faster")
    yield at_least("  if every series has changed", usual / everything["loop_ms"], 80, "times faster")


def memory(options: argparse.Namespace) -> Iterator[Target]:
    """Bytes a series; memory at full load with 4,000 series; what the window costs."""
    with tempfile.TemporaryDirectory() as directory:
        bare = _memory_of(Path(directory) / "bare", 0)
        full = _memory_of(Path(directory) / "full", SERIES)
    yield at_most("memory a series, all included", (full - bare) / SERIES, 600, "bytes")
    with tempfile.TemporaryDirectory() as directory, nginx(Path(directory)) as sink:
        for derived in ("off", "on"):
            yield from _full_load(sink, Path(directory) / derived, 9 if options.quick else 45, derived)


def _memory_of(data_dir: Path, series: int) -> int:
    prefill(data_dir, series=series)
    with exporter(data_dir) as server:
        for _ in range(3):
            server.scrape()
        return resident_bytes(server.pid)


def _full_load(sink: str, directory: Path, seconds: int, derived: str) -> Iterator[Target]:
    """Load as fast as it goes, for long, and watch the memory once the window is full.

    The bound is without sketches of devices, which derived figures have.
    """
    data_dir = directory / "data"
    # The window holds twice as many before it forgets: full from the beginning, so that it does not grow.
    prefill(data_dir, ids=IDS * 11 // 5)
    wrk = bench.Wrk(directory, loads.bodies("queue", 200))
    with exporter(data_dir, influx_url=sink, derived=derived) as server:
        wrk.send(server.url, seconds / 3)
        early = resident_bytes(server.pid)
        wrk.send(server.url, seconds / 3)
        middle = resident_bytes(server.pid)
        wrk.send(server.url, seconds / 3)
        rss = resident_bytes(server.pid)
        ids = server.sample("capgo_exporter_dedupe_events")
        series = server.sample("capgo_exporter_series")
    limit = round(160 + 100 * ids / _MB)
    name = f"RSS at full load, {series:,.0f} series, {ids / 1e6:.1f} M ids remembered, derived figures {derived}"
    measured = f"{early / _MB:.0f}, {middle / _MB:.0f}, {rss / _MB:.0f} MB"
    if derived == "off":
        yield at_most(name, rss / _MB, limit, "MB")
        yield Target("  after one, two and three thirds of the run", "flat", measured, rss <= middle * _FLAT)
    else:
        yield Target(f"{name}, after each third", "", measured, None)


def window(options: argparse.Namespace) -> Iterator[Target]:
    """The longest stop when the window of remembered ids grows: a stop of ours comes in every run."""
    del options
    longest = min(_longest_stop() for _ in range(3))
    yield at_most("longest stop when 200 ids are remembered", longest, 1, "ms")


def _longest_stop() -> float:
    known = DedupeWindow(IDS)
    chance = random.Random(1)  # noqa: S311 -- no secret
    longest = 0
    for start in range(0, 3 * IDS, 200):
        ids = [chance.getrandbits(64) for _ in range(200)]
        began = time.thread_time_ns()
        known.add(ids, start)
        longest = max(longest, time.thread_time_ns() - began)
    return longest / 1e6


def start(options: argparse.Namespace) -> Iterator[Target]:
    """How long a start takes with much to restore, and what it reads."""
    del options
    with tempfile.TemporaryDirectory() as directory:
        data_dir = Path(directory) / "data"
        prefill(data_dir, series=SERIES, ids=IDS, points_bytes=JOURNAL_BYTES)
        with exporter(data_dir) as server:
            # All that was read with system calls, files of Python's own included.
            read = int(Path(f"/proc/{server.pid}/io").read_text().split()[1])
            waiting = server.sample("capgo_exporter_journal_bytes")
    name = f"start with 100,000 series, 1,000,000 ids, {waiting / 2**30:.2f} GiB of points"
    yield at_most(name, server.seconds_to_start, 3, "s")
    yield at_most("  read meanwhile", read / 2**20, 128, "MiB")


def drain(options: argparse.Namespace) -> Iterator[Target]:
    """How fast a backlog leaves while events go on coming."""
    backlog = BACKLOG // 10 if options.quick else BACKLOG
    with tempfile.TemporaryDirectory() as directory, nginx(Path(directory)) as sink:
        data_dir = Path(directory) / "data"
        prefill(data_dir, points=backlog)
        with (
            exporter(data_dir, influx_url=sink) as server,
            Pacer(server.port, rate=100, seconds=600, batch=50) as pacer,
        ):
            first = server.sample("capgo_exporter_delivered_points_total")
            began = time.perf_counter()
            while server.sample("capgo_exporter_journal_points") > backlog / 100:
                if time.perf_counter() - began > 300:  # noqa: PLR2004 -- a tenth of what is wanted
                    break
                time.sleep(0.1)
            seconds = time.perf_counter() - began
            delivered = server.sample("capgo_exporter_delivered_points_total") - first
            if not pacer.is_running:
                sys.exit("the intake beside the drain broke off")
    yield at_least(f"drain of {backlog:,} points beside 5,000 events/s", delivered / seconds, 500_000, "points/s")


TOPICS: Final[dict[str, Callable[[argparse.Namespace], Iterator[Target]]]] = {
    "ratios": ratios,
    "posts": posts,
    "page": page,
    "memory": memory,
    "window": window,
    "start": start,
    "drain": drain,
}


def written(figures: report.Figures) -> str:
    """Write the table."""
    verdicts = {True: "met", False: "**not met**", None: ""}
    rows = [[row["name"], row["wanted"], row["measured"], verdicts[row["is_met"]]] for row in figures["targets"]]
    head = f"{figures['machine']}; {figures['when']} UTC.{' A quick run.' if figures['quick'] else ''}"
    return f"{head}\n\n{report.table(['target', 'wanted', 'measured', ''], rows)}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(TOPICS), help=f"topics: {', '.join(TOPICS)}")
    parser.add_argument("--bench", type=Path, help="figures of bench.py for the ratios")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the ratios, if they are measured here")
    parser.add_argument("--seconds", type=int, default=20, help="how long POSTs are paced")
    parser.add_argument("--quick", action="store_true", help="shorter, and a tenth of the backlog")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/performance.md")
    options = parser.parse_args()
    require("wrk", "nginx", "taskset")
    targets: list[Target] = []
    for name in options.only.split(","):
        if name not in TOPICS:
            sys.exit(f"unknown topic {name!r}; there are {', '.join(TOPICS)}")
        for target in TOPICS[name](options):
            targets.append(target)
            print(target, file=sys.stderr, flush=True)
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    figures = {"machine": describe(), "when": when, "quick": options.quick, "targets": list(map(asdict, targets))}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(written(figures))
    if options.docs:
        report.write("targets", written(figures))


if __name__ == "__main__":
    main()
