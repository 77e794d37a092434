"""Hostile HTTP: what each client gets, and that nobody else notices."""

import asyncio
import contextlib
import gzip
import json
import re
import socket
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from exporter import bodies, events, stats
from exporter.events import Batch
from tests.support.exporter import CounterKey, parse_samples
from tests.support.hostile import MAX_BODY_BYTES, under_fire
from tests.support.inprocess import running
from tests.support.ports import wait_for

BODY = b'{"app_id":"com.example.hostile","action":"set","platform":"ios"}'
KEY = CounterKey("com.example.hostile", "ios", "set", "unknown", "prod")
SIZE = len(BODY)
PLAIN = b"POST /stats HTTP/1.1\r\nHost: x\r\n"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (SIZE, BODY)
NOT_HTTP = "a request is not HTTP; others within the hour are only counted"

# Asked for at the end of every packet, so that a connection that lost its place shows, and a good one ends.
LAST = b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
STATUS = re.compile(rb"HTTP/(?:0\.9|1\.[01]) (\d{3}) [A-Z][A-Za-z -]+\r\n")


def post(headers: bytes = b"", body: bytes = BODY, path: bytes = b"/stats", version: bytes = b"HTTP/1.1") -> bytes:
    """Write a POST with the right length."""
    return b"POST %b %b\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n%b" % (path, version, headers, len(body), body)


def chunked(body: bytes, headers: bytes = b"Transfer-Encoding: chunked\r\n") -> bytes:
    """Write a POST with a body as it stands."""
    return b"%b%b\r\n%b" % (PLAIN, headers, body)


def statuses(answer: bytes) -> list[int]:
    """Read the statuses of all replies."""
    return [int(status) for status in STATUS.findall(answer)]


