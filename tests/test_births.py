"""Births: what Prometheus sees of a new series, scrape by scrape."""

import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any, Protocol

import aiohttp
import pytest
from structlog.testing import capture_logs

from exporter.actions import KEY_ACTIONS
from exporter.births import Births, Scrapers
from exporter.exposition import Page
from exporter.journal.records import Committed, Transaction
from exporter.journal.store import CommitFailedError, Journal
from exporter.pieces import Piece
from exporter.telemetry import Telemetry
from tests.conftest import StartExporter
from tests.support.exporter import SCRAPE_HEADERS, CounterKey, ExporterProcess, parse_counters
from tests.support.inprocess import ManualClock, Running, running
from tests.support.ports import wait_for

INTERVAL = 15.0
KEY = CounterKey("com.example.shop", "android", "get", "2.1.0", "prod")
EVENT = {
    "app_id": KEY.app_id,
    "platform": KEY.platform,
    "action": KEY.action,
    "version_name": KEY.version,
    "device_id": "0b1f6c1e-2d3a-4c5b-8e7f-2a2a2a2a2a2a",
}
_TIMEOUT = aiohttp.ClientTimeout(total=30)


class Scraper:
    """A Prometheus server as the exporter sees it: one connection that it keeps open between its scrapes."""

    def __init__(self, url: str, *, keep_alive: bool = True) -> None:
        """Connect at the first scrape; without `keep_alive`, anew at every scrape."""
        connector = aiohttp.TCPConnector(limit=1, force_close=not keep_alive)
        self._session = aiohttp.ClientSession(url, connector=connector, timeout=_TIMEOUT)

    async def scrape(self) -> dict[CounterKey, int]:
        """Return the event counter's values as this server sees them."""
        async with self._session.get("/metrics", headers=SCRAPE_HEADERS) as response:
            return parse_counters(await response.text())

    async def sees(self, key: CounterKey = KEY) -> int | None:
        """Scrape and return one series' value; None if it is not there."""
        return (await self.scrape()).get(key)

    async def close(self) -> None:
        """Close the connection, as a server that ends does."""
        await self._session.close()


class Connect(Protocol):
    """Makes a scraper that is closed at the end of the test."""

    async def __call__(self, url: str, *, keep_alive: bool = True) -> Scraper:
        """Return it; it has not connected yet."""
        ...


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes scrapers, and closes them all at the end."""
    async with AsyncExitStack() as stack:

        async def make(url: str, *, keep_alive: bool = True) -> Scraper:
            scraper = Scraper(url, keep_alive=keep_alive)
            stack.push_async_callback(scraper.close)
            return scraper

        yield make


@pytest.fixture
def clock() -> ManualClock:
    """The exporter's clock, which stands still unless the test moves it."""
    return ManualClock()


@pytest.fixture
async def exporter(clock: ManualClock) -> AsyncIterator[Running]:
    """An exporter with a scrape interval of 15 s on the test's clock."""
    async with running({"scrape_interval": INTERVAL}, clock.clock) as exporter:
        yield exporter


# --- the rule ---------------------------------------------------------------------------------------------------------


async def test_hidden_then_0_then_the_value(exporter: Running, clock: ManualClock, connect: Connect) -> None:
    """A series is 0 from its first scrape until a whole interval has passed, then its value, and grows at once."""
    scraper = await connect(exporter.url)
    assert {} == await scraper.scrape()
    await exporter.post(EVENT)
    assert await scraper.sees() == 0
    await exporter.post(EVENT)
    clock.advance(INTERVAL - 0.001)
    assert await scraper.sees() == 0
    clock.advance(0.001)
    assert await scraper.sees() == 2
    await exporter.post(EVENT)
    assert await scraper.sees() == 3


