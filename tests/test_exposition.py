"""The `/metrics` page: the whole of it, its formats, its encodings, and that it is valid at any moment."""

import asyncio
import gzip
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from exporter.caps import SeriesRoom
from exporter.counters import Cell, Counters
from exporter.derived.families import FAMILIES
from exporter.derived.figures import Figures
from exporter.exposition import OPENMETRICS_TYPE, TEXT_TYPE, Page
from exporter.journal.records import Birth
from exporter.labels import Labels
from exporter.operations import accepts_gzip, accepts_openmetrics
from exporter.series import Lifecycle, MetricType
from exporter.telemetry import Telemetry
from tests.support.exporter import EVENTS_TOTAL, parse_counters
from tests.support.inprocess import ManualClock, running

OPENMETRICS = "application/openmetrics-text"
# What real servers send (2.42 was recorded; 3.x as `scrape_protocols` makes it, by default and with text first).
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;"
    "q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_3_HISTOGRAMS = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7," + PROMETHEUS_3
)
PROMETHEUS_3_TEXT_FIRST = (
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.5,"
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.4,*/*;q=0.3"
)

# --- golden files -----------------------------------------------------------------------------------------------------

GOLDEN = Path(__file__).parent / "golden"
MASK = "<masked>"
# The samples' own time, so that it is believed.
SAMPLES_NS = 1_795_140_000_000_000_000
# The rule: what the process, the machine, the version of a library or a release decides is masked. All else is exact,
# durations too, because the clock stands still.
VOLATILE_VALUES = re.compile(r"^((?:process_|capgo_exporter_journal_bytes)\S*) \S+$", re.MULTILINE)
VOLATILE_LABELS = re.compile(r'(?<=^capgo_exporter_build_info\{)python_version="[^"]*",version="[^"]*"', re.MULTILINE)


def masked(page: str) -> str:
    """Replace what differs between two runs of the same release on two machines."""
    return VOLATILE_LABELS.sub(MASK, VOLATILE_VALUES.sub(rf"\1 {MASK}", page))


def check_golden(name: str, page: str) -> None:
    """Compare a page with its golden file; `REGENERATE_GOLDEN=1` writes the file instead."""
    path = GOLDEN / name
    if os.environ.get("REGENERATE_GOLDEN") == "1":
        path.write_text(masked(page), encoding="utf-8")
    assert path.read_text(encoding="utf-8") == masked(page)


async def test_whole_page_is_as_the_golden_files_say(samples: Mapping[str, bytes]) -> None:
    """After the clients' samples, the page for a person and the one for Prometheus are the golden ones, to the byte."""
    clock = ManualClock(SAMPLES_NS)
    async with running({"scrape_interval": "15s"}, clock.clock) as exporter:
        for name in sorted(samples):
            if name.startswith(("android", "mobile")):
                await exporter.post(samples[name])
        await exporter.metrics(scraper=True)
        clock.advance(15)
        await exporter.metrics(scraper=True)
        for name in sorted(samples):
            if name.startswith(("electron", "ios")):
                await exporter.post(samples[name])
        await exporter.post("not JSON")
        check_golden("person.txt", await exporter.metrics())
        check_golden("prometheus.openmetrics.txt", await exporter.metrics(scraper=True, accept=PROMETHEUS_2))


def test_masking_hides_only_what_is_volatile() -> None:
    """The mask covers the process, the versions and compressed sizes, and neither a name nor any other value."""
    page = (
        'process_max_fds 1024.0\ncapgo_exporter_build_info{python_version="3.11.2",version="0.1.0"} 1.0\n'
        "capgo_exporter_journal_bytes 17.0\ncapgo_exporter_series 17.0\n"
    )
    expected = (
        f"process_max_fds {MASK}\ncapgo_exporter_build_info{{{MASK}}} 1.0\n"
        f"capgo_exporter_journal_bytes {MASK}\ncapgo_exporter_series 17.0\n"
    )
    assert expected == masked(page)


# --- both renderings --------------------------------------------------------------------------------------------------

# Any text that is not a lone surrogate, with a liking for what must be escaped or might confuse a parser.
LABEL_TEXTS = st.one_of(
    st.text(alphabet=st.sampled_from('"\\\n{}=,# aZ0é日😀'), max_size=12),
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12),
)
# Prometheus's values are floats, which are exact up to 2^53.
SERIES = st.dictionaries(
    st.builds(Labels, LABEL_TEXTS, LABEL_TEXTS, LABEL_TEXTS, LABEL_TEXTS, LABEL_TEXTS),
    st.tuples(st.integers(0, 1 << 53), st.sampled_from(Birth)),
    max_size=6,
)


BOUNDS = {family: (0.5, 2.0, 7200.0) for family in FAMILIES if family.type is MetricType.HISTOGRAM}


def page_of(series: Mapping[Labels, tuple[int, Birth]], small: CollectorRegistry) -> Page:
    """Make a page of the series of a store, as a restart finds it."""
    lifecycle = Lifecycle()
    counters = Counters(lifecycle, SeriesRoom(10_000), ignore)
    cells = []
    for number, (labels, (value, birth)) in enumerate(series.items(), start=1):
        cell = Cell(labels, 0)
        cell.series_id = number
        cell.value = value
        cell.birth = birth
        cells.append(cell)
    counters.restore(cells, 0)
    figures = Figures(lifecycle, BOUNDS, SeriesRoom(10_000), ignore)
    for family in FAMILIES:
        for labels, (value, birth) in series.items():
            names = tuple(labels[: len(family.labels)]) + labels[: max(0, len(family.labels) - len(labels))]
            if family.type is MetricType.HISTOGRAM:
                histogram = figures.histogram(family, names, 0)
                parts = [*histogram.buckets, histogram.sum]
            else:
                parts = [figures.find(family, names, 0)]
            for number, part in enumerate(parts):
                part.value = value % (1 << 40) + number
                part.birth = birth
    lifecycle.mark_stored({each.series_id for each in lifecycle.unstored})
    return Page(small, counters, figures)


def ignore(label: str, value: str) -> None:
    """Do nothing about a cap that was reached."""


async def renderings(page: Page, *, openmetrics: bool, to_scraper: bool) -> tuple[dict[str, Metric], dict[str, Metric]]:
    """Return the families as prometheus-client renders them, and as the fast way does."""
    generate, parse = (generate_openmetrics, parse_openmetrics) if openmetrics else (generate_latest, parse_text)
    slow = generate(page.registry(to_scraper=to_scraper)).decode()
    pieces = page.pieces(openmetrics=openmetrics, to_scraper=to_scraper)
    fast = b"".join([piece.text async for piece in pieces]).decode()
    return by_name(parse(slow)), by_name(parse(fast))


def by_name(families: Iterable[Metric]) -> dict[str, Metric]:
    """Index families by name; none may come twice."""
    indexed: dict[str, Metric] = {}
    for family in families:
        assert family.name not in indexed
        indexed[family.name] = family
    return indexed


@given(SERIES, st.booleans(), st.booleans())
def test_both_renderings_are_equal(
    series: dict[Labels, tuple[int, Birth]],
    openmetrics: bool,  # noqa: FBT001 -- drawn by hypothesis
    to_scraper: bool,  # noqa: FBT001 -- drawn by hypothesis
) -> None:
    """Whatever the labels are, the fast page and prometheus-client's own parse to the same, with the labels intact."""
    page = page_of(series, CollectorRegistry())
    slow, fast = asyncio.run(renderings(page, openmetrics=openmetrics, to_scraper=to_scraper))
    assert slow == fast
    shown = {labels for labels, (_, birth) in series.items() if not (to_scraper and birth is Birth.HIDDEN)}
    parsed = {Labels(**sample.labels) for sample in fast["capgo_stats_events"].samples}
    assert shown == parsed


@pytest.mark.parametrize("openmetrics", [False, True])
@pytest.mark.parametrize("to_scraper", [False, True])
async def test_a_page_is_the_same_without_pauses(*, openmetrics: bool, to_scraper: bool) -> None:
    """As who simulates a fleet reads it, where nobody else needs a turn."""
    series = {Labels("app", "ios", "set", f"1.{number}", "prod"): (number, Birth.FULL) for number in range(600)}
    page = page_of(series, CollectorRegistry())
    pieces = [piece.text async for piece in page.pieces(openmetrics=openmetrics, to_scraper=to_scraper)]
    assert b"".join(pieces) == page.render(openmetrics=openmetrics, to_scraper=to_scraper)


@pytest.mark.parametrize("openmetrics", [False, True])
async def test_both_renderings_are_equal_beyond_one_chunk(*, openmetrics: bool) -> None:
    """A page of several chunks with all families loses no series and repeats none."""
    series = {Labels("app", "ios", "set", f"1.{number}", "prod"): (number, Birth.FULL) for number in range(4500)}
    slow, fast = await renderings(page_of(series, Telemetry().registry), openmetrics=openmetrics, to_scraper=False)
    volatile = [name for name in slow if name.startswith("process_")]
    for name in volatile:
        del slow[name], fast[name]
    assert slow == fast
    assert len(series) == len(fast["capgo_stats_events"].samples)


# --- negotiation ------------------------------------------------------------------------------------------------------

ACCEPT = [
    ("", False),
    ("*/*", False),
    ("text/html,application/xhtml+xml,*/*;q=0.8", False),
    ("text/plain", False),
    (OPENMETRICS, True),
    ("APPLICATION/OpenMetrics-Text; version=1.0.0", True),
    (f"{OPENMETRICS};version=1.0.0, */*", True),
    (f"{OPENMETRICS};q=0", False),
    (f"{OPENMETRICS};q=0.000,text/plain;q=0.1", False),
    (f"{OPENMETRICS};q=0.4,text/plain;q=0.5", False),
    (f"{OPENMETRICS};q=0.4,text/*;q=0.5", False),
    (f"{OPENMETRICS};q=0.4,*/*;q=0.5", False),
    (f"{OPENMETRICS};q=0.4,text/plain;q=0.3,*/*;q=0.5", True),
    (f"{OPENMETRICS};q=nonsense", True),
    (PROMETHEUS_2, True),
    (PROMETHEUS_3, True),
    (PROMETHEUS_3_HISTOGRAMS, True),
    (PROMETHEUS_3_TEXT_FIRST, False),
]
ACCEPT_ENCODING = [
    ("", False),
    ("gzip", True),
    ("GZIP", True),
    ("deflate, gzip;q=1.0, *;q=0.5", True),
    ("br, gzip;q=0.001", True),
    ("identity", False),
    ("gzip;q=0", False),
    ("gzip; q=0.0", False),
    ("gzip;q=0.000, identity", False),
    ("*", True),
    ("*;q=0", False),
    ("gzip;q=0, *", False),
    ("x-gzip2", False),
]


