"""InfluxQL: the one query language that InfluxDB 1.x, 2.x and 3.x answer."""

from typing import Final

from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models.dashboard import DataSourceRef

TAGS: Final = {"app_id": "app", "platform": "platform", "version": "version", "environment": "environment"}
"""The variable that each tag is filtered by."""

FAILURE: Final = r'"action" =~ /_fail$|^checksum_required$|^insufficient_disk_space$/'
"""An update failed."""

ROLLBACK: Final = """("action" = 'update_fail' OR ("action" = 'set_fail' AND "platform" = 'electron'))"""
INSTALL: Final = "\"action\" = 'set'"
FINISHED: Final = r'"action" =~ /^download_(zip_|manifest_)?complete$/'
HEALTH: Final = (
    r'"action" =~ /^app_(crash|crash_native|anr|killed_.+|initialization_failure|memory_warning|launch_timeout)$'
    r"|^webview_(javascript_error|unhandled_rejection|resource_error|security_policy_violation|unclean_restart"
    r"|render_process_gone|content_process_terminated)$/"
)
"""The app or its WebView failed."""


def where(*conditions: str, without: tuple[str, ...] = ()) -> str:
    """Write the condition of a query: the tags' variables, more conditions, and the dashboard's time range."""
    tags = [f'"{tag}" =~ /^${variable}$/' for tag, variable in TAGS.items() if tag not in without]
    return " AND ".join([*tags, *conditions, "$timeFilter"])


def ask(what: str, *conditions: str, by: tuple[str, ...] = (), over_time: bool = False) -> str:
    """Write a query of the points.

    Args:
        what: what to select.
        conditions: more conditions than the variables and the time.
        by: tags to tell apart.
        over_time: a value for each interval of a graph; one for the whole range otherwise.
    """
    statement = f'SELECT {what} FROM "capgo_stats" WHERE {where(*conditions)}'  # noqa: S608 -- a constant for Grafana
    groups = [*(["time($__interval)"] if over_time else []), *(f'"{tag}"' for tag in by)]
    grouping = f" GROUP BY {', '.join(groups)}" if groups else ""
    return f"{statement}{grouping}{' fill(0)' if over_time else ''}"


def last(fields: tuple[str, ...], limit: int, *conditions: str) -> str:
    """Write a query of the newest points, as a table."""
    columns = ", ".join(f'"{field}"' for field in fields)
    return f"{ask(columns, *conditions)} ORDER BY time DESC LIMIT {limit}"


class InfluxQuery(Dataquery):
    """A target of a panel, which the SDK has no model of."""

    def __init__(self, query: str, *, ref_id: str, source: DataSourceRef, alias: str = "", table: bool = False) -> None:
        """Take the query, and how Grafana shows it."""
        self.query = query
        self.ref_id = ref_id
        self.datasource = source
        self.alias = alias
        self.table = table

    def to_json(self) -> dict[str, object]:
        """Write the target as Grafana stores it."""
        alias = {"alias": self.alias} if self.alias else {}
        return {
            "query": self.query,
            "rawQuery": True,
            "resultFormat": "table" if self.table else "time_series",
            "refId": self.ref_id,
            "datasource": self.datasource,
            **alias,
        }