async def test_a_reader_that_is_no_scraper_takes_no_part(
    exporter: Running, clock: ManualClock, connect: Connect
) -> None:
    """Without Prometheus's header the committed value is there at once, and the 0 of a birth has not been shown."""
    await exporter.post(EVENT)
    assert await exporter.counters() == {KEY: 1}
    clock.advance(10 * INTERVAL)
    assert await exporter.counters() == {KEY: 1}
    scraper = await connect(exporter.url)
    assert await scraper.sees() == 0
    clock.advance(INTERVAL)
    assert await exporter.counters() == {KEY: 1}
    assert await scraper.sees() == 1


async def test_key_actions_are_born_together(exporter: Running, clock: ManualClock, connect: Connect) -> None:
    """With the first event of a version come its key actions at 0, so the first failure is seen to rise."""
    scraper = await connect(exporter.url)
    await exporter.post(EVENT)
    siblings = {KEY._replace(action=action): 0 for action in KEY_ACTIONS}
    assert {KEY: 0, **siblings} == await scraper.scrape()
    clock.advance(INTERVAL)
    assert {KEY: 1, **siblings} == await scraper.scrape()
    await exporter.post({**EVENT, "action": "update_fail"})
    assert await scraper.sees(KEY._replace(action="update_fail")) == 1


# --- more than one scraper --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_alive", [True, False])
async def test_two_scrapers_with_different_phases(
    exporter: Running, clock: ManualClock, connect: Connect, *, keep_alive: bool
) -> None:
    """Both see the 0 before the value, also those that connect anew for each scrape."""
    first, second = [await connect(exporter.url, keep_alive=keep_alive) for _ in range(2)]
    seen: dict[Scraper, list[int | None]] = {first: [], second: []}
    for step in range(6):
        for scraper, pause in ((first, INTERVAL / 3), (second, 2 * INTERVAL / 3)):
            seen[scraper].append(await scraper.sees())
            clock.advance(pause)
        if step == 0:
            await exporter.post(EVENT)
    assert [[None, 0, 1, 1, 1, 1]] * 2 == list(seen.values())


async def test_the_value_waits_for_a_late_scraper(exporter: Running, clock: ManualClock, connect: Connect) -> None:
    """After a whole interval the value is still held back if a living scraper has not been shown the 0 yet."""
    early, late = await connect(exporter.url), await connect(exporter.url)
    await late.scrape()
    clock.advance(1)
    await exporter.post(EVENT)
    assert await early.sees() == 0
    clock.advance(INTERVAL)
    assert await early.sees() == 0
    assert await late.sees() == 0
    assert await early.sees() == 1
    assert await late.sees() == 1


async def test_a_scraper_that_ends_is_forgotten(exporter: Running, clock: ManualClock, connect: Connect) -> None:
    """A closed connection is not waited for."""
    staying, ending = await connect(exporter.url), await connect(exporter.url)
    await ending.scrape()
    clock.advance(1)
    await exporter.post(EVENT)
    assert await staying.sees() == 0
    clock.advance(INTERVAL)
    assert await staying.sees() == 0
    await ending.close()

    async def shown() -> bool:
        return await staying.sees() == 1

    # The server notices the end of the connection when its loop gets to it, without any time passing on its clock.
    await wait_for(shown, "the value after the other scraper's end")


async def test_a_scraper_that_falls_silent_is_forgotten(
    exporter: Running, clock: ManualClock, connect: Connect
) -> None:
    """One whose connection stays open, as when its host dies, holds births back for three intervals at most."""
    staying, silent = await connect(exporter.url), await connect(exporter.url)
    await silent.scrape()
    await exporter.post(EVENT)
    values = []
    for _ in range(4):
        clock.advance(INTERVAL)
        values.append(await staying.sees())
    assert [0, 0, 1, 1] == values


class Connection:
    """A connection as far as `Scrapers` looks at it."""

    closed = False

    def is_closing(self) -> bool:
        """Tell whether it is closed."""
        return self.closed


