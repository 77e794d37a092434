"""Fair share: who sends too much is asked to come back, others are served; and who is the client behind proxies."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from structlog.testing import capture_logs

from exporter.addresses import Clients
from exporter.shares import BURST_SECONDS, MAX_KEYS, Buckets, FairShare, OverShareError
from tests.support.inprocess import ManualClock, Running, running
from tests.support.ports import wait_for

EVENT = {"app_id": "com.example.shop", "platform": "ios", "action": "set", "version_name": "1.0.0", "device_id": "d"}
PROXIES = "10.0.0.0/8,127.0.0.1/32,fd00::/8"


def events(count: int, app_id: str = "com.example.shop") -> list[dict[str, Any]]:
    """Make events of an app."""
    return [{**EVENT, "app_id": app_id}] * count


# --- buckets ----------------------------------------------------------------------------------------------------------


def test_a_bucket_empties_and_fills() -> None:
    """Who sent a minute's worth at once waits until there is something again; others do not."""
    clock = ManualClock()
    buckets = Buckets(10, clock.clock.monotonic)
    buckets.take(b"a", 599)
    assert 0 == buckets.wait_seconds(b"a")
    buckets.take(b"a", 11)
    assert pytest.approx((1.0, 0.0)) == (buckets.wait_seconds(b"a"), buckets.wait_seconds(b"b"))
    clock.advance(0.9)
    assert pytest.approx(0.1) == buckets.wait_seconds(b"a")
    clock.advance(0.2)
    assert 0 == buckets.wait_seconds(b"a")
    buckets.take(b"a", 10_000)
    clock.advance(2 * BURST_SECONDS + 10_000 / 10)
    assert 0 == buckets.wait_seconds(b"a")


def test_a_bucket_holds_a_minute_and_no_more() -> None:
    """A day of silence saves nothing up."""
    clock = ManualClock()
    buckets = Buckets(1, clock.clock.monotonic)
    buckets.take(b"a", 1)
    clock.advance(86_400)
    buckets.take(b"a", 60)
    assert 0 < buckets.wait_seconds(b"a") < 0.001


def test_without_a_rate_nothing_is_kept() -> None:
    """What has no limit costs nothing."""
    buckets = Buckets(None, ManualClock().clock.monotonic)
    buckets.take(b"a", 1_000_000)
    assert (0, 0) == (buckets.wait_seconds(b"a"), len(buckets))


def test_the_table_is_bounded() -> None:
    """A flood of names makes those go that were heard of longest ago; who keeps on knocking is not forgotten."""
    buckets = Buckets(1, ManualClock().clock.monotonic, max_keys=3)
    for name in (b"a", b"b", b"c"):
        buckets.take(name, 1000)
    assert buckets.wait_seconds(b"a")
    for number in range(2):
        buckets.take(b"%d" % number, 1)
    assert 3 == len(buckets)
    assert [True, False, False] == [buckets.wait_seconds(name) > 0 for name in (b"a", b"b", b"c")]


def test_a_flood_of_clients_costs_no_more_in_a_large_table() -> None:
    """Making room takes as long among 65,536 as among ten: else, whoever has many addresses could take the CPU."""

    def seconds(max_keys: int) -> float:
        buckets = Buckets(1, ManualClock().clock.monotonic, max_keys=max_keys)
        for number in range(max_keys):
            buckets.take(b"%d" % number, 1)
        started = time.process_time()
        for number in range(100_000):
            buckets.take(b"new %d" % number, 1)
        return time.process_time() - started

    small, large = (min(each) for each in zip(*((seconds(10), seconds(MAX_KEYS)) for _ in range(2)), strict=True))
    assert large < 10 * small


@given(sent=st.lists(st.tuples(st.floats(0, 30), st.integers(1, 300)), max_size=60), rate=st.integers(1, 50))
def test_nobody_gets_more_than_the_rate(sent: list[tuple[float, int]], rate: int) -> None:
    """Whatever the moments: what is taken never exceeds a full bucket, the rate, and one last batch."""
    clock = ManualClock()
    buckets = Buckets(rate, clock.clock.monotonic)
    taken = elapsed = 0.0
    for pause, count in sent:
        clock.advance(pause)
        elapsed += pause
        if not buckets.wait_seconds(b"a"):
            buckets.take(b"a", count)
            taken += count
    assert taken <= rate * (BURST_SECONDS + elapsed) + 300


@pytest.mark.parametrize(("wait", "seconds"), [(1e-9, 1), (4.2, 5), (1e9, 60)])
def test_when_to_come_back(wait: float, seconds: int) -> None:
    """Whole seconds, for devices read no others; a minute at most, when there may be room again."""
    assert seconds == OverShareError("app", wait).retry_after_seconds


