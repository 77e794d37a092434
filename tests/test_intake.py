"""Intake: each event once, whichever way it comes, and again however often it is sent."""

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

from exporter.events import Event, decode
from exporter.identity import identity
from tests.support.exporter import CounterKey
from tests.support.inprocess import running

KEY = CounterKey("com.example.intake", "android", "get", "1.0.0", "prod")
NOW_MS = 1_795_140_000_000


def event(number: int, **fields: Any) -> dict[str, Any]:
    """Make an event of its own."""
    timestamp = {"timestamp": NOW_MS + number}
    return {**KEY._asdict(), "version_name": KEY.version, "device_id": "d", **timestamp, **fields}


def without_timestamp(number: int) -> dict[str, Any]:
    """Make an event as the Android worker sends it."""
    made = event(number)
    del made["timestamp"]
    return made


async def test_the_same_event_twice_in_a_batch_is_one() -> None:
    """Both are answered ok, one is counted, one is a point."""
    async with running() as server:
        reply = await server.post([event(1), event(2), event(1)])
        assert ["ok", "ok", "ok"] == [result["status"] for result in reply.json()["results"]]
        assert {KEY: 2} == await server.counters()
        assert 2 == len(server.points())
        assert 1 == await server.sample("capgo_exporter_events_total", outcome="duplicate", reason="")


async def test_the_same_event_in_concurrent_requests_is_one() -> None:
    """Twenty requests with the same batch at the same time count it once."""
    batch = [event(number) for number in range(30)]
    async with running() as server:
        replies = await asyncio.gather(*(server.post(batch) for _ in range(20)))
        assert {200} == {reply.status for reply in replies}
        assert {KEY: 30} == await server.counters()
        assert 30 == len(server.points())


async def test_a_superset_sent_again_adds_what_is_new() -> None:
    """A device that was not answered sends its queue again, with what happened since, in another order."""
    async with running() as server:
        assert 200 == (await server.post([event(1), event(2)])).status
        assert 200 == (await server.post([event(3), event(2), event(1), event(4)])).status
        assert {KEY: 4} == await server.counters()


async def test_an_event_sent_again_after_a_restart_is_one(tmp_path: Path) -> None:
    """What is remembered is remembered on disk."""
    for expected in (2, 3):
        async with running({"data_dir": tmp_path}) as server:
            batch = [event(number) for number in range(expected)]
            assert 200 == (await server.post(batch)).status
            assert {KEY: expected} == await server.counters()


async def test_what_tells_events_apart() -> None:
    """A difference in any defining field makes another event; a difference elsewhere does not."""
    different = [
        event(1),
        event(2),
        event(1, device_id="e"),
        event(1, action="set"),
        event(1, version_name="1.0.1"),
        event(1, app_id="com.example.other"),
        event(1, metadata={"a": "1"}),
        event(1, metadata={"a": "2"}),
    ]
    same = [event(1, device_id="D"), event(1, version_os="15"), event(1, metadata={}), event(1, metadata=None)]
    async with running() as server:
        assert 200 == (await server.post([*different, *same])).status
        assert len(different) == sum((await server.counters()).values())
        assert len(same) == await server.sample("capgo_exporter_events_total", outcome="duplicate", reason="")