@pytest.mark.parametrize(("accept", "expected"), ACCEPT)
def test_format_is_what_the_reader_prefers(accept: str, *, expected: bool) -> None:
    """OpenMetrics goes to whoever names it and does not prefer a text format, the text format to everyone else."""
    assert expected == accepts_openmetrics(accept)


@pytest.mark.parametrize(("accept_encoding", "expected"), ACCEPT_ENCODING)
def test_gzip_is_for_those_who_take_it(accept_encoding: str, *, expected: bool) -> None:
    """Weights are read: one of 0 forbids, a star stands for what is not named."""
    assert expected == accepts_gzip(accept_encoding)


@pytest.mark.parametrize(
    ("accept", "content_type", "parse"),
    [(PROMETHEUS_3, OPENMETRICS_TYPE, parse_openmetrics), ("", TEXT_TYPE, parse_text)],
)
@pytest.mark.parametrize(("accept_encoding", "is_gzip"), [("gzip", True), ("gzip;q=0", False), ("identity", False)])
async def test_headers_say_what_the_body_is(
    accept: str,
    content_type: str,
    parse: Callable[[str], Iterable[Metric]],
    accept_encoding: str,
    *,
    is_gzip: bool,
) -> None:
    """The Content-Type and Content-Encoding are those of the body, and `Vary` names what they depend on."""
    async with running() as exporter:
        headers = {"Accept": accept, "Accept-Encoding": accept_encoding}
        reply = await exporter.request("GET", "/metrics", headers=headers)
        # aiohttp's client decompresses, and keeps the header.
        expected = (200, content_type, "gzip" if is_gzip else None, "Accept, Accept-Encoding")
        assert expected == (
            reply.status,
            reply.headers["Content-Type"],
            reply.headers.get("Content-Encoding"),
            reply.headers["Vary"],
        )
        assert "capgo_stats_events" in by_name(parse(reply.body.decode()))


