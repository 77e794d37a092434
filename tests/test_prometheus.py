"""What a real Prometheus makes of the exporter: every event, exactly."""

import asyncio
import contextlib
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

import aiohttp

from exporter.actions import KEY_ACTIONS
from tests.conftest import StartExporter, StartPrometheus
from tests.support.exporter import EVENTS_TOTAL, CounterKey, parse_counters
from tests.support.ports import wait_for
from tests.support.prometheus import Prometheus, Series

APP = "com.example.shop"
STEADY = CounterKey(APP, "android", "get", "1.0.0", "prod")
TICK_SECONDS = 0.1
EVENTS_A_TICK = 3
TICKS_A_BIRTH = 5
CURL_SECONDS = 0.1
WINDOW_SECONDS = 20
_TIMEOUT = aiohttp.ClientTimeout(total=10)


class Devices:
    """Devices that send one action steadily, and every now and then a new version with a burst of others.

    As newer plugins do, they send a batch again until it is acknowledged.

    Attributes:
        sent: acknowledged events by series, with 0 for the series that are born together with others.
        history: moments, and how many steady events were acknowledged by then.
        give_birth: whether new versions appear.
        is_over: whether to stop, once what was sent is acknowledged.
    """

    def __init__(self, url: str) -> None:
        """Send nothing yet."""
        self._url = url
        self._timestamps = itertools.count(time.time_ns() // 1_000_000)
        self.sent: Counter[CounterKey] = Counter()
        self.history: list[tuple[float, int]] = []
        self.give_birth = True
        self.is_over = False

    async def run(self) -> None:
        """Send until it is over."""
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            started = time.monotonic()
            for tick in itertools.count(1):
                if self.is_over:
                    return
                keys = [STEADY] * EVENTS_A_TICK
                if self.give_birth and tick % TICKS_A_BIRTH == 0:
                    new = STEADY._replace(version=f"2.0.{tick}")
                    keys += [new] * (1 + tick % 3) + [new._replace(action="update_fail")]
                await self._send(session, keys)
                await asyncio.sleep(max(0.0, started + tick * TICK_SECONDS - time.monotonic()))

    async def _send(self, session: aiohttp.ClientSession, keys: Sequence[CounterKey]) -> None:
        body = json.dumps([self._event(key) for key in keys])

        async def acknowledged() -> bool:
            async with session.post(f"{self._url}/stats", data=body) as response:
                await response.read()
                return response.status == 200

        await wait_for(acknowledged, "a batch to be acknowledged")
        for key in keys:
            self.sent[key] += 1
            for action in KEY_ACTIONS:
                self.sent[key._replace(action=action)] += 0
        self.history.append((time.time(), self.sent[STEADY]))

    def _event(self, key: CounterKey) -> dict[str, object]:
        return {
            "app_id": key.app_id,
            "platform": key.platform,
            "action": key.action,
            "version_name": key.version,
            "device_id": "0b1f6c1e-2d3a-4c5b-8e7f-2a2a2a2a2a2a",
            "timestamp": next(self._timestamps),
        }

    def steady_events(self, since: float, until: float) -> int:
        """Return how many steady events were acknowledged between two moments."""
        by_moment = [max((count for at, count in self.history if at <= when), default=0) for when in (since, until)]
        return by_moment[1] - by_moment[0]


async def read_as_curl_does(url: str, devices: Devices) -> None:
    """Read the page ten times a second without Prometheus's header; it must hold what was acknowledged before."""
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
        while True:
            acknowledged = dict(devices.sent)
            # The exporter is killed in the middle.
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{url}/metrics") as response:
                    shown = parse_counters(await response.text())
                assert {} == {key: count for key, count in acknowledged.items() if shown.get(key, -1) < count}
            await asyncio.sleep(CURL_SECONDS)


def by_key(series: Sequence[Series]) -> dict[CounterKey, Series]:
    """Index the event counter's series by their labels."""
    return {CounterKey(*(each.labels[name] for name in CounterKey._fields)): each for each in series}


def caught_up(server: Prometheus, expected: Callable[[], Mapping[CounterKey, int]]) -> Callable[[], Awaitable[bool]]:
    """Return a condition: the server's last scrape shows the expected values."""

    async def condition() -> bool:
        last = {key: series.samples[-1][1] for key, series in by_key(await server.query(EVENTS_TOTAL)).items()}
        wanted = expected()
        missing = {key: (count, last.get(key)) for key, count in wanted.items() if last.get(key) != count}
        assert missing == {}
        return True

    return condition


async def test_every_event_is_seen_exactly(exporter_process: StartExporter, prometheus_server: StartPrometheus) -> None:
    """Two servers see every event of every series, also of those born meanwhile, with readers and a `kill -9` between.

    Last minus first raw sample is the number of events, exactly; `increase()`, which extrapolates, is within 10 %.
    """
    exporter = await exporter_process({"EXPORTER_SCRAPE_INTERVAL": "1s"})
    url = exporter.url
    servers = await asyncio.gather(
        *(prometheus_server([url], external_labels={"replica": replica}) for replica in ("a", "b"))
    )
    await asyncio.gather(*(server.wait_up() for server in servers))
    devices = Devices(url)
    async with asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(devices.run())
        reading = tasks.create_task(read_as_curl_does(url, devices))
        await births(devices, 15)

        # A server that reconnects is not known before its first scrape, so a birth just then may escape the other one.
        devices.give_birth = False
        await seen_by_all(servers, devices)
        await exporter.kill9()
        await exporter.restart(same_port=True)
        await asyncio.gather(*(wait_for(scraped_since(server, time.time())) for server in servers))
        devices.give_birth = True

        await births(devices, 35)
        ended = time.time()
        devices.is_over = True  # In the middle of a request nobody knows whether it was counted.
        await sending
        await seen_by_all(servers, devices)
        reading.cancel()
    for server in servers:
        series = by_key(await server.raw_samples(EVENTS_TOTAL))
        assert dict(devices.sent) == {key: round(each.rise) for key, each in series.items()}
        assert {0.0} == {each.samples[0][1] for each in series.values()}
        assert [] == [key for key, each in series.items() if each.samples != sorted(each.samples, key=lambda at: at[1])]
        steady = f'{EVENTS_TOTAL}{{action="{STEADY.action}",version="{STEADY.version}"}}'
        (increase,) = await server.query(f"increase({steady}[{WINDOW_SECONDS}s])", ended)
        expected = devices.steady_events(ended - WINDOW_SECONDS, ended)
        assert math.isclose(expected, increase.samples[0][1], rel_tol=0.1), (expected, increase)


async def births(devices: Devices, versions: int) -> None:
    """Wait until so many versions have been born."""

    def enough() -> bool:
        return len({key.version for key in devices.sent}) >= versions

    await wait_for(enough, f"{versions} versions")


async def seen_by_all(servers: Sequence[Prometheus], devices: Devices) -> None:
    """Wait until every server's last scrape shows what was sent, but of the series that grows steadily."""

    def without_steady() -> dict[CounterKey, int]:
        return {key: count for key, count in devices.sent.items() if key != STEADY}

    await asyncio.gather(*(wait_for(caught_up(server, without_steady)) for server in servers))


def scraped_since(server: Prometheus, moment: float) -> Callable[[], Awaitable[bool]]:
    """Return a condition: the server has a sample from after a moment."""

    async def condition() -> bool:
        return bool(await server.query(f"timestamp({EVENTS_TOTAL}) > {moment}"))

    return condition


async def test_target_is_healthy_and_tells_about_itself(
    exporter_process: StartExporter, prometheus_server: StartPrometheus
) -> None:
    """Prometheus takes the page without an error, with the process's and the exporter's own metrics."""
    exporter = await exporter_process({"EXPORTER_SCRAPE_INTERVAL": "1s"})
    server = await prometheus_server([exporter.url])
    await server.wait_up()
    (target,) = await server.targets()
    assert (f"{exporter.url}/metrics", "up", "") == (target.url, target.health, target.last_error)
    (build,) = await server.query("capgo_exporter_build_info")
    assert build.samples[0][1] == 1.0
    for name in (
        "process_resident_memory_bytes",
        "process_open_fds",
        "capgo_exporter_journal_writable",
        "capgo_exporter_http_request_duration_seconds_bucket",
    ):
        assert await server.query(name), name
    (interval,) = await server.query("capgo_exporter_scrape_interval_seconds")
    assert interval.samples[0][1] == 1.0
