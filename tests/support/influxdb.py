"""A real InfluxDB 1.6, the one Debian has."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.ports import free_port
from tests.support.process import Server, ServerProcess, http_ok

Scalar = str | int | float | bool | None

_QUERY_TIMEOUT = aiohttp.ClientTimeout(total=30)

# The limits of a default installation, except where the test gives another value.
_CONFIG = """\
reporting-disabled = true
bind-address = "127.0.0.1:{rpc_port}"

[meta]
  dir = "{directory}/meta"
  logging-enabled = false

[data]
  dir = "{directory}/data"
  wal-dir = "{directory}/wal"
  query-log-enabled = false
  max-values-per-tag = {max_values_per_tag}
  max-series-per-database = {max_series_per_database}

[monitor]
  store-enabled = false

[subscriber]
  enabled = false

[http]
  bind-address = "127.0.0.1:{http_port}"
  log-enabled = false
  max-body-size = {max_body_bytes}

[continuous_queries]
  enabled = false

[logging]
  level = "warn"
  suppress-logo = true
"""


@dataclass(frozen=True)
class Limits:
    """What InfluxDB refuses; the defaults are its own."""

    max_values_per_tag: int = 100_000
    max_series_per_database: int = 1_000_000
    max_body_bytes: int = 25_000_000


@dataclass(frozen=True)
class Point:
    """A point read back: every field with the Python type of its InfluxDB type, no field that is absent."""

    time_ns: int
    tags: Mapping[str, str]
    fields: Mapping[str, str | int | float | bool]


class QueryError(Exception):
    """InfluxDB answered a query with an error."""


class InfluxDB16(Server):
    """Debian's `influxd` with its own directory, ports and database.

    It can be stopped and started again on the same port and data.
    """

    def __init__(
        self, directory: Path, *, database: str = "capgo", retention: str = "INF", limits: Limits | None = None
    ) -> None:
        """Write the configuration; nothing runs before `start`.

        Args:
            directory: An empty or missing directory for configuration, data and logs.
            database: The database that `start` creates.
            retention: How long points are kept, in InfluxQL's form; "INF" keeps all, the least is "1h".
            limits: What it refuses.
        """
        self.database = database
        self._retention = retention
        self._port = free_port()
        directory.mkdir(parents=True, exist_ok=True)
        limits = limits or Limits()
        config = directory / "influxdb.conf"
        config.write_text(
            _CONFIG.format(
                directory=directory,
                http_port=self._port,
                rpc_port=free_port(),
                max_values_per_tag=limits.max_values_per_tag,
                max_series_per_database=limits.max_series_per_database,
                max_body_bytes=limits.max_body_bytes,
            )
        )
        self.process = ServerProcess(["influxd", "-config", config], directory, ready=http_ok(f"{self.url}/ping"))

    @property
    def url(self) -> str:
        """The base URL, the same after every start."""
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Start the server and create the database, if it is not there yet."""
        await super().start()
        try:
            statement = f'CREATE DATABASE "{self.database}" WITH DURATION {self._retention} REPLICATION 1'
            await self._statement(statement, method="POST")
        except BaseException:
            self.process.close()
            raise

    async def query(self, statement: str) -> list[dict[str, Scalar]]:
        """Run one InfluxQL statement and return its rows, tags of `GROUP BY` as columns, times in ns.

        JSON has one kind of number: a float field with a whole value reads as an integer; `points` tells them apart.

        Raises:
            QueryError: InfluxDB refused the statement.
        """
        return [
            {**series.get("tags", {}), **dict(zip(series["columns"], values, strict=True))}
            for series in await self._statement(statement)
            for values in series.get("values", [])
        ]

    async def write(self, lines: str) -> tuple[int, str]:
        """Write line protocol to `/write`, times in ns, and return the status and body of the answer."""
        params = {"db": self.database, "precision": "n"}
        async with (
            aiohttp.ClientSession(timeout=_QUERY_TIMEOUT) as session,
            session.post(f"{self.url}/write", params=params, data=lines.encode()) as response,
        ):
            return response.status, await response.text()

    async def field_types(self, measurement: str) -> dict[str, set[str]]:
        """Return the types of each field: "integer", "float", "string", "boolean"; more than one if shards differ."""
        types: dict[str, set[str]] = {}
        for row in await self.query(f"SHOW FIELD KEYS FROM {quote_identifier(measurement)}"):
            types.setdefault(str(row["fieldKey"]), set()).add(str(row["fieldType"]))
        return types

    async def tag_keys(self, measurement: str) -> set[str]:
        """Return the names of the tags."""
        return {str(row["tagKey"]) for row in await self.query(f"SHOW TAG KEYS FROM {quote_identifier(measurement)}")}

    async def count(self, measurement: str, field: str, where: str = "") -> int:
        """Return how many points have the field; `where` is an InfluxQL condition."""
        rows = await self.query(_select(f"COUNT({quote_identifier(field)})", measurement, where))
        return sum(int(value) for row in rows if isinstance(value := row["count"], int))

    async def points(self, measurement: str, where: str = "") -> list[Point]:
        """Return every point of a measurement, in the order of time; `where` is an InfluxQL condition."""
        types = await self.field_types(measurement)
        tags = await self.tag_keys(measurement)
        rows = await self.query(_select("*", measurement, where))
        return [_point(row, tags, types) for row in rows]

    async def _statement(self, statement: str, method: str = "GET") -> Sequence[dict[str, Any]]:
        params = {"db": self.database, "q": statement, "epoch": "ns"}
        async with (
            aiohttp.ClientSession(timeout=_QUERY_TIMEOUT) as session,
            session.request(method, f"{self.url}/query", params=params) as response,
        ):
            # Python's integers take nanoseconds as they are; nothing must turn them into floats on the way.
            answer = json.loads(await response.read())
        (result,) = answer.get("results", [answer])
        if "error" in result:
            message = f"{statement}: {result['error']}"
            raise QueryError(message)
        series: Sequence[dict[str, Any]] = result.get("series", [])
        return series


def quote_identifier(name: str) -> str:
    """Quote a measurement, field or tag name for InfluxQL."""
    escaped = re.sub(r'([\\"])', r"\\\1", name)
    return f'"{escaped}"'


def quote_string(value: str) -> str:
    """Quote a string value for InfluxQL."""
    escaped = re.sub(r"([\\'])", r"\\\1", value)
    return f"'{escaped}'"


def _select(what: str, measurement: str, where: str) -> str:
    # The words are the test's own, and it quotes what needs quoting.
    statement = f"SELECT {what} FROM {quote_identifier(measurement)}"  # noqa: S608
    return f"{statement} WHERE {where}" if where else statement


def _point(row: Mapping[str, Scalar], tags: set[str], types: Mapping[str, set[str]]) -> Point:
    time_ns = row["time"]
    assert isinstance(time_ns, int)
    fields = {
        name: float(value) if types[name] == {"float"} else value
        for name, value in row.items()
        if name in types and value is not None
    }
    return Point(time_ns, {name: str(row[name]) for name in tags if row.get(name)}, fields)
