"""Tables as Grafana makes them of answers: the transformations that our dashboards use."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from grafana.pictures.asking import Json, Line

Cell = float | str


class Table(NamedTuple):
    """A table: the names of its columns, and its rows."""

    columns: list[str]
    rows: list[list[Cell | None]]


def merge(answers: Sequence[tuple[str, list[Line]]]) -> list[dict[str, Cell]]:
    """Join the answers of several targets, named by their letters, where their labels agree."""
    rows: dict[tuple[tuple[str, str], ...], dict[str, Cell]] = defaultdict(dict)
    for letter, lines in answers:
        column = f"Value #{letter}" if len(answers) > 1 else "Value"
        for line in lines:
            labels = {name: value for name, value in line.labels.items() if name != "__name__"}
            rows[tuple(sorted(labels.items()))] |= {**labels, column: line.samples[-1][1]}
    return list(rows.values())


def group(rows: Sequence[Json], fields: Json) -> list[dict[str, Cell]]:
    """Add rows up that agree in the columns that are grouped by."""
    keys = [name for name, field in fields.items() if field["operation"] == "groupby"]
    sums = [name for name, field in fields.items() if field["aggregations"] == ["sum"]]
    found: dict[tuple[str, ...], dict[str, Cell]] = {}
    for row in rows:
        key = tuple(str(row.get(name)) for name in keys)
        into = found.setdefault(key, {**dict(zip(keys, key, strict=True)), **{f"{name} (sum)": 0.0 for name in sums}})
        for name in sums:
            into[f"{name} (sum)"] = float(into[f"{name} (sum)"]) + row[name]
    return list(found.values())


def organize(rows: Sequence[dict[str, Cell]], options: Json, sort_by: Sequence[Json]) -> Table:
    """Name, order and leave out columns, and sort the rows."""
    excluded = {name for name, is_excluded in options["excludeByName"].items() if is_excluded}
    names = sorted(
        {name for row in rows for name in row} - excluded, key=lambda name: options["indexByName"].get(name, 99)
    )
    columns = [options["renameByName"].get(name, name) for name in names]
    cells: list[list[Cell | None]] = [[row.get(name) for name in names] for row in rows]
    for order in sort_by:
        if order["displayName"] in columns:
            index = columns.index(order["displayName"])
            cells.sort(key=lambda row: (row[index] is not None, row[index]), reverse=order["desc"])
    return Table(columns, cells)
