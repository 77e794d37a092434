"""Targets: what a panel asks, in either language."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from grafana_foundation_sdk.builders import prometheus
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from grafana.generate.influxql import InfluxQuery
from grafana.generate.sources import INFLUXDB, PROMETHEUS

Format = Literal["graph", "number", "table", "heatmap"]


@dataclass(frozen=True, slots=True)
class Prom:
    """A PromQL query.

    Attributes:
        expression: what is asked.
        legend: the name of each series.
    """

    expression: str
    legend: str = ""

    def target(self, ref_id: str, form: Format) -> Dataquery:
        """Make the target; numbers and tables are asked for once, at the end of the time range."""
        query = prometheus.Dataquery().expr(self.expression).ref_id(ref_id).datasource(PROMETHEUS)
        query = query.instant() if form in {"number", "table"} else query.range()
        formats = {"table": PromQueryFormat.TABLE, "heatmap": PromQueryFormat.HEATMAP}
        return query.format(formats.get(form, PromQueryFormat.TIME_SERIES)).legend_format(self.legend).build()


@dataclass(frozen=True, slots=True)
class Influx:
    """An InfluxQL query.

    Attributes:
        query: what is asked.
        legend: the name of each series.
    """

    query: str
    legend: str = ""

    def target(self, ref_id: str, form: Format) -> Dataquery:
        """Make the target."""
        return InfluxQuery(self.query, ref_id=ref_id, source=INFLUXDB, alias=self.legend, table=form == "table")


Query = Prom | Influx


def targets(queries: Sequence[Query], form: Format) -> list[Dataquery]:
    """Make the targets of a panel, lettered from A on."""
    return [query.target(chr(ord("A") + number), form) for number, query in enumerate(queries)]
