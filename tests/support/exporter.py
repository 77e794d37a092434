"""The exporter as a user runs it: a process of its own."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tests.support.process import TERMINATE_TIMEOUT_SECONDS, Entered, ServerProcess, minimal_environment

# Prometheus and vmagent send it with every scrape; nobody else does.
SCRAPE_HEADERS = {"X-Prometheus-Scrape-Timeout-Seconds": "10"}
EVENTS_TOTAL = "capgo_stats_events_total"

_REPOSITORY = Path(__file__).parents[2]
_REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=30)


class CounterKey(NamedTuple):
    """The labels of the event counter."""

    app_id: str
    platform: str
    action: str
    version: str
    environment: str


class Reply(NamedTuple):
    """An answer of the exporter, with its body as it came."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the decoded body."""
        return json.loads(self.body)


class ExporterProcess(Entered):
    """Runs `python -m exporter serve` on a data directory that outlives every restart.

    Its environment holds nothing of the caller's: settings come from `env` alone.
    """

    def __init__(
        self,
        directory: Path,
        env: Mapping[str, str] | None = None,
        *,
        listen: str = "127.0.0.1:0",
        name: str = "exporter",
    ) -> None:
        """Set the command; nothing runs before `start`.

        Args:
            directory: Where the data directory and the logs are; made if it is missing.
            env: Settings, as `EXPORTER_*`; they win over what this class sets.
            listen: The address; port 0 lets the kernel pick one at every start.
            name: The name of the log files, for more than one exporter in a directory.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self.data_dir = directory / "data"
        settings = {
            "PYTHONPATH": str(_REPOSITORY),
            "EXPORTER_LISTEN": listen,
            "EXPORTER_DATA_DIR": str(self.data_dir),
            "EXPORTER_LOG_FORMAT": "json",
            **(env or {}),
        }
        argv = [sys.executable, "-m", "exporter", "serve"]
        self.process = ServerProcess(
            argv, directory, ready=self._listens, env=minimal_environment(**settings), name=name
        )
        self._log_start = 0
        self._session: aiohttp.ClientSession | None = None

    @property
    def env(self) -> dict[str, str]:
        """The environment of the next start; changing it changes the settings."""
        return self.process.env

    @property
    def url(self) -> str:
        """The URL that the running process says it listens on."""
        for line in self.logs():
            if line.get("event") == "listening":
                return str(line["url"])
        message = f"the exporter has not said that it listens:\n{self.process.log_tail()}"
        raise AssertionError(message)

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return self.process.running

    async def start(self) -> None:
        """Start the exporter and wait until it listens.

        Raises:
            ServerExitedError: It ended before that; the message holds the end of its log.
        """
        self.spawn()
        try:
            await self.process.wait_ready()
        except BaseException:
            self.process.close()
            raise

    def spawn(self) -> None:
        """Start the exporter without waiting, for a start that is expected to fail."""
        path = self.process.stderr_path
        self._log_start = path.stat().st_size if path.exists() else 0
        self.process.spawn()

    async def restart(self, *, same_port: bool = False) -> None:
        """Start again on the same data, after ending the process with SIGTERM if it still runs.

        Args:
            same_port: Listen where the last start listened.
        """
        if same_port:
            self.env["EXPORTER_LISTEN"] = self.url.removeprefix("http://")
        if self.running:
            await self.terminate()
        await self.start()

    async def terminate(self, timeout_seconds: float = TERMINATE_TIMEOUT_SECONDS) -> int:
        """Send SIGTERM, wait for the end and return the exit code."""
        return await self.process.terminate(timeout_seconds)

    async def kill9(self) -> None:
        """Send SIGKILL and wait until the process is gone."""
        await self.process.kill9()

    async def wait(self, timeout_seconds: float = TERMINATE_TIMEOUT_SECONDS) -> int:
        """Wait until the process has ended and return its exit code."""
        return await self.process.wait(timeout_seconds)

    async def stop(self) -> None:
        """End everything, also after a failure; calling it again does no harm."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        await self.process.stop()

    def logs(self) -> list[dict[str, Any]]:
        """Return the log lines of the process started last; a line that is no JSON comes as `{"raw": line}`."""
        path = self.process.stderr_path
        if not path.exists():
            return []
        with path.open("rb") as log:
            log.seek(self._log_start)
            # The last line may be half written.
            lines = log.read().decode(errors="replace").split("\n")[:-1]
        return [_log_line(line) for line in lines if line.strip()]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log lines with this `event`."""
        return [line for line in self.logs() if line.get("event") == name]

    async def request(self, method: str, path: str, **options: Any) -> Reply:
        """Send a request with aiohttp's options and return the whole answer; redirects are not followed."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=_REQUEST_TIMEOUT, connector=aiohttp.TCPConnector(limit=0))
        async with self._session.request(method, self.url + path, allow_redirects=False, **options) as response:
            return Reply(response.status, dict(response.headers), await response.read())

    async def post(self, body: bytes | str | Sequence[Any] | Mapping[str, Any], path: str = "/stats") -> Reply:
        """Post a body to the stats endpoint; anything but bytes and text is sent as JSON."""
        data = body if isinstance(body, bytes | str) else json.dumps(body)
        return await self.request("POST", path, data=data, headers={"Content-Type": "application/json"})

    async def metrics(self, *, prometheus: bool = False) -> str:
        """Return `/metrics` in the text format, asked for as Prometheus does or as a person with `curl` does."""
        reply = await self.request("GET", "/metrics", headers=SCRAPE_HEADERS if prometheus else {})
        assert reply.status == 200, reply
        return reply.body.decode()

    async def counters(self, *, prometheus: bool = False) -> dict[CounterKey, int]:
        """Return the event counter's values."""
        return parse_counters(await self.metrics(prometheus=prometheus))

    def _listens(self) -> bool:
        return bool(self.events("listening"))


def influx_settings(url: str, *, token: str, org: str, bucket: str) -> dict[str, str]:
    """Return the settings for writing to an InfluxDB."""
    return {
        "EXPORTER_INFLUX_URL": url,
        "EXPORTER_INFLUX_TOKEN": token,
        "EXPORTER_INFLUX_ORG": org,
        "EXPORTER_INFLUX_BUCKET": bucket,
    }


def parse_counters(text: str) -> dict[CounterKey, int]:
    """Return the event counter's values from a page of the text format."""
    return {
        CounterKey(**sample.labels): int(sample.value) for sample in parse_samples(text) if sample.name == EVENTS_TOTAL
    }


def parse_samples(text: str) -> list[Any]:
    """Return every sample of a page of the text format, as `prometheus_client.samples.Sample`."""
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def _log_line(line: str) -> dict[str, Any]:
    try:
        parsed = json.loads(line)
    except json.JSONDecodeError:
        return {"raw": line}
    return parsed if isinstance(parsed, dict) else {"raw": line}
