"""`/api/v2/write` in front of InfluxDB 1.6, which does not have it yet; and, to be taken for 2.x, `/api/v2/delete`.

InfluxDB 1.8 took the endpoint over from 2.x: bucket for database, token for password, and its own names for precisions.
Source: https://docs.influxdata.com/influxdb/v1/tools/api/#influxdb-2x-api-compatibility-endpoints
"""

import json
import re
from datetime import UTC, datetime

import aiohttp
from aiohttp import web

from tests.support import recordings
from tests.support.lineprotocol import GzipError, gunzip_one_member
from tests.support.webserver import WebServer, drop_connection

_PRECISIONS = {"ns": "n", "us": "u", "ms": "ms", "s": "s"}
_PASSED_ON = ("Content-Encoding", "Content-Type", "User-Agent")
_CONDITION = re.compile(r'"?(\w+)"?="((?:[^"\\]|\\.)*)"')
# These belong to one connection, or are made anew from the body.
_NOT_PASSED_BACK = frozenset({"connection", "content-length", "date", "keep-alive", "transfer-encoding"})


class V2Proxy(WebServer):
    """Rewrites 2.x writes into 1.x writes; bodies, statuses and error headers pass untouched both ways.

    While InfluxDB is down a client sees its connection cut.

    Attributes:
        writes: How many requests came to `/api/v2/write`, refused ones too.
        version: The version that it says it is, as `v2.7.1`; empty: that of the InfluxDB behind it.
        gzip_errors: What was wrong with bodies that were not one gzip member; a test wants this empty.
    """

    def __init__(self, upstream_url: str, *, token: str) -> None:
        """Set the InfluxDB to write to and the token that clients must show."""
        super().__init__()
        self._upstream_url = upstream_url
        self._authorization = f"Token {token}"
        self._session: aiohttp.ClientSession | None = None
        self.writes = 0
        self.version = ""
        self.gzip_errors: list[str] = []

    def build(self, app: web.Application) -> None:
        """Add the three endpoints a 2.x client uses for writing."""
        app.router.add_post("/api/v2/write", self._write)
        app.router.add_post("/api/v2/delete", self._delete)
        app.router.add_post("/query", self._query)
        app.router.add_get("/ping", self._ping)
        app.router.add_get("/health", self._health)

    async def start(self) -> None:
        """Listen."""
        self._session = aiohttp.ClientSession(auto_decompress=False)
        await super().start()

    async def stop(self) -> None:
        """Stop listening; InfluxDB goes on."""
        await super().stop()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _write(self, request: web.Request) -> web.Response:
        self.writes += 1
        body = await request.read()
        if request.headers.get("Authorization") != self._authorization:
            return recordings.unauthorized().as_response()
        precision = request.query.get("precision", "ns")
        if precision not in _PRECISIONS:
            return recordings.invalid_precision().as_response()
        if request.headers.get("Content-Encoding") == "gzip":
            try:
                gunzip_one_member(body)
            except GzipError as error:
                self.gzip_errors.append(str(error))
        params = {"db": request.query.get("bucket", ""), "precision": _PRECISIONS[precision]}
        return await self._pass(request, "POST", "/write", params, body)

    async def _ping(self, request: web.Request) -> web.Response:
        answer = await self._pass(request, "GET", "/ping", {}, b"")
        if self.version:
            answer.headers["X-Influxdb-Version"] = self.version
        return answer

    async def _query(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != self._authorization:
            return recordings.unauthorized().as_response()
        body = await request.read()
        return await self._pass(request, "POST", "/query", dict(request.query), body)

    async def _delete(self, request: web.Request) -> web.Response:
        """Delete as 2.x does: from start to stop, both included, what the predicate matches.

        Source: influxdata/influxdb, branch main-2.x, http/delete_handler.go.
        """
        if request.headers.get("Authorization") != self._authorization:
            return recordings.unauthorized().as_response()
        asked = json.loads(await request.read())
        conditions = [_CONDITION.fullmatch(part) for part in asked["predicate"].split(" AND ")]
        assert None not in conditions, asked
        pairs = {match[1]: match[2] for match in conditions if match is not None}
        measurement = pairs.pop("_measurement")
        where = [f"\"{key}\" = '{value}'" for key, value in pairs.items()]
        where += [f"time >= {_nanoseconds(asked['start'])}", f"time <= {_nanoseconds(asked['stop'])}"]
        statement = f'DELETE FROM "{measurement}" WHERE {" AND ".join(where)}'  # noqa: S608 -- the test's own
        params = {"db": request.query.get("bucket", ""), "q": statement}
        answer = await self._pass(request, "POST", "/query", params, b"")
        if answer.headers.get("Content-Encoding") == "gzip" and isinstance(answer.body, bytes):
            assert b"error" not in gunzip_one_member(answer.body), statement
        return web.Response(status=204)

    async def _health(self, request: web.Request) -> web.Response:
        ping = await self._pass(request, "GET", "/ping", {}, b"")
        if ping.status != web.HTTPNoContent.status_code:
            return ping
        return recordings.health(ping.headers["X-Influxdb-Version"]).as_response()

    async def _pass(
        self, request: web.Request, method: str, path: str, params: dict[str, str], body: bytes
    ) -> web.Response:
        assert self._session is not None
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        url = self._upstream_url + path
        try:
            async with self._session.request(method, url, params=params, data=body, headers=headers) as answer:
                content = await answer.read()
                passed_back = {k: v for k, v in answer.headers.items() if k.lower() not in _NOT_PASSED_BACK}
                return web.Response(status=answer.status, headers=passed_back, body=content)
        except aiohttp.ClientError:
            return drop_connection(request)


def _nanoseconds(time: str) -> int:
    seconds, _, fraction = time.removesuffix("Z").partition(".")
    whole = datetime.strptime(seconds, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC).timestamp()
    return int(whole) * 1_000_000_000 + int(fraction.ljust(9, "0"))
