"""Marked releases: the hook that takes them, what is kept and shown of them, and their points."""

import asyncio
import contextlib
import gzip
import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from influxdb_client.client.write.point import Point
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from exporter.access import Tokens
from exporter.bodies import BodyError
from exporter.derived.marks import MAX_MARKS_PER_APP, MEASUREMENT, Key, MarkChanges, Marks, line, title
from exporter.group import NotStoredError
from exporter.journal.derived_records import MarkRow
from exporter.labels import normalise
from exporter.lineprotocol import clean
from exporter.releases_hook import MAX_NOTE_LENGTH, ReleasesHandler, read_mark
from tests.support.jsonvalues import any_text, json_values
from tests.support.points import read_point
from tests.support.ports import wait_for

APP = "com.example.shop"
NOW_MS = 1_800_000_000_000
TOKEN = "a token, with spaces"  # noqa: S105 -- of this test alone
MARK = MarkRow(APP, "2.3.0", "production", NOW_MS, 10.0, 'New "checkout"')
BODY = {
    "app_id": APP,
    "version": "2.3.0",
    "channel": "production",
    "rollout_percentage": 10,
    "note": 'New "checkout"',
}
LABELS = any_text().map(lambda text: normalise(text.encode(errors="replace").decode()))
MARKS = st.builds(
    MarkRow,
    LABELS.map(lambda text: text or "app"),
    LABELS.map(lambda text: text or "1.0.0"),
    LABELS,
    st.integers(0, (1 << 53) - 1),
    st.none() | st.floats(0, 100).map(lambda value: value + 0.0),
    any_text().map(lambda text: text.encode(errors="replace").decode()),
)


def mark(number: int, app_id: str = APP, channel: str = "production") -> MarkRow:
    """Make a mark of a version of its own, a second after the one before."""
    return MarkRow(app_id, f"1.0.{number}", channel, NOW_MS + number * 1000, None, "")


def key(row: MarkRow) -> Key:
    """Give the key of a mark."""
    return row.app_id, row.version, row.channel


def put(marks: Marks, *rows: MarkRow) -> MarkChanges:
    """Store marks in one transaction, and give what it changed."""
    changes = marks.prepare(rows)
    marks.apply(changes)
    return changes


def shown(marks: Marks) -> tuple[dict[Key, float], dict[Key, float]]:
    """Give what the two families show."""
    timestamps, rollouts = (
        {(each.labels["app_id"], each.labels["version"], each.labels["channel"]): each.value for each in family.samples}
        for family in marks.collect()
    )
    return timestamps, rollouts


# --- what is kept and shown -------------------------------------------------------------------------------------------


def test_a_mark_is_shown_when_it_is_stored() -> None:
    """Preparing changes nothing; applying shows its time in seconds and its rollout as a ratio."""
    marks = Marks()
    changes = marks.prepare([MARK])
    assert (([MARK], []), ({}, {})) == (changes, shown(marks))
    marks.apply(changes)
    assert ({key(MARK): NOW_MS / 1000}, {key(MARK): 0.1}) == shown(marks)


def test_a_later_mark_replaces_the_first() -> None:
    """A rollout is raised from 10 to 50 %, then halted at 0 %, and then no longer told."""
    marks = Marks()
    put(marks, MARK)
    raised = MARK._replace(rollout_percentage=50.0, marked_ms=NOW_MS + 60_000)
    assert ([raised], []) == put(marks, raised)
    assert ({key(MARK): NOW_MS / 1000 + 60}, {key(MARK): 0.5}) == shown(marks)
    put(marks, raised._replace(rollout_percentage=0.0))
    assert {key(MARK): 0.0} == shown(marks)[1]
    put(marks, raised._replace(rollout_percentage=None))
    assert ({key(MARK): NOW_MS / 1000 + 60}, {}) == shown(marks)


def test_a_channel_has_marks_of_its_own() -> None:
    """The same version on another channel, or on none, is another mark."""
    marks = Marks()
    put(marks, MARK, MARK._replace(channel="beta"), MARK._replace(channel=""))
    assert {"production", "beta", ""} == {channel for _, _, channel in shown(marks)[0]}


