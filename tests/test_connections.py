"""Connections: a bounded number, and nobody who holds one for nothing keeps a good client out."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from exporter.bodies import BodyError, BodyReader
from tests.support.exporter import ExporterProcess, parse_samples
from tests.support.ports import wait_for
from tests.support.proxies import HOST, Certificate

EVENT = {"app_id": "com.example.shop", "device_id": "d1", "platform": "ios", "action": "set", "version_name": "1.0.0"}
SLOW_POST = b"POST /stats HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n["

OPEN = "capgo_exporter_connections"
NONE_CLOSED = {"idle": 0, "slow": 0, "refused": 0, "unread": 0}
HALF_A_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
TOO_FEW_FILES = "the system's limit of open files allows fewer connections than EXPORTER_MAX_CONNECTIONS"

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Crowd:
    """Raw connections to an exporter that are closed with the test."""

    def __init__(self, url: str) -> None:
        """Know the address."""
        self._host, port = url.partition("://")[2].split(":")
        self._port = int(port)
        self.clients: list[Client] = []

    async def join(self, count: int, sent: bytes = b"") -> None:
        """Connect so many times, and send that."""
        for _ in range(count):
            client = await asyncio.open_connection(self._host, self._port)
            client[1].write(sent)
            self.clients.append(client)

    def leave(self) -> None:
        """Close every connection."""
        for _, writer in self.clients:
            writer.close()


@contextlib.asynccontextmanager
async def crowd(url: str) -> AsyncIterator[Crowd]:
    """Give a crowd that leaves in the end."""
    made = Crowd(url)
    try:
        yield made
    finally:
        made.leave()


async def ended(client: Client) -> bool:
    """Tell whether the server closed a connection without a word."""
    try:
        return await client[0].read(1) == b""
    except ConnectionResetError:
        return True


def closed_by_reason(page: str) -> dict[str, int]:
    """Read how many connections were closed for want of room."""
    name = "capgo_exporter_connections_closed_total"
    return {each.labels["reason"]: int(each.value) for each in parse_samples(page) if each.name == name}


def encrypted(directory: Path) -> tuple[dict[str, str], Mapping[str, Any]]:
    """Make a certificate; gives the settings of an exporter that uses it, and the options of requests to that."""
    certificate = Certificate(directory)
    settings = {"EXPORTER_TLS_CERTIFICATE": str(certificate.path), "EXPORTER_TLS_KEY": str(certificate.key_path)}
    return settings, {"ssl": certificate.trusted(), "server_hostname": HOST}


async def connections(exporter: ExporterProcess, **options: Any) -> tuple[int, dict[str, int]]:
    """Give the number of open connections, the one that asks among them, and of those that were closed by reason."""
    page = (await exporter.request("GET", "/metrics", **options)).body.decode()
    return sum(int(each.value) for each in parse_samples(page) if each.name == OPEN), closed_by_reason(page)


async def private_page(exporter: ExporterProcess) -> str:
    """Ask the second listener for the metrics."""
    (line,) = exporter.events("listening")
    async with aiohttp.ClientSession() as session, session.get(f"{line['metrics_url']}/metrics") as response:
        assert HTTPStatus.OK == response.status
        return await response.text()


async def until_busy(exporter: ExporterProcess, count: int) -> None:
    """Wait until so many connections to the first listener have a request under way, by asking the second one."""

    async def busy() -> bool:
        return f'{OPEN}{{state="busy"}} {count + 1}.0' in await private_page(exporter)

    await wait_for(busy, "the requests to begin")


@pytest.mark.parametrize("sent", [b"", b"POST /stats HTTP/1.1\r\nHost: x\r\nX-Slow: "], ids=["silent", "half a head"])
async def test_idle_connections_make_room(tmp_path: Path, sent: bytes) -> None:
    """Connections that ask for nothing give way to a client that does, the longest idle first."""
    async with (
        ExporterProcess(tmp_path, {"EXPORTER_MAX_CONNECTIONS": "50"}) as exporter,
        crowd(exporter.url) as idle,
    ):
        await idle.join(200, sent)
        assert HTTPStatus.OK == (await exporter.post(EVENT)).status
        assert (50, {**NONE_CLOSED, "idle": 151}) == await connections(exporter)
        assert all([await ended(client) for client in idle.clients[:151]])


@pytest.mark.server("openssl")
@pytest.mark.parametrize("sent", [b"", HALF_A_HELLO], ids=["silent", "half a hello"])
async def test_connections_without_a_handshake_make_room(tmp_path: Path, sent: bytes) -> None:
    """With TLS, too, connections that ask for nothing give way, and are counted, before their handshake is done."""
    settings, options = encrypted(tmp_path)
    async with (
        ExporterProcess(tmp_path, {"EXPORTER_MAX_CONNECTIONS": "50", **settings}) as exporter,
        crowd(exporter.url) as idle,
    ):
        await idle.join(200, sent)
        assert HTTPStatus.OK == (await exporter.request("POST", "/stats", json=EVENT, **options)).status
        assert (50, {**NONE_CLOSED, "idle": 151}) == await connections(exporter, **options)
        assert all([await ended(client) for client in idle.clients[:151]])


@pytest.mark.server("openssl")
async def test_handshakes_that_fail_are_forgotten(tmp_path: Path) -> None:
    """A connection that speaks no TLS, or goes away in the middle, takes no room any more, nor a line in the log."""
    settings, options = encrypted(tmp_path)
    async with ExporterProcess(tmp_path, settings) as exporter:
        async with crowd(exporter.url) as odd:
            await odd.join(10, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await odd.join(10, HALF_A_HELLO)
            assert all([await ended(client) for client in odd.clients[:10]])
            assert 11 == (await connections(exporter, **options))[0]

        async def alone() -> bool:
            return await connections(exporter, **options) == (1, NONE_CLOSED)

        await wait_for(alone, "the connections to be forgotten")
        assert [] == [line for line in exporter.logs() if line.get("level") != "info"]


async def test_a_connection_that_was_used_is_not_the_longest_idle(tmp_path: Path) -> None:
    """Who has just been answered stays when an older connection can go."""
    async with (
        ExporterProcess(tmp_path, {"EXPORTER_MAX_CONNECTIONS": "3"}) as exporter,
        crowd(exporter.url) as idle,
    ):
        await exporter.post(EVENT)
        await idle.join(2)
        await exporter.post(EVENT)
        await idle.join(1)
        assert await ended(idle.clients[0])
        assert (3, {**NONE_CLOSED, "idle": 1}) == await connections(exporter)


async def test_slow_requests_make_room(tmp_path: Path) -> None:
    """When every connection has a request under way, newcomers are refused until one of those takes too long."""
    settings = {"EXPORTER_MAX_CONNECTIONS": "20", "EXPORTER_METRICS_LISTEN": "127.0.0.1:0"}
    async with ExporterProcess(tmp_path, settings) as exporter, crowd(exporter.url) as slow:
        await slow.join(20, SLOW_POST)
        await until_busy(exporter, 20)
        refused = 0

        async def answered() -> bool:
            nonlocal refused
            try:
                return (await exporter.post(EVENT)).status == HTTPStatus.OK
            except aiohttp.ClientConnectionError:
                refused += 1
                raise

        await wait_for(answered, "a slow request to give way")
        assert await ended(slow.clients[0])
        closed = closed_by_reason(await private_page(exporter))
        assert (0, 1) == (closed["idle"], closed["slow"])
        assert refused <= closed["refused"]  # the client may try twice
        assert refused > 0


async def test_connections_that_end_are_forgotten(tmp_path: Path) -> None:
    """A connection that its client closes takes no room any more."""
    async with ExporterProcess(tmp_path, {"EXPORTER_MAX_CONNECTIONS": "20"}) as exporter:
        async with crowd(exporter.url) as idle:
            await idle.join(10)
            assert 11 == (await connections(exporter))[0]

        async def alone() -> bool:
            return await connections(exporter) == (1, NONE_CLOSED)

        await wait_for(alone, "the connections to be forgotten")


async def test_second_listener_has_room_of_its_own(tmp_path: Path) -> None:
    """Devices that take every connection of the first listener do not keep Prometheus out."""
    settings = {"EXPORTER_MAX_CONNECTIONS": "5", "EXPORTER_METRICS_LISTEN": "127.0.0.1:0"}
    async with ExporterProcess(tmp_path, settings) as exporter, crowd(exporter.url) as slow:
        await slow.join(5, SLOW_POST)
        await until_busy(exporter, 5)


@pytest.mark.server("openssl")
@pytest.mark.server("prlimit")
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_open_files_are_enough(tmp_path: Path, scheme: str) -> None:
    """Where the system allows few open files there are fewer connections, and still everyone is served."""
    settings, options = encrypted(tmp_path) if scheme == "https" else ({}, {})
    exporter = ExporterProcess(tmp_path, {"EXPORTER_MAX_CONNECTIONS": "1000", **settings})
    exporter.process.argv[:0] = ["prlimit", "--nofile=50:164"]
    async with exporter, crowd(exporter.url) as idle:
        (warning,) = exporter.events(TOO_FEW_FILES)
        assert 100 == warning["connections"]
        await idle.join(300)
        for _ in range(10):
            assert HTTPStatus.OK == (await exporter.request("POST", "/stats", json=EVENT, **options)).status
        assert (100, {**NONE_CLOSED, "idle": 201}) == await connections(exporter, **options)
        assert [] == [line for line in exporter.logs() if line.get("level") in {"error", "critical"}]


# --- pages that are not read ------------------------------------------------------------------------------------------


def memory_bytes(exporter: ExporterProcess) -> int:
    """Give the memory that the process holds."""
    (size,) = re.findall(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{exporter.pid}/status").read_text(), re.MULTILINE)
    return int(size) << 10


async def test_readers_of_a_page_share_its_text(tmp_path: Path) -> None:
    """Who asks for the page and does not read it has a request under way, and costs little memory."""
    settings = {"EXPORTER_MAX_VERSIONS_PER_APP": "10000", "EXPORTER_DERIVED": "off"}
    async with ExporterProcess(tmp_path, settings) as exporter, crowd(exporter.url) as readers:
        for start in range(0, 10_000, 1000):
            versions = [{**EVENT, "version_name": f"1.0.{number}"} for number in range(start, start + 1000)]
            assert HTTPStatus.OK == (await exporter.post(versions)).status
        size = len(await exporter.metrics())  # more than the system takes for a client
        before = memory_bytes(exporter)
        await readers.join(20, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")

        async def busy() -> bool:
            return f'{OPEN}{{state="busy"}} 21.0' in await exporter.metrics()

        await wait_for(busy, "all pages to be under way")
        assert before + 20 * size // 3 > memory_bytes(exporter)
        assert (21, NONE_CLOSED) == await connections(exporter)


async def test_a_reader_that_stays_holds_no_page(tmp_path: Path) -> None:
    """A connection on which a page was sent whole, and that stays open, keeps nothing of it."""
    settings = {"EXPORTER_MAX_VERSIONS_PER_APP": "2000", "EXPORTER_DERIVED": "off"}
    async with ExporterProcess(tmp_path, settings) as exporter, crowd(exporter.url) as readers:
        assert (
            HTTPStatus.OK
            == (await exporter.post([{**EVENT, "version_name": f"1.0.{number}"} for number in range(2000)])).status
        )
        size = len(await exporter.metrics())
        before = memory_bytes(exporter)
        await readers.join(100, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        for reader, _ in readers.clients:
            head = await reader.readuntil(b"\r\n\r\n")
            (length,) = re.findall(rb"Content-Length: (\d+)", head)
            await reader.readexactly(int(length))
        assert before + 100 * size // 3 > memory_bytes(exporter)
        assert (101, NONE_CLOSED) == await connections(exporter)


# --- bodies that are still arriving -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def reading(reader: BodyReader) -> AsyncIterator[str]:
    """Serve what reads bodies, and answers with their size or with the reason why not."""

    async def handle(request: web.Request) -> web.Response:
        try:
            body, taken = await reader.read(request)
        except BodyError as error:
            return web.Response(status=error.status, text=error.reason)
        reader.give_back(taken)
        return web.Response(text=str(len(body)))

    app = web.Application()
    app.router.add_post("/", handle)
    async with TestServer(app) as server:
        yield str(server.make_url("/"))


async def post(url: str, data: Any) -> tuple[int, str]:
    """Post a body, and give what is answered."""
    async with aiohttp.ClientSession() as session, session.post(url, data=data) as response:
        return response.status, await response.text()


async def trickle(parts: list[bytes], go: asyncio.Event) -> AsyncIterator[bytes]:
    """Send some parts, and the last one only when it may go."""
    for part in parts[:-1]:
        yield part
    await go.wait()
    yield parts[-1]


async def test_body_that_takes_too_long_is_sent_again() -> None:
    """A body that does not end in time is refused in the way that makes a device keep it."""
    never = asyncio.Event()
    async with reading(BodyReader(1000, longest_seconds=0.1)) as url:
        assert (503, "too_slow") == await post(url, trickle([b"[", b"]"], never))
        assert (200, "2") == await post(url, b"[]")


async def test_large_bodies_share_a_bound() -> None:
    """More large bodies at once than there is room for are refused, and there is room again when they are through."""
    size = 1 << 20
    half = b" " * (size // 2)
    go, now = asyncio.Event(), asyncio.Event()
    now.set()
    async with reading(BodyReader(size)) as url:
        slow = [asyncio.create_task(post(url, trickle([b" " * (size - 1), b" "], go))) for _ in range(4)]

        async def refused() -> bool:
            return await post(url, trickle([half, half], now)) == (503, "no_room")

        await wait_for(refused, "the room to be taken")
        assert (200, "60000") == await post(url, b" " * 60_000)  # a small one always fits
        go.set()
        assert [(200, str(size))] * 4 == await asyncio.gather(*slow)
        assert (200, str(size)) == await post(url, trickle([half, half], now))
