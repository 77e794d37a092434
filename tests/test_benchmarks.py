"""The pure parts of the benchmarks: what is sent, what is prepared, and how figures get into the document."""

import time
from pathlib import Path

import pytest

from benchmarks.loads import KINDS, LOADS, PLACEHOLDER, bodies, returning
from benchmarks.pacer import percentiles
from benchmarks.prefill import POINTS_OF_A_ROW, prefill
from benchmarks.prefill import bodies as prefilled_bodies
from benchmarks.report import DOCUMENT, replace, table
from exporter.clock import Clock
from exporter.derived.derivation import LATE_AFTER_MS
from exporter.events import Event, decode
from exporter.identity import identity
from exporter.settings import Settings
from exporter.state import State


def events_of(body: str, device: int = 1) -> list[Event]:
    """Decode a body; every event must be one."""
    batch = decode(body.replace(PLACEHOLDER, f"{device:012d}").encode())
    assert all(isinstance(event, Event) for event in batch.events)
    return [event for event in batch.events if isinstance(event, Event)]


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("batch", [1, 50, 200])
def test_bodies_are_distinct_events_of_one_device_in_time(load: str, batch: int) -> None:
    """A body holds so many distinct events of one device, none late and none ahead; another device's are others."""
    now_ms = time.time_ns() // 1_000_000
    found = bodies(load, batch, now_ms=now_ms)
    assert KINDS == len(found)
    seen: set[int | None] = set()
    for body in found:
        events = events_of(body) + events_of(body, device=2)
        assert 2 * batch == len(events)
        assert 2 == len({event.device_id for event in events})
        assert all(0 < now_ms - (event.timestamp or 0) < LATE_AFTER_MS for event in events)
        seen |= {identity(event) for event in events}
    assert 2 * batch * KINDS == len(seen)


def test_single_events_hold_every_action() -> None:
    """Bodies of one event hold what long ones hold."""
    single = {event.action for body in bodies("queue", 1, kinds=4 * KINDS) for event in events_of(body)}
    long = {event.action for body in bodies("queue", 200) for event in events_of(body)}
    assert long == single


def test_devices_that_return_send_other_events() -> None:
    """The number of a request makes the events of a device that comes again distinct."""
    first, second = (events_of(returning(50)[0], number) for number in (1, 2))
    assert {event.device_id for event in first} == {event.device_id for event in second}
    assert set() == {identity(event) for event in first} & {identity(event) for event in second}


def test_a_prepared_journal_holds_what_was_asked_for(tmp_path: Path) -> None:
    """An exporter restores the series, ids and points that were put into its journal, and the load hits its series."""
    prefill(tmp_path, series=4100, ids=50_000, points=10_000)
    state = State(Settings(data_dir=tmp_path), Clock())
    assert 4100 == len(state.counters)
    assert 50_000 == len(state.dedupe)
    assert 5 * POINTS_OF_A_ROW == state.journal.totals.points
    labels = {cell.labels for cell in state.counters.all()}
    hit = [
        state.labels.place(event).labels in labels for body in prefilled_bodies(4000, 50) for event in events_of(body)
    ]
    assert all(hit)
    state.committer.close()


def test_latencies_are_given_as_percentiles() -> None:
    """Of a thousand latencies, the 990th is the p99."""
    found = percentiles([number / 1000 for number in range(1000)])
    assert (500.0, 990.0, 999.0) == (found["p50"], found["p99"], found["max"])


def test_figures_replace_what_stands_between_the_markers() -> None:
    """A table gets between its markers, and everything else stays."""
    text = table(["a", "b"], [["x", "1"]])
    before = "head\n<!-- t -->\nold\n<!-- /t -->\nfoot\n"
    after = replace(before, "t", text)
    assert f"head\n<!-- t -->\n{text}\n<!-- /t -->\nfoot\n" == after
    assert after == replace(after, "t", text)


def test_the_document_has_a_place_for_each_kind_of_figures() -> None:
    """docs/performance.md has the markers that the scripts write between."""
    document = DOCUMENT.read_text(encoding="utf-8")
    for name in ("bench", "stages", "targets", "scaling"):
        assert document != replace(document, name, "figures")
