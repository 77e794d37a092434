"""What one scrape of many series costs on the event loop, and what `generate_latest` would cost for as many.

The whole exporter runs in this process on asyncio's own loop, whose every step is timed; the scraper is a thread. The
times are CPU time of the loop's thread, which a busy machine disturbs least. The middle of all scrapes is given.

Usage: python -m benchmarks.page DATA_DIR [--scrapes 20]; prints one line of JSON.
"""

import argparse
import asyncio
import gc
import json
import statistics
import sys
import time
import urllib.request
from pathlib import Path
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, generate_latest

from benchmarks.prefill import labels
from benchmarks.running import SCRAPE_HEADERS
from exporter.app import create_exporter
from exporter.labels import Labels
from exporter.settings import Settings

_DURATIONS: Final[list[int]] = []


def time_steps() -> None:
    """Note the CPU time of each step of every loop from now on."""
    run = asyncio.Handle._run  # noqa: SLF001 -- there is no other way to see each step

    def timed(handle: asyncio.Handle) -> None:
        began = time.thread_time_ns()
        run(handle)
        _DURATIONS.append(time.thread_time_ns() - began)

    setattr(asyncio.Handle, "_run", timed)  # noqa: B010 -- the same; mypy would have no method assigned


def scrape(url: str) -> int:
    """Ask as Prometheus does; gives the bytes that came."""
    request = urllib.request.Request(f"{url}/metrics", headers=SCRAPE_HEADERS)  # noqa: S310 -- a server of our own
    with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310 -- the same
        return len(reply.read())


async def measure(data_dir: Path, scrapes: int) -> dict[str, float]:
    """Scrape, and give the medians in milliseconds."""
    totals: list[float] = []
    longest: list[float] = []
    size = 0
    settings = Settings(data_dir=data_dir)
    async with create_exporter(settings) as exporter:
        runner = web.AppRunner(exporter.public, access_log=None, auto_decompress=False)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        for _ in range(3 + scrapes):
            await asyncio.sleep(0.2)
            _DURATIONS.clear()
            size = await asyncio.to_thread(scrape, f"http://{host}:{port}")
            totals.append(sum(_DURATIONS) / 1e6)
            longest.append(max(_DURATIONS) / 1e6)
        await runner.cleanup()
    return {
        "loop_ms": statistics.median(totals[3:]),
        "longest_ms": statistics.median(longest[3:]),
        "longest_of_all_ms": max(longest[3:]),
        "bytes": size,
    }


def usual(count: int) -> float:
    """Give the milliseconds that prometheus-client takes for as many series, in the least of three."""
    registry = CollectorRegistry()
    counter = Counter("capgo_stats_events", "Events.", Labels._fields, registry=registry)
    for each, _ in zip(labels(), range(count), strict=False):
        counter.labels(*each).inc()
    taken = []
    for _ in range(3):
        began = time.thread_time_ns()
        generate_latest(registry)
        taken.append((time.thread_time_ns() - began) / 1e6)
    return min(taken)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path, help="as prefill.py makes it")
    parser.add_argument("--scrapes", type=int, default=20)
    parser.add_argument("--series", type=int, default=100_000, help="series that generate_latest has to show")
    options = parser.parse_args()
    time_steps()
    found = asyncio.run(measure(options.data_dir, options.scrapes))
    gc.collect()
    json.dump({**found, "generate_latest_ms": usual(options.series)}, sys.stdout)


if __name__ == "__main__":
    main()
