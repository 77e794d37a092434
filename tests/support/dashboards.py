"""Reading dashboards: their parts, the selectors of their queries, and Grafana's schemas."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import jsonschema  # type: ignore[import-untyped]  # it has no annotations

ROOT: Final = Path(__file__).parents[2]
DIRECTORY: Final = ROOT / "grafana" / "dashboards"
SCHEMAS: Final = ROOT / "tests" / "grafana-schema"

Json = dict[str, Any]

# A metric with its matchers, the function right before it, and its window. No matcher of ours holds a brace.
_SELECTOR: Final = re.compile(
    r"(?:(?P<function>\w+)\s*\(\s*)?(?P<name>[a-zA-Z_:][\w:]*)\{(?P<matchers>[^}]*)\}(?:\[(?P<window>[^\]]+)\])?"
)
# What the schemas call an object, though Grafana's own definition says that it can be anything.
_ANYTHING: Final = (("DynamicConfigValue", "value"), ("MatcherConfig", "options"))
_MATCHER: Final = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')


class Selector(NamedTuple):
    """A metric as a query asks for it: its matchers as `label=~"value"`."""

    name: str
    matchers: frozenset[str]
    window: str
    function: str

    @property
    def labels(self) -> set[str]:
        """The labels that it is filtered by."""
        return {re.split("[=!]", matcher)[0] for matcher in self.matchers}


class Target(NamedTuple):
    """A query of a panel, and where it stands."""

    dashboard: Json
    panel: Json
    position: int
    target: Json

    @property
    def where(self) -> str:
        """The place for a message."""
        return f"{self.dashboard['title']} > {self.panel['title']} > {self.position}"


def committed() -> dict[str, Json]:
    """Read the committed dashboards, by the name of their file."""
    return {path.name: json.loads(path.read_text()) for path in sorted(DIRECTORY.glob("*.json"))}


def all_panels(dashboard: Json) -> Iterator[Json]:
    """Give all panels, rows and what is folded in them too."""
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def data_panels(dashboard: Json) -> Iterator[Json]:
    """Give all panels but the rows."""
    return (panel for panel in all_panels(dashboard) if panel["type"] != "row")


def targets(kind: str) -> Iterator[Target]:
    """Give all targets of a kind of data source."""
    for dashboard in committed().values():
        for panel in data_panels(dashboard):
            for index, target in enumerate(panel["targets"]):
                if target["datasource"]["type"] == kind:
                    yield Target(dashboard, panel, index, target)


def selectors(expression: str) -> list[Selector]:
    """Find the selectors of a PromQL expression."""
    return [
        Selector(
            match["name"],
            frozenset(f'{label}{operator}"{value}"' for label, operator, value in _MATCHER.findall(match["matchers"])),
            match["window"] or "",
            match["function"] or "",
        )
        for match in _SELECTOR.finditer(expression)
    ]


def schema(name: str) -> Json:
    """Read one of Grafana's schemas."""
    found: Json = json.loads((SCHEMAS / f"{name}.jsonschema.json").read_text())
    for definition, key in _ANYTHING:
        if definition in found["definitions"]:
            found["definitions"][definition]["properties"][key] = {}
    return found


def units() -> set[str]:
    """Give the units that Grafana knows."""
    return {definition["const"] for definition in schema("units")["definitions"].values() if "const" in definition}


def violations(value: object, name: str, definition: str = "", *, optional: bool = False) -> list[str]:
    """Hold a value against a schema.

    Args:
        value: a part of a dashboard.
        name: of the schema's file.
        definition: the part of the schema; all of it by default.
        optional: nothing is required, as Grafana fills in what is missing.

    Returns:
        A line for each violation.
    """
    whole = schema(name)
    if definition:
        whole |= {"$ref": f"#/definitions/{definition}"}
    if optional:
        _drop_required(whole)
    found = jsonschema.Draft7Validator(whole).iter_errors(value)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:300]}" for error in found]


def _drop_required(part: object) -> None:
    if isinstance(part, dict):
        part.pop("required", None)
        for inner in part.values():
            _drop_required(inner)
    elif isinstance(part, list):
        for inner in part:
            _drop_required(inner)
