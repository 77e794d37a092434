"""The line of an event: what influxdb-client would write for it, and what a real InfluxDB reads."""

import asyncio
import hashlib
import hmac
import json
import math
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from influxdb_client.client.write.point import Point

from exporter.events import decode
from exporter.identity import identity
from exporter.points import duration_ms
from tests.conftest import V2InfluxDB
from tests.support.inprocess import ManualClock, Running, running
from tests.support.jsonvalues import any_text
from tests.support.points import read_point
from tests.support.ports import wait_for

NOW_MS = 1_800_000_000_000
DAY_MS = 86_400_000
KEY = "key of the test"
TEXT_FIELDS = ("bundle_id", "install_source", "key_id", "message", "plugin_version", "version_build", "version_os")
# No cap is met, so that every label is its own text.
ROOMY = {"max_apps": 100_000, "max_versions_per_app": 100_000, "max_unknown_actions": 100_000, "hash_key": KEY}

EVENT_WITH_FULL_METADATA = {
    "app_id": "a",
    "action": "app_crash",
    "metadata": {f'{number:063}"': '"' * 2048 for number in range(30)},
}

# --- the schema of the design, written down once more -----------------------------------------------------------------


def as_text(value: object) -> str:
    """Read a field as text: numbers and booleans become text, anything else is missing; half characters are marked."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    return (
        "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in value) if isinstance(value, str) else ""
    )


def cleaned(text: str) -> str:
    """Replace control characters and line ends by spaces."""
    return "".join(" " if unicodedata.category(char) in {"Cc", "Zl", "Zp"} else char for char in text)


def label(text: str) -> str:
    """Make the text of a tag."""
    value = cleaned(text).replace("\\", "/").strip() or "unknown"
    return value if len(value) <= 128 else "other"


def environment(event: Mapping[str, Any]) -> str:
    """Read `is_emulator` and `is_prod`."""
    truth = {"true": True, "1": True, "false": False, "0": False}
    if truth.get(as_text(event.get("is_emulator")).lower()):
        return "emulator"
    return "dev" if truth.get(as_text(event.get("is_prod")).lower()) is False else "prod"


def tags_of(event: Mapping[str, Any]) -> dict[str, str]:
    """Give the tags."""
    version, colon, _ = as_text(event.get("version_name")).partition(":")
    if colon and not version:
        version = as_text(event.get("version_name"))
    platform = as_text(event.get("platform")).lower()
    return {
        "app_id": label(as_text(event["app_id"])),
        "platform": platform if platform in {"android", "ios", "electron", "web"} else "other",
        "action": label(as_text(event["action"])),
        "version": label(version),
        "environment": environment(event),
    }


def fields_of(event: Mapping[str, Any]) -> dict[str, str | int | float]:
    """Give the fields, but the time the device said."""
    tags = tags_of(event)
    version, _, file = as_text(event.get("version_name")).partition(":")
    if not version:
        version, file = as_text(event.get("version_name")), ""
    custom_id = as_text(event.get("custom_id")).strip()
    texts = {
        **{name: as_text(event.get(name)) for name in TEXT_FIELDS},
        "version_code": as_text(event.get("version_code")),
        "device_id": as_text(event.get("device_id")).lower(),
        "custom_id": hmac.new(KEY.encode(), custom_id.encode(), hashlib.sha256).hexdigest()[:32] if custom_id else "",
        "old_version": as_text(event.get("old_version_name")),
        "channel": as_text(event.get("channel")) or as_text(event.get("defaultChannel")),
        "file": file,
        "app_id_raw": as_text(event["app_id"]) if as_text(event["app_id"]) != tags["app_id"] else "",
        "action_raw": as_text(event["action"]) if as_text(event["action"]) != tags["action"] else "",
        "version_raw": version if version != tags["version"] else "",
    }
    fields: dict[str, str | int | float] = {name: cleaned(text) for name, text in texts.items() if text}
    fields["count"] = 1
    metadata = event.get("metadata")
    kept = {
        as_text(key): as_text(value) if not isinstance(value, dict | list) else json.dumps(value, ensure_ascii=False)
        for key, value in (metadata.items() if isinstance(metadata, dict) else ())
        if value is not None
    }
    if kept:
        fields["metadata"] = cleaned(json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False))
        try:
            duration = float(kept["duration_ms"])
        except (KeyError, ValueError):
            duration = math.nan
        if math.isfinite(duration) and duration >= 0:
            fields["duration_ms"] = duration
    return fields


def client_line(event: Mapping[str, Any], time_ns: int, device_time_ms: int | None) -> str:
    """Write the line with influxdb-client."""
    point = Point("capgo_stats").time(time_ns)
    for name, tag in tags_of(event).items():
        point.tag(name, tag)
    for name, value in fields_of(event).items():
        point.field(name, value)
    if device_time_ms is not None and abs(device_time_ms) < 1 << 63:
        point.field("device_time_ms", device_time_ms)
    return str(point.to_line_protocol())


def client_lines(events: list[dict[str, Any]], arrival_ns: int) -> list[str]:
    """Write the lines of a batch that arrives at one moment: believed times, arrival times, re-sent events left out."""
    lines = []
    seen = set()
    for event in events:
        (decoded,) = decode(json.dumps(event).encode()).events
        event_id = identity(decoded)  # type: ignore[arg-type]  # every event here can be counted
        if event_id in seen:
            continue
        timestamp = event.get("timestamp")
        if timestamp is not None and event_id is not None:
            seen.add(event_id)
        if timestamp is not None and event_id is not None and NOW_MS - 7 * DAY_MS <= timestamp <= NOW_MS + 600_000:
            lines.append(client_line(event, timestamp * 1_000_000 + event_id % 1_000_000, None))
        else:
            lines.append(client_line(event, arrival_ns, timestamp))
            arrival_ns += 1
    return lines


# --- events of all kinds ----------------------------------------------------------------------------------------------

texts = any_text()
loose_texts = texts | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
versions = st.builds("{}{}{}".format, texts, st.sampled_from(["", ":"]), texts)
metadatas = st.dictionaries(
    texts | st.just("duration_ms"),
    texts
    | st.integers()
    | st.floats(0, 1e9).map(str)
    | st.none()
    | st.booleans()
    | st.lists(st.integers(), max_size=2),
    max_size=5,
)
times = (
    st.integers(NOW_MS - 8 * DAY_MS, NOW_MS + 1_200_000)
    | st.integers()
    | st.sampled_from(
        [NOW_MS - 7 * DAY_MS, NOW_MS - 7 * DAY_MS - 1, NOW_MS + 600_000, NOW_MS + 600_001, 0, -1, 1 << 63]
    )
)
events = st.fixed_dictionaries(
    {"app_id": any_text(min_size=1), "action": any_text(min_size=1) | st.sampled_from(["set", "download_fail"])},
    optional={
        **dict.fromkeys(TEXT_FIELDS, loose_texts),
        **dict.fromkeys(("old_version_name", "device_id", "custom_id", "channel", "defaultChannel"), loose_texts),
        "version_name": versions | st.none() | st.integers(),
        "version_code": loose_texts,
        "platform": st.sampled_from(["android", "iOS", "ELECTRON", "web", "windows", ""]) | loose_texts,
        "is_prod": st.sampled_from([True, False, None, "true", "False", 0, 1]),
        "is_emulator": st.sampled_from([True, False, None, "true", "False", 0, 1]),
        "timestamp": times | st.none(),
        "metadata": metadatas | st.none(),
    },
)
batches = st.lists(events, min_size=1, max_size=6)


def body(batch: list[dict[str, Any]], *, ascii_only: bool) -> bytes:
    """Write a batch with or without escapes for what is beyond ASCII; half characters can only be escaped."""
    try:
        return json.dumps(batch, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:
        return json.dumps(batch).encode()


async def post(exporter: Running, batch: list[dict[str, Any]], *, ascii_only: bool = True) -> None:
    """Post a batch of which every event must be counted."""
    reply = await exporter.post(body(batch, ascii_only=ascii_only))
    expected = {"status": "ok", "results": [{"status": "ok", "index": index} for index in range(len(batch))]}
    assert (200, expected) == (reply.status, reply.json())


@given(batches, st.booleans())
def test_every_line_is_the_clients(batch: list[dict[str, Any]], ascii_only: bool) -> None:  # noqa: FBT001 -- drawn
    """For any event, the stored line is to the letter what `Point.to_line_protocol` gives for the schema."""
    clock = ManualClock(NOW_MS * 1_000_000)

    async def stored_lines() -> list[str]:
        async with running(ROOMY, clock.clock) as exporter:
            await post(exporter, batch, ascii_only=ascii_only)
            return exporter.lines()

    assert client_lines(batch, clock.wall_ns) == asyncio.run(stored_lines())


@given(batches)
def test_one_line_is_one_line(batch: list[dict[str, Any]]) -> None:
    """No text can end a line or begin another one; each line reads back as one whole point."""
    clock = ManualClock(NOW_MS * 1_000_000)

    async def stored_lines() -> list[str]:
        async with running(ROOMY, clock.clock) as exporter:
            await post(exporter, batch)
            return exporter.lines()

    for line in asyncio.run(stored_lines()):
        assert [line] == line.splitlines()
        assert {"app_id", "platform", "action", "version", "environment"} == set(read_point(line).tags)


async def test_a_real_influxdb_reads_back_every_field(v2_influxdb: V2InfluxDB, tmp_path: Path) -> None:
    """Hundreds of generated events, stored without InfluxDB and delivered later, come back equal, with their types."""
    generated: list[dict[str, Any]] = []

    @settings(max_examples=200, database=None)
    @given(batches)
    def generate(batch: list[dict[str, Any]]) -> None:
        generated.extend(batch)

    generate()
    generated.append({**EVENT_WITH_FULL_METADATA})
    clock = ManualClock(NOW_MS * 1_000_000)
    async with running({**ROOMY, "data_dir": tmp_path}, clock.clock) as exporter:
        await post(exporter, generated)
        lines = exporter.lines()
    expected = {read_point(line).time_ns: read_point(line) for line in lines}
    influx = {
        "influx_url": v2_influxdb.url,
        "influx_token": v2_influxdb.token,
        "influx_org": v2_influxdb.org,
        "influx_bucket": v2_influxdb.bucket,
    }
    async with running({**ROOMY, **influx, "data_dir": tmp_path}) as exporter:
        delivered = exporter
        await wait_for(lambda: not delivered.lines(), "the points to be delivered")
        assert len(lines) == await exporter.sample("capgo_exporter_delivered_points_total")
        assert 0 == await exporter.sample("capgo_exporter_dead_letter_points")
    found = await v2_influxdb.server.points("capgo_stats")
    assert len(lines) == len(found)
    assert expected == {point.time_ns: point for point in found}
    types = await v2_influxdb.server.field_types("capgo_stats")
    assert {"integer"} == types.pop("count") == types.pop("device_time_ms")
    assert {"float"} == types.pop("duration_ms")
    assert {"string"} == set().union(*types.values())


# --- cases worth a test of their own ----------------------------------------------------------------------------------


async def stored(event: dict[str, Any], overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """Give the fields of the point of one event."""
    async with running(overrides) as exporter:
        reply = await exporter.post({"app_id": "a", "action": "set", **event})
        assert 200 == reply.status
        (point,) = exporter.points()
        return dict(point.fields)


async def test_an_event_without_anything_is_a_count() -> None:
    """A field that is empty is left out."""
    empty = dict.fromkeys([*TEXT_FIELDS, "custom_id", "device_id", "channel", "old_version_name", "version_code"], "")
    assert {"count": 1} == await stored({**empty, "metadata": {}})


@pytest.mark.parametrize(("code", "expected"), [(201, "201"), ("201", "201"), (0, "0"), (0.5, "0.5"), (True, "true")])
async def test_version_code_is_a_text(code: object, expected: str) -> None:
    """Clients send it as a number too, and InfluxDB holds one type for a field; 0 is not empty."""
    assert {"count": 1, "version_code": expected} == await stored({"version_code": code})


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        ({"channel": "beta", "defaultChannel": "production"}, "beta"),
        ({"channel": "", "defaultChannel": "production"}, "production"),
        ({"defaultChannel": "production"}, "production"),
    ],
)
async def test_the_channel_is_the_chosen_one(channels: dict[str, str], expected: str) -> None:
    """A chosen channel wins over the default one."""
    assert {"count": 1, "channel": expected} == await stored(channels)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", 12.0),
        ("12.5", 12.5),
        ("0", 0.0),
        ("-1", None),
        ("inf", None),
        ("nan", None),
        ("", None),
        ("fast", None),
        ("9" * 2000, None),
    ],
)
def test_duration_ms(text: str, expected: float | None) -> None:
    """Only a finite number of milliseconds that is not negative is a duration."""
    assert expected == duration_ms({"duration_ms": text})


def test_no_duration_ms() -> None:
    """Most metadata has none."""
    assert None is duration_ms({"source": "app"})


@pytest.mark.parametrize("char", ["x", '"', "\\", "é", "😀", "\n"])
async def test_a_long_text_is_cut_and_counted(char: str) -> None:
    """A field that InfluxDB would refuse is cut at a character, never inside an escape; the point is whole."""
    text = char * 70_000
    async with running() as exporter:
        event = {"app_id": "a", "action": "set", "message": text, "version_name": f"1:{text}"}
        assert 200 == (await exporter.post(event)).status
        (point,) = exporter.points()
        for name in ("message", "file"):
            value = point.fields[name]
            assert isinstance(value, str)
            assert 7_990 <= len(value.encode()) <= 16_000
            assert {" " if char == "\n" else char} == set(value)
        assert 2.0 == await exporter.sample("capgo_exporter_fields_truncated_total")


async def test_no_text_forges_a_line_or_a_field() -> None:
    """What looks like the end of a field and another line stays text."""
    attack = 'x",count=5i 1\ncapgo_stats,action=set count=100i 2\n'
    event = {"message": attack, "version_name": attack, "device_id": attack, "metadata": {attack: attack}}
    async with running() as exporter:
        reply = await exporter.post({"app_id": attack, "action": attack, **event})
        assert 200 == reply.status
        (point,) = exporter.points()
    assert 1 == point.fields["count"]
    assert attack.replace("\n", " ") == point.fields["message"]
    assert attack.replace("\n", " ").strip() == point.tags["app_id"]


HOUR_MS = 3_600_000


@pytest.mark.parametrize(
    ("offset_ms", "direction"),
    [
        (0, None),
        (-7 * DAY_MS, None),
        (-7 * DAY_MS - 1, "past"),
        (600_000, None),
        (600_001, "future"),
        (-NOW_MS, "past"),
        (-NOW_MS - 1, "past"),
        (-2 * NOW_MS, "past"),
        (100 * 365 * DAY_MS, "future"),
        ((1 << 63) - 1 - NOW_MS, "future"),
        (10**30, "future"),
        (-(10**30), "past"),
    ],
)
async def test_a_wrong_clock_hurts_nobody(offset_ms: int, direction: str | None) -> None:
    """A believable time is the point's; else it is the arrival, what the device said is a field, and a metric tells."""
    clock = ManualClock(NOW_MS * 1_000_000 + 123_456)
    timestamp = NOW_MS + offset_ms
    async with running(None, clock.clock) as exporter:
        reply = await exporter.post([{"app_id": "a", "action": "set", "timestamp": timestamp}])
        assert 200 == reply.status
        (point,) = exporter.points()
        counts = {
            name: await exporter.sample("capgo_exporter_clock_corrected_total", direction=name)
            for name in ("past", "future")
        }
    assert {"past": 0.0, "future": 0.0, **({direction: 1.0} if direction else {})} == counts
    if direction is None:
        assert timestamp == point.time_ns // 1_000_000
        assert {"count": 1} == point.fields
    else:
        assert clock.wall_ns == point.time_ns
        said = {"device_time_ms": timestamp} if abs(timestamp) < 1 << 63 else {}
        assert {"count": 1, **said} == point.fields