@pytest.mark.parametrize("at_once", [True, False])
def test_an_app_keeps_its_latest_marks(*, at_once: bool) -> None:
    """The one marked longest ago goes, and a mark that was repeated is the latest; another app's are untouched."""
    marks = Marks()
    again = mark(0)._replace(marked_ms=NOW_MS + 100_000)
    put(marks, mark(0, "other.app"), *map(mark, range(MAX_MARKS_PER_APP)), again)
    news = [mark(1000), mark(1001)]
    changes = [put(marks, *news)] if at_once else [put(marks, each) for each in news]
    assert [key(mark(1)), key(mark(2))] == [each for change in changes for each in change.forgotten]
    assert news == [each for change in changes for each in change.rows]
    expected = {key(mark(0, "other.app")), *(key(mark(number)) for number in [0, *range(3, 50), 1000, 1001])}
    assert expected == set(shown(marks)[0])


def test_all_apps_together_are_bounded() -> None:
    """Past 500 the one marked longest ago goes, whichever app has it; a replaced mark takes no more room."""
    marks = Marks()
    rows = [mark(number, f"app{number % 20}") for number in range(500)]
    assert [] == put(marks, *rows).forgotten
    again = rows[1]._replace(marked_ms=NOW_MS + 500_000)
    assert ([again], []) == put(marks, again)
    assert [key(rows[0]), key(rows[2])] == put(marks, mark(0, "new"), mark(1, "new")).forgotten
    assert 500 == len(shown(marks)[0])


@given(
    st.lists(
        st.lists(st.builds(mark, st.integers(0, 70), st.sampled_from(["one", "two"])), max_size=130),
        max_size=4,
    )
)
def test_the_journal_holds_what_is_shown(transactions: list[list[MarkRow]]) -> None:
    """Deleting what is forgotten and then storing the rows, as the journal does, leaves just the shown marks."""
    marks, journal = Marks(), dict[Key, MarkRow]()
    for transaction in transactions:
        changes = put(marks, *transaction)
        for gone in changes.forgotten:
            del journal[gone]
        journal.update((key(row), row) for row in changes.rows)
        assert {each: row.marked_ms / 1000 for each, row in journal.items()} == shown(marks)[0]
        for app_id in ("one", "two"):
            assert MAX_MARKS_PER_APP >= sum(each[0] == app_id for each in journal)


def test_a_restart_shows_the_same_and_knows_the_oldest() -> None:
    """Rows may come in any order."""
    marks = Marks()
    rows = [MARK, *map(mark, range(1, MAX_MARKS_PER_APP))]
    put(marks, *rows)
    again = Marks()
    again.restore(rows[::-1])
    assert shown(marks) == shown(again)
    assert [key(MARK)] == put(again, mark(1000)).forgotten


def test_everything_can_be_forgotten() -> None:
    """A cleared store starts anew."""
    marks = Marks()
    put(marks, MARK)
    marks.clear()
    assert ({}, {}) == shown(marks)


@pytest.mark.parametrize(
    "change",
    [
        {"app_id": ""},
        {"app_id": "a\nb"},
        {"version": ""},
        {"version": "1.0\\"},
        {"channel": " "},
        {"marked_ms": -1},
        {"rollout_percentage": 100.1},
        {"rollout_percentage": -1.0},
        {"rollout_percentage": float("nan")},
    ],
)
def test_a_damaged_row_is_told(change: dict[str, Any]) -> None:
    """Nothing of such a journal is taken over, and the message does not hold the note."""
    marks = Marks()
    with pytest.raises(ValueError, match="a marked release is damaged") as caught:
        marks.restore([mark(1), MARK._replace(**change)])
    assert ({}, {}) == shown(marks)
    assert "checkout" not in str(caught.value)


def test_the_families_read_back_in_both_formats() -> None:
    """Whatever a mark says, the page is well-formed."""
    marks = Marks()
    put(marks, MARK, MARK._replace(channel='q"uote'))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(marks)
    for families in (
        parse_text(generate_latest(registry).decode()),
        parse_openmetrics(generate_openmetrics(registry).decode()),
    ):
        assert {
            (name, channel, value)
            for channel in ("production", 'q"uote')
            for name, value in (
                ("capgo_release_timestamp_seconds", NOW_MS / 1000),
                ("capgo_release_rollout_ratio", 0.1),
            )
        } == {(each.name, each.labels["channel"], each.value) for family in families for each in family.samples}


