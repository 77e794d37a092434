"""A real Prometheus with a configuration of its own."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.ports import PATIENCE_SECONDS, free_port, wait_for
from tests.support.process import Server, ServerProcess, http_ok, minimal_environment

_TIMEOUT = aiohttp.ClientTimeout(total=30)


@dataclass(frozen=True)
class Series:
    """One series with samples: times in seconds, values."""

    labels: dict[str, str]
    samples: list[tuple[float, float]]

    @property
    def rise(self) -> float:
        """The last sample minus the first: what a counter that was born at 0 has counted."""
        return self.samples[-1][1] - self.samples[0][1]


@dataclass(frozen=True)
class Target:
    """A scrape target as Prometheus sees it; `health` is "up", "down" or "unknown"."""

    url: str
    health: str
    last_error: str


class Prometheus(Server):
    """Debian's `prometheus`, scraping `/metrics` of some targets and nothing else.

    Prometheus spreads its scrapes over the interval by a hash of target and external labels: servers with different
    `external_labels` scrape the same target at different phases. The first scrape comes about five seconds after the
    start (see `wait_up`).
    """

    def __init__(
        self,
        directory: Path,
        targets: Sequence[str],
        *,
        scrape_interval: str = "1s",
        external_labels: Mapping[str, str] | None = None,
        rule_files: Sequence[Path] = (),
    ) -> None:
        """Write the configuration; nothing runs before `start`.

        Args:
            directory: An empty or missing directory for configuration, data and logs.
            targets: What to scrape, as URLs or as host:port.
            scrape_interval: The interval, which is the time-out and the interval of rules too.
            external_labels: Labels of the server.
            rule_files: Files with rules and alerts.
        """
        directory.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        config = {
            "global": {
                "scrape_interval": scrape_interval,
                "scrape_timeout": scrape_interval,
                "evaluation_interval": scrape_interval,
                "external_labels": dict(external_labels or {}),
            },
            "rule_files": [str(path) for path in rule_files],
            "scrape_configs": [
                {
                    "job_name": "capgo",
                    "static_configs": [{"targets": [target.removeprefix("http://") for target in targets]}],
                }
            ],
        }
        config_path = directory / "prometheus.yml"
        # JSON is YAML.
        config_path.write_text(json.dumps(config, indent=1))
        argv = [
            "prometheus",
            f"--config.file={config_path}",
            f"--storage.tsdb.path={directory / 'data'}",
            "--storage.tsdb.wal-segment-size=10MB",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ]
        env = minimal_environment(GOMAXPROCS="1")
        self.process = ServerProcess(argv, directory, ready=http_ok(f"{self.url}/-/ready"), env=env)

    async def wait_up(self, timeout_seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until every target was scraped once with success."""

        async def all_up() -> bool:
            targets = await self.targets()
            assert all(target.health == "up" for target in targets), targets
            return bool(targets)

        await wait_for(all_up, "every target to be up", timeout_seconds)

    async def query(self, expression: str, at: float | None = None) -> list[Series]:
        """Run an instant query, now or at a Unix time; a range vector gives raw samples, else each series has one."""
        params = {"query": expression, "time": repr(time.time() if at is None else at)}
        return [_series(result) for result in (await self._get("query", params))["result"]]

    async def query_range(self, expression: str, start: float, end: float, step_seconds: float) -> list[Series]:
        """Run a range query over Unix times."""
        params = {"query": expression, "start": repr(start), "end": repr(end), "step": repr(step_seconds)}
        return [_series(result) for result in (await self._get("query_range", params))["result"]]

    async def raw_samples(self, selector: str, window: str = "1h") -> list[Series]:
        """Return every sample as it was scraped, stale markers left out, of each series that a selector matches."""
        return await self.query(f"{selector}[{window}]")

    async def targets(self) -> list[Target]:
        """Return the scrape targets."""
        active = (await self._get("targets", {"state": "active"}))["activeTargets"]
        return [Target(each["scrapeUrl"], each["health"], each["lastError"]) for each in active]

    async def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts that are pending or firing, as the API gives them."""
        alerts: list[dict[str, Any]] = (await self._get("alerts", {}))["alerts"]
        return alerts

    async def _get(self, endpoint: str, params: dict[str, str]) -> dict[str, Any]:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as session,
            session.get(f"{self.url}/api/v1/{endpoint}", params=params) as response,
        ):
            answer: dict[str, Any] = await response.json()
        assert answer["status"] == "success", f"{endpoint} {params}: {answer}"
        data: dict[str, Any] = answer["data"]
        return data


def _series(result: dict[str, Any]) -> Series:
    samples = result["values"] if "values" in result else [result["value"]]
    return Series(result["metric"], [(float(at), float(value)) for at, value in samples])
