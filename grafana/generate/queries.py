"""Every query of the dashboards, as Grafana sends it once its variables have values.

A test runs each of them on a real server.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from grafana.generate.catalogue import files

Source = Literal["prometheus", "influxdb"]
Kind = Literal["panel", "variable", "annotation"]

# `$name`, `${name}`, `${name:format}`; https://grafana.com/docs/grafana/latest/dashboards/variables/variable-syntax/
_VARIABLE: Final = re.compile(r"\$(?:\{(?P<braced>\w+)(?::\w+)?\}|(?P<plain>\w+))")
_LABEL_VALUES: Final = re.compile(r"label_values\((?P<selector>.+), (?P<label>\w+)\)")


@dataclass(frozen=True, slots=True)
class Values:
    """What stands for the variables.

    Attributes:
        start: the beginning of the time range, in seconds since 1970.
        end: its end.
        step_seconds: the distance of the points of a graph.
        scrape_seconds: how often Prometheus scrapes.
        variables: the dashboards' own variables by name, as regular expressions; those that are not here are `.+`.
    """

    start: float
    end: float
    step_seconds: int = 60
    scrape_seconds: int = 15
    variables: Mapping[str, str] = field(default_factory=dict)

    def globals(self) -> dict[str, str]:
        """Give the values that Grafana works out by itself; the rate's interval is that of its documentation.

        https://grafana.com/docs/grafana/latest/datasources/prometheus/template-variables/#use-__rate_interval
        """
        range_seconds = int(self.end - self.start)
        rate_seconds = max(self.step_seconds + self.scrape_seconds, 4 * self.scrape_seconds)
        return {
            "__interval": f"{self.step_seconds}s",
            "__interval_ms": str(self.step_seconds * 1000),
            "__rate_interval": f"{rate_seconds}s",
            "__range": f"{range_seconds}s",
            "__range_s": str(range_seconds),
            "timeFilter": f"time >= {int(self.start * 1000)}ms and time <= {int(self.end * 1000)}ms",
        }


@dataclass(frozen=True, slots=True)
class Asked:
    """One query.

    Attributes:
        dashboard: the uid of the dashboard.
        kind: what asks it.
        title: of the panel, the variable or the annotation.
        source: where it is asked.
        query: the query with the values of all variables.
        is_instant: it is asked at the end of the time range alone.
    """

    dashboard: str
    kind: Kind
    title: str
    source: Source
    query: str
    is_instant: bool


def queries(values: Values) -> list[Asked]:
    """List every query of every panel, variable and annotation.

    A variable's `label_values(SELECTOR, label)` becomes `group by (label) (SELECTOR)`, which has the same answer.

    Raises:
        KeyError: a query has a variable that its dashboard has not.
    """
    found: list[Asked] = []
    for text in files().values():
        dashboard = json.loads(text)
        known = {variable["name"]: ".+" for variable in dashboard["templating"]["list"]}
        known |= {name: value for name, value in values.variables.items() if name in known}
        every = known | values.globals()
        found.extend(replace(asked, query=substitute(asked.query, every)) for asked in _raw(dashboard))
    return found


def substitute(query: str, values: Mapping[str, str]) -> str:
    """Put values in the place of variables.

    Raises:
        KeyError: a variable has no value.
    """
    return _VARIABLE.sub(lambda match: values[match["braced"] or match["plain"]], query)


def panels(dashboard: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Give the panels of a dashboard, those in folded rows too; rows themselves are none."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def _raw(dashboard: Mapping[str, Any]) -> Iterator[Asked]:
    uid = dashboard["uid"]
    for panel in panels(dashboard):
        for target in panel["targets"]:
            query = target.get("expr") or target["query"]
            source = target["datasource"]["type"]
            yield Asked(uid, "panel", panel["title"], source, query, target.get("instant", source == "influxdb"))
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            source = variable["datasource"]["type"]
            yield Asked(uid, "variable", variable["name"], source, _variable_query(variable["query"]), is_instant=True)
    for annotation in dashboard["annotations"]["list"]:
        query = annotation.get("expr") or annotation["target"]["query"]
        yield Asked(uid, "annotation", annotation["name"], annotation["datasource"]["type"], query, is_instant=False)


def _variable_query(query: str) -> str:
    return _LABEL_VALUES.sub(r"group by (\g<label>) (\g<selector>)", query)


def of_source(asked: Iterable[Asked], source: Source) -> list[Asked]:
    """Keep the queries of one data source."""
    return [each for each in asked if each.source == source]
