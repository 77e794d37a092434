"""Exporters that deliver to a server of the test, and events for them."""

import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, Protocol

from exporter.clock import Clock
from tests.support.inprocess import Running, running
from tests.support.ports import wait_for

_EMPTY_TIMEOUT_SECONDS = 30.0
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


async def emptied(exporter: Running) -> None:
    """Wait until no point waits in the journal."""

    async def is_empty() -> bool:
        return await exporter.sample("capgo_exporter_journal_points") == 0

    await wait_for(is_empty, _EMPTY_TIMEOUT_SECONDS, "the journal to be empty")
