"""An exporter under fire: what must hold beside any hostile client."""

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from tests.support.exporter import CounterKey, ExporterProcess, Reply

GOOD: dict[str, Any] = {"app_id": "com.example.good", "device_id": "d1", "platform": "ios", "action": "set"}
GOOD_KEY = CounterKey("com.example.good", "ios", "set", "unknown", "prod")
MAX_BODY_BYTES = 8 << 20
# Four bodies of the largest size, read and decompressed, and what the tests' own small events take.
MAX_GROWTH_BYTES = 160 << 20

_PATIENCE_SECONDS = 60
_PACE_SECONDS = 0.005


class Fire:
    """A running exporter with a good client beside the hostile ones."""

    def __init__(self, exporter: ExporterProcess) -> None:
        """Take the exporter."""
        self.exporter = exporter
        self.answered = 0
        self.stop = False
        self._host, port = exporter.url.removeprefix("http://").split(":")
        self._port = int(port)

    async def neighbour(self) -> None:
        """Post good events one after the other until the end; each must be answered well."""
        while not self.stop:
            await self.good()
            await asyncio.sleep(_PACE_SECONDS)

    async def good(self) -> None:
        """Post one good event."""
        reply = await self.exporter.post(GOOD)
        assert (HTTPStatus.OK, b'{"status":"ok"}') == (reply.status, reply.body)
        self.answered += 1

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a raw connection."""
        return await asyncio.open_connection(self._host, self._port)

    async def send(self, data: bytes, *, half_close: bool = False) -> bytes:
        """Send bytes and give everything that comes back until the server closes the connection."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            reader, writer = await self.connect()
            try:
                with contextlib.suppress(ConnectionError):
                    writer.write(data)
                    if half_close:
                        writer.write_eof()
                    await writer.drain()
                return await received(reader)
            finally:
                writer.close()

    async def hostile_counters(self) -> dict[CounterKey, int]:
        """Give the counters above 0 but that of the good client."""
        counters = await self.exporter.counters()
        return {key: value for key, value in counters.items() if value and key != GOOD_KEY}

    async def post_packed(self, body: bytes, encoding: str) -> Reply:
        """Post a compressed body, as a file because aiohttp warns of large bodies that are bytes."""
        headers = {"Content-Encoding": encoding}
        return await self.exporter.request("POST", "/stats", data=io.BytesIO(body), headers=headers)

    def memory_bytes(self, what: str) -> int:
        """Give the process's `VmRSS` or its peak, `VmHWM`."""
        for line in Path(f"/proc/{self.exporter.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{what}:"):
                return int(line.split()[1]) << 10
        raise LookupError(what)


async def received(reader: asyncio.StreamReader) -> bytes:
    """Give what comes until the end; a reset is an end."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := await reader.read(1 << 16):
            parts.append(part)
    return b"".join(parts)


@contextlib.asynccontextmanager
async def under_fire(
    directory: Path, env: Mapping[str, str] | None = None, *, told: str | None = None
) -> AsyncIterator[Fire]:
    """Run an exporter and a good client.

    In the end that client must still be answered and be counted exactly, the memory must have stayed bounded, and no
    line of the log may be an error, a traceback or no JSON.

    Args:
        directory: for data and logs.
        env: more settings.
        told: the one error that is expected in the log.
    """
    settings = {"EXPORTER_MAX_BODY_BYTES": str(MAX_BODY_BYTES), **(env or {})}
    async with ExporterProcess(directory, settings) as exporter:
        fire = Fire(exporter)
        await fire.good()
        before = fire.memory_bytes("VmRSS")
        neighbour = asyncio.create_task(fire.neighbour())
        try:
            yield fire
        finally:
            fire.stop = True
            await neighbour
        await fire.good()
        assert fire.answered == (await exporter.counters())[GOOD_KEY]
        assert before + MAX_GROWTH_BYTES > fire.memory_bytes("VmHWM")
        assert [] == [line for line in bad_lines(exporter) if line.get("event") != told]


def bad_lines(exporter: ExporterProcess) -> list[dict[str, Any]]:
    """Give the log lines that nobody but the exporter's author should cause."""
    return [
        line
        for line in exporter.logs()
        if line.get("level") not in {"info", "warning"} or "exception" in line or "127.0.0.1" in _without_urls(line)
    ]


def _without_urls(line: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in line.items() if not name.endswith(("url", "influxdb"))})
