"""Backpressure: whatever cannot take more, nothing is lost without being counted, and nobody else waits for it."""

import asyncio
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

import exporter.delivery
import exporter.pace
import exporter.sender
import exporter.shelf
from benchmarks import outage
from exporter.influx import Answer, Verdict
from exporter.journal.records import PointsRow
from exporter.lines import Lines
from exporter.pace import MAX_POINTS, Backoff, Pace
from exporter.refusals import Report
from exporter.sender import Sender, StuckError
from exporter.shelf import Batch, Shelf
from exporter.stats import RETRY_AFTER_SECONDS
from exporter.tools.keeper import open_keeper
from tests.conftest import V2InfluxDB
from tests.support import recordings
from tests.support.cuttingproxy import Cut, CuttingProxy
from tests.support.delivering import (
    BAD,
    accept,
    dead_devices,
    delivered,
    delivering,
    devices,
    emptied,
    events,
    fill,
    is_bad,
    refusals,
    stored_devices,
    stored_in,
)
from tests.support.fakeinflux import ACCEPT, RefuseRecords, ScriptedInflux, Step, Trouble
from tests.support.influxdb import InfluxDB16
from tests.support.inprocess import Running, running
from tests.support.ports import wait_for
from tests.support.recordings import Refusal
from tests.support.v2proxy import V2Proxy

