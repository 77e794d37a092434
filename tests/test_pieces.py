"""Pieces of the page that are kept: whatever happened since, the page is the one that would be made from nothing."""

import asyncio
import contextlib
import gzip
import json
import random
import re
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

import exporter.blocks
from exporter.access import Tokens
from exporter.app import make_derivation, make_intake
from exporter.births import Births
from exporter.caps import SeriesRoom
from exporter.connections import Connections
from exporter.counters import Counters
from exporter.derived.families import FAMILIES, LAUNCH_DURATION
from exporter.derived.figures import Figures
from exporter.events import decode
from exporter.expiry import Expiry
from exporter.exposition import OPENMETRICS_TYPE, Page
from exporter.journal.records import Birth
from exporter.labels import Labels
from exporter.operations import MetricsHandler
from exporter.pieces import Piece, gzip_member
from exporter.series import Lifecycle, MetricType, Series, whole
from exporter.settings import Settings
from exporter.state import State
from exporter.telemetry import Telemetry
from tests.support.exporter import SCRAPE_HEADERS
from tests.support.inprocess import ManualClock
from tests.support.ports import wait_for

REPEATED = st.builds(lambda text, times: text * times, st.binary(max_size=9), st.integers(0, 3000))
TEXTS = st.binary(max_size=2000) | REPEATED
_LABEL = re.compile(r'\w+="(?:[^"\\]|\\.)*"')