async def test_events_of_the_same_millisecond_are_points_of_their_own() -> None:
    """Two devices' events of one series and millisecond have different nanoseconds, within that millisecond."""
    async with running() as server:
        assert 200 == (await server.post([event(1, device_id="a"), event(1, device_id="b")])).status
        times = {point.time_ns for point in server.points()}
        assert 2 == len(times)
        assert {NOW_MS + 1} == {time_ns // 10**6 for time_ns in times}


def sharing_a_nanosecond() -> tuple[list[dict[str, Any]], int]:
    """Find two events of one millisecond whose ids agree modulo a million, and that number."""
    seen: dict[int, dict[str, Any]] = {}
    for number in itertools.count():
        made = event(0, device_id=str(number))
        (decoded,) = decode(json.dumps(made).encode()).events
        assert isinstance(decoded, Event)
        event_id = identity(decoded)
        assert event_id is not None
        other = seen.setdefault(event_id % 10**6, made)
        if other is not made:
            return [other, made], event_id % 10**6
    raise AssertionError


async def test_a_shared_nanosecond_hides_no_event_from_the_counter() -> None:
    """Events of one series and millisecond whose ids agree modulo a million share their time; both are counted."""
    batch, nanosecond = sharing_a_nanosecond()
    async with running() as server:
        assert 200 == (await server.post(batch)).status
        assert {KEY: 2} == await server.counters()
        assert [NOW_MS * 10**6 + nanosecond] * 2 == [point.time_ns for point in server.points()]


async def test_the_results_of_a_mixed_batch() -> None:
    """Each event has its own result in the batch's order; what is counted before, or filtered out, is ok."""
    batch: list[Any] = [
        event(1),
        {"app_id": "a"},
        event(1),
        event(2, app_id="com.example.stranger"),
        "no event",
        event(2),
    ]
    async with running({"allowed_apps": KEY.app_id}) as server:
        reply = await server.post(batch)
        results = [(result["index"], result["status"]) for result in reply.json()["results"]]
        assert [(0, "ok"), (1, "error"), (2, "ok"), (3, "ok"), (4, "error"), (5, "ok")] == results
        assert {KEY: 2} == await server.counters()
        assert reply.json()["results"] == (await server.post(batch)).json()["results"]
        assert {KEY: 2} == await server.counters()


async def test_a_repeat_in_a_later_slice_is_a_duplicate() -> None:
    """The whole of a batch comes twice in one body, so that the second half is found across slices and groups."""
    batch = [event(number) for number in range(2500)]
    async with running() as server:
        assert 200 == (await server.post(batch + batch)).status
        assert ({KEY: 2500}, 2500) == (await server.counters(), len(server.points()))
        assert 2500 == await server.sample("capgo_exporter_events_total", outcome="duplicate", reason="")


async def test_events_without_a_timestamp_each_count() -> None:
    """Their clients do not send again: equal ones are different events, with times of their own."""
    async with running() as server:
        assert 200 == (await server.post([without_timestamp(1)] * 50)).status
        assert 200 == (await server.post(without_timestamp(1))).status
        assert {KEY: 51} == await server.counters()
        assert 51 == len({point.time_ns for point in server.points()})


async def test_a_long_batch_is_staged_in_slices() -> None:
    """A batch of 5,000 events, some of them bad, is answered with a result for each, and counted once."""
    batch: list[Any] = [event(number) for number in range(5000)]
    for index in (0, 999, 1000, 2500, 4999):
        batch[index] = {"app_id": "a"}
    async with running() as server:
        reply = await server.post(batch)
        results = reply.json()["results"]
        assert list(range(5000)) == [result["index"] for result in results]
        assert [0, 999, 1000, 2500, 4999] == [result["index"] for result in results if result["status"] == "error"]
        assert {KEY: 4995} == await server.counters()
        assert 200 == (await server.post(batch)).status
        assert {KEY: 4995} == await server.counters()


async def test_apps_that_are_not_allowed_are_filtered() -> None:
    """They are answered ok, so that devices do not send for ever, counted as filtered, and nothing is stored."""
    settings = {"allowed_apps": "com.example.intake"}
    async with running(settings) as server:
        batch = [event(1), event(2, app_id="com.example.stranger"), event(3, app_id="unknown")]
        assert 200 == (await server.post(batch)).status
        assert {KEY, KEY._replace(app_id="unknown")} == set(await server.counters())
        filtered = {"outcome": "filtered", "reason": "app_not_allowed"}
        assert 1 == await server.sample("capgo_exporter_events_total", **filtered)
        assert 2 == len(server.points())


async def test_unknown_apps_can_be_excluded() -> None:
    """`-unknown` keeps out what the Android worker sends without an app id."""
    async with running({"allowed_apps": "com.example.intake,-unknown"}) as server:
        assert 200 == (await server.post([event(1), event(3, app_id="unknown")])).status
        assert {KEY: 1} == await server.counters()