BROKEN = Refusal("internal error", lambda _: recordings.internal_error(), stores_the_rest=False)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delays between attempts are short."""
    monkeypatch.setattr(exporter.pace, "MIN_DELAY_SECONDS", 0.01)
    monkeypatch.setattr(exporter.pace, "MAX_DELAY_SECONDS", 0.05)
    monkeypatch.setattr(exporter.shelf, "FIRST_DELAY_SECONDS", 0.05)
    monkeypatch.setattr(exporter.shelf, "_LONGEST_DELAY_SECONDS", 0.2)


# --- what the device sees ---------------------------------------------------------------------------------------------


async def refused_before_its_body(server: Running) -> tuple[bytes, bytes]:
    """Announce a large body, send nothing of it, and give the head and the body of the answer."""
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(
            b"POST /stats HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9999999\r\n\r\n"
        )
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return head, await asyncio.wait_for(reader.readexactly(int(length.partition(b":")[2])), 60)
    finally:
        writer.transport.abort()


async def test_a_full_journal_refuses_before_the_body_is_read() -> None:
    """With `reject` a device is told 503 and when to come back before it has sent its batch, and loses nothing."""
    async with running({"journal_full": "reject", "journal_max_bytes": 1 << 16}) as server:
        taken = 0
        while (reply := await server.post(events(200))).status == 200:
            taken += 200
        assert (503, str(RETRY_AFTER_SECONDS)) == (reply.status, reply.headers["Retry-After"])
        assert RETRY_AFTER_SECONDS == reply.json()["retryAfterSeconds"]
        head, body = await refused_before_its_body(server)
        assert head.startswith(b"HTTP/1.1 503 ")
        assert f"\r\nretry-after: {RETRY_AFTER_SECONDS}\r\n".encode() in head.lower()
        assert b'"error":"unavailable"' in body
        assert 503 == (await server.request("GET", "/readyz")).status
        assert taken == sum((await server.counters()).values()) == len(server.lines())
        assert 0 == await server.sample("capgo_exporter_journal_dropped_points_total")
        assert 2 == await server.sample("capgo_exporter_requests_shed_total", limit="journal")


async def test_a_full_journal_that_drops_shows_devices_nothing(scripted_influx: ScriptedInflux) -> None:
    """By default every POST is answered 200; points that InfluxDB did not get were dropped and counted."""
    scripted_influx.default = Step(recordings.unavailable())
    sent: list[str] = []
    async with delivering(scripted_influx, journal_max_bytes=1 << 16) as server:
        for _ in range(40):
            sent += devices(await accept(server, events(200)))
        assert 0 < len(server.lines()) < 8000
        assert 8000 == sum((await server.counters()).values())
        scripted_influx.default = ACCEPT
        await emptied(server)

        async def all_counted() -> bool:
            dropped = int(await server.sample("capgo_exporter_journal_dropped_points_total"))
            return 8000 == dropped + len(stored_devices(scripted_influx))

        await wait_for(all_counted, "what was under way when it was dropped to be stored, or counted")
    stored = stored_devices(scripted_influx)
    assert set(sent) >= set(stored)
    assert set(sent[-200:]) <= set(stored)


# --- InfluxDB away, slow, or cut off ----------------------------------------------------------------------------------


@pytest.mark.server("influxd")
async def test_an_outage_with_kills(tmp_path: Path) -> None:
    """InfluxDB is away, the exporter and then InfluxDB are killed: afterwards InfluxDB has each point exactly once."""
    assert 0 == await outage.measure(10_000, tmp_path)


async def test_a_slow_influxdb_slows_nobody(scripted_influx: ScriptedInflux) -> None:
    """While each write takes long, events are taken as ever; what waits goes in few requests, each point once."""
    scripted_influx.default = Step(recordings.Answer(204), delay_seconds=0.3)
    batch: list[dict[str, Any]] = []
    async with delivering(scripted_influx) as server:
        for _ in range(100):
            batch += await accept(server, events(5))
        answered = len([request for request in scripted_influx.requests if request.status])
        assert answered < 100
        await emptied(server)
        assert 500 == await delivered(server)
    assert len(scripted_influx.requests) < 50
    assert (500, devices(batch)) == (scripted_influx.store_count, stored_devices(scripted_influx))


CUTS = [
    Cut(request_bytes=0),
    Cut(request_bytes=100),
    Cut(request_bytes=2000),
    Cut(answer_bytes=0),
    Cut(answer_bytes=20),
    Cut(answer_bytes=0, keeps_waiting=True),
    Cut(answer_bytes=20, keeps_waiting=True),
]


@pytest.mark.usefixtures("fast")
async def test_cut_off_requests_and_answers(v2_influxdb: V2InfluxDB, tmp_path: Path) -> None:
    """Cut anywhere, or answered too late although InfluxDB wrote: in the real InfluxDB each point is there once."""
    batch = events(500, metadata={"source": "cut"})
    await fill(tmp_path / "data", batch)
    async with CuttingProxy(v2_influxdb.url, list(CUTS)) as proxy:
        settings: dict[str, Any] = {"influx_token": v2_influxdb.token, "influx_timeout": 0.5}
        async with delivering(proxy, data_dir=tmp_path / "data", **settings) as server:
            await emptied(server)
            assert [] == proxy.cuts
            assert (500, {}) == (await delivered(server), await refusals(server))
            lost = {
                reason: await server.sample("capgo_exporter_delivery_requests_total", status=reason)
                for reason in ("network", "timeout")
            }
            assert {"network": 5, "timeout": 2} == lost
    assert v2_influxdb.proxy.writes >= 5  # the four whose answer was lost, and the last one
    assert devices(batch) == await stored_in(v2_influxdb.server)


@pytest.mark.usefixtures("fast")
async def test_written_and_answered_too_late(scripted_influx: ScriptedInflux) -> None:
    """Points of a write that took effect after the time-out are sent again, and are there once."""
    scripted_influx.play(*[Step(Trouble.NEVER, stores=True)] * 3)
    async with delivering(scripted_influx, influx_timeout=0.2) as server:
        batch = await accept(server, events(50))
        await emptied(server)
        assert 50 == await delivered(server)
        assert 3 == await server.sample("capgo_exporter_delivery_retries_total", reason="timeout")
    assert (200, devices(batch)) == (scripted_influx.store_count, stored_devices(scripted_influx))


# --- poison -----------------------------------------------------------------------------------------------------------


@pytest.mark.server("influxd")
async def test_poison_among_many_points(tmp_path: Path) -> None:
    """A real InfluxDB refuses a thousand points of 25,000, and those beyond its retention; all the others are there."""
    good, bad, old = (
        events(23_500),
        events(1000, name=BAD, app_id="com.example.bad", version_os="14"),
        events(500, name="old"),
    )
    for event in old:
        event["timestamp"] -= 3 * 3_600_000
    rest = iter(good)
    mixed = list(itertools.chain.from_iterable([one, *itertools.islice(rest, 15)] for one in (*bad, *old)))
    mixed += rest
    data_dir = tmp_path / "data"
    await fill(data_dir, *(mixed[start : start + 5000] for start in range(0, 25_000, 5000)))
    async with InfluxDB16(tmp_path / "influxdb", retention="1h") as influxdb, V2Proxy(influxdb.url, token="t") as proxy:  # noqa: S106 -- the test's own
        # Whoever wrote this before made `version_os` a number, so that every point of one app is refused.
        assert 204 == (await influxdb.write(f"capgo_stats,app_id=x version_os=1.5 {good[0]['timestamp']}000000"))[0]
        async with delivering(proxy, data_dir=data_dir, influx_token="t", influx_timeout=60) as server:  # noqa: S106 -- the same
            later: list[dict[str, Any]] = []
            while await server.sample("capgo_exporter_journal_points"):
                later += await accept(server, events(20))
                await asyncio.sleep(0.1)  # A device's pace: they come while the poison is looked for.
            await emptied(server)
            rejected = await refusals(server)
            assert 25_000 + len(later) == await delivered(server) + sum(rejected.values())
            assert rejected["refused"] >= 1000
            assert proxy.writes <= 200 + len(later) // 20 + 1
        assert devices([*good, *later]) == await stored_in(influxdb)
        assert [] == proxy.gzip_errors
    assert set(devices(bad)) <= set(dead_devices(data_dir))


@pytest.mark.usefixtures("fast")
async def test_points_on_which_influxdb_fails_for_ever(scripted_influx: ScriptedInflux, tmp_path: Path) -> None:
    """More batches fail for ever than there are senders: their neighbours are stored, and later they are too, once."""
    batches = [[*events(20), *events(1, name=BAD), *events(20)] for _ in range(5)]
    good = [event for batch in batches for event in batch if not event["device_id"].startswith(BAD)]
    await fill(tmp_path, *batches)
    scripted_influx.default = RefuseRecords(is_bad, BROKEN)
    with capture_logs() as logs:
        async with delivering(scripted_influx, data_dir=tmp_path) as server:
            neighbours = set(devices(good))

            async def are_stored() -> bool:
                good.extend(await accept(server, events(2)))  # Others have to go on, or else it is an outage.
                return neighbours <= set(stored_devices(scripted_influx))

            await wait_for(are_stored, "the neighbours to be stored")
            # What is stored leaves the journal a moment later.
            await emptied(server, 5 * 41)
            assert 3 <= await server.sample("capgo_exporter_delivery_set_aside_batches")
            others = len(good) - 5 * 40
            assert others == await delivered(server)
            scripted_influx.default = ACCEPT
            await emptied(server)
            assert 0 == await server.sample("capgo_exporter_delivery_set_aside_batches")
            assert (5 * 41 + others, {}) == (await delivered(server), await refusals(server))
    assert 1 == len([line for line in logs if "fails on some points" in line["event"]])
    bad = [event for batch in batches for event in batch if event["device_id"].startswith(BAD)]
    assert devices([*good, *bad]) == stored_devices(scripted_influx)


@pytest.mark.usefixtures("fast")
async def test_no_sender_waits_with_points_that_fail_for_ever(
    scripted_influx: ScriptedInflux, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the waits have grown, the others are stored at once, and an operator's command is done."""
    await fill(tmp_path, *(events(20, name=BAD) for _ in range(3)))
    scripted_influx.default = RefuseRecords(is_bad, BROKEN)
    async with delivering(scripted_influx, data_dir=tmp_path) as server:

        async def is_set_aside() -> bool:
            await accept(server, events(1))
            return await server.sample("capgo_exporter_delivery_set_aside_batches") == 3

        await wait_for(is_set_aside, "all groups to be set aside")
        failures = await server.sample("capgo_exporter_delivery_requests_total", status="500")
        monkeypatch.setattr(exporter.pace, "MIN_DELAY_SECONDS", 1000.0)
        monkeypatch.setattr(exporter.pace, "MAX_DELAY_SECONDS", 1000.0)

        async def has_failed() -> bool:
            return await server.sample("capgo_exporter_delivery_requests_total", status="500") > failures

        await wait_for(has_failed, "a set-aside batch to fail")
        for _ in range(5):
            batch = devices(await accept(server, events(2)))
            await wait_for(lambda: set(batch) <= set(stored_devices(scripted_influx)))  # noqa: B023 -- called at once
        async with open_keeper(server.settings.data_dir) as keeper:
            assert 0 == (await keeper.forget(("nobody",))).points
        scripted_influx.default = ACCEPT


