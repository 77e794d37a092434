"""All dashboards, in the order in which a person on call reads them."""

from collections.abc import Callable
from typing import Final

from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.generate import devices, downloads, events, exporter, failures, health, overview, rollout
from grafana.generate.board import Board, build, to_text

BOARDS: Final[tuple[Callable[[], Board], ...]] = (
    overview.board,
    downloads.board,
    failures.board,
    rollout.board,
    health.board,
    devices.board,
    events.board,
    exporter.board,
)


def dashboards() -> list[Dashboard]:
    """Make all dashboards."""
    return [build(board()) for board in BOARDS]


def files() -> dict[str, str]:
    """Give the text of each file of `grafana/dashboards`, by its name."""
    return {f"{built.uid}.json": to_text(built) for built in dashboards()}
