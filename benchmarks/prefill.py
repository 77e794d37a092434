"""Data directories of an exporter that has run for long: series, remembered ids and points."""

import json
import random
import time
from collections.abc import Iterator
from itertools import count, islice, product
from pathlib import Path
from typing import Final

import msgspec

from benchmarks import loads
from exporter.actions import BY_NAME
from exporter.counters import EVENTS
from exporter.journal.codec import compress
from exporter.journal.opening import open_journal
from exporter.journal.records import Birth, SeriesRow, Transaction
from exporter.journal.store import Journal
from exporter.labels import Labels
from exporter.lineprotocol import series_prefix

ACTIONS: Final = tuple(dict.fromkeys((*loads.USUAL_ACTIONS, *BY_NAME)))[:40]
VERSIONS: Final = 50
POINTS_OF_A_ROW: Final = 2000
_IDS_OF_A_ROW: Final = 20_000
_ROWS_AT_ONCE: Final = 20
_DISTINCT_ROWS: Final = 16


def labels() -> Iterator[Labels]:
    """Give the labels of series, app by app: 4,000 each."""
    for app in count():
        for version, platform, action in product(range(VERSIONS), loads.PLATFORMS, ACTIONS):
            yield Labels(f"com.example.app{app}", platform, action, f"1.{version}.0", "prod")


def bodies(series: int, batch: int, most: int = 2000) -> list[str]:
    """Make bodies of the usual load for an exporter that holds so many series.

    Each is of one app, platform and version, as always; at most so many of these, evenly spread over all series.
    """
    tracks = list(islice(labels(), 0, series, len(ACTIONS)))
    chosen = tracks[:: -(-len(tracks) // most)]
    usual = [json.loads(body) for body in loads.bodies("queue", batch)]
    found = []
    for number in range(max(len(chosen), len(usual))):
        track = chosen[number % len(chosen)]
        own = {"app_id": track.app_id, "platform": track.platform, "version_name": track.version}
        found.append(json.dumps([event | own for event in usual[number % len(usual)]], separators=(",", ":")))
    return found


def prefill(data_dir: Path, *, series: int = 0, ids: int = 0, points: int = 0, points_bytes: int = 0) -> int:
    """Write a journal that holds so much; gives the points it holds.

    Args:
        data_dir: where; it must be empty.
        series: series of the events, all born.
        ids: remembered identities.
        points: points that wait.
        points_bytes: compressed bytes of points that wait; what is larger counts.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    opened = open_journal(data_dir)
    journal = Journal(opened.path, opened.connection, opened.restored.totals, max_bytes=None, max_event_ids=1 << 40)
    try:
        if series:
            journal.commit(_next(journal, new_series=list(_series_rows(series))))
        chance = random.Random(1)  # noqa: S311 -- no secret
        while journal.totals.event_ids < ids:
            some = [chance.getrandbits(64) for _ in range(min(_IDS_OF_A_ROW, ids - journal.totals.event_ids))]
            journal.commit(_next(journal, event_ids=some))
        if points or points_bytes:
            _add_points(journal, points, points_bytes)
        return journal.totals.points
    finally:
        journal.close()


def _next(journal: Journal, **changes: object) -> Transaction:
    transaction = Transaction(journal.totals.last_transaction + 1, time.time_ns() // 1_000_000)
    for name, value in changes.items():
        setattr(transaction, name, value)
    return transaction


def _series_rows(series: int) -> Iterator[SeriesRow]:
    now_ms = time.time_ns() // 1_000_000
    for series_id, each in enumerate(islice(labels(), series), start=1):
        text = msgspec.json.encode(each).decode()
        yield SeriesRow(series_id, EVENTS.name, text, series_id, Birth.FULL, now_ms)


def lines(number: int, points: int) -> list[str]:
    """Make lines of points as events of the benchmarks' load become."""
    now_ms = time.time_ns() // 1_000_000
    chance = random.Random(number)  # noqa: S311 -- no secret
    found = []
    for index, each in enumerate(islice(labels(), number, number + points)):
        prefix = series_prefix(each.app_id, each.platform, each.action, each.version, each.environment)
        device = f"{(number + index) // 200:08x}-0000-4000-8000-{number:012d}"
        found.append(
            f'{prefix}channel="production",count=1i,device_id="{device}",install_source="google_play",'
            f'metadata="{{\\"duration_ms\\":\\"{chance.randrange(9999)}\\"}}",plugin_version="8.51.14",version_build="1.2.0",'
            f'version_code="120",version_os="13" {(now_ms + index) * 10**6 + chance.randrange(10**6)}'
        )
    return found


def _add_points(journal: Journal, points: int, size: int) -> None:
    """Write rows of points, many in a transaction; the same few rows again and again, which delivery does not mind."""
    rows = [compress(lines(number * 977, POINTS_OF_A_ROW)) for number in range(_DISTINCT_ROWS)]
    connection = journal._connection  # noqa: SLF001 -- a thousand times faster than one transaction for each group
    if connection is None:
        raise AssertionError
    totals = journal.totals
    now_ms = time.time_ns() // 1_000_000
    needed = max(-(-points // POINTS_OF_A_ROW), -(-size * _DISTINCT_ROWS // sum(map(len, rows))))
    first = totals.last_transaction + 1
    connection.execute("BEGIN IMMEDIATE")
    for number in range(first, first + needed):
        row = rows[number % _DISTINCT_ROWS]
        connection.execute(
            "INSERT INTO points VALUES (?, ?, ?, ?, ?)", (number, now_ms, POINTS_OF_A_ROW, len(row), row)
        )
        totals.points += POINTS_OF_A_ROW
        totals.bytes += len(row)
    totals.last_transaction += needed
    connection.execute(
        "UPDATE state SET last_transaction = ?, points = ?, bytes = ?",
        (totals.last_transaction, totals.points, totals.bytes),
    )
    connection.execute("COMMIT")
