"""The reply to a POST of good events, as bytes on the wire."""

import asyncio
import re

import pytest

from tests.support.inprocess import running

ONE = b'{"app_id":"a","action":"set"}'
TWO = b"[" + ONE + b"," + ONE + b"]"
RESULTS = b'{"status":"ok","results":[{"status":"ok","index":0},{"status":"ok","index":1}]}'


@pytest.mark.parametrize(("body", "expected"), [(ONE, b'{"status":"ok"}'), (TWO, RESULTS)])
@pytest.mark.parametrize(
    ("version", "connection", "stays"),
    [("1.1", "", True), ("1.1", "close", False), ("1.0", "", False), ("1.0", "keep-alive", True)],
)
async def test_connections_stay_open_as_asked(
    body: bytes, expected: bytes, version: str, connection: str, *, stays: bool
) -> None:
    """Each version and wish gets the same headers and body, twice on a connection that stays, and else its end."""
    lines = [f"POST /stats HTTP/{version}", "Host: test", f"Content-Length: {len(body)}"]
    lines += [f"Connection: {connection}"] * bool(connection)
    request = "\r\n".join([*lines, "", ""]).encode() + body
    async with running() as exporter:
        host, _, port = exporter.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request * (2 if stays else 1))
        for _ in range(2 if stays else 1):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
            status, *headers = head.decode().rstrip().split("\r\n")
            assert f"HTTP/{version} 200 OK" == status
            named = dict(header.split(": ", 1) for header in headers)
            assert ("application/json", str(len(expected))) == (named["Content-Type"], named["Content-Length"])
            assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", named["Date"])
            assert "aiohttp" in named["Server"]
            assert expected == await asyncio.wait_for(reader.readexactly(len(expected)), 60)
        if not stays:
            assert b"" == await asyncio.wait_for(reader.read(), 60)
        writer.close()
        await writer.wait_closed()