@pytest.fixture(autouse=True)
def small_blocks() -> Iterator[None]:
    """Blocks of three series, so that there are many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter.blocks, "_SERIES_A_BLOCK", 3)
        yield


# --- compressed pieces ------------------------------------------------------------------------------------------------


@given(st.lists(TEXTS, max_size=8), st.randoms(use_true_random=False))
def test_pieces_make_one_gzip_member(texts: list[bytes], chance: random.Random) -> None:
    """In any order, each time, whether they were compressed before or not: one member that ends where the bytes end."""
    pieces = [Piece(text) for text in texts]
    for _ in range(2):
        page = [*pieces, *chance.choices(pieces, k=3)] if pieces else []
        chance.shuffle(page)
        for piece in chance.sample(pieces, len(pieces) // 2):
            piece.deflated()
        expected = b"".join(piece.text for piece in page)
        member = b"".join(gzip_member(page))
        reader = zlib.decompressobj(31)
        assert (expected, True, b"") == (reader.decompress(member), reader.eof, reader.unused_data)
        assert expected == gzip.decompress(member)
    assert texts == [piece.text for piece in pieces]


def test_a_compressed_piece_takes_no_room_for_its_text() -> None:
    """The text is let go of once it is compressed, and compressed once."""
    piece = Piece(b"a line of the page\n" * 100)
    first = piece.deflated()
    assert first is piece.deflated()
    kept = [getattr(piece, name) for name in Piece.__slots__]
    assert sum(len(each[0]) for each in kept if isinstance(each, tuple)) < 100
    assert [None] == [each for each in kept if not isinstance(each, tuple | int)]


def test_parts_are_large_enough_to_send() -> None:
    """Hundreds of small pieces do not become hundreds of small writes, and a large page no single one."""
    chance = random.Random(1)  # noqa: S311 -- no secret
    pieces = [Piece(chance.randbytes(30_000)) for _ in range(40)]
    parts = gzip_member(pieces)
    assert 10 < len(parts) < 20
    assert gzip.decompress(b"".join(parts)) == b"".join(piece.text for piece in pieces)


# --- any life of series -----------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", 'b"%', "c\\日"])
SCALARS = [family for family in FAMILIES if family.type is not MetricType.HISTOGRAM][:3]
BOUNDS = {family: (0.5, 2.0) for family in FAMILIES if family.type is MetricType.HISTOGRAM}
PLACES = st.integers(0, 50)
STEP = st.one_of(
    st.tuples(st.just("event"), NAMES),
    st.tuples(st.just("figure"), NAMES, st.sampled_from(SCALARS)),
    st.tuples(st.just("launch"), NAMES),
    st.tuples(st.just("store")),
    st.tuples(st.just("grow"), PLACES, st.integers(0, 1 << 40)),
    st.tuples(st.just("bear"), PLACES),
    st.tuples(st.just("expire"), st.sets(PLACES, max_size=9), st.sets(PLACES, max_size=3)),
    st.tuples(st.just("compress")),
)
STEPS = st.lists(st.tuples(STEP, st.booleans(), st.booleans()), min_size=5, max_size=40)


def ignore(*_: object) -> None:
    """Do nothing about a cap that was reached."""


@dataclass
class World:
    """Series, and a page of them.

    Attributes:
        pieces: those of pages that were rendered and not compressed yet.
    """

    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    pieces: list[Piece] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the stores."""
        self.counters = Counters(self.lifecycle, SeriesRoom(10_000), ignore)
        self.figures = Figures(self.lifecycle, BOUNDS, SeriesRoom(10_000), ignore)
        self.page = Page(CollectorRegistry(), self.counters, self.figures)

    def stored(self) -> list[Series]:
        """Give what the journal has."""
        return [*self.counters, *self.figures]

    def event(self, name: str) -> None:
        """Let an event of a new version come, or of one that is there."""
        self.counters.find(Labels(name, "ios", "get", name, "prod"), 0)

    def figure(self, name: str, family: Any) -> None:
        """Let a derived series be needed."""
        self.figures.find(family, (name,) * len(family.labels), 0)

    def launch(self, name: str) -> None:
        """Let a histogram be needed."""
        self.figures.histogram(LAUNCH_DURATION, (name,) * 3, 0)

    def store(self) -> None:
        """Let a transaction store what is new."""
        self.lifecycle.mark_stored({series.series_id for series in self.lifecycle.unstored})

    def grow(self, place: int, delta: int) -> None:
        """Let a series grow."""
        if stored := self.stored():
            series = stored[place % len(stored)]
            series.change(series.value + delta)

    def bear(self, place: int) -> None:
        """Let Prometheus see more of a series."""
        if stored := self.stored():
            series = stored[place % len(stored)]
            series.show(Birth(min(series.birth + 1, Birth.FULL)))

    def expire(self, places: set[int], reached: set[int]) -> None:
        """Remove series, of which events reached some meanwhile; a histogram goes as a whole."""
        if not (stored := self.stored()):
            return
        named = {whole(stored[place % len(stored)]) for place in places}
        staged = [stored[place % len(stored)] for place in reached]
        gone = self.lifecycle.expire([series for series in stored if whole(series) in named], staged)
        self.counters.remove(gone)
        self.figures.remove(gone)

    def look(self, openmetrics: bool, to_scraper: bool) -> None:  # noqa: FBT001 -- drawn by hypothesis
        """Compare the page with prometheus-client's, which keeps nothing."""

        async def pieces() -> list[Piece]:
            return [each async for each in self.page.pieces(openmetrics=openmetrics, to_scraper=to_scraper)]

        found = asyncio.run(pieces())
        self.pieces += found
        slow = (generate_openmetrics if openmetrics else generate_latest)(self.page.registry(to_scraper=to_scraper))
        assert lines(slow) == lines(b"".join(piece.text for piece in found))

    def compress(self) -> None:
        """Compress what was shown, some time later, as the thread does."""
        for piece in self.pieces:
            piece.deflated()
        self.pieces.clear()


def lines(page: bytes) -> list[str]:
    """Give the lines of a page, lines and labels in an order of their own, with numbers as numbers: 1.0 is 1."""
    found = []
    for line in page.decode().splitlines():
        text, _, value = line.rpartition(" ")
        sample = f"{text.partition('{')[0]} {sorted(_LABEL.findall(text))}"
        found.append(line if line.startswith("#") else f"{sample} {float(value)}")
    return sorted(found)


