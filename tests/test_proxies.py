"""The examples for nginx and Caddy, run from the committed files: what they pass on, and what they must not do."""

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import web

from exporter.stats import unavailable
from tests.conftest import StartExporter
from tests.support.kills import sample
from tests.support.ports import free_port, wait_for
from tests.support.proxies import HOST, Caddy, Certificate, Nginx, Phone, Proxy
from tests.support.webserver import WebServer, drop_connection

MIB = 1 << 20
TOKEN = "an-ingest-token"  # noqa: S105 -- a token of the test's own
ADDRESS = "127.0.0.77"
EVENT = {
    "app_id": "com.example.shop",
    "device_id": "d1",
    "platform": "ios",
    "action": "set",
    "version_name": "2.2.0",
    "timestamp": 1795140000010,
}
StartProxy = Callable[[Sequence[str]], Proxy]

pytestmark = pytest.mark.server("openssl")


class FakeExporter(WebServer):
    """Answers as it is told to, and remembers what it was asked.

    Attributes:
        answers: `ok`, `unavailable`, or `none`: the connection is cut once the body is there.
        posts: each POST as it came: path with query, headers and body.
    """

    def __init__(self) -> None:
        """Be well."""
        super().__init__()
        self.answers = "ok"
        self.posts: list[tuple[str, dict[str, str], bytes]] = []

    def build(self, app: web.Application) -> None:
        """Answer any POST, and every check."""
        app.router.add_post("/{path:.*}", self._post)
        app.router.add_get("/readyz", self._ready)

    async def _ready(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def _post(self, request: web.Request) -> web.Response:
        self.posts.append((request.path_qs, dict(request.headers), await request.read()))
        if self.answers == "none":
            return drop_connection(request)
        return unavailable() if self.answers == "unavailable" else web.json_response({"status": "ok"})


@pytest.fixture(params=[pytest.param(kind, marks=pytest.mark.server(kind)) for kind in ("nginx", "caddy")])
def proxied(request: pytest.FixtureRequest, tmp_path: Path) -> StartProxy:
    """Start a proxy in front of some exporters' URLs: nginx, and then Caddy."""
    kind = {"nginx": Nginx, "caddy": Caddy}[request.param]

    def start(exporters: Sequence[str]) -> Proxy:
        directory = tmp_path / "proxy"
        directory.mkdir()
        return kind(directory, [url.removeprefix("http://") for url in exporters], Certificate(tmp_path))

    return start


@pytest.fixture
async def fakes() -> AsyncIterator[list[FakeExporter]]:
    """Three exporters that answer as they are told to."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(FakeExporter()) for _ in range(3)]


async def test_bodies_pass_up_to_the_exporters_bound(exporter_process: StartExporter, proxied: StartProxy) -> None:
    """31 MiB pass, plain and compressed; past the exporter's bound the answer is 413, and never one to repeat."""
    exporter = await exporter_process()
    small, large, larger = (b"[" + b" " * (size * MIB) + json.dumps(EVENT).encode() + b"]" for size in (0, 31, 33))
    async with proxied([exporter.url]) as proxy, proxy.phone() as phone:
        compressed = {"Content-Encoding": "gzip"}
        replies = [
            await phone.post(small),
            await phone.post(large),
            await phone.post(gzip.compress(large, 1), headers=compressed),
            await phone.post(larger),
            await phone.post(gzip.compress(larger, 1), headers=compressed),
        ]
    assert [200, 200, 200, 413, 413] == [reply.status for reply in replies]
    assert 1 == sum((await exporter.counters()).values())
    assert 2 == await sample(exporter, "capgo_exporter_events_total", outcome="duplicate", reason="")


async def test_requests_pass_as_they_are(fakes: list[FakeExporter], proxied: StartProxy) -> None:
    """Path, query and body reach the exporter untouched, with the phone's address behind what the phone claims."""
    body = gzip.compress(b"[]")
    paths = ["/stats", "/stats/", f"/stats/{TOKEN}", f"/stats/{TOKEN}/?shard=3", f"/stats?token={TOKEN}&shard=3"]
    async with proxied([fakes[0].url]) as proxy, proxy.phone(ADDRESS) as phone:
        for path in paths:
            headers = {"Content-Encoding": "gzip", "X-Forwarded-For": "203.0.113.9"}
            assert 200 == (await phone.post(body, path, headers)).status
    assert paths == [path for path, _, _ in fakes[0].posts]
    for _, headers, received in fakes[0].posts:
        assert body == received
        assert "gzip" == headers["Content-Encoding"]
        assert ADDRESS == headers["X-Forwarded-For"].split(",")[-1].strip()
        assert "https" == headers["X-Forwarded-Proto"]
        assert HOST == headers["Host"].partition(":")[0]


async def test_a_503_stays_what_it_is(fakes: list[FakeExporter], proxied: StartProxy) -> None:
    """Status, `Retry-After` and body of a 503 reach the phone, and no other exporter is asked."""
    for fake in fakes:
        fake.answers = "unavailable"
    async with proxied([fake.url for fake in fakes]) as proxy, proxy.phone() as phone:
        reply = await phone.post([EVENT])
        again = await phone.post([EVENT])
    assert (503, "5", "unavailable") == (reply.status, reply.headers["Retry-After"], reply.json()["error"])
    assert reply.body == again.body
    assert 2 == sum(len(fake.posts) for fake in fakes)


async def test_a_post_is_never_sent_twice(fakes: list[FakeExporter], proxied: StartProxy) -> None:
    """If an exporter took a POST and gave no answer, the phone is told so: another one would count it again."""
    for fake in fakes:
        fake.answers = "none"
    async with proxied([fake.url for fake in fakes]) as proxy, proxy.phone() as phone:
        assert 502 == (await phone.post([EVENT])).status
    assert 1 == sum(len(fake.posts) for fake in fakes)


async def test_an_exporter_that_is_away_is_gone_round(fakes: list[FakeExporter], proxied: StartProxy) -> None:
    """What cannot be connected to has got nothing, so another exporter gets the POST: once, and with nginx at once."""
    async with proxied([fake.url for fake in fakes]) as proxy, AsyncExitStack() as stack:
        phones = [await stack.enter_async_context(proxy.phone(f"127.0.0.{number}")) for number in range(1, 13)]
        await fakes[0].stop()
        answered: list[int] = []

        async def all_are_answered() -> bool:
            statuses = [reply.status for reply in await asyncio.gather(*(phone.post([EVENT]) for phone in phones))]
            assert {200} | proxy.answers_while_noticing >= set(statuses), statuses
            answered.extend(status for status in statuses if status == 200)
            return {200} == set(statuses)

        await wait_for(all_are_answered)
    assert len(answered) == sum(len(fake.posts) for fake in fakes)
    assert [] == fakes[0].posts


async def test_a_device_stays_with_its_exporter(fakes: list[FakeExporter], proxied: StartProxy) -> None:
    """Posts with one shard reach one exporter, from whatever address; without a shard the address decides."""
    async with proxied([fake.url for fake in fakes]) as proxy, AsyncExitStack() as stack:
        phones = [await stack.enter_async_context(proxy.phone(f"127.0.0.{number}")) for number in range(1, 25)]
        for phone in phones:
            await phone.post([{"device": "wanders"}], "/stats?shard=7")
        for number, phone in enumerate(phones):
            await _post_twice(phone, {"address": number}, "/stats")
            await _post_twice(phone, {"shard": number}, f"/stats?shard={number}")
    exporters_of: dict[str, set[int]] = {}
    for number, fake in enumerate(fakes):
        for _, _, body in fake.posts:
            exporters_of.setdefault(body.decode(), set()).add(number)
    assert 49 == len(exporters_of)
    assert {1} == {len(exporters) for exporters in exporters_of.values()}
    for by in ("address", "shard"):
        used = [exporters for body, exporters in exporters_of.items() if by in body]
        assert {0, 1, 2} == set().union(*used)


async def test_only_the_stats_path_is_open(fakes: list[FakeExporter], proxied: StartProxy) -> None:
    """What is for operators, and what merely begins like the stats path, is not passed on; nothing is redirected."""
    async with proxied([fakes[0].url]) as proxy, proxy.phone() as phone:
        for path in ("/", "/metrics", "/readyz", "/releases", "/statsx", "/stats/../metrics", "/%2e/metrics"):
            assert 404 == (await phone.request("GET", path)).status
            assert 404 == (await phone.post([EVENT], path)).status
        assert [] == fakes[0].posts
        assert [200, 200] == [(await phone.post([EVENT], path)).status for path in ("/stats", "/stats/")]


async def test_the_token_stays_out_of_everything_written(exporter_process: StartExporter, proxied: StartProxy) -> None:
    """Good, refused and broken requests, and dead exporters: no file of the proxy has the token or the address."""
    exporter = await exporter_process({"EXPORTER_INGEST_TOKEN": TOKEN})
    paths = [f"/stats/{TOKEN}", f"/stats?token={TOKEN}", f"/stats/{TOKEN}-wrong", f"/else/{TOKEN}?token={TOKEN}"]
    async with proxied([exporter.url, f"127.0.0.1:{free_port()}"]) as proxy, proxy.phone(ADDRESS) as phone:
        headers = {"Referer": f"https://{HOST}/{TOKEN}", "Authorization": f"Bearer {TOKEN}"}
        statuses = [(await phone.post([EVENT], path, headers)).status for path in paths]
        assert [200, 200, 401, 404] == statuses
        await phone.post(b" " * (33 * MIB), paths[0])
        for head in (
            f"POST {paths[0]} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 900000\r\n\r\n[",  # breaks off
            f"POST {paths[0]} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: many\r\n\r\n",
            f"POST {paths[0]}{'x' * 70_000} HTTP/1.1\r\nHost: {HOST}\r\n\r\n",
            f"{paths[0]}\r\n\r\n",
        ):
            await _send(proxy, head.encode())
        await exporter.kill9()
        replies = await asyncio.gather(*(phone.post([EVENT], path) for path in paths[:2]))
        assert {502, 503} >= {reply.status for reply in replies}
    written = proxy.written()
    assert "access.log" in written
    assert [200, 200, 401, 404] == [line["status"] for line in proxy.access_log()][:4]
    for name, text in written.items():
        assert TOKEN not in text, name
        assert ADDRESS not in text, name


async def test_phones_that_break_off_take_no_exporter_out(fakes: list[FakeExporter], proxied: StartProxy) -> None:
    """Bodies that never end and phones that go away are nobody's fault: the next POST is answered."""
    async with proxied([fake.url for fake in fakes]) as proxy, AsyncExitStack() as stack:
        for shard in range(10):
            head = f"POST /stats?shard={shard} HTTP/1.1\r\nHost: {HOST}\r\n"
            await _send(proxy, f"{head}Content-Length: 90000000\r\n\r\n[".encode())
            await _send(proxy, f"{head}Content-Length: 900000\r\n\r\n[".encode())
            await _send(proxy, f"{head}Transfer-Encoding: chunked\r\n\r\n1\r\n[\r\nnonsense\r\n".encode())
        phone = await stack.enter_async_context(proxy.phone())
        assert [200] * 10 == [(await phone.post([EVENT], f"/stats?shard={shard}")).status for shard in range(10)]


async def _post_twice(phone: Phone, body: object, path: str) -> None:
    for _ in range(2):
        assert 200 == (await phone.post([body], path)).status


async def _send(proxy: Proxy, data: bytes) -> None:
    """Send bytes with TLS from `ADDRESS`, read what comes within a moment, and go away without a word."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", proxy.port, ssl=proxy.certificate.trusted(), server_hostname=HOST, local_addr=(ADDRESS, 0)
    )
    writer.write(data)
    with contextlib.suppress(TimeoutError, ConnectionError):
        await asyncio.wait_for(reader.read(1), 0.1)
    writer.transport.abort()
    await wait_for(writer.transport.is_closing)
