"""A long run: a steady load and a scraper, while InfluxDB comes and goes; is anything that should be flat growing?

Prints a line a minute. In the end every event that was answered with 200 must be in the counters once and must have
reached InfluxDB, and memory, open files and latencies of the last third are set against those of the middle third.

Usage: python -m benchmarks.soak [--minutes 20] [--posts-per-second 40].
"""

import argparse
import asyncio
import gzip
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web

from benchmarks.receiver import Receiver
from tests.support.exporter import ExporterProcess, influx_settings, parse_samples
from tests.support.ports import wait_for

BATCH: Final = 25
DEVICES: Final = 5000
VERSIONS: Final = 40
STEPS: Final = ("download_0", "download_50", "download_complete", "set", "app_launch_ready", "update_fail")
MOODS: Final = ((60, "well"), (40, "gone"), (20, "slow"), (20, "broken"))
"""What InfluxDB does, one after the other, in seconds."""

FLAT: Final = 1.15
"""How much more than in the middle third the last one may have."""


class Influx(Receiver):
    """Takes points in the moods that it is in, and remembers each by its series and time.

    Attributes:
        points: of each distinct point a hash.
        repeats: points that came again.
    """

    def __init__(self) -> None:
        """Know nothing yet."""
        super().__init__()
        self.points: set[int] = set()
        self.repeats = 0
        self.mood = "well"

    async def write(self, request: web.Request) -> web.Response:
        """Answer a write, and note its points."""
        body = await request.read()
        if self.mood == "gone" and request.transport is not None:
            request.transport.abort()
        if self.mood in {"gone", "broken"}:
            return web.Response(status=503)
        if self.mood == "slow":
            await asyncio.sleep(2)
        for line in gzip.decompress(body).decode().splitlines():
            point = hash((line.partition(" ")[0], line.rpartition(" ")[2]))
            self.repeats += point in self.points
            self.points.add(point)
        return web.Response(status=204)


@dataclass
class Minute:
    """What was seen in a minute: MiB, counts, milliseconds."""

    rss_mib: float = 0.0
    files: int = 0
    journal_mib: float = 0.0
    series: int = 0
    page_kib: float = 0.0
    posts_ms: list[float] = field(default_factory=list)
    scrapes_ms: list[float] = field(default_factory=list)

    def p(self, share: float, values: list[float]) -> float:
        """Give a percentile."""
        ordered = sorted(values) or [0.0]
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


_OBSERVED: Final[tuple[tuple[str, Callable[[Minute], float]], ...]] = (
    ("RSS", lambda minute: minute.rss_mib),
    ("open files", lambda minute: minute.files),
    ("page", lambda minute: minute.page_kib),
    ("POST p50", lambda minute: minute.p(0.5, minute.posts_ms)),
)