@given(STEPS)
def test_the_page_is_as_if_nothing_were_kept(steps: list[tuple[Any, ...]]) -> None:
    """However series come, grow, are born and expire between pages, each page shows what prometheus-client shows."""
    world = World()
    world.event("a")
    world.launch("a")
    world.store()
    for (name, *arguments), openmetrics, to_scraper in steps:
        getattr(world, name)(*arguments)
        world.look(openmetrics, to_scraper)
    for openmetrics in (False, True):
        for to_scraper in (False, True):
            world.look(openmetrics, to_scraper)


def test_what_has_not_changed_is_used_again() -> None:
    """A page between which and the last nothing happened is made of the same pieces; one change renews one piece."""
    world = World()
    for number in range(9):
        world.event(str(number))
    world.launch("a")
    world.store()
    for series in world.stored():
        series.show(Birth.FULL)
    blocks = list(world.lifecycle.all())
    first = [block.piece(to_scraper=False) for block in blocks]
    assert len(first) > 9
    assert first == [block.piece(to_scraper=True) for block in blocks]
    world.stored()[4].change(7)
    again = [block.piece(to_scraper=True) for block in blocks]
    assert 1 == sum(old is not new for old, new in zip(first, again, strict=True))


def test_series_grow_beside_those_that_expired() -> None:
    """What stands in a block behind a series that is gone still gets its own values."""
    world = World()
    world.event("a")
    world.store()
    world.expire({0, 3}, set())
    for place, _ in enumerate(world.stored()):
        world.grow(place, 10 + place)
        world.look(openmetrics=False, to_scraper=False)


# --- a whole exporter -------------------------------------------------------------------------------------------------

APPS, PLATFORMS, VERSIONS = ("com.example.a", "com.example.b"), ("ios", "android"), ("1.0.0", "2.0.0", "3.0.0")
ACTIONS = ("get", "set", "update_fail", "download_10", "download_complete", "app_launch_ready", "app_launch_start")
INTERVAL = 15.0
_TIMEOUT = aiohttp.ClientTimeout(total=30)


class Whole:
    """The exporter's parts on a clock of the test, with a server for the page."""

    def __init__(self, data_dir: Path, clock: ManualClock, reading_seconds: float) -> None:
        """Open the journal."""
        self.clock = clock
        settings = Settings(data_dir=data_dir, scrape_interval=INTERVAL, series_ttl=3600.0)
        self.state = State(settings, clock.clock)
        self.derivation = make_derivation(settings, self.state, clock.clock)
        self.intake = make_intake(settings, self.state, self.derivation, b"key", clock.clock)
        self.expiry = Expiry(self.state, ttl_seconds=3600.0, clock=clock.clock, on_release=ignore)
        state = self.state
        births = Births(state.lifecycle, state.committer, INTERVAL, state.telemetry, clock.clock)
        self.small = CollectorRegistry()
        self.page = Page(self.small, state.counters, state.figures)
        connections = Connections(10, state.telemetry, clock.clock)
        self.handler = MetricsHandler(self.page, births, Tokens(), connections, reading_seconds=reading_seconds)

    async def post(self, chance: random.Random) -> None:
        """Take a body of one device, with what histograms are made of."""
        common = {
            "app_id": chance.choice(APPS),
            "platform": chance.choice(PLATFORMS),
            "version_name": chance.choice(VERSIONS),
            "device_id": f"device-{chance.randrange(20)}",
            "is_prod": True,
            "metadata": {"duration_ms": str(chance.randrange(9000))},
        }
        now_ms = self.clock.wall_ns // 1_000_000
        events = [
            common | {"action": chance.choice(ACTIONS), "timestamp": now_ms + number}
            for number in range(chance.randrange(1, 6))
        ]
        await self.intake.accept(decode(json.dumps(events).encode()))

    async def sweep(self) -> None:
        """Count what waited for stragglers, and remove what is silent."""
        if self.derivation is not None:
            await self.derivation.settle()
        await self.expiry.sweep()