async def test_gzip_body_is_one_readable_member() -> None:
    """What leaves the socket with gzip is the same page, compressed, with the length of the compressed bytes."""
    async with running() as exporter:
        host, port = exporter.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        (length,) = re.findall(rb"(?i)content-length: (\d+)", head)
        assert int(length) == len(body)
        assert EVENTS_TOTAL in gzip.decompress(body).decode()


# --- validity ---------------------------------------------------------------------------------------------------------


@pytest.mark.server("promtool")
async def test_promtool_finds_nothing(samples: Mapping[str, bytes]) -> None:
    """`promtool check metrics` accepts the page and has no advice."""
    async with running() as exporter:
        for body in samples.values():
            await exporter.post(body)
        page = await exporter.metrics()
    promtool = await asyncio.to_thread(
        subprocess.run, ["promtool", "check", "metrics"], input=page, capture_output=True, text=True, check=False
    )
    assert (0, "", "") == (promtool.returncode, promtool.stdout, promtool.stderr)


@pytest.mark.parametrize("accept", ["", PROMETHEUS_2])
async def test_no_created_series(samples: Mapping[str, bytes], accept: str) -> None:
    """Neither format has `_created` series, which would double the number of series."""
    async with running() as exporter:
        for body in samples.values():
            await exporter.post(body)
        page = await exporter.metrics(accept=accept)
    assert [] == [line for line in page.splitlines() if re.match(r"\w+_created\b", line)]


