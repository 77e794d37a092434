"""The heart of the promises: `kill -9` under load, again and again, and every event is counted exactly once.

`benchmarks/kills.py` does the same for as many rounds as one likes.
"""

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest

from tests.conftest import StartExporter, V2InfluxDB
from tests.support.kills import Load, batches, by_series, nonzero_counters, points, sample, slow_disk
from tests.support.ports import wait_for

ROUNDS = 10


@pytest.mark.parametrize(
    ("number", "rounds", "is_slow"),
    [(signal.SIGKILL, ROUNDS, False), (signal.SIGKILL, ROUNDS, True), (signal.SIGTERM, 3, False)],
    ids=["SIGKILL", "SIGKILL on a slow disk", "SIGTERM"],
)
async def test_every_event_is_counted_once_over_kills_at_random_moments(
    exporter_process: StartExporter,
    v2_influxdb: V2InfluxDB,
    tmp_path: Path,
    *,
    number: signal.Signals,
    rounds: int,
    is_slow: bool,
) -> None:
    """Kills under load: counters and InfluxDB have each event once, nothing falls, a second sending is ignored."""
    seed = int(os.environ.get("KILL_SEED", random.SystemRandom().randrange(10**6)))
    print(f"KILL_SEED={seed}")  # noqa: T201 -- pytest shows it with a failure
    luck = random.Random(seed)  # noqa: S311 -- a test that can be repeated
    disk = slow_disk(tmp_path / "slow") if is_slow else {}
    exporter = await exporter_process({**v2_influxdb.settings, **disk, "EXPORTER_SCRAPE_INTERVAL": "0.2s"})
    load = Load(seed)
    async with load.at_work(exporter.url):
        for _ in range(rounds):
            await asyncio.sleep(luck.uniform(0.1, 1.0))  # The moment of the kill is what varies.
            os.kill(exporter.pid, number)
            await exporter.wait()
            await exporter.restart(same_port=True)

    events = load.events()
    assert by_series(events) == await nonzero_counters(exporter)
    assert 0.0 == await sample(exporter, "capgo_exporter_expired_events_total")
    for reader in load.readers:
        assert [] == reader.taken_back
        assert reader.pages > rounds

    async def journal_is_empty() -> bool:
        return await sample(exporter, "capgo_exporter_journal_points") == 0

    await wait_for(journal_is_empty, "the journal is not empty")
    assert len(points(events)) == await v2_influxdb.server.count("capgo_stats", "count")

    duplicates = await sample(exporter, "capgo_exporter_events_total", outcome="duplicate", reason="")
    for batch in batches(events):
        assert 200 == (await exporter.post(batch)).status
    assert by_series(events) == await nonzero_counters(exporter)
    again = await sample(exporter, "capgo_exporter_events_total", outcome="duplicate", reason="")
    assert len(events) == again - duplicates
    assert len(points(events)) == await v2_influxdb.server.count("capgo_stats", "count")