# --- the point --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "2.3.0 to production at 10 %"),
        ({"channel": ""}, "2.3.0 at 10 %"),
        ({"rollout_percentage": None}, "2.3.0 to production"),
        ({"rollout_percentage": 12.5}, "2.3.0 to production at 12.5 %"),
        ({"rollout_percentage": 0.0}, "2.3.0 to production at 0 %"),
        ({"channel": "", "rollout_percentage": None}, "2.3.0"),
    ],
)
def test_the_title_says_what_is_known(change: dict[str, Any], expected: str) -> None:
    """It always says at least the version."""
    assert expected == title(MARK._replace(**change))


def test_a_point() -> None:
    """The note is quoted, the percentage a float, and the time in nanoseconds."""
    assert (
        r"capgo_releases,app_id=com.example.shop,channel=production,version=2.3.0 "
        r'note="New \"checkout\"",rollout_percentage=10,title="2.3.0 to production at 10 %" 1800000000000000000'
    ) == line(MARK)
    assert 'capgo_releases,app_id=com.example.shop,version=1.0.0 title="1.0.0" 1800000000000000000' == line(
        MarkRow(APP, "1.0.0", "", NOW_MS, None, "")
    )


@given(MARKS)
def test_the_line_equals_that_of_the_client(row: MarkRow) -> None:
    """Tags and fields are escaped and left out as `Point` does."""
    point = Point(MEASUREMENT).tag("app_id", row.app_id).tag("version", row.version).tag("channel", row.channel)
    point = point.field("title", clean(title(row))).field("rollout_percentage", row.rollout_percentage)
    point = point.field("note", clean(row.note) or None).time(row.marked_ms * 1_000_000)
    assert point.to_line_protocol() == line(row)


@given(MARKS)
def test_the_line_reads_back(row: MarkRow) -> None:
    """The server sees each text as it was said, on one line."""
    point = read_point(line(row))
    tags = {"app_id": row.app_id, "version": row.version, "channel": row.channel}
    fields = {"title": title(row), "note": clean(row.note), "rollout_percentage": row.rollout_percentage}
    assert (
        row.marked_ms * 1_000_000,
        {name: text for name, text in tags.items() if text},
        {name: value for name, value in fields.items() if value not in {"", None}},
    ) == (point.time_ns, point.tags, point.fields)


# --- reading a body ---------------------------------------------------------------------------------------------------


def body(**changes: Any) -> bytes:
    """Write a body with some keys changed."""
    return json.dumps({**BODY, **changes}).encode()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (body(), MARK),
        (b'{"app_id": "app", "version": "1"}', MarkRow("app", "1", "", NOW_MS, None, "")),
        (
            body(channel=None, rollout_percentage=None, note=None),
            MARK._replace(channel="", rollout_percentage=None, note=""),
        ),
        (body(app_id=f" {APP}\n", version="2.3.0\t", channel=" production"), MARK),
        (body(version="a\\b"), MARK._replace(version="a/b")),
        (body(channel="  "), MARK._replace(channel="")),
        (body(version="x" * 128), MARK._replace(version="x" * 128)),
        (body(version=f" {'x' * 128} "), MARK._replace(version="x" * 128)),
        (body(note="é" * MAX_NOTE_LENGTH), MARK._replace(note="é" * MAX_NOTE_LENGTH)),
        (body(rollout_percentage=0), MARK._replace(rollout_percentage=0.0)),
        (body(rollout_percentage=100), MARK._replace(rollout_percentage=100.0)),
        (body(rollout_percentage=12.5), MARK._replace(rollout_percentage=12.5)),
    ],
)
def test_a_body_is_read(said: bytes, expected: MarkRow) -> None:
    """What is optional may be missing or null; labels are normalised as those of events."""
    assert expected == read_mark(said, NOW_MS)


