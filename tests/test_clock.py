"""Wrong clocks: the devices' and our own."""

import pytest

from exporter.clock import MAX_AHEAD_MS, ArrivalTimes, Clock, clock_error
from tests.support.inprocess import ManualClock, running

NOW_MS = 1_795_140_000_000
DAY_MS = 86_400_000
WEEK_MS = 7 * DAY_MS


@pytest.mark.parametrize(
    ("timestamp_ms", "expected"),
    [
        (NOW_MS, None),
        (NOW_MS + MAX_AHEAD_MS, None),
        (NOW_MS + MAX_AHEAD_MS + 1, "future"),
        (NOW_MS - WEEK_MS, None),
        (NOW_MS - WEEK_MS - 1, "past"),
        (0, "past"),
        (-(10**30), "past"),
        (10**30, "future"),
    ],
)
def test_which_device_times_are_believed(timestamp_ms: int, expected: str | None) -> None:
    """At most ten minutes ahead, at most the greatest age behind, both bounds included."""
    assert expected == clock_error(timestamp_ms, NOW_MS, WEEK_MS)


@pytest.mark.parametrize(("offset_ms", "direction"), [(-WEEK_MS - DAY_MS, "past"), (DAY_MS, "future")])
async def test_a_wrong_device_clock_gives_the_arrival_time(offset_ms: int, direction: str) -> None:
    """The point gets the arrival time and what the device said, the counter counts now, and a repeat is a duplicate."""
    time = ManualClock(NOW_MS * 10**6)
    async with running(clock=time.clock) as server:
        event = {"app_id": "a", "action": "set", "timestamp": NOW_MS + offset_ms}
        for _ in range(2):
            assert 200 == (await server.post([event])).status
            time.advance(1)
        (point,) = server.points()
        assert (NOW_MS * 10**6, NOW_MS + offset_ms) == (point.time_ns, point.fields["device_time_ms"])
        assert [1] == list((await server.counters()).values())
        corrected = {
            each: await server.sample("capgo_exporter_clock_corrected_total", direction=each)
            for each in ("past", "future")
        }
        assert {"past": 0, "future": 0, direction: 1} == corrected


@pytest.mark.parametrize("bound_ms", [-WEEK_MS, MAX_AHEAD_MS])
async def test_the_bounds_are_believed(bound_ms: int) -> None:
    """A device time exactly at a bound is the point's time, and one a millisecond beyond it is not."""
    beyond_ms = bound_ms + (1 if bound_ms > 0 else -1)
    async with running({"max_event_age": "7d"}, ManualClock(NOW_MS * 10**6).clock) as server:
        for offset_ms in (bound_ms, beyond_ms):
            event = {"app_id": "a", "action": "set", "timestamp": NOW_MS + offset_ms}
            assert 200 == (await server.post([event])).status
        at_bound, beyond = server.points()
        assert (NOW_MS + bound_ms, None) == (at_bound.time_ns // 10**6, at_bound.fields.get("device_time_ms"))
        assert (NOW_MS, NOW_MS + beyond_ms) == (beyond.time_ns // 10**6, beyond.fields.get("device_time_ms"))


async def test_our_clock_set_back_keeps_points_apart() -> None:
    """Events without a time of their own get times that differ while our clock stands still or goes back a little."""
    time = ManualClock(NOW_MS * 10**6)
    async with running(clock=time.clock) as server:
        for _ in range(3):
            assert 200 == (await server.post([{"app_id": "a", "action": "set"}] * 5)).status
            time.wall_ns -= 1000
        assert [NOW_MS * 10**6 + number for number in range(15)] == [point.time_ns for point in server.points()]


async def test_a_believed_device_time_is_the_points_time() -> None:
    """To the millisecond, without the field for wrong clocks."""
    clock = Clock(wall_ns=lambda: NOW_MS * 10**6)
    async with running(clock=clock) as server:
        assert 200 == (await server.post([{"app_id": "a", "action": "set", "timestamp": NOW_MS - DAY_MS}])).status
        (point,) = server.points()
        assert NOW_MS - DAY_MS == point.time_ns // 10**6
        assert "device_time_ms" not in point.fields


def test_arrival_times_are_unique() -> None:
    """A clock that stands still or is set back a little gives times that go on rising."""
    times = iter([100, 100, 100, 99, 101, 50])
    arrivals = ArrivalTimes(Clock(wall_ns=lambda: next(times)))
    assert [100, 101, 102, 103, 104, 105] == [arrivals.next_ns() for _ in range(6)]


def test_a_clock_set_back_is_followed() -> None:
    """Set back by more than a second, waiting for it to catch up would put points into the future."""
    hour_ns = 3600 * 10**9
    times = iter([2 * hour_ns, hour_ns, hour_ns])
    arrivals = ArrivalTimes(Clock(wall_ns=lambda: next(times)))
    assert [2 * hour_ns, hour_ns, hour_ns + 1] == [arrivals.next_ns() for _ in range(3)]