@pytest.mark.usefixtures("fast")
async def test_a_batch_alone_of_which_some_fail_for_ever(
    scripted_influx: ScriptedInflux, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own next requests are tried although no other batch shows that InfluxDB takes anything."""
    monkeypatch.setattr(exporter.sender, "_LEAST_WHEN_OVERLOADED", 10)
    bad, good = events(20, name=BAD), events(30)
    await fill(tmp_path, [*bad, *good])
    scripted_influx.default = RefuseRecords(is_bad, BROKEN)
    async with delivering(scripted_influx, data_dir=tmp_path) as server:
        await wait_for(lambda: devices(good) == stored_devices(scripted_influx))
        scripted_influx.default = ACCEPT
        await emptied(server)
        assert 50 == await delivered(server)
    assert devices([*bad, *good]) == stored_devices(scripted_influx)


@pytest.mark.usefixtures("fast")
async def test_what_was_set_aside_stays_as_it_is_in_an_outage(scripted_influx: ScriptedInflux, tmp_path: Path) -> None:
    """While InfluxDB takes nothing, failures say nothing about points: few requests are needed afterwards."""
    await fill(tmp_path, *(events(20, name=BAD) for _ in range(8)))
    scripted_influx.default = RefuseRecords(is_bad, BROKEN)
    async with delivering(scripted_influx, data_dir=tmp_path) as server:

        async def is_set_aside() -> bool:
            await accept(server, events(1))
            return await server.sample("capgo_exporter_delivery_set_aside_batches") > 0

        await wait_for(is_set_aside, "the batch to be set aside")
        scripted_influx.default = Step(recordings.unavailable())
        begun = len(scripted_influx.requests)
        await wait_for(lambda: len(scripted_influx.requests) >= begun + 80, "many requests to fail")
        scripted_influx.default = ACCEPT
        ended = len(scripted_influx.requests)
        await emptied(server)
        requests = len(scripted_influx.requests) - ended
        assert requests <= 20


class Failing:
    """An InfluxDB that fails on everything, and asks to wait."""

    async def write(self, body: bytes) -> Answer:
        """Fail."""
        del body
        return Answer(Verdict.RETRY, "503", "server_error", retry_after_seconds=1000.0)


async def test_what_was_set_aside_says_nothing_of_others() -> None:
    """A request of it that fails neither makes others smaller, nor holds them, nor keeps its sender."""
    pace = Pace(lambda: 0.0)
    aside = Backoff(lambda _, high: high)
    with ThreadPoolExecutor(1) as thread:
        sender = Sender(Failing(), pace, aside, thread=thread, draining=asyncio.Event(), on_answer=lambda _: None)
        with pytest.raises(StuckError) as stuck:
            await sender.send(Lines.of(["a", "b", "c", "d"]), Report(), start=1, most=2, aside=aside)
    assert (3, 0, 1000.0) == (stuck.value.tried, stuck.value.answers, stuck.value.retry_after_seconds)
    assert (MAX_POINTS, 0.0) == (pace.points, pace.wait_seconds())


@pytest.mark.usefixtures("fast")
async def test_refusals_in_a_search_that_fails_for_ever(scripted_influx: ScriptedInflux, tmp_path: Path) -> None:
    """A server that fails in the middle of a search for bad lines holds nobody up, and no dead letter is doubled."""
    bad, broken = events(1, name=BAD), events(1, name="broken")

    def fails(record: Any) -> bool:
        return is_bad(record) or 'device_id="broken-' in record.text

    def answer(refused: Any) -> recordings.Answer:
        if any(is_bad(each.record) for each in refused):
            return recordings.V2_MALFORMED.answer(refused)
        return recordings.internal_error()

    scripted_influx.default = RefuseRecords(fails, Refusal("both", answer, stores_the_rest=False))
    good = events(30)
    await fill(tmp_path, [*good[:10], *bad, *good[10:20], *broken, *good[20:]])
    async with delivering(scripted_influx, data_dir=tmp_path) as server:
        good += await accept(server, events(2))
        await wait_for(lambda: devices(good) == stored_devices(scripted_influx))
        scripted_influx.default = RefuseRecords(is_bad, recordings.V2_MALFORMED)
        await emptied(server)
        assert (33, {"refused": 1}) == (await delivered(server), await refusals(server))
    assert devices(bad) == dead_devices(tmp_path)
    assert devices([*good, *broken]) == stored_devices(scripted_influx)


# --- the shelf --------------------------------------------------------------------------------------------------------


def rows(*counts: int) -> list[PointsRow]:
    """Make groups 1, 2, 3, … of so many points."""
    return [PointsRow(number, count, b"") for number, count in enumerate(counts, 1)]


def taken(shelf: Shelf) -> list[Batch]:
    """Take all that is due."""
    found = []
    while (batch := shelf.take(is_last_chance=False)) is not None:
        found.append(batch)
    return found


@pytest.fixture
def shelf_at() -> tuple[Shelf, Callable[[float], None]]:
    """A shelf, and what sets its time."""
    now = [0.0]

    def move(seconds: float) -> None:
        now[0] = seconds

    return Shelf(lambda: now[0], Backoff(lambda _, high: high)), move


def test_a_batch_put_aside_becomes_smaller(shelf_at: tuple[Shelf, Callable[[float], None]]) -> None:
    """It is halved down to one group, then sent in smaller requests, at most a hundred, and later and later."""
    shelf, move = shelf_at
    shelf.put_aside(Batch(1, 3), rows(400, 400, 400), 1200)
    assert (2, 5.0, []) == (len(shelf), shelf.wait_seconds(), taken(shelf))
    move(5)
    assert [(1, 1), (2, 3)] == [(batch.first, batch.last) for batch in taken(shelf)]
    batch = Batch(1, 1)
    sizes, delays = [], []
    for now in range(0, 20_000, 1000):
        move(now)
        shelf.put_aside(batch, rows(400), 400)
        delays.append(shelf.wait_seconds())
        move(now + 999)
        (batch,) = taken(shelf)
        sizes.append(batch.points)
    assert [200, 100, 50, 25, 12, 6, 4, 4] == sizes[:8]
    assert [5, 5, 5, 5, 5, 5, 5, 10, 20, 40, 80, 160, 300, 300] == delays[:14]
    assert 300 == delays[-1]


def test_the_rest_of_a_group_is_tried_before_it_becomes_smaller(
    shelf_at: tuple[Shelf, Callable[[float], None]],
) -> None:
    """What is behind the request that failed has its turn, and so do others before; the next round is smaller."""
    shelf, _ = shelf_at
    batch = Batch(1, 1, points=100, failures=0)
    shelf.put_aside(batch, rows(400), 100)
    assert [replace(batch, start=100)] == taken(shelf)
    shelf.put_aside(replace(batch, start=300), rows(400), 400)
    assert (5.0, [replace(batch, points=50, due=5.0)]) == (shelf.wait_seconds(), [shelf.take(is_last_chance=True)])


def test_one_batch_that_was_put_aside_is_under_way(shelf_at: tuple[Shelf, Callable[[float], None]]) -> None:
    """So a sender is free for the others; after a failure all of them wait, and one that is to wait longer does."""
    shelf, move = shelf_at
    shelf.put_aside(Batch(1, 2), rows(10, 10), 20)
    move(5)
    batch = shelf.take(is_last_chance=False)
    assert batch is not None
    shelf.begin(batch)
    assert (None, [], 2) == (shelf.wait_seconds(), taken(shelf), shelf.count_aside())
    shelf.put_back(Batch(3, 3))
    assert [3] == [each.first for each in taken(shelf)]
    shelf.hold()
    shelf.put_aside(batch, rows(10), 10, 1000.0)
    shelf.end(batch)
    assert (0.5, []) == (shelf.wait_seconds(), taken(shelf))
    move(5.5)
    assert [2] == [each.first for each in taken(shelf)]
    assert 999.5 == shelf.wait_seconds()


def test_a_batch_put_back_is_due_at_once(shelf_at: tuple[Shelf, Callable[[float], None]]) -> None:
    """It stays as it is; and at the end everything has its last chance, whether it is due or not."""
    shelf, _ = shelf_at
    assert (None, None) == (shelf.wait_seconds(), shelf.take(is_last_chance=True))
    shelf.put_aside(Batch(1, 1), rows(10), 10)
    shelf.put_back(Batch(2, 5))
    assert 0.0 == shelf.wait_seconds()
    assert [Batch(2, 5)] == taken(shelf)
    assert 1 == len(shelf)
    assert shelf.take(is_last_chance=True) is not None
    assert 0 == len(shelf)


def test_a_batch_put_off_stays_as_it_is(shelf_at: tuple[Shelf, Callable[[float], None]]) -> None:
    """Only its time is another: 5 seconds later, or when the server asks to be asked again."""
    shelf, move = shelf_at
    batch = Batch(1, 4, points=100, start=300, failures=2)
    shelf.put_off(batch, 0.0)
    move(5)
    assert [replace(batch, due=5.0)] == taken(shelf)
    shelf.put_off(batch, 60.0)
    assert 60.0 == shelf.wait_seconds()