# What is sent, what is answered before the connection ends (404 is the answer to the last, good request), and how many
# events are counted.
REQUESTS: dict[str, tuple[bytes, list[int], int]] = {
    # heads
    "a good POST": (post(), [200, 404], 1),
    "a header of 9 KB": (post(b"X: " + b"a" * 9000 + b"\r\n"), [400], 0),
    "129 headers": (post(b"X: a\r\n" * 129), [400], 0),
    "a URL of 9 KB": (post(path=b"/" + b"a" * 9000), [400], 0),
    "a query of 8,000 characters": (post(path=b"/stats?" + b"a=1&" * 2000), [200, 404], 1),
    "a NUL in a header": (post(b"X: a\0b\r\n"), [400], 0),
    "a CR in a header": (post(b"X: a\rb\r\n"), [400], 0),
    "a header without a colon": (post(b"X\r\n"), [400], 0),
    "a header with a space in its name": (post(b"X Y: a\r\n"), [400], 0),
    "a folded header": (post(b"X: a\r\n b\r\n"), [400], 0),
    "a header that is not UTF-8": (post(b"X: \xff\xfe\r\n"), [200, 404], 1),
    "a content type that is none": (post(b"Content-Type: \xff;;=\r\n"), [200, 404], 1),
    "no host": (b"POST /stats HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (SIZE, BODY), [400], 0),
    "line feeds only": (post().replace(b"\r\n", b"\n"), [400], 0),
    "empty lines in front": (b"\r\n" * 10_000 + post(), [200, 404], 1),
    # targets
    "a path of bytes": (post(path=b"/\xff\xfe"), [400], 0),
    "a NUL in the path": (post(path=b"/stats%00"), [404, 404], 0),
    "a line break in the path": (post(path=b"/stats%0d%0aX:"), [404, 404], 0),
    "a path with dots": (post(path=b"/x/%2e%2e/stats"), [404, 404], 0),
    "an absolute target": (post(path=b"http://elsewhere/stats"), [200, 404], 1),
    "a target with half an IPv6 address": (post(path=b"http://[::1/stats"), [400], 0),
    "a target with no port": (post(path=b"http://x:99999999/stats"), [400], 0),
    "half a character in the query": (post(path=b"/stats?token=%ed%a0%80"), [200, 404], 1),
    # methods and versions
    "an unknown method": (post().replace(b"POST", b"BREW"), [400], 0),
    "a method in lower case": (post().replace(b"POST", b"post"), [400], 0),
    "a method of 9 KB": (b"A" * 9000 + b" /stats HTTP/1.1\r\nHost: x\r\n\r\n", [400], 0),
    "CONNECT": (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", [404], 0),
    "TRACE": (b"TRACE /stats HTTP/1.1\r\nHost: x\r\n\r\n", [405, 404], 0),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", [404, 404], 0),
    "HTTP/1.0": (post(version=b"HTTP/1.0"), [200], 1),
    "HTTP/0.9": (b"GET /stats\r\n\r\n", [200], 0),
    "HTTP/1.2": (post(version=b"HTTP/1.2"), [400], 0),
    "HTTP/3.0": (post(version=b"HTTP/3.0"), [400], 0),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\4\0\0\0\0\0", [400], 0),
    "TLS": (bytes.fromhex("16030100c8010000c40303") + bytes(range(200)), [400], 0),
    "NULs": (b"\0" * 1000, [400], 0),
    "every byte": (bytes(range(256)), [400], 0),
    # lengths
    "no length": (PLAIN + b"\r\n", [400, 404], 0),
    "a body without a length": (PLAIN + b"\r\n" + BODY, [400], 0),
    "more than the length": (post() + b"xxxx", [400], 0),
    "two equal lengths": (post(b"Content-Length: %d\r\n" % SIZE), [400], 0),
    "two lengths": (post(b"Content-Length: 3\r\n"), [400], 0),
    "a list of lengths": (PLAIN + b"Content-Length: %d, %d\r\n\r\n%b" % (SIZE, SIZE, BODY), [400], 0),
    "a length with a sign": (PLAIN + b"Content-Length: +%d\r\n\r\n%b" % (SIZE, BODY), [400], 0),
    "a negative length": (PLAIN + b"Content-Length: -1\r\n\r\n" + BODY, [400], 0),
    "a length of 23 digits": (PLAIN + b"Content-Length: " + b"9" * 23 + b"\r\n\r\n" + BODY, [400], 0),
    "a length and chunks": (post(b"Transfer-Encoding: chunked\r\n", CHUNKS), [400], 0),
    "chunks and a length": (chunked(CHUNKS, b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n"), [400], 0),
    "identity and a length": (post(b"Transfer-Encoding: identity\r\n"), [400], 0),
    # chunks
    "chunks": (chunked(CHUNKS), [200, 404], 1),
    "chunks in a folded header": (chunked(CHUNKS, b"Transfer-Encoding:\r\n chunked\r\n"), [400], 0),
    "chunks twice": (chunked(CHUNKS, b"Transfer-Encoding: chunked\r\n" * 2), [400], 0),
    "chunks by another name": (chunked(CHUNKS, b"Transfer-Encoding: xchunked\r\n"), [400], 0),
    "chunks before the colon": (chunked(CHUNKS, b"Transfer-Encoding : chunked\r\n"), [400], 0),
    "something after chunks": (chunked(CHUNKS, b"Transfer-Encoding: chunked, gzip\r\n"), [400], 0),
    "chunks in HTTP/1.0": (chunked(CHUNKS).replace(b"HTTP/1.1", b"HTTP/1.0"), [200], 1),
    "a chunk of no number": (chunked(b"zz\r\n" + BODY), [400], 0),
    "a chunk of a negative size": (chunked(b"-5\r\n" + BODY), [400], 0),
    "a chunk of a prefixed size": (chunked(b"0x" + CHUNKS), [400], 0),
    "a chunk of 23 digits": (chunked(b"f" * 23 + b"\r\n" + BODY), [400], 0),
    "a chunk larger than it says": (chunked(b"3\r\n" + BODY + b"\r\n0\r\n\r\n"), [400], 0),
    "chunks with line feeds only": (chunked(CHUNKS.replace(b"\r\n", b"\n")), [400], 0),
    "an extension of 60 KB": (chunked(CHUNKS.replace(b"\r\n", b";x=" + b"a" * 60_000 + b"\r\n", 1)), [200, 404], 1),
    "129 trailers": (chunked(CHUNKS[:-2] + b"X: a\r\n" * 129 + b"\r\n"), [400], 0),
    "a trailer": (chunked(CHUNKS[:-2] + b"X: a\r\n\r\n"), [200, 404], 1),
    "a length in a trailer": (chunked(CHUNKS[:-2] + b"Content-Length: 3\r\n\r\n"), [400], 0),
    # expectations and encodings
    "100-continue": (post(b"Expect: 100-continue\r\n"), [100, 200, 404], 1),
    "an unknown expectation": (post(b"Expect: 200-perhaps\r\n"), [417, 404], 0),
    "an unknown encoding": (post(b"Content-Encoding: br\r\n"), [415, 404], 0),
    "gzip in gzip": (
        post(b"Content-Encoding: gzip, gzip\r\n", gzip.compress(gzip.compress(BODY))),
        [415, 404],
        0,
    ),
    "a second encoding": (post(b"Content-Encoding: gzip\r\n" * 2, gzip.compress(gzip.compress(BODY))), [400, 404], 0),
}

ENDS_ITSELF = {"HTTP/1.0", "HTTP/0.9", "chunks in HTTP/1.0"}


async def test_requests_that_break_the_rules(tmp_path: Path) -> None:
    """Each is answered and counted as the table says, and what is not HTTP is told of once, without a traceback."""
    async with under_fire(tmp_path) as fire:
        outcomes = {}
        seen = 0
        for name, (data, _, _) in REQUESTS.items():
            answer = await fire.send(data if name in ENDS_ITSELF else data + LAST)
            count = sum((await fire.hostile_counters()).values())
            outcomes[name] = (statuses(answer), count - seen)
            seen = count
        assert {name: (answered, count) for name, (_, answered, count) in REQUESTS.items()} == outcomes
        samples = {
            (each.labels["handler"], each.labels["code"]): int(each.value)
            for each in parse_samples(await fire.exporter.metrics())
            if each.name == "capgo_exporter_http_requests_total"
        }
        refused = [name for name, (_, answered, _) in REQUESTS.items() if answered[-1] == 400]
        assert len(refused) == samples["none", "400"]
        assert [NOT_HTTP] == [line["event"] for line in fire.exporter.logs() if line["level"] == "warning"]


async def test_an_upgrade_is_declined(tmp_path: Path) -> None:
    """The request is answered in HTTP/1.1, and so is the next one on its connection."""
    async with under_fire(tmp_path) as fire:
        for protocol in (b"h2c", b"websocket"):
            reader, writer = await fire.connect()
            writer.write(post(b"Connection: Upgrade\r\nUpgrade: " + protocol + b"\r\n"))
            assert [200] == statuses(await reader.readuntil(b"}"))
            writer.write(post() + LAST)
            assert [200, 404] == statuses(await reader.read())
            writer.close()
        assert {KEY: 4} == await fire.hostile_counters()


async def test_slow_clients_hold_nobody_up(tmp_path: Path) -> None:
    """Heads and bodies that come byte by byte are answered when they are whole, each once."""
    async with under_fire(tmp_path) as fire:
        clients = [await fire.connect() for _ in range(20)]
        requests = [post(), chunked(b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n")]
        for position in range(max(len(request) for request in requests)):
            for number, (_, writer) in enumerate(clients):
                writer.write(requests[number % 2][position : position + 1])
                await writer.drain()
        for reader, writer in clients:
            writer.write(LAST)
            assert [200, 404] == statuses(await reader.read())
            writer.close()
        assert {KEY: 20} == await fire.hostile_counters()


async def test_bodies_without_end(tmp_path: Path) -> None:
    """They are answered 413 as soon as they are larger than allowed, not when they end."""
    part = b" " * 65_536
    bodies = [
        (chunked(b""), b"%x\r\n%b\r\n" % (len(part), part)),
        (PLAIN + b"Content-Length: %d\r\n\r\n" % (1 << 40), part),
    ]
    async with under_fire(tmp_path) as fire, asyncio.timeout(60):
        for head, more in bodies:
            reader, writer = await fire.connect()
            answer = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
            writer.write(head)
            sent = 0
            with contextlib.suppress(ConnectionError):
                while not answer.done():
                    writer.write(more)
                    await writer.drain()
                    await asyncio.sleep(0)
                    sent += len(more)
            assert [413] == statuses(await answer)
            assert MAX_BODY_BYTES < sent
            writer.close()


def bomb(wbits: int) -> bytes:
    """Compress a quarter of a gigabyte of blanks."""
    compressor = zlib.compressobj(1, wbits=wbits)
    blanks = b" " * (1 << 20)
    return b"".join(compressor.compress(blanks) for _ in range(256)) + compressor.flush()


ALLOWED = MAX_BODY_BYTES - 100
BOMBS: dict[str, tuple[str, Callable[[], bytes], int, str]] = {
    "gzip": ("gzip", lambda: bomb(31), 413, "body_too_large"),
    "zlib": ("deflate", lambda: bomb(15), 413, "body_too_large"),
    "deflate": ("deflate", lambda: bomb(-15), 413, "body_too_large"),
    "gzip in gzip": ("gzip", lambda: gzip.compress(bomb(31)), 400, "invalid_json_parse_body"),
    "many empty members": ("gzip", lambda: gzip.compress(b"") * 200_000, 400, "invalid_content_encoding"),
    "some full members": ("gzip", lambda: gzip.compress(b" " * (1 << 20)) * 9, 413, "body_too_large"),
    "numbers": ("gzip", lambda: gzip.compress(b"[" + b"0," * (ALLOWED // 2) + b"0]"), 400, "invalid_body"),
    "objects": ("gzip", lambda: gzip.compress(b"[" + b"{}," * (ALLOWED // 3) + b"{}]"), 400, "invalid_body"),
    "brackets": ("gzip", lambda: gzip.compress(b"[" * ALLOWED), 400, "invalid_json_parse_body"),
    "arrays": ("gzip", lambda: gzip.compress(b"[" * 4_000_000 + b"]" * 4_000_000), 400, "invalid_json_parse_body"),
    "open objects": ("gzip", lambda: gzip.compress(b'{"a":' * 1_500_000), 400, "invalid_json_parse_body"),
    "a number": ("gzip", lambda: gzip.compress(b'{"action":' + b"9" * ALLOWED + b"}"), 400, "missing_action"),
}


async def test_bombs(tmp_path: Path) -> None:
    """What is small on the wire and large when it is unpacked or parsed is refused, in little time and memory."""
    async with under_fire(tmp_path) as fire:
        outcomes = {}
        for name, (encoding, make, _, _) in BOMBS.items():
            reply = await fire.post_packed(make(), encoding)
            outcomes[name] = (reply.status, reply.json()["error"])
        assert {name: (status, error) for name, (_, _, status, error) in BOMBS.items()} == outcomes
        assert {} == await fire.hostile_counters()


async def test_a_large_odd_body_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Fifty thousand events that must be judged one by one are, while others are answered in between."""
    count = 50_000
    body = gzip.compress(b"[0," + b",".join([b'{"app_id":"h","action":"set"}'] * count) + b"]", 1)
    async with under_fire(tmp_path) as fire:
        before = fire.answered
        reply = await fire.post_packed(body, "gzip")
        assert (200, count + 1) == (reply.status, len(reply.json()["results"]))
        assert 1 < fire.answered - before
        assert {CounterKey("h", "other", "set", "unknown", "prod"): count} == await fire.hostile_counters()


async def test_large_bodies_are_decompressed_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones are not; how large one is shows when a megabyte of it is there."""
    threads = []
    decompress = bodies.decompress

    def noted(body: bytes, encoding: str, max_bytes: int) -> bytes:
        threads.append((threading.current_thread() is threading.main_thread(), max_bytes))
        return decompress(body, encoding, max_bytes)

    monkeypatch.setattr(bodies, "decompress", noted)
    async with running({"max_body_bytes": 4 << 20}) as exporter:
        for size, status in ((0, 200), (1 << 20, 200), (4 << 20, 413)):
            body = gzip.compress(BODY + b" " * size)
            assert status == (await exporter.post(body, headers={"Content-Encoding": "gzip"})).status
    assert [(True, 1 << 20)] + [(True, 1 << 20), (False, 4 << 20)] * 2 == threads


async def test_large_bodies_are_decoded_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones are not: the way to another thread and back costs more than decoding them."""
    threads = []

    def decode(body: bytes) -> Batch:
        threads.append(threading.current_thread() is threading.main_thread())
        return events.decode(body)

    monkeypatch.setattr(stats, "decode", decode)
    async with running() as exporter:
        for body in (BODY, BODY + b" " * (1 << 20)):
            assert 200 == (await exporter.post(body)).status
    assert [True, False] == threads


async def test_huge_heads(tmp_path: Path) -> None:
    """Megabytes of head are cut off: answered 400, unless the client is still sending and sees a reset."""
    heads = {
        "a header": PLAIN + b"X: " + b"a" * (16 << 20),
        "headers": PLAIN + b"X: a\r\n" * 2_000_000,
        "a URL": b"POST /" + b"a" * (16 << 20),
        "trailers": chunked(CHUNKS[:-2] + b"X: a\r\n" * 2_000_000),
    }
    async with under_fire(tmp_path) as fire:
        for name, head in heads.items():
            assert statuses(await fire.send(head)) in ([400], []), name
        assert {} == await fire.hostile_counters()


async def test_pipelining(tmp_path: Path) -> None:
    """Requests in one packet are answered in their order, and each counted once."""
    two = b"[%b,%b]" % (BODY, BODY)
    packet = (post() + post(body=b"{") + post(body=two) + post(body=b"[]") + post(path=b"/nowhere")) * 100
    async with under_fire(tmp_path) as fire:
        answers = STATUS.split(await fire.send(packet + LAST))[1:]
        bodies = [body.partition(b"\r\n\r\n")[2] for body in answers[1::2]]
        assert [200, 400, 200, 200, 404] * 100 + [404] == [int(status) for status in answers[::2]]
        results = [json.loads(body) for body in bodies]
        assert [{"status": "ok"}] * 100 == results[0:500:5]
        assert ["invalid_json_parse_body"] * 100 == [each["error"] for each in results[1:500:5]]
        assert [2, 0] * 100 == [len(each["results"]) for pair in zip(results[2::5], results[3::5]) for each in pair]  # noqa: B905 -- the last one is not a part of a row
        assert {KEY: 300} == await fire.hostile_counters()


async def test_a_client_that_does_not_listen(tmp_path: Path) -> None:
    """Who sends requests without end and reads no answer is not read any more; its requests pile up nowhere."""
    packet = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 10_000
    async with under_fire(tmp_path) as fire:
        _, writer = await fire.connect()
        raw = writer.get_extra_info("socket")
        assert isinstance(raw.fileno(), int)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 64 << 20:
                writer.write(packet)
                sent += len(packet)
                async with asyncio.timeout(2):
                    await writer.drain()
        assert 64 << 20 > sent
        writer.transport.abort()


async def test_half_closed_and_broken_connections(tmp_path: Path) -> None:
    """A whole request is counted once although nobody reads its answer; half of one is not."""
    async with under_fire(tmp_path) as fire:
        assert statuses(await fire.send(post(), half_close=True)) in ([200], [])

        async def counted() -> bool:
            return await fire.hostile_counters() == {KEY: 1}

        await wait_for(counted, "the event")
        for half in (post()[:-5], post()[:40], chunked(CHUNKS)[:-5], chunked(CHUNKS)[:-20], b"P"):
            assert statuses(await fire.send(half, half_close=True)) in ([400], [])
        for broken in (post()[:-5], chunked(CHUNKS)[:-5], post()[:10]):
            _, writer = await fire.connect()
            writer.write(broken)
            await writer.drain()
            raw: socket.socket = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            writer.transport.abort()  # sends a reset
        await fire.good()
        assert {KEY: 1} == await fire.hostile_counters()


async def test_a_body_that_breaks_off_into_nonsense(tmp_path: Path) -> None:
    """A chunk that is none, after a good head, holds its own connection and nothing else."""
    async with under_fire(tmp_path) as fire:
        async with contextlib.AsyncExitStack() as stack:
            writers = []
            for _ in range(50):
                _, writer = await fire.connect()
                stack.callback(writer.close)
                writer.write(chunked(b""))
                writers.append(writer)

            async def all_busy() -> bool:
                page = await fire.exporter.metrics()
                return any(
                    each.value >= len(writers)
                    for each in parse_samples(page)
                    if each.name == "capgo_exporter_connections" and each.labels["state"] == "busy"
                )

            await wait_for(all_busy, "the heads to arrive")
            for writer in writers:
                writer.write(b"zz\r\n" * 1000)
                await writer.drain()
            await fire.good()
        assert {} == await fire.hostile_counters()
