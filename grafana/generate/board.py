"""A dashboard: rows of panels, laid out from left to right and from top to bottom."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    AnnotationContainer,
    AnnotationQuery,
    Dashboard,
    DashboardCursorSync,
    DashboardDashboardTemplating,
    DashboardLinkType,
    GridPos,
    Panel,
    RowPanel,
    VariableModel,
)

TAG: Final = "capgo"
COLUMNS: Final = 24
_ROW_HEIGHT: Final = 1


@dataclass(frozen=True, slots=True)
class Row:
    """A part of a dashboard that is folded and unfolded by its title."""

    title: str
    panels: Sequence[Panel]
    collapsed: bool = False


@dataclass(frozen=True, slots=True)
class Board:
    """What is particular to a dashboard.

    Attributes:
        uid: its fixed name, which links use.
        title: what people call it.
        description: what it answers.
        variables: what its queries are filtered by.
        rows: its parts.
        annotations: markers over its graphs.
        start: the beginning of its time range.
        refresh: how often it asks again.
    """

    uid: str
    title: str
    description: str
    variables: Sequence[VariableModel]
    rows: Sequence[Row]
    annotations: Sequence[AnnotationQuery] = field(default=())
    start: str = "now-24h"
    refresh: str = "1m"


def build(board: Board) -> Dashboard:
    """Make the dashboard: not editable, because what Grafana changes is lost with the next provisioning."""
    built = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags([TAG])
        .readonly()
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time(board.start, "now")
        .refresh(board.refresh)
        .link(_links())
        .build()
    )
    built.panels = lay_out(board.rows)
    built.templating = DashboardDashboardTemplating(list(board.variables))
    built.annotations = AnnotationContainer(list(board.annotations))
    return built


def to_text(built: Dashboard) -> str:
    """Write a dashboard as its file holds it: the same text for the same dashboard."""
    return json.dumps(built, cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def lay_out(rows: Sequence[Row]) -> list[Panel | RowPanel]:
    """Number the panels, and give each its place on the grid."""
    placed: list[Panel | RowPanel] = []
    number, top = 1, 0
    for row in rows:
        header = RowPanel(title=row.title, collapsed=row.collapsed, id_val=number)
        header.grid_pos = GridPos(x=0, y=top, w=COLUMNS, h=_ROW_HEIGHT)
        top += _ROW_HEIGHT
        bottom = _place(row.panels, number + 1, top)
        number += 1 + len(row.panels)
        placed.append(header)
        if row.collapsed:
            header.panels = list(row.panels)
        else:
            placed += row.panels
            top = bottom
    return placed


def _place(panels: Sequence[Panel], first_number: int, top: int) -> int:
    """Place panels side by side, a new line where one does not fit; return where the next line begins."""
    left, height = 0, 0
    for number, panel in enumerate(panels, first_number):
        position = panel.grid_pos or GridPos()
        if left + position.w > COLUMNS:
            left, top, height = 0, top + height, 0
        position.x, position.y = left, top
        left, height = left + position.w, max(height, position.h)
        panel.id_val, panel.grid_pos = number, position
    return top + height


def _links() -> dashboard.DashboardLink:
    """Link all our dashboards with each other; the variables and the time go along."""
    return (
        dashboard.DashboardLink("Capgo")
        .type(DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .icon("external link")
        .as_dropdown(False)  # noqa: FBT003 -- the SDK's way
        .include_vars(True)  # noqa: FBT003 -- the SDK's way
        .keep_time(True)  # noqa: FBT003 -- the SDK's way
    )