# --- addresses --------------------------------------------------------------------------------------------------------


def key(remote: str, *forwarded: str, trusted: str = PROXIES) -> bytes:
    """Tell the client of a request."""
    headers = CIMultiDict(("X-Forwarded-For", value) for value in forwarded)
    return Clients(trusted.split(",")).key(make_mocked_request("POST", "/", headers).clone(remote=remote))


V4 = bytes([203, 0, 113, 7])
V6 = bytes.fromhex("20010db800000001")


@pytest.mark.parametrize(
    ("remote", "forwarded", "expected"),
    [
        ("203.0.113.7", (), V4),
        ("203.0.113.7", ("198.51.100.1",), V4),
        ("::ffff:203.0.113.7", (), V4),
        ("2001:db8:0:1::7", (), V6),
        ("2001:db8:0:1:ffff::8", (), V6),
        ("10.0.0.1", ("203.0.113.7",), V4),
        ("fd00::1", ("203.0.113.7",), V4),
        ("10.0.0.1", ("198.51.100.1, 203.0.113.7",), V4),
        ("10.0.0.1", ("198.51.100.1", "203.0.113.7"), V4),
        ("10.0.0.1", ("198.51.100.1, 203.0.113.7, 10.2.2.2,fd00::5",), V4),
        ("10.0.0.1", ("10.9.9.9, 203.0.113.7",), V4),
        ("10.0.0.1", ("203.0.113.7:4711",), V4),
        ("10.0.0.1", ("[2001:db8:0:1::7]:4711",), V6),
        ("10.0.0.1", ('"[2001:db8:0:1::7]"',), V6),
        ("10.0.0.1", ("2001:db8:0:1::7",), V6),
        ("10.0.0.1", ("::ffff:203.0.113.7",), V4),
        ("10.0.0.1", (), bytes([10, 0, 0, 1])),
        ("10.0.0.1", ("",), bytes([10, 0, 0, 1])),
        ("10.0.0.1", ("unknown",), bytes([10, 0, 0, 1])),
        ("10.0.0.1", ("203.0.113.7, nonsense, 10.3.3.3",), bytes([10, 3, 3, 3])),
        ("10.0.0.1", ("10.4.4.4, 10.3.3.3",), bytes([10, 4, 4, 4])),
        ("", ("198.51.100.1, 203.0.113.7",), V4),
        ("", (), b""),
    ],
)
def test_the_client_is_the_rightmost_hop_that_is_no_proxy(
    remote: str, forwarded: Sequence[str], expected: bytes
) -> None:
    """What a client writes into the header stands to the left of what our proxies add, and is not believed."""
    assert expected == key(remote, *forwarded)


@pytest.mark.parametrize(
    ("trusted", "expected"),
    [
        ("::ffff:10.0.0.0/104", V4),
        ("::ffff:10.0.0.1/128", V4),
        ("::ffff:10.0.0.0/127", V4),
        ("::ffff:10.0.0.2/127", bytes([10, 0, 0, 1])),
        ("::/0", bytes([10, 0, 0, 1])),
    ],
)
@pytest.mark.parametrize("remote", ["10.0.0.1", "::ffff:10.0.0.1"])
def test_a_network_of_ipv4_addresses_may_stand_in_ipv6_notation(remote: str, trusted: str, expected: bytes) -> None:
    """It means the same proxies, as which a socket for both versions names them; all of IPv6 has none of IPv4."""
    assert expected == key(remote, "203.0.113.7", trusted=trusted)


# --- the limits -------------------------------------------------------------------------------------------------------


async def shed(exporter: Running) -> dict[str, float]:
    """Tell how many requests each limit has shed."""
    name = "capgo_exporter_requests_shed_total"
    return {limit: await exporter.sample(name, limit=limit) for limit in ("client", "app")}


async def test_a_client_that_sends_too_much_waits() -> None:
    """It gets 503 and Retry-After, never 429, before its body is read; others are served, and so is it, later."""
    clock = ManualClock()
    settings = {"max_client_events_per_second": "1", "trusted_proxies": "127.0.0.1/32"}
    async with running(settings, clock.clock) as exporter:

        async def post(client: str, body: Any = EVENT) -> Any:
            return await exporter.request("POST", "/stats", json=body, headers={"X-Forwarded-For": client})

        assert 200 == (await post("203.0.113.7", events(62))).status
        reply = await post("198.51.100.1, 203.0.113.7", "not looked at")
        assert (503, "2") == (reply.status, reply.headers["Retry-After"])
        assert {"error": "unavailable", "message": "Too many events of this client; send them again later"} == {
            name: reply.json()[name] for name in ("error", "message")
        }
        assert 2 == reply.json()["retryAfterSeconds"]
        assert 200 == (await post("203.0.113.8")).status
        assert {"client": 1.0, "app": 0.0} == await shed(exporter)
        clock.advance(3)
        assert 200 == (await post("203.0.113.7")).status
        assert 64 == sum((await exporter.counters()).values())


