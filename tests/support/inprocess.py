"""The exporter in the event loop of the test, on a real socket: as fast to start as a fixture should be."""

import contextlib
import io
import json
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from exporter.app import Exporter, create_exporter
from exporter.clock import Clock
from exporter.journal.codec import decompress
from exporter.journal.opening import FILE_NAME
from exporter.journal.reader import JournalReader
from exporter.settings import Settings
from tests.support.exporter import SCRAPE_HEADERS, CounterKey, Reply, parse_counters, parse_samples
from tests.support.influxdb import Point
from tests.support.points import read_point

JSON_HEADERS = {"Content-Type": "application/json"}
_REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=60)
_MANY = 1 << 40


class Running:
    """A running exporter and a client for it.

    Attributes:
        url: where it takes events.
        metrics_url: where it shows metrics; the same, unless there is a second listener.
        settings: what it was made with.
        exporter: the exporter itself.
    """

    def __init__(
        self, urls: tuple[str, str], settings: Settings, exporter: Exporter, session: aiohttp.ClientSession
    ) -> None:
        """Take what runs."""
        self.url, self.metrics_url = urls
        self.settings = settings
        self.exporter = exporter
        self._session = session

    async def request(self, method: str, path: str, *, url: str | None = None, **options: Any) -> Reply:
        """Send a request with aiohttp's options and return the whole answer; redirects are not followed."""
        target = (url or self.url) + path
        async with self._session.request(method, target, allow_redirects=False, **options) as response:
            return Reply(response.status, dict(response.headers), await response.read())

    async def post(
        self,
        body: bytes | str | Sequence[Any] | Mapping[str, Any],
        headers: Mapping[str, str] | None = None,
        path: str = "/stats",
    ) -> Reply:
        """Post a body to the stats endpoint, by default as JSON; anything but bytes and text is encoded."""
        text = body if isinstance(body, bytes | str) else json.dumps(body)
        # As a file, because aiohttp warns of large bodies that are bytes.
        data = io.BytesIO(text.encode() if isinstance(text, str) else text)
        return await self.request("POST", path, data=data, headers=JSON_HEADERS if headers is None else headers)

    async def metrics(self, *, scraper: bool = False, accept: str | None = None) -> str:
        """Return `/metrics`, asked for as Prometheus does or as a person with `curl` does."""
        headers = {**(SCRAPE_HEADERS if scraper else {}), **({} if accept is None else {"Accept": accept})}
        reply = await self.request("GET", "/metrics", url=self.metrics_url, headers=headers)
        assert reply.status == 200, reply
        return reply.body.decode()

    async def counters(self, *, scraper: bool = False, zeros: bool = False) -> dict[CounterKey, int]:
        """Return the event counter's values, by default without the series that stand at 0."""
        counters = parse_counters(await self.metrics(scraper=scraper))
        return {key: value for key, value in counters.items() if value or zeros}

    async def sample(self, name: str, **labels: str) -> float:
        """Return the value of one sample of the page; 0.0 if it is not there."""
        samples = parse_samples(await self.metrics())
        return sum(float(sample.value) for sample in samples if sample.name == name and sample.labels == labels)

    def lines(self) -> list[str]:
        """Return the lines that wait in the journal, oldest first."""
        reader = JournalReader(self.settings.data_dir / FILE_NAME)
        lines: list[str] = []
        after = 0
        try:
            while rows := reader.read(after, _MANY):
                after = rows[-1].number
                lines += [line for row in rows for line in decompress(row.lines)]
        finally:
            reader.close()
        return lines

    def points(self) -> list[Point]:
        """Return the points that wait in the journal, oldest first, decoded from their lines."""
        return [read_point(line) for line in self.lines()]


@contextlib.asynccontextmanager
async def running(
    settings_overrides: Mapping[str, Any] | None = None, clock: Clock | None = None
) -> AsyncIterator[Running]:
    """Run an exporter on a port that the kernel picks, with a data directory of its own unless one is given.

    Args:
        settings_overrides: settings by their field names, as texts or as values.
        clock: our own time; the system's by default.
    """
    async with contextlib.AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="exporter-", ignore_cleanup_errors=True))
        settings = Settings(**{"data_dir": Path(directory), **(settings_overrides or {})})
        exporter = await stack.enter_async_context(create_exporter(settings, clock))
        public = await _listen(exporter.public, stack)
        private = public if exporter.private is None else await _listen(exporter.private, stack)
        session = aiohttp.ClientSession(timeout=_REQUEST_TIMEOUT, connector=aiohttp.TCPConnector(limit=0))
        yield Running((public, private), settings, exporter, await stack.enter_async_context(session))


async def _listen(app: web.Application, stack: contextlib.AsyncExitStack) -> str:
    """Serve as `exporter.server` does, and return the URL."""
    runner = web.AppRunner(app, access_log=None, auto_decompress=False, handle_signals=False, shutdown_timeout=1.0)
    stack.push_async_callback(runner.cleanup)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    return f"http://{host}:{port}"


class ManualClock:
    """A clock that moves only when the test says so.

    Attributes:
        wall_ns: nanoseconds since 1970.
        seconds: the monotonic time.
    """

    def __init__(self, wall_ns: int = 1_800_000_000_000_000_000) -> None:
        """Start at a moment in 2027."""
        self.wall_ns = wall_ns
        self.seconds = 1000.0

    @property
    def clock(self) -> Clock:
        """The clock to pass in."""
        return Clock(wall_ns=lambda: self.wall_ns, monotonic=lambda: self.seconds)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.wall_ns += int(seconds * 1_000_000_000)
        self.seconds += seconds