def test_a_negative_zero_is_zero() -> None:
    """JSON can say it, and a metric would show it."""
    assert "0.0" == str(read_mark(body(rollout_percentage=-0.0), NOW_MS).rollout_percentage)


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        (b"", "invalid_json", "not JSON"),
        (b"app_id=app&version=1", "invalid_json", "not JSON"),
        (body() + b"x", "invalid_json", "not JSON"),
        (b'{"app_id": "app", "version": "1", "note": "\xff"}', "invalid_json", "not JSON"),
        (b'{"app_id": "app", "version": "\\ud800"}', "invalid_json", "not JSON"),
        (b"[" * 60_000, "invalid_release", "object"),
        (b"[]", "invalid_release", "object"),
        (b"null", "invalid_release", "object"),
        (body(rollout_precentage=10), "invalid_release", "`rollout_precentage`"),
        (b'{"version": "1"}', "invalid_release", "`app_id`"),
        (b'{"app_id": "app"}', "invalid_release", "`version`"),
        (body(app_id=""), "invalid_release", "app_id must not be empty"),
        (body(version=" \n"), "invalid_release", "version must not be empty"),
        (body(version=2), "invalid_release", "version"),
        (body(app_id=None), "invalid_release", "app_id"),
        (body(app_id="x" * 129), "invalid_release", "app_id has 129 characters"),
        (body(version="x" * 129), "invalid_release", "version has 129 characters"),
        (body(channel="x" * 129), "invalid_release", "channel has 129 characters"),
        (body(channel=1), "invalid_release", "channel"),
        (body(note="x" * (MAX_NOTE_LENGTH + 1)), "invalid_release", "note"),
        (body(note=["x"]), "invalid_release", "note"),
        (body(rollout_percentage="10"), "invalid_release", "rollout_percentage"),
        (body(rollout_percentage=True), "invalid_release", "rollout_percentage"),
        (body(rollout_percentage=-0.1), "invalid_release", "rollout_percentage"),
        (body(rollout_percentage=100.1), "invalid_release", "rollout_percentage"),
        (body(rollout_percentage=float("nan")), "invalid_json", "not JSON"),
        (b'{"app_id": "app", "version": "1", "rollout_percentage": 1e999}', "invalid_release", "rollout_percentage"),
    ],
)
def test_a_wrong_body_is_refused(said: bytes, error: str, message: str) -> None:
    """The reply names what is wrong; a key that is not known may be a typo, and is wrong too."""
    with pytest.raises(BodyError) as caught:
        read_mark(said, NOW_MS)
    assert (400, error) == (caught.value.status, caught.value.error)
    assert message in caught.value.message


@given(
    json_values()
    | st.fixed_dictionaries(
        {"app_id": any_text(), "version": any_text()},
        optional={"channel": any_text(), "note": any_text(), "rollout_percentage": json_values()},
    )
)
def test_any_json_is_read_or_refused(value: Any) -> None:
    """What is read is fit for the journal and for a line; everything else is refused as a client's error."""
    try:
        row = read_mark(json.dumps(value).encode(), NOW_MS)
    except BodyError as error:
        status = error.status
    else:
        status = 200
        Marks().restore([row])
        assert row.version == read_point(line(row)).tags["version"]
    assert status in {200, 400}


# --- the endpoint -----------------------------------------------------------------------------------------------------


