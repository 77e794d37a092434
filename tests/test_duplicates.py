"""Duplicates: however an event comes again, it is once in the counters and once in the real InfluxDB."""

import asyncio
import json
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.conftest import StartExporter, V2InfluxDB
from tests.support.exporter import ExporterProcess
from tests.support.kills import by_series, nonzero_counters, points, sample
from tests.support.ports import wait_for


@dataclass
class Device:
    """A device that sends to an exporter, which may be restarted before it sends again.

    Attributes:
        exporter: where it sends.
        version: the version that it alone has.
        between: what happens before it sends something again.
        events: every different event that it ever sent.
        repeats: how many events it sent again.
    """

    exporter: ExporterProcess
    version: str
    between: Callable[[], Awaitable[None]]
    events: list[dict[str, Any]] = field(default_factory=list)
    repeats: int = 0

    def new(self, count: int, **fields: Any) -> list[dict[str, Any]]:
        """Make different events, each of a millisecond of its own unless a timestamp is given."""
        now_ms = time.time_ns() // 1_000_000 - 100_000
        made = [
            {
                "app_id": "com.example.duplicates",
                "device_id": "00000000-0000-4000-8000-00000000000A",
                "platform": "android",
                "action": ("set", "get", "download_complete")[number % 3],
                "version_name": self.version,
                "timestamp": now_ms + number,
                "metadata": {"duration_ms": str(number), "source": "t"},
                **fields,
            }
            for number in range(len(self.events), len(self.events) + count)
        ]
        self.events += made
        return made

    async def send(self, batch: list[dict[str, Any]], *, repeats: int = 0) -> None:
        """Send; so many of the events were sent before."""
        reply = await self.exporter.post(batch)
        assert (200, ["ok"] * len(batch)) == (reply.status, [each["status"] for each in reply.json()["results"]])
        self.repeats += repeats

    async def send_and_hang_up(self, batch: list[dict[str, Any]]) -> None:
        """Send, and hang up before the answer comes; return when the events are counted all the same."""
        host, _, port = self.exporter.url.removeprefix("http://").rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps(batch)
        writer.write(f"POST /stats HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

        async def is_counted() -> bool:
            counters = await self.exporter.counters()
            return sum(value for key, value in counters.items() if key.version == self.version) == len(batch)

        await wait_for(is_counted, "the events to be counted")


async def after_a_timeout(device: Device) -> None:
    """The answer to what was stored never arrives; the second time keys come in another order."""
    batch = device.new(7)
    await device.send_and_hang_up(batch)
    await device.between()
    await device.send([dict(reversed(event.items())) for event in batch], repeats=7)


async def as_a_superset(device: Device) -> None:
    """The queue is sent again with what happened since, in another order."""
    batch = device.new(5)
    await device.send(batch)
    await device.between()
    await device.send([*device.new(3), *reversed(batch)], repeats=5)


async def in_one_batch(device: Device) -> None:
    """One batch holds the same event twice, the second time with the device id in lower case, and comes again."""
    first, second = device.new(2)
    await device.send([first, second, {**first, "device_id": first["device_id"].lower()}], repeats=1)
    await device.between()
    await device.send([first, first, second], repeats=3)


async def in_one_millisecond(device: Device) -> None:
    """Different events of one series in the same millisecond are different, however often they come."""
    same = {"timestamp": time.time_ns() // 1_000_000, "action": "set"}
    batch = [*device.new(2, **same), *device.new(1, **same, device_id="another")]
    await device.send(batch)
    await device.between()
    await device.send(list(reversed(batch)), repeats=3)


WAYS = (after_a_timeout, as_a_superset, in_one_batch, in_one_millisecond)


@pytest.mark.parametrize(
    ("number", "is_down"),
    [(None, False), (signal.SIGTERM, True), (signal.SIGKILL, False), (signal.SIGKILL, True)],
    ids=["no restart", "SIGTERM while InfluxDB is down", "SIGKILL", "SIGKILL while InfluxDB is down"],
)
async def test_each_event_is_once(
    exporter_process: StartExporter, v2_influxdb: V2InfluxDB, *, number: signal.Signals | None, is_down: bool
) -> None:
    """In every way, with and without a restart between the first sending and the second, and with InfluxDB away."""
    exporter = await exporter_process(v2_influxdb.settings)
    meeting = asyncio.Barrier(len(WAYS) + 1)

    async def between() -> None:
        await meeting.wait()  # all have sent once
        await meeting.wait()  # the exporter is there again

    devices = [Device(exporter, f"1.{index}.0", between) for index in range(len(WAYS))]
    if is_down:
        await v2_influxdb.server.stop()
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(60):
        for way, device in zip(WAYS, devices, strict=True):
            tasks.create_task(way(device))
        await meeting.wait()
        if number is not None:
            exporter.process.send_signal(number)
            await exporter.wait(30)
            await exporter.start()
        await meeting.wait()
    if is_down:
        await v2_influxdb.server.start()

    async def journal_is_empty() -> bool:
        return await sample(exporter, "capgo_exporter_journal_points") == 0

    await wait_for(journal_is_empty, "the journal to be empty")
    events = [event for device in devices for event in device.events]
    assert by_series(events) == await nonzero_counters(exporter)
    assert len(events) == len(points(events)) == await v2_influxdb.server.count("capgo_stats", "count")
    duplicates = await sample(exporter, "capgo_exporter_events_total", outcome="duplicate", reason="")
    before_restart = 1  # the one within a batch
    assert sum(device.repeats for device in devices) - (before_restart if number else 0) == duplicates
