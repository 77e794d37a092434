"""A real VictoriaMetrics, the single binary."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.ports import free_port
from tests.support.process import Server, ServerProcess, http_ok

_TIMEOUT = aiohttp.ClientTimeout(total=30)


@dataclass(frozen=True)
class Series:
    """One series with its samples: times in ms, values."""

    labels: dict[str, str]
    samples: list[tuple[int, float]]


class VictoriaMetrics(Server):
    """Debian's `victoria-metrics`; a v2 write's field becomes the series `<measurement>_<field>`.

    It keeps milliseconds and numbers, and does not overwrite: good for transport and volume, not for truth.
    """

    def __init__(self, directory: Path) -> None:
        """Set the command; nothing runs before `start`."""
        directory.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        argv = [
            "victoria-metrics",
            f"-httpListenAddr=127.0.0.1:{port}",
            f"-storageDataPath={directory / 'data'}",
            "-retentionPeriod=100y",
            "-search.latencyOffset=0s",
            "-search.disableCache",
            "-memory.allowedBytes=128MB",
            "-http.shutdownDelay=0s",
            "-loggerLevel=WARN",
        ]
        self.process = ServerProcess(argv, directory, ready=http_ok(f"{self.url}/health"))

    async def export(self, selector: str) -> list[Series]:
        """Return every raw sample of the series that a selector matches, those just written too."""
        await self._get("/internal/force_flush", {})
        lines = (await self._get("/api/v1/export", {"match[]": selector})).splitlines()
        return [_series(json.loads(line)) for line in lines]

    async def count(self, selector: str) -> int:
        """Return how many raw samples the series that a selector matches have."""
        return sum(len(series.samples) for series in await self.export(selector))

    async def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Run an instant query and return labels and value of each series."""
        await self._get("/internal/force_flush", {})
        # Without a time of its own the query is about the last whole second.
        params = {"query": expression, "time": repr(time.time())}
        answer = json.loads(await self._get("/api/v1/query", params))
        return [(result["metric"], float(result["value"][1])) for result in answer["data"]["result"]]

    async def _get(self, path: str, params: dict[str, str]) -> str:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as session,
            session.get(self.url + path, params=params) as response,
        ):
            text = await response.text()
            assert response.status == 200, f"GET {path} {params}: {response.status} {text}"
            return text


def _series(exported: dict[str, Any]) -> Series:
    samples = zip(exported["timestamps"], exported["values"], strict=True)
    return Series(exported["metric"], [(int(at), float(value)) for at, value in samples])
