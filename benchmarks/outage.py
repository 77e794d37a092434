"""InfluxDB is away while a million events arrive; when it is back it has each point exactly once.

Halfway through the outage the exporter is killed. When InfluxDB is back, it is killed too in the middle of the
delivery. Devices post batches of 200 distinct events, each millisecond of a device its own.

Needs `influxd`. Usage: python -m benchmarks.outage [--events 1000000].
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from exporter.events import Event, decode
from exporter.identity import identity
from tests.support.exporter import ExporterProcess, influx_settings
from tests.support.influxdb import InfluxDB16
from tests.support.kills import sample
from tests.support.ports import wait_for
from tests.support.v2proxy import V2Proxy

BATCH: Final = 200
SENDERS: Final = 4
ACTIONS: Final = ("set", "get", "download_10", "download_50", "download_complete")


def batch(number: int, began_ms: int) -> bytes:
    """Make a batch; its number tells it from all others."""
    return json.dumps(
        [
            {
                "app_id": "com.example.outage",
                "device_id": f"00000000-0000-4000-8000-{number % 5000:012d}",
                "platform": ("android", "ios")[number % 2],
                "action": ACTIONS[index % len(ACTIONS)],
                "version_name": f"1.{number % 20}.0",
                "version_build": "1.0.0",
                "version_os": "17",
                "plugin_version": "8.51.6",
                "timestamp": began_ms - (number * BATCH + index),
            }
            for index in range(BATCH)
        ]
    ).encode()


async def post(exporter: ExporterProcess, numbers: range, began_ms: int, points: set[int]) -> None:
    """Post batches, some at a time, and note the hash of each point."""
    queue = iter(numbers)

    async def send() -> None:
        for number in queue:
            body = batch(number, began_ms)
            reply = await exporter.post(body)
            if reply.status != 200:  # noqa: PLR2004 -- HTTP's OK
                sys.exit(f"refused with {reply.status}")
            points.update(hash(point) for point in points_of(body))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(SENDERS):
            tasks.create_task(send())


def points_of(body: bytes) -> list[tuple[str | None, ...]]:
    """Give what identifies the points of a body: their tags and their times."""
    events = [event for event in decode(body).events if isinstance(event, Event)]
    return [
        (event.platform, event.action, event.version_name, str(event.timestamp), str((identity(event) or 0) % 10**6))
        for event in events
    ]


async def measure(events: int, directory: Path) -> int:
    """Run and print; gives the number of wrong figures."""
    began_ms = time.time_ns() // 1_000_000
    batches = events // BATCH
    points: set[int] = set()
    influxdb = InfluxDB16(directory / "influxdb")
    async with influxdb, V2Proxy(influxdb.url, token="t") as proxy:  # noqa: S106 -- a token of the run's own
        settings = influx_settings(proxy.url, token="t", org="o", bucket=influxdb.database)  # noqa: S106 -- the same
        async with ExporterProcess(directory / "exporter", settings) as exporter:
            await influxdb.stop()
            began = time.monotonic()
            await post(exporter, range(batches // 2), began_ms, points)
            await exporter.kill9()
            await exporter.restart()
            await post(exporter, range(batches // 2, batches), began_ms, points)
            seconds = time.monotonic() - began
            waiting = await sample(exporter, "capgo_exporter_journal_points")
            size = await sample(exporter, "capgo_exporter_journal_bytes")
            dropped = await sample(exporter, "capgo_exporter_journal_dropped_points_total")
            print(
                f"{batches * BATCH} events in {seconds:.0f} s without InfluxDB, one kill -9 in between: "
                f"{waiting:.0f} points wait in {size / 2**20:.0f} MiB, {dropped:.0f} dropped",
                flush=True,
            )
            began = time.monotonic()
            await influxdb.start()
            await wait_until_left(exporter, waiting / 2)
            await influxdb.process.kill9()
            await influxdb.start()
            await wait_until_left(exporter, 0)
            stored = await influxdb.count("capgo_stats", "count")
            print(
                f"delivered in {time.monotonic() - began:.0f} s, InfluxDB killed in between: "
                f"{len(points)} points expected, {stored} there; {proxy.writes} requests"
            )
            return int(abs(len(points) - stored) + dropped)


async def wait_until_left(exporter: ExporterProcess, points: float) -> None:
    """Wait until so few points wait in the journal."""

    async def is_reached() -> bool:
        return await sample(exporter, "capgo_exporter_journal_points") <= points

    await wait_for(is_reached, f"the journal to hold {points:.0f} points", 600)


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000, help="how many arrive while InfluxDB is away")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="outage-") as directory:
        sys.exit(1 if asyncio.run(measure(arguments.events, Path(directory))) else 0)


if __name__ == "__main__":
    main()
