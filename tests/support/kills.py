"""Devices and readers for kills under load: nothing acknowledged is lost, nothing shown is taken back.

The devices behave as the plugin does: they keep a batch until it is acknowledged, and send it again, encoded anew. The
readers scrape every 10 ms through all of it, one as Prometheus does and one as a person does.
"""

import asyncio
import contextlib
import json
import os
import random
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp

from exporter.events import Event, decode
from exporter.identity import identity
from tests.support.exporter import SCRAPE_HEADERS, CounterKey, ExporterProcess, parse_counters, parse_samples

CLIENTS = 5
# For the interpreter to run first: each COMMIT takes as long as on a slow disk, so that kills hit it in the middle.
SLOW_DISK = """
import sqlite3, time
class Slow(sqlite3.Connection):
    def execute(self, statement, *args):
        if statement == "COMMIT":
            time.sleep(0.03)
        return super().execute(statement, *args)
connect = sqlite3.connect
sqlite3.connect = lambda *args, **options: connect(*args, **{"factory": Slow, **options})
"""
NO_ANSWER = (aiohttp.ClientError, TimeoutError)
TIMEOUT = aiohttp.ClientTimeout(total=5)


class Device:
    """A device whose queue survives everything."""

    def __init__(self, number: int, seed: int) -> None:
        """Give the device its id and its own luck."""
        self._device_id = f"00000000-0000-4000-8000-{number:012d}"
        self._platform = ("android", "ios", "electron")[number % 3]
        self._luck = random.Random(f"{seed}/{number}")  # noqa: S311 -- a test that can be repeated
        self._count = 0
        self.acknowledged: list[dict[str, Any]] = []

    def batch(self) -> list[dict[str, Any]]:
        """Make new events; a new version appears every thousand events, so that births happen all along."""
        return [self._event() for _ in range(self._luck.choice((1, 3, 20, 200)))]

    def _event(self) -> dict[str, Any]:
        self._count += 1
        event: dict[str, Any] = {
            "app_id": "com.example.kill",
            "device_id": self._device_id,
            "platform": self._platform,
            "action": self._luck.choice(("set", "get", "update_fail", "download_10", "app_launch_ready")),
            "version_name": f"1.{self._count // 1000}.0",
            "timestamp": int(time.time() * 1000) + self._count,
            "is_prod": True,
        }
        if event["action"] == "app_launch_ready":
            event["metadata"] = {"duration_ms": str(self._count), "exit_reason": "none"}
        return event

    def encode(self, batch: list[dict[str, Any]]) -> str:
        """Encode a batch as a client does for each attempt: with the keys in any order."""
        return json.dumps([dict(self._luck.sample(list(event.items()), len(event))) for event in batch])

    async def report(self, url: str, stop: asyncio.Event) -> None:
        """Send batches until told to stop, each as often as it takes."""
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
            while not stop.is_set():
                batch = self.batch()
                while not await self._post(session, url, batch):  # noqa: ASYNC110 -- it polls a server
                    await asyncio.sleep(0.01)
                self.acknowledged += batch

    async def _post(self, session: aiohttp.ClientSession, url: str, batch: list[dict[str, Any]]) -> bool:
        with contextlib.suppress(*NO_ANSWER):
            async with session.post(f"{url}/stats", data=self.encode(batch)) as response:
                return response.status == 200 and (await response.json())["status"] == "ok"
        return False


class Reader:
    """Someone who scrapes all the time, and to whom nothing shown may ever be taken back."""

    def __init__(self, headers: dict[str, str]) -> None:
        """Set the headers by which the exporter tells scrapers from people."""
        self._headers = headers
        self._last: dict[CounterKey, int] = {}
        self.pages = 0
        self.taken_back: list[tuple[CounterKey, int, int | None]] = []

    async def read(self, url: str, stop: asyncio.Event) -> None:
        """Scrape every 10 ms, over all restarts."""
        async with aiohttp.ClientSession(timeout=TIMEOUT, headers=self._headers) as session:
            while not stop.is_set():
                with contextlib.suppress(*NO_ANSWER):
                    async with session.get(f"{url}/metrics") as response:
                        self._compare(parse_counters(await response.text()))
                await asyncio.sleep(0.01)

    def _compare(self, page: dict[CounterKey, int]) -> None:
        self.pages += 1
        for key, value in self._last.items():
            now = page.get(key)
            if now is None or now < value:
                self.taken_back.append((key, value, now))
        self._last = page


class Load:
    """The devices and the readers, while they are at work."""

    def __init__(self, seed: int) -> None:
        """Make them."""
        self.devices = [Device(number, seed) for number in range(CLIENTS)]
        self.readers = [Reader(SCRAPE_HEADERS), Reader({})]

    @contextlib.asynccontextmanager
    async def at_work(self, url: str) -> AsyncIterator[None]:
        """Let them work; at the end every batch is acknowledged."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for device in self.devices:
                tasks.create_task(device.report(url, stop))
            for reader in self.readers:
                tasks.create_task(reader.read(url, stop))
            yield
            stop.set()

    def events(self) -> list[dict[str, Any]]:
        """Return all events that were acknowledged, which are all that were made."""
        return [event for device in self.devices for event in device.acknowledged]


def by_series(events: list[dict[str, Any]]) -> dict[CounterKey, int]:
    """Count events as the counter should."""
    counts: dict[CounterKey, int] = {}
    for event in events:
        key = CounterKey(event["app_id"], event["platform"], event["action"], event["version_name"], "prod")
        counts[key] = counts.get(key, 0) + 1
    return counts


def points(events: list[dict[str, Any]]) -> set[tuple[Any, ...]]:
    """Return the points that events are in InfluxDB; two of one series share a nanosecond with a chance of 10⁻⁶."""
    found: set[tuple[Any, ...]] = set()
    for event in decode(json.dumps(events).encode()).events:
        assert isinstance(event, Event)
        event_id = identity(event)
        assert event_id is not None
        assert event.timestamp is not None
        time_ns = event.timestamp * 10**6 + event_id % 10**6
        found.add((event.platform, event.action, event.version_name, time_ns))
    return found


async def nonzero_counters(exporter: ExporterProcess) -> dict[CounterKey, int]:
    """Return what the exporter has counted, without the series that were only born."""
    return {key: value for key, value in (await exporter.counters()).items() if value}


async def sample(exporter: ExporterProcess, name: str, **labels: str) -> float:
    """Return one value of the page."""
    page = parse_samples(await exporter.metrics())
    return sum(float(each.value) for each in page if each.name == name and each.labels == labels)


def batches(events: list[dict[str, Any]], size: int = 500) -> Iterator[list[dict[str, Any]]]:
    """Cut events into batches."""
    for start in range(0, len(events), size):
        yield events[start : start + size]


def slow_disk(directory: Path) -> dict[str, str]:
    """Return the environment of an exporter on a slow disk; the directory must be empty or missing."""
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(SLOW_DISK)
    return {"PYTHONPATH": os.pathsep.join([str(directory), str(Path(__file__).parents[2])])}
