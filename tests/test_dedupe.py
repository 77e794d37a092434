"""The window of remembered identities."""

from pathlib import Path
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from exporter.dedupe import DedupeWindow
from tests.support.inprocess import running

NOW_MS = 1_795_140_000_000


@given(capacity=st.integers(1, 20_000), seed=st.integers(0, 1 << 32))
def test_at_least_the_last_ids_are_remembered(capacity: int, seed: int) -> None:
    """Of a long stream of hashes the newest `capacity` are always known, and never many more than twice as many."""
    window = DedupeWindow(capacity)
    # Hashes as they come: by chance some shards get more of them than others.
    hashes = Random(seed)  # noqa: S311 -- no secret
    ids = [hashes.getrandbits(64) for _ in range(capacity * 4)]
    for start in range(0, len(ids), 1 + capacity // 3):
        end = start + 1 + capacity // 3
        window.add(ids[start:end], start)
        assert [] == [each for each in ids[max(0, min(end, len(ids)) - capacity) : end] if each not in window]
        assert len(window) <= 2.2 * capacity + 64 * 2 * 65
    assert ids[-1] ^ 1 not in window


def test_old_ids_are_forgotten() -> None:
    """An id from long before the last `capacity` ones is new again."""
    window = DedupeWindow(1000)
    hashes = Random(7)  # noqa: S311 -- no secret
    ids = [hashes.getrandbits(64) for _ in range(30_000)]
    window.add(ids, 1)
    assert [] == [each for each in ids[:1000] if each in window]


def test_it_tells_since_when_everything_is_remembered() -> None:
    """The time is that of the first ids while nothing is forgotten; later every id after it is known, in all shards."""
    window = DedupeWindow(1000)
    assert window.since_ms() is None
    window.add(range(64), 100)
    window.add(range(64, 128), 200)
    assert 100 == window.since_ms()
    hashes = Random(7)  # noqa: S311 -- no secret
    ids = [hashes.getrandbits(64) for _ in range(20_000)]
    for now_ms, event_id in enumerate(ids, 1000):
        window.add([event_id], now_ms)
    since = window.since_ms()
    assert since is not None
    assert 1000 < since < 20_000
    assert [] == [each for each in ids[since - 1000 :] if each not in window]


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