def test_closed_connections_take_no_memory() -> None:
    """However many connections scrapes came from, only the open ones are remembered."""
    scrapers: Any = Scrapers(INTERVAL, Telemetry())
    stays = Connection()
    for number in range(1000):
        connection = Connection()
        scrapers.note(connection, float(number))
        connection.closed = True
        scrapers.note(stays, float(number))
        scrapers.all_seen_until(float(number))
    assert [stays] == list(scrapers._last)  # noqa: SLF001 -- nothing outside shows how much is remembered


@pytest.mark.parametrize("intervals", [1.5, 10])
async def test_a_slow_scraper_is_told_of_once(
    exporter: Running, clock: ManualClock, connect: Connect, intervals: float
) -> None:
    """Each late scrape is counted, the longest gap is exported, and one line in the log says what to do."""
    scraper = await connect(exporter.url)
    with capture_logs() as logs:
        await scraper.scrape()
        clock.advance(INTERVAL)
        await scraper.scrape()
        assert await exporter.sample("capgo_exporter_slow_scrapes_total") == 0
        for _ in range(3):
            clock.advance(intervals * INTERVAL)
            await scraper.scrape()
    assert await exporter.sample("capgo_exporter_slow_scrapes_total") == 3
    assert intervals * INTERVAL == await exporter.sample("capgo_exporter_scrape_gap_max_seconds")
    assert await exporter.sample("capgo_exporter_scrape_interval_seconds") == INTERVAL
    (warning,) = [line for line in logs if "slower than EXPORTER_SCRAPE_INTERVAL" in line["event"]]
    assert ("warning", intervals * INTERVAL, INTERVAL) == (
        warning["log_level"],
        warning["gap_seconds"],
        warning["scrape_interval_seconds"],
    )


# --- a page that does not arrive --------------------------------------------------------------------------------------


