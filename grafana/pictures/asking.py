"""What the queries of a panel answer."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from grafana.generate.queries import Values, substitute

_LEGEND: Final = re.compile(r"\{\{\s*(\w+)\s*\}\}")

Json = dict[str, Any]


class Prometheus(Protocol):
    """A server that is asked in PromQL."""

    async def query(self, expression: str, at: float | None = None) -> list[Any]:
        """Ask for one moment."""

    async def query_range(self, expression: str, start: float, end: float, step_seconds: float) -> list[Any]:
        """Ask for a time range."""


class InfluxDB(Protocol):
    """A server that is asked in InfluxQL."""

    async def query(self, statement: str) -> list[dict[str, Any]]:
        """Ask for rows."""


class Line(NamedTuple):
    """One series of an answer, with what Grafana would call it."""

    name: str
    labels: Mapping[str, str]
    samples: list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Asker:
    """Asks both servers as Grafana does.

    Attributes:
        prometheus: where PromQL is asked.
        influxdb: where InfluxQL is asked.
        values: the time range and what stands for the variables.
    """

    prometheus: Prometheus
    influxdb: InfluxDB
    values: Values

    async def lines(self, target: Json, variables: Mapping[str, str]) -> list[Line]:
        """Give the series that a target of a panel finds in Prometheus."""
        values = self.values
        query = substitute(target["expr"], {**variables, **values.globals()})
        if target["instant"]:
            found = await self.prometheus.query(query, values.end)
        else:
            found = await self.prometheus.query_range(query, values.start, values.end, values.step_seconds)
        return [Line(_name(target["legendFormat"], each.labels), each.labels, each.samples) for each in found]

    async def rows(self, target: Json, variables: Mapping[str, str]) -> list[Json]:
        """Give the rows that a target of a panel finds in InfluxDB."""
        return await self.influxdb.query(substitute(target["query"], {**variables, **self.values.globals()}))


def _name(legend: str, labels: Mapping[str, str]) -> str:
    if legend and legend != "__auto":
        return _LEGEND.sub(lambda match: labels.get(match[1], ""), legend)
    return ", ".join(value for name, value in sorted(labels.items()) if name != "__name__")
