"""InfluxDB as an operator needs it: which one it is, which points a device has, and how they are deleted.

Queries are InfluxQL, which 1.x and 2.x answer alike (2.x by its DBRP mappings). Deleting is a statement in 1.x, and
`/api/v2/delete` in 2.x. Neither deletes by field: points are found by the field `device_id`, and deleted one by one by
their exact time and tags.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

import aiohttp

from exporter.configuration import mask_url
from exporter.influx import hide_user
from exporter.lineprotocol import MEASUREMENT
from exporter.settings import Settings
from exporter.tools.problems import RemoteError, UsageError

_STATEMENTS_AT_ONCE: Final = 100
_REQUESTS_AT_ONCE: Final = 8
_QUERY_SECONDS: Final = 600.0
_MAX_ERROR_TEXT: Final = 300
_NS: Final = 1_000_000_000
_OK: Final = frozenset({200, 204})


class Kind(StrEnum):
    """What answers."""

    V1 = "InfluxDB 1.x"
    V2 = "InfluxDB 2.x"
    V3 = "InfluxDB 3.x"
    VICTORIA = "VictoriaMetrics"
    UNKNOWN = "a server of an unknown kind"


class Server(NamedTuple):
    """What answers, and what it says of its version."""

    kind: Kind
    version: str


class PointKey(NamedTuple):
    """What makes a point: its tags, and its time in nanoseconds since 1970."""

    tags: tuple[tuple[str, str], ...]
    time_ns: int


class InfluxError(Exception):
    """InfluxDB refuses something.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, status: int, message: str) -> None:
        """Keep what it said."""
        super().__init__(message)
        self.status = status


class Influx:
    """A connection to one bucket."""

    def __init__(self, session: aiohttp.ClientSession, settings: Settings) -> None:
        """Take a session, and settings that name InfluxDB."""
        self._session = session
        self._url = (settings.influx_url or "").rstrip("/")
        self._org = settings.influx_org
        self._bucket = settings.influx_bucket
        self._database, _, self._policy = settings.influx_bucket.partition("/")
        self._token = "" if settings.influx_token is None else settings.influx_token.get_secret_value()

    async def identify(self) -> Server:
        """Ask what answers.

        Raises:
            aiohttp.ClientError: if nothing does.
            TimeoutError: the same.
        """
        async with self._session.get(f"{self._url}/ping", headers=self._headers(), allow_redirects=False) as response:
            body = await response.text(errors="replace")
            version = response.headers.get("X-Influxdb-Version", "") or _version_in(body)
            build = response.headers.get("X-Influxdb-Build", "")
            if response.status not in _OK and not version:
                raise InfluxError(response.status, self._shorten(body or response.reason or ""))
            if not version and "X-Server-Hostname" in response.headers:
                return Server(Kind.VICTORIA, "")
        kinds = {"1": Kind.V1, "2": Kind.V2, "3": Kind.V3}
        kind = kinds.get(version.lstrip("v")[:1], Kind.V2 if build == "Cloud" else Kind.UNKNOWN)
        return Server(kind, version)

    async def query(self, statement: str) -> list[dict[str, Any]]:
        """Run InfluxQL, and give the series of each statement's result, times in nanoseconds.

        Raises:
            InfluxError: if it is refused.
            aiohttp.ClientError: if it cannot be sent.
            TimeoutError: the same.
        """
        params = {"db": self._database, "epoch": "ns"} | ({"rp": self._policy} if self._policy else {})
        async with self._session.post(
            f"{self._url}/query", params=params, data={"q": statement}, headers=self._headers(), allow_redirects=False
        ) as response:
            body = await response.read()
            text = body.decode(errors="replace")
            try:
                answer = json.loads(body)
            except ValueError:
                raise InfluxError(response.status, self._shorten(text)) from None
        results = answer.get("results", []) if isinstance(answer, dict) else []
        errors = [answer.get("error") or answer.get("message")] + [result.get("error") for result in results]
        error = next(filter(None, errors), None)
        if error or response.status not in _OK:
            raise InfluxError(response.status, self._shorten(str(error or text)))
        return [series for result in results for series in result.get("series", [])]

    async def find(self, device_ids: tuple[str, ...]) -> list[PointKey]:
        """Find the points of a device, by its ids as they are stored.

        Raises:
            InfluxError: if that is refused.
            aiohttp.ClientError: if it cannot be asked.
            TimeoutError: the same.
        """
        where = " OR ".join(f'"device_id" = {_quote(each, single=True)}' for each in device_ids)
        series = await self.query(f'SELECT "device_id" FROM "{MEASUREMENT}" WHERE {where} GROUP BY *')  # noqa: S608 -- quoted
        return [
            PointKey(tuple((key, value) for key, value in each.get("tags", {}).items() if value), int(values[0]))
            for each in series
            for values in each["values"]
        ]

    async def delete(self, kind: Kind, points: list[PointKey], measurement: str = MEASUREMENT) -> None:
        """Delete points, each by its exact time and tags.

        Raises:
            InfluxError: if that is refused.
            aiohttp.ClientError: if it cannot be asked.
            TimeoutError: the same.
        """
        if kind is Kind.V1:
            for start in range(0, len(points), _STATEMENTS_AT_ONCE):
                part = points[start : start + _STATEMENTS_AT_ONCE]
                await self.query(";".join(_delete_statement(point, measurement) for point in part))
            return
        for start in range(0, len(points), _REQUESTS_AT_ONCE):
            part = points[start : start + _REQUESTS_AT_ONCE]
            await asyncio.gather(*(self._delete_2(point, measurement) for point in part))

    async def _delete_2(self, point: PointKey, measurement: str) -> None:
        # Both ends of the range belong to it (InfluxDB 2.x, http/delete_handler.go and tsdb's DeleteSeriesRange).
        when = _rfc3339(point.time_ns)
        conditions = [f"_measurement={_quote(measurement)}"]
        conditions += [f"{_quote(key)}={_quote(value)}" for key, value in point.tags]
        body = {"start": when, "stop": when, "predicate": " AND ".join(conditions)}
        params = {"org": self._org, "bucket": self._bucket}
        async with self._session.post(
            f"{self._url}/api/v2/delete", params=params, json=body, headers=self._headers(), allow_redirects=False
        ) as response:
            if response.status not in _OK:
                raise InfluxError(response.status, self._shorten(await response.text(errors="replace")))

    async def retention_seconds(self, kind: Kind) -> float | None:
        """Ask how long the bucket keeps points; None: for ever, or it does not say."""
        with contextlib.suppress(InfluxError, aiohttp.ClientError, TimeoutError, KeyError, ValueError, TypeError):
            if kind is Kind.V1:
                return await self._policy_seconds()
            params = {"org": self._org, "name": self._bucket}
            async with self._session.get(
                f"{self._url}/api/v2/buckets", params=params, headers=self._headers()
            ) as response:
                (bucket,) = (await response.json())["buckets"]
                return float(sum(rule["everySeconds"] for rule in bucket["retentionRules"])) or None
        return None

    async def _policy_seconds(self) -> float | None:
        (series,) = await self.query(f"SHOW RETENTION POLICIES ON {_quote(self._database)}")
        for values in series["values"]:
            policy = dict(zip(series["columns"], values, strict=True))
            if policy["name"] == self._policy or (not self._policy and policy["default"]):
                hours, minutes, seconds = (float(part.rstrip("hms")) for part in _split_duration(policy["duration"]))
                return hours * 3600 + minutes * 60 + seconds or None
        return None

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Token {self._token}"} if self._token else {}

    def _shorten(self, text: str) -> str:
        flat = " ".join((text.replace(self._token, "***") if self._token else text).split())
        return flat[:_MAX_ERROR_TEXT]


