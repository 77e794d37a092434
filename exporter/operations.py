"""The endpoints for operators: metrics, health, readiness and the landing page."""

import asyncio
import contextlib
import functools
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from html import escape
from typing import Any, Final

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from exporter import __version__
from exporter.access import Tokens, bearer_or_password
from exporter.births import SCRAPE_HEADER, Births
from exporter.connections import Connections
from exporter.exposition import OPENMETRICS_TYPE, TEXT_TYPE, Page
from exporter.pieces import Piece, gzip_member
from exporter.stats import reply_error
from exporter.steps import Steps

_BYTES_AT_ONCE: Final = 512 << 10
_MAX_JOBS: Final = 2
_CHALLENGE: Final = 'Bearer, Basic realm="metrics"'
_READING_SECONDS: Final = 60.0  # at 100,000 series 230 KB/s as text, 15 KB/s as gzip
_WEIGHT: Final = re.compile(r"q=([01](?:\.\d{0,3})?)")


class MetricsHandler:
    """Answers `GET /metrics`."""

    def __init__(
        self,
        page: Page,
        births: Births,
        tokens: Tokens,
        connections: Connections,
        *,
        reading_seconds: float = _READING_SECONDS,
    ) -> None:
        """Set what is shown, and to whom.

        Args:
            page: what is shown.
            births: how much of it a scraper may see.
            tokens: of which readers must show one, if there are any.
            connections: those that readers have.
            reading_seconds: how long a reader may take for the page.
        """
        self._page = page
        self._births = births
        self._tokens = tokens
        self._connections = connections
        self._reading_seconds = reading_seconds
        self._thread = ThreadPoolExecutor(1, "metrics")

    async def get(self, request: web.Request) -> web.Response:
        """Render the page in the format and the encoding that the reader accepts."""
        if self._tokens and not self._tokens.include(bearer_or_password(request)):
            response = reply_error(401, "unauthorized", "The token is missing or wrong")
            response.headers["WWW-Authenticate"] = _CHALLENGE
            return response
        openmetrics = accepts_openmetrics(request.headers.get("Accept", ""))
        to_scraper = SCRAPE_HEADER in request.headers
        async with self._births.scrape(request.transport) if to_scraper else contextlib.nullcontext():
            pieces = self._page.pieces(openmetrics=openmetrics, to_scraper=to_scraper)
            headers = {
                "Content-Type": OPENMETRICS_TYPE if openmetrics else TEXT_TYPE,
                "Vary": "Accept, Accept-Encoding",
            }
            if accepts_gzip(request.headers.get("Accept-Encoding", "")):
                headers["Content-Encoding"] = "gzip"
                member = await self._compress(pieces)
                parts, size = iter(member), sum(map(len, member))
            else:
                page = [piece async for piece in pieces]
                parts, size = (piece.text for piece in page), sum(piece.size for piece in page)
        sending = functools.partial(self._connections.sending, request.protocol, self._reading_seconds)
        return web.Response(body=_Parts(parts, size, sending), headers=headers)

    async def _compress(self, pieces: AsyncIterator[Piece]) -> list[bytes]:
        """Make one gzip member; what is not compressed yet is, on a thread, while the rest is still being rendered."""
        loop = asyncio.get_running_loop()
        page: list[Piece] = []
        fresh: list[Piece] = []
        size = 0
        jobs: deque[asyncio.Future[None]] = deque()
        async for piece in pieces:
            page.append(piece)
            if piece.is_deflated:
                continue
            fresh.append(piece)
            size += piece.size
            if size >= _BYTES_AT_ONCE:
                jobs.append(loop.run_in_executor(self._thread, _deflate, fresh))
                fresh, size = [], 0
                if len(jobs) > _MAX_JOBS:
                    await jobs.popleft()
        return await loop.run_in_executor(self._thread, gzip_member, page)


def _deflate(pieces: list[Piece]) -> None:
    for piece in pieces:
        piece.deflated()


