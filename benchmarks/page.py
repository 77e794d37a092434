"""What one scrape of many series costs on the event loop, and what `generate_latest` would cost for as many.

The page is served in this process on asyncio's own loop, whose every step is timed; the scraper is a thread. The times
are CPU time of the loop's thread, which a busy machine disturbs least. The middle of all scrapes is given. Between two
scrapes series grow by real transactions: all of them, some, or those of the benchmarks' load.

Usage: python -m benchmarks.page DATA_DIR [--scrapes 20]; prints one line of JSON.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import statistics
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, generate_latest

from benchmarks.prefill import ACTIONS, labels
from benchmarks.running import SCRAPE_HEADERS
from exporter.access import Tokens
from exporter.births import Births
from exporter.clock import Clock
from exporter.commit import Committer
from exporter.connections import Connections
from exporter.exposition import Page
from exporter.labels import Labels
from exporter.operations import MetricsHandler
from exporter.series import Series
from exporter.settings import Settings
from exporter.state import State

_SERIES_OF_LOAD: Final = 2500
_CONNECTIONS: Final = 10
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


def all_changed(series: list[Series]) -> list[Series]:
    """Let every series change between two scrapes."""
    return series


def some_changed(series: list[Series]) -> list[Series]:
    """Let every action of one version and platform in a hundred change: the ones that devices run now."""
    return [
        each for start in range(0, len(series), 100 * len(ACTIONS)) for each in series[start : start + len(ACTIONS)]
    ]


def load_changed(series: list[Series]) -> list[Series]:
    """Let as many as the benchmarks' load has change, the newest."""
    return series[-_SERIES_OF_LOAD:]


_CHANGES: Final[dict[str, Callable[[list[Series]], list[Series]]]] = {
    "all": all_changed,
    "some": some_changed,
    "load": load_changed,
}


@contextlib.asynccontextmanager
async def serving(state: State) -> AsyncIterator[str]:
    """Serve the page of a journal; gives where."""
    clock = Clock()
    births = Births(state.lifecycle, state.committer, 15.0, state.telemetry, clock)
    page = Page(state.telemetry.registry, state.counters, state.figures)
    application = web.Application()
    metrics = MetricsHandler(page, births, Tokens(), Connections(_CONNECTIONS, state.telemetry, clock))
    application.add_routes([web.get("/metrics", metrics.get)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    committer = asyncio.create_task(state.committer.run())
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()
        state.committer.stop()
        await committer
        state.committer.close()


async def grow(committer: Committer, chosen: list[Series]) -> None:
    """Let series grow by one, as events do."""
    group = committer.group
    for each in chosen:
        group.add(each, 1)
    await committer.wait(group)


async def measure(data_dir: Path, scrapes: int) -> dict[str, dict[str, float]]:
    """Scrape, and give the medians in milliseconds."""
    state = State(Settings(data_dir=data_dir), Clock())
    series: list[Series] = list(state.counters)
    found = {}
    async with serving(state) as url:
        for name, choose in _CHANGES.items():
            totals: list[float] = []
            longest: list[float] = []
            size = 0
            for _ in range(3 + scrapes):
                await grow(state.committer, choose(series))
                await asyncio.sleep(0.2)
                _DURATIONS.clear()
                size = await asyncio.to_thread(scrape, url)
                totals.append(sum(_DURATIONS) / 1e6)
                longest.append(max(_DURATIONS) / 1e6)
            found[name] = {
                "loop_ms": statistics.median(totals[3:]),
                "longest_ms": statistics.median(longest[3:]),
                "longest_of_all_ms": max(longest[3:]),
                "bytes": size,
            }
    return found


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
    json.dump({"page": found, "generate_latest_ms": usual(options.series)}, sys.stdout)


if __name__ == "__main__":
    main()
