"""The window of remembered identities."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from exporter.dedupe import DedupeWindow
from tests.support.inprocess import running

NOW_MS = 1_795_140_000_000


@given(capacity=st.integers(1000, 20_000), seed=st.integers(0, 1 << 32))
def test_at_least_the_last_ids_are_remembered(capacity: int, seed: int) -> None:
    """Of a long stream of hashes the newest `capacity` are remembered, and not many more than twice as many."""
    window = DedupeWindow(capacity)
    ids = [(seed + number) * 0x9E3779B97F4A7C15 % (1 << 64) for number in range(capacity * 3)]
    for start in range(0, len(ids), 777):
        window.add(ids[start : start + 777], start)
    assert all(event_id in window for event_id in ids[-capacity:])
    assert len(window) <= 2.2 * capacity + 64 * 2 * 65
    assert ids[0] ^ 1 not in window


def test_it_tells_since_when_everything_is_remembered() -> None:
    """The time is that of the first ids while nothing is forgotten, and moves on when something is."""
    window = DedupeWindow(1000)
    assert window.since_ms() is None
    window.add(range(64), 100)
    window.add(range(64, 128), 200)
    assert 100 == window.since_ms()
    for step in range(1, 200):
        window.add(range(step * 1000, step * 1000 + 1000), 200 + step)
    since = window.since_ms()
    assert since is not None
    assert 200 < since < 399


async def test_the_window_is_restored(tmp_path: Path) -> None:
    """After a restart at least the promised number of the newest events is known; older ones may count again."""
    events = [{"app_id": "a", "action": "set", "timestamp": NOW_MS + number} for number in range(4000)]
    settings = {"data_dir": tmp_path, "dedupe_events": 1000}
    async with running(settings) as server:
        for start in range(0, 4000, 100):
            assert 200 == (await server.post(events[start : start + 100])).status
    async with running(settings) as server:
        assert 200 == (await server.post(events[-1000:])).status
        assert [4000] == list((await server.counters()).values())
        assert 1000 == await server.sample("capgo_exporter_events_total", outcome="duplicate", reason="")
        assert await server.sample("capgo_exporter_dedupe_events") >= 1000
