"""Exporters that deliver to a server of the test, and events for them."""

import contextlib
import itertools
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, Protocol

from exporter.clock import Clock
from exporter.journal.codec import decompress
from exporter.journal.opening import FILE_NAME
from tests.support.fakeinflux import ScriptedInflux
from tests.support.influxdb import InfluxDB16
from tests.support.inprocess import Running, running
from tests.support.lineprotocol import Record
from tests.support.ports import wait_for

BAD = "bad"

_DEVICE = re.compile(r'device_id="([^"]+)"')
_numbers = itertools.count(1)


class Server(Protocol):
    """Anything that has a URL."""

    @property
    def url(self) -> str:
        """Where it listens."""


def events(count: int, *, name: str = "good", **fields: Any) -> list[dict[str, Any]]:
    """Make events of devices and milliseconds of their own; the names of the devices tell them apart.

    In one millisecond a few of thousands would share their nanosecond too, and overwrite each other as points.
    """
    now_ms = time.time_ns() // 1_000_000
    numbers = [next(_numbers) for _ in range(count)]
    return [
        {
            "app_id": "com.example.app",
            "device_id": f"{name}-{number}",
            "action": "set",
            "platform": "android",
            "version_name": "1.2.3",
            "timestamp": now_ms - number,
            **fields,
        }
        for number in numbers
    ]


def devices(batch: Iterable[dict[str, Any]]) -> list[str]:
    """Give the names of the events' devices."""
    return sorted(event["device_id"] for event in batch)


@contextlib.asynccontextmanager
async def delivering(server: Server, *, clock: Clock | None = None, **overrides: Any) -> AsyncIterator[Running]:
    """Run an exporter that delivers to a server; the overrides are settings by their field names."""
    settings = {"influx_url": server.url, "influx_token": "token", "influx_org": "org", "influx_bucket": "capgo"}
    async with running({**settings, **overrides}, clock) as exporter:
        yield exporter


async def accept(exporter: Running, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Post events in one batch, and return them; all must be taken."""
    reply = await exporter.post(batch)
    assert ([{"status": "ok", "index": index} for index in range(len(batch))], 200) == (
        reply.json()["results"],
        reply.status,
    )
    return batch


async def fill(data_dir: Path, *batches: list[dict[str, Any]]) -> None:
    """Let events wait in the journal of an exporter that knows no InfluxDB, each batch as a group of its own."""
    async with running({"data_dir": data_dir}) as exporter:
        for batch in batches:
            await accept(exporter, batch)


async def emptied(exporter: Running, points: int = 0) -> None:
    """Wait until no point waits in the journal, or only so many."""

    async def is_empty() -> bool:
        return await exporter.sample("capgo_exporter_journal_points") == points

    await wait_for(is_empty, f"the journal to hold {points} points")


def devices_in(texts: Iterable[str]) -> list[str]:
    """Give the names of the devices in lines, each as often as it is there."""
    return sorted(name for text in texts for name in _DEVICE.findall(text))


def stored_devices(influx: ScriptedInflux) -> list[str]:
    """Give the devices of the points that InfluxDB keeps."""
    return devices_in(record.text for record in influx.stored.values())


def dead_letters(data_dir: Path) -> list[tuple[str, str, list[str]]]:
    """Give reason, error and lines of the dead letters in a journal, oldest first."""
    with contextlib.closing(sqlite3.connect(data_dir / FILE_NAME)) as connection:
        rows = connection.execute("SELECT reason, error, lines FROM dead_letters ORDER BY id").fetchall()
    return [(reason, error, decompress(lines)) for reason, error, lines in rows]


def dead_devices(data_dir: Path) -> list[str]:
    """Give the devices of the dead letters."""
    return devices_in(line for _, _, lines in dead_letters(data_dir) for line in lines)


def is_bad(record: Record) -> bool:
    """Tell the records of events named `bad`."""
    return f'device_id="{BAD}-' in record.text


async def refusals(exporter: Running) -> dict[str, int]:
    """Give the numbers of points refused for good, by reason, where there are any."""
    reasons = ("beyond_retention", "refused", "too_large", "damaged")
    counts = {
        reason: int(await exporter.sample("capgo_exporter_rejected_points_total", reason=reason)) for reason in reasons
    }
    return {reason: count for reason, count in counts.items() if count}


async def delivered(exporter: Running) -> int:
    """Give the number of points that InfluxDB acknowledged."""
    return int(await exporter.sample("capgo_exporter_delivered_points_total"))


async def failing(exporter: Running) -> list[str]:
    """Give the reasons for which delivery fails now."""
    reasons = ("network", "timeout", "throttled", "server_error", "rejected_credentials", "not_found", "refused")
    return [reason for reason in reasons if await exporter.sample("capgo_exporter_delivery_failing", reason=reason)]


async def failing_is(exporter: Running, expected: list[str]) -> bool:
    """Tell whether the metrics show these failures."""
    return expected == await failing(exporter)


async def stored_in(influxdb: InfluxDB16) -> list[str]:
    """Give the devices of the points that a real InfluxDB keeps."""
    points = await influxdb.points("capgo_stats")
    return sorted(str(point.fields["device_id"]) for point in points if "device_id" in point.fields)