@contextlib.asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[Influx]:
    """Connect to the InfluxDB of the settings; what goes wrong ends the command.

    Raises:
        UsageError: if no InfluxDB is set.
        RemoteError: if it cannot be reached, or refuses.
    """
    if settings.influx_url is None:
        msg = "EXPORTER_INFLUX_URL: not set; set it, or name InfluxDB with --influx-url"
        raise UsageError(msg)
    timeout = aiohttp.ClientTimeout(total=_QUERY_SECONDS, connect=settings.influx_timeout)
    where = mask_url(settings.influx_url)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session:
            yield Influx(session, settings)
    except InfluxError as error:
        msg = f"{where}: {error}; `capgo-exporter check-config --connect` looks closer"
        raise RemoteError(msg) from None
    except (aiohttp.ClientError, TimeoutError) as error:
        msg = f"{where}: cannot be reached: {hide_user(str(error), settings.influx_url) or 'no answer in time'}"
        raise RemoteError(msg) from None


def _delete_statement(point: PointKey, measurement: str) -> str:
    conditions = [f"{_quote(key)} = {_quote(value, single=True)}" for key, value in point.tags]
    return f"DELETE FROM {_quote(measurement)} WHERE {' AND '.join([*conditions, f'time = {point.time_ns}'])}"  # noqa: S608 -- quoted


def _quote(text: str, *, single: bool = False) -> str:
    """Quote a name, or with single quotes a text, for InfluxQL and for predicates."""
    mark = "'" if single else '"'
    escaped = text.replace("\\", "\\\\").replace(mark, f"\\{mark}").replace("\n", "\\n")
    return f"{mark}{escaped}{mark}"


def _rfc3339(time_ns: int) -> str:
    seconds, rest = divmod(time_ns, _NS)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def _version_in(body: str) -> str:
    """Read the version in the JSON body with which InfluxDB 3 answers."""
    try:
        content: Mapping[str, Any] = json.loads(body)
        return str(content["version"])
    except (ValueError, KeyError, TypeError):
        return ""


def _split_duration(text: str) -> tuple[str, str, str]:
    """Split a duration such as `168h0m0s`."""
    hours, _, rest = text.rpartition("h")
    minutes, _, seconds = rest.rpartition("m")
    return hours or "0", minutes or "0", seconds or "0"