async def test_what_is_no_event_is_charged_too() -> None:
    """A flood of empty arrays, or of nonsense, meets the limit as well."""
    async with running({"max_client_events_per_second": "1"}, ManualClock().clock) as exporter:
        statuses = [(await exporter.post(body)).status for body in ["[]", "{", "[]", *["nonsense"] * 60]]
        assert 503 == statuses[-1]
        assert 60 == sum(status != 503 for status in statuses)


async def test_requests_at_once_are_charged_one_by_one() -> None:
    """A client cannot get past its limit by sending all before the first is answered."""
    async with running({"max_client_events_per_second": "1"}, ManualClock().clock) as exporter:
        replies = await asyncio.gather(*(exporter.post(EVENT) for _ in range(100)))
        assert (60, 40) == tuple(sum(reply.status == status for reply in replies) for status in (200, 503))


async def test_bodies_at_once_are_charged_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor by sending all heads before the first body: there is one batch that exceeds the limit, and no more."""
    admitted = 0
    admit = FairShare.admit

    def counted(fair: FairShare, request: web.Request) -> bytes | None:
        nonlocal admitted
        admitted += 1
        return admit(fair, request)

    monkeypatch.setattr(FairShare, "admit", counted)
    async with running({"max_client_events_per_second": "1"}, ManualClock().clock) as exporter:
        body = json.dumps(events(50)).encode()
        go = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield body[:1]
            await go.wait()
            yield body[1:]

        posts = [asyncio.create_task(exporter.request("POST", "/stats", data=slow())) for _ in range(20)]
        await wait_for(lambda: admitted == 20, "the heads to arrive")
        go.set()
        replies = await asyncio.gather(*posts)
        assert (1, 19) == tuple(sum(reply.status == status for reply in replies) for status in (200, 503))
        assert {"client": 19.0, "app": 0.0} == await shed(exporter)
        assert 950.0 == await exporter.sample("capgo_exporter_events_total", outcome="unavailable", reason="")


async def test_the_storm_of_an_app_is_its_own() -> None:
    """An app past its limit waits, also within a batch with others; another app is served, and so is it, later."""
    clock = ManualClock()
    async with running({"max_app_events_per_second": "10"}, clock.clock) as exporter:
        assert 200 == (await exporter.post(events(700))).status
        for body in (EVENT, [*events(1, "com.example.other"), EVENT]):
            reply = await exporter.post(body)
            assert (503, "10") == (reply.status, reply.headers["Retry-After"])
        assert 200 == (await exporter.post(events(500, "com.example.other"))).status
        assert {"client": 0.0, "app": 2.0} == await shed(exporter)
        assert 3.0 == await exporter.sample("capgo_exporter_events_total", outcome="unavailable", reason="")
        clock.advance(11)
        assert 200 == (await exporter.post(EVENT)).status
        counters = await exporter.counters()
        assert {"com.example.shop": 701, "com.example.other": 500} == {
            app_id: sum(value for key, value in counters.items() if key.app_id == app_id)
            for app_id in ("com.example.shop", "com.example.other")
        }


async def test_apps_that_are_not_listed_have_no_limit() -> None:
    """Their events are not stored; a 503 would only make devices send them for ever."""
    settings = {"max_app_events_per_second": "1", "allowed_apps": "com.example.*"}
    async with running(settings, ManualClock().clock) as exporter:
        for _ in range(3):
            assert 200 == (await exporter.post(events(1000, "com.stranger"))).status
        assert {"client": 0.0, "app": 0.0} == await shed(exporter)


async def test_a_proxy_that_nobody_named_is_told_of() -> None:
    """All devices would share its limit; the hint holds no address, and comes once an hour."""
    with capture_logs() as logs:
        async with running({"max_client_events_per_second": "1"}, ManualClock().clock) as exporter:
            headers = {"X-Forwarded-For": "203.0.113.7"}
            await exporter.post(events(100))
            replies = [await exporter.request("POST", "/stats", json=EVENT, headers=headers) for _ in range(2)]
    assert [503, 503] == [reply.status for reply in replies]
    hints = [line for line in logs if "EXPORTER_TRUSTED_PROXIES" in line["event"]]
    assert 1 == len(hints)
    assert [] == [line for line in logs if "203.0.113.7" in str(line) or "127.0.0.1" in str(line)]
