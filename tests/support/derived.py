"""What a page shows of the derived figures, and an exporter whose time the test moves."""

import asyncio
import shutil
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from exporter.derived.derivation import Derivation
from exporter.journal.opening import FILE_NAME
from tests.support.exporter import EVENTS_TOTAL, parse_samples
from tests.support.inprocess import ManualClock, Running

APP = "com.example.derived"
BEGAN_MS = 1_800_000_000_000  # where `ManualClock` starts
HOUR = 3600.0
DAY = 24 * HOUR
_NOT_DERIVED = ("#", "capgo_exporter_", "process_", "python_", EVENTS_TOTAL)

Values = dict[tuple[str, ...], float]
"""Samples by the values of some of their labels."""


def event(action: str, device: str = "d1", at: float | None = None, **fields: Any) -> dict[str, Any]:
    """Make an event; `at` is its device's time in seconds since the beginning."""
    made: dict[str, Any] = {"app_id": APP, "platform": "ios", "version_name": "1.0.0", "action": action, **fields}
    if device:
        made["device_id"] = device
    if at is not None:
        made["timestamp"] = BEGAN_MS + round(at * 1000)
    return made


async def post(exporter: Running, *events: dict[str, Any]) -> None:
    """Post events in one batch, which must be taken."""
    assert 200 == (await exporter.post(list(events))).status


async def settle(exporter: Running, clock: ManualClock, seconds: float = 0.0) -> None:
    """Let time pass, and have everything counted that is due then."""
    clock.advance(seconds)
    await derivation(exporter).settle()


def derivation(exporter: Running) -> Derivation:
    """Give what works figures out."""
    found = exporter.exporter.derivation
    assert found is not None
    return found


def derived_lines(page: str) -> dict[str, float]:
    """Give the samples of all derived figures by their name and labels."""
    lines = [line.rpartition(" ") for line in page.splitlines() if not line.startswith(_NOT_DERIVED)]
    return {name: float(value) for name, _, value in lines}


def values(page: str, name: str, *labels: str, app_id: str | None = APP) -> Values:
    """Give the samples of a name that are not 0, by the values of these labels; of one app unless it is None."""
    found: Values = {}
    for sample in parse_samples(page):
        if sample.name == f"capgo_{name}" and sample.value and app_id in {None, sample.labels.get("app_id")}:
            key = tuple(sample.labels[label] for label in labels)
            assert key not in found, f"two samples of {name} have {labels} = {key}"
            found[key] = sample.value
    return found


async def shown(exporter: Running, name: str, *labels: str, app_id: str | None = APP) -> Values:
    """Give what the page shows of a name, without zeros."""
    return values(await exporter.metrics(), name, *labels, app_id=app_id)


def query(data_dir: Path, statement: str) -> list[tuple[Any, ...]]:
    """Ask the journal's file, or change it."""
    with closing(sqlite3.connect(data_dir / FILE_NAME, isolation_level=None)) as connection:
        return connection.execute(statement).fetchall()


def rows(data_dir: Path, tables: Iterable[str]) -> dict[str, int]:
    """Count the rows of tables."""
    return {table: query(data_dir, f"SELECT count(*) FROM {table}")[0][0] for table in tables}  # noqa: S608 -- ours


def killed(data_dir: Path, to: Path) -> Path:
    """Copy a data directory as a process leaves it that is killed now: everything committed, nothing closed."""
    to.mkdir()
    for path in data_dir.glob(f"{FILE_NAME}*"):
        shutil.copyfile(path, to / path.name)
    return to


async def turns(count: int = 20) -> None:
    """Let the event loop go on for some turns."""
    for _ in range(count):
        await asyncio.sleep(0)