@dataclass
class Hook:
    """A server with the hook, and a disk that may be full.

    Attributes:
        stored: the marks that are on disk.
        asked: the marks that were to be stored.
        full: whether nothing can be stored.
        gate: what storing waits for.
    """

    stored: list[MarkRow] = field(default_factory=list)
    asked: list[MarkRow] = field(default_factory=list)
    full: bool = False
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def store(self, row: MarkRow) -> None:
        """Store a mark."""
        self.asked.append(row)
        await self.gate.wait()
        if self.full:
            raise NotStoredError
        self.stored.append(row)

    async def post(
        self, data: bytes, *, headers: dict[str, str] | None = None, query: str = ""
    ) -> tuple[int, dict[str, str], Any]:
        """Post a body with the token, unless the headers say otherwise, and give status, headers and JSON."""
        headers = {"Authorization": f"Bearer {TOKEN}"} if headers is None else headers
        timeout = aiohttp.ClientTimeout(total=20)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(f"{self.url}/releases{query}", data=io.BytesIO(data), headers=headers) as reply,
        ):
            assert "application/json" == reply.content_type
            return reply.status, dict(reply.headers), await reply.json()


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Hook]:
    """Run the hook on a port that the kernel picks; its disk has room."""
    hook = Hook()
    hook.gate.set()
    app = web.Application()
    app.add_routes([web.post("/releases", ReleasesHandler(hook.store, lambda: NOW_MS, Tokens([TOKEN])).post)])
    runner = web.AppRunner(app, auto_decompress=False, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        hook.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield hook
    finally:
        await runner.cleanup()


async def test_a_mark_is_taken() -> None:
    """It is stored with the time of the request."""
    async with serving() as hook:
        status, _, reply = await hook.post(body())
        assert ((200, {"status": "ok"}), [MARK]) == ((status, reply), hook.stored)


async def test_a_compressed_body_is_taken() -> None:
    """As on the stats path."""
    async with serving() as hook:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Encoding": "gzip"}
        status, _, _ = await hook.post(gzip.compress(body()), headers=headers)
        assert (200, [MARK]) == (status, hook.stored)


async def test_the_answer_comes_when_it_is_on_disk() -> None:
    """Not while the transaction is being written."""
    async with serving() as hook:
        hook.gate.clear()
        reply = asyncio.create_task(hook.post(body()))
        await wait_for(lambda: bool(hook.asked), "the mark to be on its way")
        await hook.post(b"no mark")  # The server had time for a whole request.
        assert (False, []) == (reply.done(), hook.stored)
        hook.gate.set()
        status, _, _ = await reply
        assert (200, [MARK]) == (status, hook.stored)


async def test_what_cannot_be_stored_is_to_be_sent_again() -> None:
    """The answer is 503, with a time after which to try."""
    async with serving() as hook:
        hook.full = True
        status, headers, reply = await hook.post(body())
        assert ((503, "5", "unavailable"), []) == ((status, headers["Retry-After"], reply["error"]), hook.stored)


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({}, ""),
        ({"Authorization": "Bearer"}, ""),
        ({"Authorization": "Bearer wrong"}, ""),
        ({"Authorization": f"Bearer {TOKEN}x"}, ""),
        ({"Authorization": f"Basic {TOKEN}"}, ""),
        ({"Authorization": "Bearer \udcff"}, ""),
        ({}, f"?token={TOKEN}"),
    ],
)
async def test_the_token_is_needed(headers: dict[str, str], query: str) -> None:
    """It stands in the header alone: an address is written to logs."""
    async with serving() as hook:
        encoded = {name: value.encode(errors="surrogateescape").decode("latin-1") for name, value in headers.items()}
        status, reply_headers, reply = await hook.post(body(), headers=encoded, query=query)
        assert (401, "Bearer", "unauthorized") == (status, reply_headers["WWW-Authenticate"], reply["error"])
        assert ([], []) == (hook.asked, hook.stored)


async def test_a_wrong_mark_is_refused() -> None:
    """The reply names the key that is not known."""
    async with serving() as hook:
        status, _, reply = await hook.post(body(rollout=10))
        assert (400, {"error": "invalid_release", "message": "Object contains unknown field `rollout`"}) == (
            status,
            reply,
        )
        status, _, reply = await hook.post(b"version=2.3.0")
        assert (400, "invalid_json", []) == (status, reply["error"], hook.asked)


@pytest.mark.parametrize("compressed", [True, False])
async def test_a_body_has_a_bound(*, compressed: bool) -> None:
    """One of exactly 64 KiB is read, one byte more is not, nor one that the server itself refuses."""
    headers = {"Authorization": f"Bearer {TOKEN}", **({"Content-Encoding": "gzip"} if compressed else {})}
    async with serving() as hook:
        for size, expected in ((65_536, 200), (65_537, 413), (2_000_000, 413)):
            padded = body() + b" " * (size - len(body()))
            status, _, reply = await hook.post(gzip.compress(padded) if compressed else padded, headers=headers)
            assert (expected, expected == 200) == (status, "error" not in reply)
        assert [MARK] == hook.stored


async def test_an_unknown_encoding_is_refused() -> None:
    """As on the stats path."""
    async with serving() as hook:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Encoding": "br"}
        status, _, reply = await hook.post(body(), headers=headers)
        assert (415, "unsupported_content_encoding") == (status, reply["error"])
