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


_ODD_IDS = st.one_of(
    st.integers(1, (1 << 64) - 1),
    st.integers(1, 300),  # as sequences are
    st.integers(1, 255).map(lambda number: number << 56),
    st.integers(0, 300).map(lambda number: (1 << 64) - 1 - number),
)


@given(
    capacity=st.integers(1, 500),
    batches=st.lists(st.lists(_ODD_IDS, max_size=200, unique=True), max_size=30),
    strangers=st.lists(_ODD_IDS, max_size=100),
)
def test_nothing_else_is_remembered(capacity: int, batches: list[list[int]], strangers: list[int]) -> None:
    """Whatever the ids are, one by one or many at once: the last ones are known, and none that was never added."""
    window = DedupeWindow(capacity)
    added: dict[int, None] = {}
    for number, ids in enumerate(batches):
        new = [event_id for event_id in ids if event_id not in added]
        assert set() == window.known(new)
        window.add(new, number)
        added |= dict.fromkeys(new)
        last = list(added)[-capacity:]
        assert set(last) == window.known(last)
        assert [] == [event_id for event_id in last if event_id not in window]
    unknown = [event_id for event_id in strangers if event_id not in added]
    assert set() == window.known([*unknown, None])
    assert [] == [event_id for event_id in unknown if event_id in window]


def test_known_and_unknown_ids_are_told_apart_in_one_question() -> None:
    """Of many ids, some without an identity, exactly those are found that were added, in either generation."""
    window = DedupeWindow(20_000)
    hashes = Random(3)  # noqa: S311 -- no secret
    ids = [hashes.getrandbits(64) for _ in range(50_000)]
    for start in range(0, 30_000, 1000):
        window.add(ids[start : start + 1000], start)
    asked = [*ids[10_000:], None, *ids[10_000:]]
    assert set(ids[10_000:30_000]) == window.known(asked)


def test_an_id_that_comes_again_and_again_fills_nothing() -> None:
    """The same id many times, which no caller means to add, neither stops the window nor hides others for long."""
    window = DedupeWindow(100)
    for _ in range(10):
        window.add([5] * 1000, 1)
        for _ in range(1000):
            window.add([5], 1)
    assert {5} == window.known([5, 6])


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