async def test_the_oldest_believed_time_is_a_setting() -> None:
    """Events of an hour ago are too old where the bucket keeps less."""
    clock = ManualClock(NOW_MS * 1_000_000)
    async with running({"max_event_age": "30m"}, clock.clock) as exporter:
        await exporter.post([{"app_id": "a", "action": "set", "timestamp": NOW_MS - HOUR_MS}])
        (point,) = exporter.points()
    assert {"count": 1, "device_time_ms": NOW_MS - HOUR_MS} == point.fields


async def test_arrival_times_are_unique() -> None:
    """A thousand events without a time, at one moment, are a thousand points."""
    clock = ManualClock()
    async with running(None, clock.clock) as exporter:
        await exporter.post([{"app_id": "a", "action": "set"}] * 1000)
        assert list(range(clock.wall_ns, clock.wall_ns + 1000)) == [point.time_ns for point in exporter.points()]


async def test_two_events_of_one_millisecond_are_two_points() -> None:
    """The identity tells apart what the device's clock does not."""
    batch = [{"app_id": "a", "action": "set", "device_id": str(number), "timestamp": NOW_MS} for number in range(50)]
    async with running(None, ManualClock(NOW_MS * 1_000_000).clock) as exporter:
        await exporter.post(batch)
        times = [point.time_ns for point in exporter.points()]
    assert 50 == len(set(times))
    assert {NOW_MS} == {time // 1_000_000 for time in times}