class _Parts(Payload):
    """A body in parts, which are never all joined: to copy or to send a large page at once would stop everything else.

    Nor are they all made before they are sent. Readers share the pieces of a page, so that one who does not read holds
    no text of its own; and not for ever.
    """

    _size: int
    _value: Iterator[bytes]

    def __init__(
        self, parts: Iterator[bytes], size: int, sending: Callable[[], contextlib.AbstractAsyncContextManager[None]]
    ) -> None:
        """Take parts, which can be sent once, and how many bytes they are together."""
        super().__init__(parts)
        self._size = size
        self._sending = sending

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Give it as a text."""
        return b"".join(self._value).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send it part by part."""
        async with self._sending():
            steps = Steps()
            for part in self._value:
                await writer.write(part)
                await steps.pause()
            await writer.drain()


def accepts_openmetrics(accept: str) -> bool:
    """Tell whether a reader wants OpenMetrics by its `Accept` header: it must name it, and like no text format more."""
    weights = _weights(accept)
    openmetrics = weights.get("application/openmetrics-text", 0.0)
    text = weights.get("text/plain", weights.get("text/*", weights.get("*/*", 0.0)))
    return openmetrics > 0 and openmetrics >= text


def accepts_gzip(accept_encoding: str) -> bool:
    """Tell whether a reader takes gzip by its `Accept-Encoding` header."""
    weights = _weights(accept_encoding)
    return weights.get("gzip", weights.get("*", 0.0)) > 0


def _weights(header: str) -> dict[str, float]:
    """Read the weight of each name in an `Accept` or `Accept-Encoding` header (RFC 9110, section 12.4.2).

    Of a name that stands there with several parameters, such as a version, the highest weight counts.
    """
    weights: dict[str, float] = {}
    for part in header.split(","):
        name, *parameters = (each.strip().lower() for each in part.split(";"))
        weight = next((float(match[1]) for each in parameters if (match := _WEIGHT.fullmatch(each))), 1.0)
        weights[name] = max(weight, weights.get(name, 0.0))
    return weights


class HealthHandler:
    """Answers `GET /healthz`, `GET /readyz` and `GET /`."""

    def __init__(
        self,
        *,
        ended_tasks: Callable[[], list[str]],
        is_open: Callable[[], bool],
        is_draining: Callable[[], bool],
        influx: Callable[[], str],
        stats_path: str,
    ) -> None:
        """Remember where to look.

        Args:
            ended_tasks: names of background tasks that ended although they should run.
            is_open: whether events can be stored.
            is_draining: whether the exporter is stopping.
            influx: the state of the delivery: `ok`, `not configured`, or what is wrong.
            stats_path: for the landing page.
        """
        self._ended_tasks = ended_tasks
        self._is_open = is_open
        self._is_draining = is_draining
        self._influx = influx
        self._stats_path = stats_path

    async def healthz(self, request: web.Request) -> web.Response:
        """Tell whether the process works: 503 when a background task has ended."""
        del request
        ended = self._ended_tasks()
        body = {"status": "failed" if ended else "ok", "ended_tasks": ended}
        return web.json_response(body, status=503 if ended else 200)

    async def readyz(self, request: web.Request) -> web.Response:
        """Tell whether events can be stored: 503 when not, or while stopping; InfluxDB's state is told with 200."""
        del request
        influx = self._influx()
        body: dict[str, Any] = {
            "status": "ready",
            "influxdb": influx,
            "degraded": influx not in {"ok", "not configured"},
        }
        if self._is_draining():
            body["status"] = "draining"
        elif not self._is_open():
            body["status"] = "events cannot be stored"
        return web.json_response(body, status=200 if body["status"] == "ready" else 503)

    async def index(self, request: web.Request) -> web.Response:
        """Give the landing page."""
        del request
        path = escape(self._stats_path)
        links = "".join(f'<li><a href="{link}">{link}</a></li>' for link in ("/metrics", "/healthz", "/readyz"))
        page = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>capgo-stats-exporter</title></head>'
            "<body>"
            f"<h1>capgo-stats-exporter {escape(__version__)}</h1><p>Statistics endpoint for Capgo live updates. "
            f"Devices post to <code>{path}</code>.</p><ul>{links}</ul></body></html>"
        )
        return web.Response(text=page, content_type="text/html")
