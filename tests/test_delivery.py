"""Delivery: whatever InfluxDB does, every accepted event is stored there once, kept as a dead letter, or counted."""

import asyncio
import contextlib
import itertools
import json
import re
import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

import exporter.commit
import exporter.delivery
import exporter.journal.reader
import exporter.pace
import exporter.sender
from exporter.journal.opening import FILE_NAME
from exporter.journal.reader import JournalReader
from exporter.journal.records import Committed, Transaction
from exporter.journal.store import CommitFailedError, Journal
from exporter.pace import MAX_POINTS, Backoff, Pace
from tests.conftest import StartExporter, V2InfluxDB
from tests.support import recordings
from tests.support.delivering import (
    BAD,
    accept,
    dead_devices,
    dead_letters,
    delivered,
    delivering,
    devices,
    devices_in,
    emptied,
    events,
    failing,
    failing_is,
    fill,
    is_bad,
    refusals,
    stored_devices,
    stored_in,
)
from tests.support.exporter import influx_settings
from tests.support.fakeinflux import (
    ACCEPT,
    DROP,
    DROP_AFTER_STORING,
    NEVER,
    Behaviour,
    HeldInflux,
    Limits,
    RefuseRecords,
    ScriptedInflux,
    Step,
    answer,
)
from tests.support.influxdb import InfluxDB16
from tests.support.inprocess import running
from tests.support.lineprotocol import Record
from tests.support.ports import wait_for
from tests.support.recordings import Refusal
from tests.support.v2proxy import V2Proxy

_DEVICE = re.compile(r'device_id="([^"]+)"')
_numbers = itertools.count(1)


# --- InfluxDB away, or unwilling for now ------------------------------------------------------------------------------


async def test_absent_from_the_start() -> None:
    """Events are taken while there is no InfluxDB yet, and are in it once it is there."""
    influx = ScriptedInflux()
    async with delivering(influx) as exporter:
        batch = await accept(exporter, events(3))
        await wait_for(lambda: failing_is(exporter, ["network"]))
        async with influx:
            await emptied(exporter)
    assert devices(batch) == stored_devices(influx)


async def test_down_in_the_middle(scripted_influx: ScriptedInflux) -> None:
    """What is taken while InfluxDB is down is delivered when it is up again, and nothing before is lost."""
    async with delivering(scripted_influx) as exporter:
        batch = await accept(exporter, events(3))
        await emptied(exporter)
        await scripted_influx.stop()
        batch += await accept(exporter, events(3))
        await wait_for(lambda: failing_is(exporter, ["network"]))
        batch += await accept(exporter, events(3))
        await scripted_influx.start()
        await emptied(exporter)
        assert 9 == await delivered(exporter)
    assert devices(batch) == stored_devices(scripted_influx)


PASSING = [
    (Step(recordings.unauthorized()), "401", "rejected_credentials"),
    (Step(recordings.forbidden()), "403", "rejected_credentials"),
    (Step(recordings.bucket_not_found()), "404", "not_found"),
    (Step(recordings.too_many_requests(0)), "429", "throttled"),
    (Step(recordings.internal_error()), "500", "server_error"),
    (Step(recordings.unavailable()), "503", "server_error"),
    (answer(302, None, Location="/elsewhere"), "302", "refused"),
    (NEVER, "timeout", "timeout"),
    (DROP, "network", "network"),
    (DROP_AFTER_STORING, "network", "network"),
]


@pytest.mark.parametrize(("step", "status", "reason"), PASSING, ids=[f"{row[1]}-{row[2]}" for row in PASSING])
async def test_failure_that_passes(scripted_influx: ScriptedInflux, step: Step, status: str, reason: str) -> None:
    """A failure that is not about lines loses and doubles nothing, is counted and shown, and ends when it is mended."""
    scripted_influx.default = step
    async with delivering(scripted_influx, influx_timeout=0.3) as exporter:
        batch = await accept(exporter, events(5))
        await wait_for(lambda: failing_is(exporter, [reason]))
        scripted_influx.default = ACCEPT
        await emptied(exporter)
        attempts = int(await exporter.sample("capgo_exporter_delivery_requests_total", status=status))
        retries = int(await exporter.sample("capgo_exporter_delivery_retries_total", reason=reason))
        batch += await accept(exporter, events(2))
        await emptied(exporter)
        assert ([], 7, {}) == (await failing(exporter), await delivered(exporter), await refusals(exporter))
        assert 1 <= attempts == retries
    assert devices(batch) == stored_devices(scripted_influx)