@contextlib.asynccontextmanager
async def whole_exporter(
    data_dir: Path, clock: ManualClock, reading_seconds: float = 60.0
) -> AsyncIterator[tuple[Whole, str]]:
    """Run it; gives it and where its page is."""
    parts = Whole(data_dir, clock, reading_seconds)
    application = web.Application()
    application.add_routes([web.get("/metrics", parts.handler.get)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    committer = asyncio.create_task(parts.state.committer.run())
    host, port = runner.addresses[0][:2]
    try:
        yield parts, f"http://{host}:{port}/metrics"
    finally:
        await runner.cleanup()
        parts.state.committer.stop()
        await committer
        parts.state.committer.close()


async def compare(parts: Whole, url: str, headers: Mapping[str, str]) -> None:
    """Ask for the page, and compare it with what prometheus-client says of the same series."""
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as session, session.get(url, headers=headers) as reply:
        page = await reply.read()
        assert 200 == reply.status
        assert ("gzip" in headers["Accept-Encoding"]) == ("Content-Encoding" in reply.headers)
        openmetrics = reply.headers["Content-Type"] == OPENMETRICS_TYPE
    generate: Callable[[CollectorRegistry], bytes] = generate_openmetrics if openmetrics else generate_latest
    registry = parts.page.registry(to_scraper=SCRAPE_HEADERS.keys() <= headers.keys())
    assert lines(generate(registry)) == lines(page)


async def test_a_page_that_is_not_read_ends_its_connection(tmp_path: Path) -> None:
    """Who asks for a page and does not read it in time loses the connection, and that is counted."""
    async with whole_exporter(tmp_path, ManualClock(), reading_seconds=0.2) as (parts, url):
        large = Gauge("large", "More than the system takes for a client.", ["text"], registry=parts.small)
        for number in range(1000):
            large.labels(f"{number}{'x' * 16_000}").set(1)
        host, port = url.removeprefix("http://").removesuffix("/metrics").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        telemetry = parts.state.telemetry
        await wait_for(lambda: unread(telemetry) == 1, "the connection to be closed")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await reader.readexactly(16_000_000)
        writer.close()


def unread(telemetry: Telemetry) -> float | None:
    """Read how many connections were closed because a page was not read."""
    return telemetry.registry.get_sample_value("capgo_exporter_connections_closed_total", {"reason": "unread"})


def readers(chance: random.Random) -> Iterable[Mapping[str, str]]:
    """Give the headers of some readers."""
    for _ in range(chance.randrange(1, 3)):
        yield {
            "Accept-Encoding": chance.choice(["gzip", "identity"]),
            "Accept": chance.choice(["text/plain", "application/openmetrics-text"]),
            **(SCRAPE_HEADERS if chance.random() < 0.6 else {}),
        }


@pytest.mark.parametrize("seed", range(3))
async def test_the_page_of_an_exporter_is_as_if_nothing_were_kept(tmp_path: Path, seed: int) -> None:
    """Over transactions, births, expiry and restarts, for scrapers and others, in each format and encoding."""
    chance = random.Random(seed)  # noqa: S311 -- no secret
    clock = ManualClock()
    launches = 0
    for _ in range(3):
        async with whole_exporter(tmp_path, clock) as (parts, url):
            for _ in range(20):
                step = chance.random()
                if step < 0.5:
                    await parts.post(chance)
                elif step < 0.8:
                    clock.advance(chance.choice([0.5, INTERVAL, 20.0]))
                else:
                    clock.advance(chance.choice([0.0, 20.0, 4000.0]))
                    await parts.sweep()
                launches += len(parts.state.figures.histograms(LAUNCH_DURATION))
                for headers in readers(chance):
                    await compare(parts, url, headers)
    assert launches > 0