class Soak:
    """One run."""

    def __init__(self, exporter: ExporterProcess, influx: Influx, posts_per_second: float) -> None:
        """Set what is observed."""
        self.minutes: list[Minute] = [Minute()]
        self.answered = 0
        self.failed = 0
        self._exporter = exporter
        self._influx = influx
        self._interval = 1 / posts_per_second
        self._number = 0
        self._start_ms = time.time_ns() // 1_000_000

    async def run(self, seconds: float) -> None:
        """Load, scrape and watch for so long."""
        # Few connections, so that their number does not follow the noise of the machine.
        connector = aiohttp.TCPConnector(limit=16)
        async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
            end = time.monotonic() + seconds
            for work in (self._load(session, end), self._scrape(session, end), self._change(end), self._watch(end)):
                group.create_task(work)

    async def _load(self, session: aiohttp.ClientSession, end: float) -> None:
        due = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while time.monotonic() < end:
                group.create_task(self._post(session))
                due += self._interval
                await asyncio.sleep(max(due - time.monotonic(), 0))

    async def _post(self, session: aiohttp.ClientSession) -> None:
        body = list(self._events())
        started = time.monotonic()
        async with session.post(f"{self._exporter.url}/stats", json=body) as response:
            await response.read()
        self.minutes[-1].posts_ms.append((time.monotonic() - started) * 1000)
        if response.status == web.HTTPOk.status_code:
            self.answered += len(body)
        else:
            self.failed += len(body)

    def _events(self) -> Iterator[dict[str, object]]:
        for _ in range(BATCH):
            self._number += 1
            number = self._number
            yield {
                "app_id": "com.example.soak",
                "platform": ("android", "ios")[number % 2],
                "device_id": f"{number // len(STEPS) % DEVICES:08x}-0000-4000-8000-000000000000",
                "action": STEPS[number % len(STEPS)],
                "version_name": f"1.{number // 5000 % VERSIONS}.0",
                "plugin_version": "8.51.14",
                # A millisecond of its own: in the same one, two points share a nanosecond once in a million times.
                "timestamp": self._start_ms + number,
                "metadata": {"duration_ms": str(number % 5000), "n": str(number)},
                "is_prod": True,
                "is_emulator": False,
            }

    async def _scrape(self, session: aiohttp.ClientSession, end: float) -> None:
        headers = {"X-Prometheus-Scrape-Timeout-Seconds": "10", "Accept-Encoding": "gzip"}
        while time.monotonic() < end:
            started = time.monotonic()
            async with session.get(f"{self._exporter.url}/metrics", headers=headers) as response:
                page = await response.read()
            minute = self.minutes[-1]
            minute.scrapes_ms.append((time.monotonic() - started) * 1000)
            minute.page_kib = len(page) / 1024
            await asyncio.sleep(5)

    async def _change(self, end: float) -> None:
        while time.monotonic() < end:
            for seconds, mood in MOODS:
                self._influx.mood = mood
                await asyncio.sleep(min(seconds, max(end - time.monotonic(), 0)))
        self._influx.mood = "well"

    async def _watch(self, end: float) -> None:
        print("minute  RSS MiB  files  journal MiB  series  page KiB  POST p50/p99 ms  scrape p50 ms  answered  failed")
        while time.monotonic() < end:
            await asyncio.sleep(min(60, max(end - time.monotonic(), 0)))
            minute = self.minutes[-1]
            minute.rss_mib, minute.files = _usage(Path(f"/proc/{self._exporter.pid}"))
            values = {each.name: each.value for each in parse_samples(await self._exporter.metrics())}
            minute.journal_mib = values["capgo_exporter_journal_bytes"] / 2**20
            minute.series = int(values["capgo_exporter_series"] + values["capgo_exporter_derived_series"])
            print(
                f"{len(self.minutes):6}  {minute.rss_mib:7.1f}  {minute.files:5}  {minute.journal_mib:11.2f}"
                f"  {minute.series:6}  {minute.page_kib:8.0f}"
                f"  {minute.p(0.5, minute.posts_ms):7.1f}/{minute.p(0.99, minute.posts_ms):<7.1f}"
                f"  {minute.p(0.5, minute.scrapes_ms):13.1f}  {self.answered:8}  {self.failed:6}  {self._influx.mood}",
                flush=True,
            )
            self.minutes.append(Minute())


def _usage(process: Path) -> tuple[float, int]:
    """Give the resident memory of a process, in MiB, and how many files it has open."""
    pages = int((process / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(list((process / "fd").iterdir()))


async def main(minutes: float, posts_per_second: float) -> int:
    """Run, and judge; the exit code."""
    influx = Influx()
    url = await influx.start()
    with tempfile.TemporaryDirectory() as directory:
        settings = {
            **influx_settings(url, token="any", org="any", bucket="any"),  # noqa: S106 -- no secret
            "EXPORTER_DEDUPE_EVENTS": "65536",  # full soon, so that it does not grow
            "EXPORTER_SCRAPE_INTERVAL": "5s",
        }
        async with ExporterProcess(Path(directory), settings) as exporter:
            soak = Soak(exporter, influx, posts_per_second)
            await soak.run(minutes * 60)
            await _until_delivered(exporter)
            counted = sum((await exporter.counters()).values())
            code = await exporter.terminate()
    await influx.stop()
    print(f"answered {soak.answered}, failed {soak.failed}, counted {counted}, points {len(influx.points)}", end="")
    print(f" (sent again after a lost answer: {influx.repeats}), exit code {code}")
    is_exact = soak.answered == counted == len(influx.points) and code == 0
    return 0 if _is_flat(soak.minutes[:-1]) and is_exact else 1


async def _until_delivered(exporter: ExporterProcess) -> None:
    async def delivered() -> bool:
        samples: dict[str, float] = {each.name: each.value for each in parse_samples(await exporter.metrics())}
        return samples["capgo_exporter_journal_points"] == 0

    await wait_for(delivered, "the last points to be delivered", 120)


def _is_flat(minutes: list[Minute]) -> bool:
    third = len(minutes) // 3
    if not third:
        return True
    flat = True
    for name, of in _OBSERVED:
        middle, last = (
            statistics.median(of(minute) for minute in part) for part in (minutes[third:-third], minutes[-third:])
        )
        ratio = last / middle if middle else 1.0
        flat = flat and ratio <= FLAT
        print(f"{name}: middle third {middle:.1f}, last third {last:.1f}, ratio {ratio:.2f} (at most {FLAT})")
    return flat


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--posts-per-second", type=float, default=40.0)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(asyncio.run(main(options.minutes, options.posts_per_second)))