@pytest.mark.parametrize(
    ("step", "reason", "text"),
    [
        (Step(recordings.unauthorized()), "rejected_credentials", "unauthorized access"),
        (Step(recordings.forbidden()), "rejected_credentials", "insufficient permissions for write"),
        (Step(recordings.bucket_not_found()), "not_found", 'bucket "capgo" not found'),
    ],
    ids=["401", "403", "404"],
)
async def test_wrong_access_is_shown(scripted_influx: ScriptedInflux, step: Step, reason: str, text: str) -> None:
    """A wrong token or bucket stands in the metrics, in `/readyz` with 200, and in the log once, until it is mended."""
    scripted_influx.default = step
    with capture_logs() as logs:
        async with delivering(scripted_influx) as exporter:
            batch = await accept(exporter, events(5))
            await wait_for(lambda: len(scripted_influx.requests) >= 2)
            assert [reason] == await failing(exporter)
            ready = await exporter.request("GET", "/readyz")
            scripted_influx.default = ACCEPT
            await emptied(exporter)
            mended = await exporter.request("GET", "/readyz")
            assert ([], 0) == (await failing(exporter), await exporter.sample("capgo_exporter_journal_points"))
    assert (200, "ready", True) == (ready.status, ready.json()["status"], ready.json()["degraded"])
    assert text in ready.json()["influxdb"]
    assert (200, {"status": "ready", "influxdb": "ok", "degraded": False}) == (mended.status, mended.json())
    assert [(reason, text)] == [(line["reason"], line["error"]) for line in logs if "takes no points" in line["event"]]
    assert devices(batch) == stored_devices(scripted_influx)
    first, second, *_ = scripted_influx.requests
    assert second.at - first.at >= 0.25  # the lower half of the first delay


@pytest.mark.parametrize("recorded", [recordings.too_many_requests(1), recordings.unavailable(1)], ids=["429", "503"])
async def test_retry_after_holds_for_all_senders(scripted_influx: ScriptedInflux, recorded: recordings.Answer) -> None:
    """No sender sends anything before the time that the server asked for has passed."""
    scripted_influx.play(Step(recorded))
    async with delivering(scripted_influx) as exporter:
        batch = await accept(exporter, events(1))
        await wait_for(lambda: scripted_influx.script_ended and scripted_influx.requests[0].status)
        batch += await accept(exporter, events(1))
        await emptied(exporter)
    first, *following = [request.at for request in scripted_influx.requests]
    assert [True, True] == [at - first >= 1.0 for at in following]
    assert devices(batch) == stored_devices(scripted_influx)


async def test_request_that_never_succeeds_holds_up_nothing_else(scripted_influx: ScriptedInflux) -> None:
    """While InfluxDB fails on one batch again and again, the others are delivered."""
    failure = Refusal("internal error", lambda _: recordings.internal_error(), stores_the_rest=False)
    scripted_influx.default = RefuseRecords(is_bad, failure)
    async with delivering(scripted_influx) as exporter:
        await accept(exporter, events(1, name=BAD))
        await wait_for(lambda: bool(scripted_influx.requests))
        batch: list[dict[str, Any]] = []
        for _ in range(5):
            batch += await accept(exporter, events(2))
            await wait_for(lambda: devices(batch) == stored_devices(scripted_influx))  # noqa: B023 -- called at once
        await emptied(exporter, points=1)  # InfluxDB has them a moment before that is noted
        assert 10 == await delivered(exporter)
        scripted_influx.default = ACCEPT