async def test_a_page_that_nobody_waited_for_was_not_shown(
    exporter: Running, clock: ManualClock, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scraper that gives up while the page is made takes no sample: its 0 does not count, and is shown again."""
    await exporter.post(EVENT)
    given_up = await connect(exporter.url)
    connections: list[Any] = []
    scrape = Births.scrape

    def note_connection(births: Births, connection: Any) -> Any:
        connections.append(connection)
        return scrape(births, connection)

    async def render_late(*arguments: Any, **options: Any) -> AsyncIterator[Piece]:
        monkeypatch.undo()
        await given_up.close()
        await wait_for(connections[0].is_closing, "the server to notice")
        async for piece in Page.pieces(*arguments, **options):
            yield piece

    monkeypatch.setattr(Births, "scrape", note_connection)
    monkeypatch.setattr(Page, "pieces", render_late)
    with pytest.raises(aiohttp.ClientError):
        await given_up.scrape()
    clock.advance(INTERVAL)
    scraper = await connect(exporter.url)
    assert await scraper.sees() == 0
    clock.advance(INTERVAL)
    assert await scraper.sees() == 1


# --- committed before it is shown -------------------------------------------------------------------------------------


class Disk:
    """The journal's disk: it can be made to hold commits that store a step of a birth, or to fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put it between the committer and the journal."""
        self.fails = False
        self._may_go_on = threading.Event()
        self._may_go_on.set()
        commit = Journal.commit

        def slow_commit(journal: Journal, transaction: Transaction) -> Committed:
            if transaction.births:
                self._may_go_on.wait(30)
                if self.fails:
                    message = "disk full"
                    raise CommitFailedError(message, is_certain=True)
            return commit(journal, transaction)

        monkeypatch.setattr(Journal, "commit", slow_commit)

    def hold(self) -> None:
        """Let commits wait."""
        self._may_go_on.clear()

    def let_go(self) -> None:
        """Let commits go on."""
        self._may_go_on.set()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """The journal's disk."""
    disk = Disk(monkeypatch)
    yield disk
    disk.let_go()


async def test_a_step_is_not_shown_before_it_is_stored(
    disk: Disk, exporter: Running, clock: ManualClock, connect: Connect
) -> None:
    """While the disk holds a step, the page comes without it; once it is stored, the next page has it."""
    scraper = await connect(exporter.url)
    await exporter.post(EVENT)
    disk.hold()
    assert await scraper.sees() is None
    assert await scraper.sees() is None
    disk.let_go()
    await wait_for_sight(scraper, 0)
    clock.advance(INTERVAL)
    disk.hold()
    assert await scraper.sees() == 0
    disk.let_go()
    await wait_for_sight(scraper, 1)


async def test_a_step_that_cannot_be_stored_is_not_shown(
    disk: Disk, exporter: Running, clock: ManualClock, connect: Connect
) -> None:
    """A failing disk hides new series, which a log line tells; when it works again, they are born as ever."""
    scraper = await connect(exporter.url)
    await exporter.post(EVENT)
    disk.fails = True
    with capture_logs() as logs:
        assert await scraper.sees() is None
        clock.advance(INTERVAL)
        assert await scraper.sees() is None
    assert "new series are not shown, because that could not be stored" in {line["event"] for line in logs}
    disk.fails = False
    await wait_for_sight(scraper, 0)
    clock.advance(INTERVAL)
    assert await scraper.sees() == 1
    assert await exporter.sample("capgo_exporter_slow_scrapes_total") == 0


async def wait_for_sight(scraper: Scraper, value: int) -> None:
    """Scrape until the series has a value, without any time passing on the exporter's clock."""

    async def seen() -> bool:
        return await scraper.sees() == value

    await wait_for(seen, f"the series to be shown as {value}")


# --- restarts ---------------------------------------------------------------------------------------------------------


async def restarted(exporter: ExporterProcess) -> None:
    """Kill the exporter without a warning and start it again on its data."""
    await exporter.kill9()
    await exporter.restart()


async def started(start: StartExporter, interval: str) -> ExporterProcess:
    """Start an exporter and send it one event."""
    exporter = await start({"EXPORTER_SCRAPE_INTERVAL": interval})
    assert (await exporter.post(EVENT)).status == 200
    return exporter


async def shown_to_prometheus(exporter: ExporterProcess) -> int | None:
    """Scrape the exporter over the connection of the test's client."""
    return (await exporter.counters(prometheus=True)).get(KEY)


async def test_restart_of_a_hidden_series(exporter_process: StartExporter) -> None:
    """A series that no scraper has seen is still hidden after `kill -9`, and its birth is shown."""
    exporter = await started(exporter_process, "1h")
    await restarted(exporter)
    assert await exporter.counters() == born(1)
    assert await shown_to_prometheus(exporter) == 0


async def test_restart_of_a_series_at_0(exporter_process: StartExporter) -> None:
    """A series that was shown as 0 is 0 after `kill -9`, for a whole interval more, and is never hidden."""
    exporter = await started(exporter_process, "1h")
    assert await shown_to_prometheus(exporter) == 0
    await restarted(exporter)
    assert await shown_to_prometheus(exporter) == 0
    await exporter.kill9()
    exporter.env["EXPORTER_SCRAPE_INTERVAL"] = "10ms"
    await exporter.restart()
    assert await shown_to_prometheus(exporter) == 0
    seen: list[int | None] = []

    async def full() -> bool:
        seen.append(await shown_to_prometheus(exporter))
        return seen[-1] == 1

    await wait_for(full, "the value after the restart")
    assert seen == [*[0] * (len(seen) - 1), 1]


async def test_restart_of_a_series_in_full(exporter_process: StartExporter) -> None:
    """A series that was shown in full is so at the first scrape after `kill -9`: 0 would be a counter reset."""
    exporter = await started(exporter_process, "10ms")

    async def full() -> bool:
        return await shown_to_prometheus(exporter) == 1

    await wait_for(full, "the value")
    await exporter.kill9()
    exporter.env["EXPORTER_SCRAPE_INTERVAL"] = "1h"
    await exporter.restart()
    assert await shown_to_prometheus(exporter) == 1


def born(value: int) -> Mapping[CounterKey, int]:
    """Return the series with its siblings of the key actions."""
    return {**{KEY._replace(action=action): 0 for action in KEY_ACTIONS}, KEY: value}