async def test_page_is_valid_while_commits_run() -> None:
    """Under concurrent load every page parses, has each series once, and shows no value smaller than the last page."""
    versions_a_post, posts, senders = 20, 10, 3
    limits = {"max_versions_per_app": 10_000, "scrape_interval": "1ms"}

    async with running(limits) as exporter:
        done = asyncio.Event()

        async def send(sender: int) -> None:
            for post in range(posts):
                new = (f"{sender}.{post}.{number}" for number in range(versions_a_post - 1))
                event = {"app_id": "a", "platform": "ios", "action": "get", "device_id": "d"}
                body = json.dumps([{**event, "version_name": version} for version in ("grows", *new)])
                assert (await exporter.post(body)).status == 200

        async def scrape(*, scraper: bool) -> int:
            last: dict[Labels, int] = {}
            pages = 0
            while not done.is_set():
                page = await exporter.metrics(scraper=scraper, accept=PROMETHEUS_2 if scraper else None)
                families = by_name((parse_openmetrics if scraper else parse_text)(page))
                samples = families["capgo_stats_events"].samples
                values = {Labels(**sample.labels): int(sample.value) for sample in samples}
                assert len(samples) == len(values)
                assert [] == [labels for labels, value in last.items() if values.get(labels, -1) < value]
                last = values
                pages += 1
            return pages

        scrapers = [asyncio.create_task(scrape(scraper=scraper)) for scraper in (True, False)]
        await asyncio.gather(*(send(sender) for sender in range(senders)))
        done.set()
        pages = await asyncio.gather(*scrapers)
        assert all(count > 1 for count in pages), pages
        events = posts * senders * versions_a_post
        assert events == sum(parse_counters(await exporter.metrics()).values())