async def test_overload_shrinks_requests(
    scripted_influx: ScriptedInflux, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that is too much work for InfluxDB is sent again in smaller ones, until they are not."""
    monkeypatch.setattr(exporter.sender, "_LEAST_WHEN_OVERLOADED", 10)
    monkeypatch.setattr(exporter.pace, "MAX_POINTS", 40)
    too_slow = Refusal("too slow", lambda _: recordings.internal_error(), stores_the_rest=False)
    batch = events(40)
    await fill(tmp_path, batch)
    scripted_influx.limits = Limits(records=10, answer=lambda: too_slow.answer([]))
    async with delivering(scripted_influx, data_dir=tmp_path) as running_exporter:
        await emptied(running_exporter)
    assert [40, 20] == [len(request.records) for request in scripted_influx.requests[:2]]
    assert devices(batch) == stored_devices(scripted_influx)


def test_backoff_grows() -> None:
    """Delays double from half a second to a minute, the lower half of each being left to chance."""
    asked: list[tuple[float, float]] = []

    def jitter(low: float, high: float) -> float:
        asked.append((low, high))
        return high

    backoff = Backoff(jitter)
    waits = [backoff.failed() for _ in range(20)]
    assert [0.5, 1, 2, 4, 8, 16, 32, *[60] * 13] == waits
    assert [(wait / 2, wait) for wait in waits] == asked
    backoff.succeeded()
    assert 0.5 == backoff.failed()


def test_longest_hold_counts() -> None:
    """Of several times that a server asks to be left alone for, the one that ends last counts."""
    now = 100.0
    pace = Pace(lambda: now)
    assert 0.0 == pace.wait_seconds()
    pace.hold(3.0)
    pace.hold(2.0)
    assert 3.0 == pace.wait_seconds()
    now = 104.0
    assert 0.0 == pace.wait_seconds()


# --- too large --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recorded", [recordings.v1_too_large, recordings.v2_too_large], ids=["1.x", "2.x"])
async def test_too_large_request_is_split(
    scripted_influx: ScriptedInflux, recorded: Callable[[], recordings.Answer]
) -> None:
    """A server that takes few points a request gets them all, in many requests, and none is given up."""
    scripted_influx.limits = Limits(records=4, answer=recorded)
    async with delivering(scripted_influx) as exporter:
        batch = await accept(exporter, events(900))
        await emptied(exporter)
        assert (900, {}) == (await delivered(exporter), await refusals(exporter))
    assert devices(batch) == stored_devices(scripted_influx)


async def test_too_large_line_is_a_dead_letter(scripted_influx: ScriptedInflux, tmp_path: Path) -> None:
    """A line that is too large by itself is found and set aside; its neighbours and all that follows are stored."""
    scripted_influx.limits = Limits(size_bytes=4000)
    good, large = events(30), events(1, name=BAD, metadata={"stack": "x" * 2000, "message": "y" * 2000})
    async with delivering(scripted_influx, data_dir=tmp_path) as exporter:
        await accept(exporter, [*good[:17], *large, *good[17:]])
        await emptied(exporter)
        before = len(scripted_influx.requests)
        good += await accept(exporter, events(30))
        await emptied(exporter)
        assert (60, {"too_large": 1}) == (await delivered(exporter), await refusals(exporter))
    # Requests are not left as small as that line made them.
    assert max(len(request.records) for request in scripted_influx.requests[before:]) > 1
    assert (devices(good), devices(large)) == (stored_devices(scripted_influx), dead_devices(tmp_path))


def test_request_size_recovers() -> None:
    """After a refusal requests are half as large, and grow again by an eighth with each full one."""
    pace = Pace(time.monotonic)
    pace.shrink(MAX_POINTS)
    assert MAX_POINTS // 2 == pace.points
    pace.grow(pace.points - 1)
    assert MAX_POINTS // 2 == pace.points
    pace.grow(pace.points)
    assert 14_063 == pace.points
    for _ in range(5):
        pace.grow(pace.points)
    assert MAX_POINTS == pace.points
    pace.shrink(100)
    pace.shrink(1)
    assert 1 == pace.points
    for _ in range(100):
        pace.grow(pace.points)
    assert MAX_POINTS == pace.points


def test_request_size_has_a_floor() -> None:
    """A reason that more and smaller requests would not help shrinks them to the floor, and never grows them."""
    pace = Pace(time.monotonic)
    pace.shrink(1500, 1000)
    assert 1000 == pace.points
    pace.shrink(20)
    pace.shrink(20, 1000)
    assert 10 == pace.points


# --- refused lines ----------------------------------------------------------------------------------------------------

RETENTION = (recordings.V1_BEYOND_RETENTION, recordings.V2_BEYOND_RETENTION, recordings.V2_OUTSIDE_RETENTION)
NOT_RETENTION = [each for each in (*recordings.PARTIAL_WRITES, *recordings.WHOLE_REFUSALS) if each not in RETENTION]


@pytest.mark.parametrize("refusal", NOT_RETENTION, ids=str)
async def test_refused_lines_are_dead_letters(
    scripted_influx: ScriptedInflux, tmp_path: Path, refusal: Refusal
) -> None:
    """In the words of every version: the refused lines become dead letters, their neighbours and later ones points."""
    scripted_influx.default = RefuseRecords(is_bad, refusal)
    good, bad = events(37), events(3, name=BAD)
    async with delivering(scripted_influx, data_dir=tmp_path) as exporter:
        await accept(exporter, [bad[0], *good[:20], bad[1], *good[20:], bad[2]])
        await emptied(exporter)
        good += await accept(exporter, events(5))
        await emptied(exporter)
        assert (42, {"refused": 3}) == (await delivered(exporter), await refusals(exporter))
        assert 3 == await exporter.sample("capgo_exporter_dead_letter_points")
        assert [] == await failing(exporter)
    assert (devices(good), devices(bad)) == (stored_devices(scripted_influx), dead_devices(tmp_path))


@pytest.mark.parametrize("refusal", RETENTION, ids=str)
async def test_points_beyond_retention_are_counted(
    scripted_influx: ScriptedInflux, tmp_path: Path, refusal: Refusal
) -> None:
    """Points beyond the retention are final: counted by the server's number, in one request, and not kept."""
    scripted_influx.default = RefuseRecords(is_bad, refusal)
    good, bad = events(37), events(3, name=BAD)
    await fill(tmp_path, [*bad[:1], *good, *bad[1:]])
    async with delivering(scripted_influx, data_dir=tmp_path) as exporter:
        await emptied(exporter)
        assert 1 == len(scripted_influx.requests)
        good += await accept(exporter, events(5))
        await emptied(exporter)
        assert (42, {"beyond_retention": 3}) == (await delivered(exporter), await refusals(exporter))
    assert (devices(good), []) == (stored_devices(scripted_influx), dead_devices(tmp_path))


async def test_points_rejected_with_a_success(scripted_influx: ScriptedInflux, tmp_path: Path) -> None:
    """A 201 that tells of rejected points loses none in silence: they become dead letters, the others are stored."""
    scripted_influx.default = RefuseRecords(is_bad, Refusal("201", lambda _: recordings.v3_created()))
    good, bad = events(30), events(1, name=BAD)
    async with delivering(scripted_influx, data_dir=tmp_path) as exporter:
        await accept(exporter, [*good[:17], *bad, *good[17:]])
        await emptied(exporter)
        assert (30, {"refused": 1}) == (await delivered(exporter), await refusals(exporter))
    assert (devices(good), devices(bad)) == (stored_devices(scripted_influx), dead_devices(tmp_path))


async def test_mixed_refusals(scripted_influx: ScriptedInflux, tmp_path: Path) -> None:
    """When points beyond the retention hide behind a type conflict, each is still counted for what it is."""

    def refuse(refused: Any) -> recordings.Answer:
        conflicts = [each for each in refused if is_bad(each.record)]
        return (recordings.V1_TYPE_CONFLICT if conflicts else recordings.V1_BEYOND_RETENTION).answer(
            conflicts or refused
        )

    def is_refused(record: Record) -> bool:
        return is_bad(record) or 'device_id="old-' in record.text

    scripted_influx.default = RefuseRecords(is_refused, Refusal("mixed", refuse))
    good, bad, old = events(20), events(2, name=BAD), events(3, name="old")
    async with delivering(scripted_influx, data_dir=tmp_path) as exporter:
        await accept(exporter, [*good[:5], *old[:2], *bad, *good[5:], *old[2:]])
        await emptied(exporter)
        assert (20, {"refused": 2, "beyond_retention": 3}) == (await delivered(exporter), await refusals(exporter))
    assert (devices(good), devices(bad)) == (stored_devices(scripted_influx), dead_devices(tmp_path))


async def test_one_bad_line_among_many(scripted_influx: ScriptedInflux, tmp_path: Path) -> None:
    """One bad line is found by halving, and is the only one that is not stored."""
    scripted_influx.default = RefuseRecords(is_bad, recordings.V2_MALFORMED)
    good, bad = events(999), events(1, name=BAD)
    await fill(tmp_path, [*good[:600], *bad, *good[600:]])
    async with delivering(scripted_influx, data_dir=tmp_path) as exporter:
        await emptied(exporter)
    assert len(scripted_influx.requests) <= 21  # one for all, and two for each of ten halvings
    assert [("refused", devices(bad))] == [(reason, devices_in(lines)) for reason, _, lines in dead_letters(tmp_path)]
    assert devices(good) == stored_devices(scripted_influx)


async def test_batch_refused_as_a_whole_is_one_request(scripted_influx: ScriptedInflux, tmp_path: Path) -> None:
    """When the server counts every line as refused, there is nothing to search."""
    scripted_influx.default = RefuseRecords(lambda _: True, recordings.V1_TYPE_CONFLICT)
    batch = events(300)
    await fill(tmp_path, batch)
    async with delivering(scripted_influx, data_dir=tmp_path) as exporter:
        await emptied(exporter)
    assert (1, devices(batch)) == (len(scripted_influx.requests), dead_devices(tmp_path))


async def test_search_for_bad_lines_is_bounded(scripted_influx: ScriptedInflux, tmp_path: Path) -> None:
    """A thousand bad lines among 25,000 cost at most 200 requests; what is not resolved then is kept as a block."""
    scripted_influx.default = RefuseRecords(is_bad, recordings.V2_MALFORMED)
    batch = [*itertools.chain.from_iterable([*events(1, name=BAD), *events(24)] for _ in range(1000))]
    await fill(tmp_path, batch)
    async with delivering(scripted_influx, data_dir=tmp_path) as exporter:
        await emptied(exporter)
        assert len(scripted_influx.requests) <= 200
        later = await accept(exporter, events(5))
        await emptied(exporter)
        lost = (await refusals(exporter))["refused"]
        assert 25_005 == await delivered(exporter) + lost
    *single, (_, error, block) = dead_letters(tmp_path)
    assert {1} == {len(lines) for _, _, lines in single}
    assert "(not all tried one by one)" in error
    assert lost == len(single) + len(block)
    both = sorted([*stored_devices(scripted_influx), *dead_devices(tmp_path)])
    assert devices([*batch, *later]) == both


async def test_named_lines_need_no_search(scripted_influx: ScriptedInflux, tmp_path: Path) -> None:
    """Where the server names a hundred lines at a time, a thousand bad lines cost eleven requests."""
    scripted_influx.default = RefuseRecords(is_bad, recordings.V3_PARTIAL)
    good, bad = events(4000), events(1000, name=BAD)
    await fill(tmp_path, [*good[:2000], *bad, *good[2000:]])
    async with delivering(scripted_influx, data_dir=tmp_path) as exporter:
        await emptied(exporter)
        assert (4000, {"refused": 1000}) == (await delivered(exporter), await refusals(exporter))
    assert (11, devices(good)) == (len(scripted_influx.requests), stored_devices(scripted_influx))
    assert devices(bad) == dead_devices(tmp_path)


async def test_dead_letters_outlive_a_restart(scripted_influx: ScriptedInflux, tmp_path: Path) -> None:
    """Dead letters are still there, and counted, after a restart; they are not sent again."""
    scripted_influx.default = RefuseRecords(is_bad, recordings.V2_TYPE_CONFLICT)
    async with delivering(scripted_influx, data_dir=tmp_path) as exporter:
        bad = await accept(exporter, events(2, name=BAD))
        await emptied(exporter)
    requests = len(scripted_influx.requests)
    async with delivering(scripted_influx, data_dir=tmp_path) as exporter:
        assert 2 == await exporter.sample("capgo_exporter_dead_letter_points")
        good = await accept(exporter, events(1))
        await emptied(exporter)
    assert (devices(bad), requests + 1) == (dead_devices(tmp_path), len(scripted_influx.requests))
    assert devices(good) == stored_devices(scripted_influx)


# --- how it is sent ---------------------------------------------------------------------------------------------------


async def test_two_requests_under_way_and_intake_goes_on(scripted_influx: ScriptedInflux) -> None:
    """While two requests hang, events are taken as ever, and no third request is sent."""
    scripted_influx.default = NEVER
    async with delivering(scripted_influx, influx_timeout=30, shutdown_timeout=0.1) as exporter:
        for number in (1, 2):
            await accept(exporter, events(1))
            await wait_for(lambda: number == len(scripted_influx.requests))  # noqa: B023 -- called at once
        for _ in range(20):
            await accept(exporter, events(1))
        assert 22 == await exporter.sample("capgo_exporter_journal_points")
        assert [None, None] == [request.status for request in scripted_influx.requests]


async def test_groups_are_joined_into_one_member(scripted_influx: ScriptedInflux, tmp_path: Path) -> None:
    """The groups that wait are sent in one request, as one gzip member, oldest first."""
    batches = [events(2) for _ in range(5)]
    await fill(tmp_path, *batches)
    async with delivering(scripted_influx, data_dir=tmp_path) as exporter:
        await emptied(exporter)
    (request,) = scripted_influx.requests
    assert "gzip" == request.headers["Content-Encoding"]
    expected = [event["device_id"] for batch in batches for event in batch]
    assert expected == [name for record in request.records for name in _DEVICE.findall(record.text)]


async def test_memory_is_bounded_by_bytes_too(
    scripted_influx: ScriptedInflux, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of long lines are taken few at a time: as many as fit the bound in bytes, and at least one."""
    monkeypatch.setattr(exporter.journal.reader, "MAX_BYTES", 5000)
    batches = [events(1, metadata={"stack": "x" * 2000}) for _ in range(5)]
    await fill(tmp_path, *batches)
    async with delivering(scripted_influx, data_dir=tmp_path) as running_exporter:
        await emptied(running_exporter)
    assert {1: 1, 2: 2} == Counter(len(request.records) for request in scripted_influx.requests)


@pytest.mark.parametrize("is_lost", [False, True], ids=["taken", "lost"])
async def test_points_that_are_dropped_while_they_are_sent_count_once(
    is_lost: bool,  # noqa: FBT001 -- a parameter of the test
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are delivered if InfluxDB takes them, and dropped if its answer is an error: nobody has them any more."""
    monkeypatch.setattr(exporter.sender, "PATIENCE", 1)
    async with HeldInflux() as influx, delivering(influx, journal_max_bytes=1 << 16, influx_timeout=600.0) as running:
        sent: list[dict[str, Any]] = []
        for sender in range(exporter.delivery.SENDERS):
            sent += await accept(running, events(5))
            await wait_for(lambda: influx.held > sender, "a sender to be held")  # noqa: B023 -- waited for at once
        batch = list(sent)
        while set(devices(sent)) & set(devices_in(running.lines())):
            batch += await accept(running, events(20, message=secrets.token_hex(600)))
        dropped = len(batch) - len(running.lines()) - len(sent)
        assert dropped == await running.sample("capgo_exporter_journal_dropped_points_total")
        if is_lost:
            influx.play(*[answer(503)] * exporter.delivery.SENDERS)
        influx.released.set()
        await emptied(running)
        dropped = int(await running.sample("capgo_exporter_journal_dropped_points_total"))
        assert (len(influx.stored), len(batch)) == (await delivered(running), await delivered(running) + dropped)
        assert (not is_lost) == set(devices(sent)).issubset(stored_devices(influx))


async def test_lost_acknowledgement(scripted_influx: ScriptedInflux, tmp_path: Path) -> None:
    """Points whose acknowledgement got lost are sent again and overwrite themselves."""
    scripted_influx.play(DROP_AFTER_STORING)
    batch = events(50)
    await fill(tmp_path, batch)
    async with delivering(scripted_influx, data_dir=tmp_path) as exporter:
        await emptied(exporter)
        assert 50 == await delivered(exporter)
    assert (100, devices(batch)) == (scripted_influx.store_count, stored_devices(scripted_influx))


# --- the journal's trouble --------------------------------------------------------------------------------------------

DAMAGES: list[tuple[str, Callable[[bytes], bytes | str]]] = [
    ("a flipped bit", lambda blob: blob[:-20] + bytes([blob[-20] ^ 1]) + blob[-19:]),
    ("cut short", lambda blob: blob[: len(blob) // 2]),
    ("empty", lambda _: b""),
    ("zeros", lambda blob: bytes(len(blob))),
    ("text", lambda _: "text instead of bytes"),
]


@pytest.mark.parametrize("damage", [row[1] for row in DAMAGES], ids=[row[0] for row in DAMAGES])
async def test_damaged_points_stall_nothing(
    scripted_influx: ScriptedInflux, tmp_path: Path, damage: Callable[[bytes], bytes | str]
) -> None:
    """A group whose bytes are damaged is set aside and counted; those before and after it are delivered."""
    batches = [events(3), events(4, name=BAD), events(5)]
    await fill(tmp_path, *batches)
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection, connection:
        ((number, blob),) = connection.execute("SELECT number, lines FROM points WHERE count = 4").fetchall()
        connection.execute("UPDATE points SET lines = ? WHERE number = ?", (damage(blob), number))
    async with delivering(scripted_influx, data_dir=tmp_path) as exporter:
        await emptied(exporter)
        later = await accept(exporter, events(1))
        await emptied(exporter)
        assert (9, {"damaged": 4}) == (await delivered(exporter), await refusals(exporter))
    damaged = damage(blob)
    kept = damaged if isinstance(damaged, bytes) else damaged.encode()
    assert [("damaged", [kept.hex()])] == [(reason, lines) for reason, _, lines in dead_letters(tmp_path)]
    assert devices([*batches[0], *batches[2], *later]) == stored_devices(scripted_influx)


async def test_journal_that_cannot_be_read(scripted_influx: ScriptedInflux, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that fails is counted and tried again; delivery goes on after it."""
    monkeypatch.setattr(exporter.delivery, "_JOURNAL_RETRY_SECONDS", 0.01)
    read = JournalReader._read  # noqa: SLF001 -- the one place where reading can be made to fail
    fails = [sqlite3.OperationalError("disk I/O error")] * 2

    def flaky(self: JournalReader, after: int, max_points: int, until: int) -> Any:
        if fails:
            raise fails.pop()
        return read(self, after, max_points, until)

    monkeypatch.setattr(JournalReader, "_read", flaky)
    async with delivering(scripted_influx) as running_exporter:
        batch = await accept(running_exporter, events(2))
        await emptied(running_exporter)
        assert 2 == await running_exporter.sample("capgo_exporter_journal_read_failures_total")
    assert devices(batch) == stored_devices(scripted_influx)


async def test_removal_that_cannot_be_stored(
    scripted_influx: ScriptedInflux, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points whose removal fails are not sent again, nor counted twice: the removal alone is tried again."""
    monkeypatch.setattr(exporter.delivery, "_JOURNAL_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(exporter.commit, "_PROBE_SECONDS", 0.01)
    scripted_influx.default = RefuseRecords(is_bad, recordings.V1_TYPE_CONFLICT)
    commit = Journal.commit
    fails = [CommitFailedError("disk full", is_certain=True)] * 2

    def flaky(self: Journal, transaction: Transaction) -> Committed:
        if transaction.delivered and fails:
            raise fails.pop()
        return commit(self, transaction)

    monkeypatch.setattr(Journal, "commit", flaky)
    good, bad = events(1), events(1, name=BAD)
    await fill(tmp_path, good, bad)
    async with delivering(scripted_influx, data_dir=tmp_path) as running_exporter:
        await emptied(running_exporter)
        assert (1, {"refused": 1}) == (await delivered(running_exporter), await refusals(running_exporter))
    assert (devices(good), devices(bad)) == (stored_devices(scripted_influx), dead_devices(tmp_path))
    assert ([], devices([*good, *bad])) == (fails, devices_in(set(scripted_influx.received)))
    assert {2: 1, 1: 2} == Counter(len(request.records) for request in scripted_influx.requests)


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_last_attempt_on_shutdown(scripted_influx: ScriptedInflux, tmp_path: Path) -> None:
    """Points that wait out a `Retry-After` are tried once more when the exporter stops."""
    scripted_influx.play(Step(recordings.unavailable(60)))
    async with delivering(scripted_influx, data_dir=tmp_path) as exporter:
        batch = await accept(exporter, events(3))
        await wait_for(lambda: failing_is(exporter, ["server_error"]))
    assert devices(batch) == stored_devices(scripted_influx)
    async with running({"data_dir": tmp_path}) as exporter:
        assert [] == exporter.lines()


async def test_what_waits_is_delivered_on_shutdown(scripted_influx: ScriptedInflux) -> None:
    """When the exporter stops while InfluxDB works, also the points that no request has yet are delivered."""
    scripted_influx.default = Step(recordings.Answer(204), delay_seconds=0.2)
    batch = []
    async with delivering(scripted_influx) as exporter:
        for _ in range(3):
            batch += await accept(exporter, events(2))
    assert devices(batch) == stored_devices(scripted_influx)


@pytest.mark.parametrize(
    ("step", "shutdown_timeout"), [(NEVER, 0.2), (Step(recordings.unavailable()), 60.0)], ids=["never", "503"]
)
async def test_last_attempt_has_a_deadline(
    scripted_influx: ScriptedInflux, tmp_path: Path, step: Behaviour, shutdown_timeout: float
) -> None:
    """A last attempt that is not answered ends at its deadline, one that fails ends at once, and neither loses any."""
    scripted_influx.default = step
    settings: dict[str, Any] = {"data_dir": tmp_path, "influx_timeout": 60, "shutdown_timeout": shutdown_timeout}
    async with asyncio.timeout(30):
        async with delivering(scripted_influx, **settings) as exporter:
            batch = await accept(exporter, events(3))
            await wait_for(lambda: bool(scripted_influx.requests))
    scripted_influx.default = ACCEPT
    async with delivering(scripted_influx, data_dir=tmp_path) as exporter:
        await emptied(exporter)
        assert 3 == await delivered(exporter)
    assert devices(batch) == stored_devices(scripted_influx)


async def test_process_stops_while_influxdb_hangs(
    scripted_influx: ScriptedInflux, exporter_process: StartExporter
) -> None:
    """SIGTERM ends the process in time and in order although InfluxDB hangs; the next one delivers."""
    scripted_influx.default = NEVER
    settings = influx_settings(scripted_influx.url, token="token", org="org", bucket="capgo")  # noqa: S106
    exporter = await exporter_process({**settings, "EXPORTER_SHUTDOWN_TIMEOUT": "0.5"})
    batch = events(3)
    assert 200 == (await exporter.post(batch)).status
    await wait_for(lambda: bool(scripted_influx.requests))
    assert 0 == await exporter.terminate(10)
    scripted_influx.default = ACCEPT
    await exporter.start()
    await wait_for(lambda: devices(batch) == stored_devices(scripted_influx))


# --- a real InfluxDB --------------------------------------------------------------------------------------------------


async def test_real_influxdb_down_in_the_middle(v2_influxdb: V2InfluxDB) -> None:
    """A real InfluxDB that was stopped and started again has every point once."""
    async with delivering(v2_influxdb.proxy, influx_token=v2_influxdb.token) as exporter:
        batch = await accept(exporter, events(10))
        await emptied(exporter)
        await v2_influxdb.server.stop()
        batch += await accept(exporter, events(10))
        await wait_for(lambda: failing_is(exporter, ["network"]))
        await v2_influxdb.server.start()
        batch += await accept(exporter, events(10))
        await emptied(exporter)
        assert 30 == await delivered(exporter)
    assert devices(batch) == await stored_in(v2_influxdb.server)


async def test_real_influxdb_with_wrong_token_then_right(v2_influxdb: V2InfluxDB, tmp_path: Path) -> None:
    """Points that a wrong token kept out are delivered after a restart with the right one."""
    data_dir = tmp_path / "data"
    async with delivering(v2_influxdb.proxy, data_dir=data_dir, influx_token="wrong") as exporter:  # noqa: S106
        batch = await accept(exporter, events(10))
        await wait_for(lambda: failing_is(exporter, ["rejected_credentials"]))
    async with delivering(v2_influxdb.proxy, data_dir=data_dir, influx_token=v2_influxdb.token) as exporter:
        await emptied(exporter)
        assert 10 == await delivered(exporter)
    assert devices(batch) == await stored_in(v2_influxdb.server)


async def test_real_influxdb_with_type_conflict(v2_influxdb: V2InfluxDB, tmp_path: Path) -> None:
    """A field that someone wrote with another type before costs the points that have it, and no others."""
    data_dir = tmp_path / "data"
    status, body = await v2_influxdb.server.write(f"capgo_stats,app_id=x version_os=1.5 {time.time_ns()}")
    assert (204, "") == (status, body)
    good, bad = events(20), events(3, name=BAD, version_os="14")
    await fill(data_dir, [*good[:7], *bad, *good[7:]])
    async with delivering(v2_influxdb.proxy, data_dir=data_dir, influx_token=v2_influxdb.token) as exporter:
        await emptied(exporter)
        assert (20, {"refused": 3}) == (await delivered(exporter), await refusals(exporter))
    assert (devices(good), devices(bad)) == (await stored_in(v2_influxdb.server), dead_devices(data_dir))
    errors = {error for _, error, _ in dead_letters(data_dir)}
    assert "field type conflict" in json.dumps(sorted(errors))


@pytest.mark.server("influxd")
async def test_real_influxdb_with_points_beyond_retention(tmp_path: Path) -> None:
    """Points that a real InfluxDB refuses as too old are counted; a conflict in the same batch does not hide them."""
    two_hours_ago_ms = time.time_ns() // 1_000_000 - 2 * 3600 * 1000
    data_dir = tmp_path / "data"
    async with InfluxDB16(tmp_path / "influxdb", retention="1h") as influxdb, V2Proxy(influxdb.url, token="t") as proxy:  # noqa: S106
        await influxdb.write(f"capgo_stats,app_id=x version_os=1.5 {time.time_ns()}")
        good, bad = events(20), events(2, name=BAD, version_os="14")
        old = events(3, name="old", timestamp=two_hours_ago_ms)
        await fill(data_dir, [*good[:4], *old[:2], *good[4:9], *bad, *good[9:], *old[2:]])
        async with delivering(proxy, data_dir=data_dir, influx_token="t") as exporter:  # noqa: S106
            await emptied(exporter)
            assert (20, {"refused": 2, "beyond_retention": 3}) == (
                await delivered(exporter),
                await refusals(exporter),
            )
        assert (devices(good), devices(bad)) == (await stored_in(influxdb), dead_devices(data_dir))
        assert [] == proxy.gzip_errors


# --- few points -------------------------------------------------------------------------------------------------------


class SteppingClock:
    """A clock that stands still but for a step each time that somebody looks at it."""

    def __init__(self, step_seconds: float) -> None:
        """Start at 0."""
        self._now = 0.0
        self._step = step_seconds

    def monotonic(self) -> float:
        """Give the seconds."""
        self._now += self._step
        return self._now


@pytest.mark.parametrize("step_seconds", [0.001, 0.04, 0.06, 0.09, 0.15, 0.19, 0.21])
async def test_what_came_while_points_gathered_is_sent(step_seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes when that time is over, at whichever moment that is, though nothing comes any more that wakes anybody."""
    read = exporter.delivery.Delivery._read_new  # noqa: SLF001 -- nothing public says when a sender has read
    late: list[asyncio.Task[Any]] = []

    async def read_and_store(self: exporter.delivery.Delivery) -> Any:
        rows = await read(self)
        if rows and not late:
            late.append(asyncio.create_task(accept(running_exporter, events(1))))
            await late[0]
        return rows

    monkeypatch.setattr(exporter.delivery.Delivery, "_read_new", read_and_store)
    monkeypatch.setattr(exporter.delivery, "time", SteppingClock(step_seconds))
    async with ScriptedInflux() as influx, delivering(influx) as running_exporter:
        await accept(running_exporter, events(1))
        await emptied(running_exporter)
        assert 2 == len(influx.stored)
