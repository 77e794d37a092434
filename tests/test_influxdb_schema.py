"""The schema of the points, written by the real client and read back from real servers."""

import hashlib
import hmac
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.clock import Clock
from exporter.events import Event, decode
from exporter.identity import identity
from tests.conftest import V2InfluxDB
from tests.support.delivering import accept, delivering, emptied, events
from tests.support.influxdb import Point
from tests.support.inprocess import running
from tests.support.victoria import VictoriaMetrics

NOW_MS = 1_700_000_000_000
DEVICE = "5f0c5b0e-9f0c-4a52-9a5c-111111111111"
HASH_KEY = "a key of the test's own"

# DESIGN.md, "InfluxDB schema".
TAGS = {"action", "app_id", "environment", "platform", "version"}
FIELD_TYPES = {
    "action_raw": {"string"},
    "app_id_raw": {"string"},
    "bundle_id": {"string"},
    "channel": {"string"},
    "count": {"integer"},
    "custom_id": {"string"},
    "device_id": {"string"},
    "device_time_ms": {"integer"},
    "duration_ms": {"float"},
    "file": {"string"},
    "install_source": {"string"},
    "key_id": {"string"},
    "message": {"string"},
    "metadata": {"string"},
    "old_version": {"string"},
    "plugin_version": {"string"},
    "version_build": {"string"},
    "version_code": {"string"},
    "version_os": {"string"},
    "version_raw": {"string"},
}

# An event that has every field, texts with everything that line protocol escapes, and a clock that is years behind.
FULL_EVENT = {
    "app_id": "com.example\\shop ",
    "device_id": DEVICE.upper(),
    "action": "web view,ready=yes ",
    "platform": "Android",
    "version_name": " 1.2.3:assets/main.js",
    "old_version_name": "1.2.2",
    "version_build": 'quoted "2.0" \\ back',
    "version_code": 201,
    "version_os": "14",
    "plugin_version": "8.51.14",
    "custom_id": " someone ",
    "is_prod": False,
    "is_emulator": False,
    "defaultChannel": "production",
    "channel": "beta, größer=ßmall",
    "key_id": "MIIBIjANBgkqhkiG9w0B",
    "install_source": "google_play",
    "timestamp": 1_500_000_000_000,
    "metadata": {"message": 'said "no"', "duration_ms": "1234"},
    "bundle_id": "bundle-10",
    "message": "two\nlines",
}
FULL_POINT = Point(
    NOW_MS * 1_000_000,
    {
        "app_id": "com.example/shop",
        "action": "web view,ready=yes",
        "platform": "android",
        "version": "1.2.3",
        "environment": "dev",
    },
    {
        "action_raw": "web view,ready=yes ",
        "app_id_raw": "com.example\\shop ",
        "bundle_id": "bundle-10",
        "channel": "beta, größer=ßmall",
        "count": 1,
        "custom_id": hmac.new(HASH_KEY.encode(), b"someone", hashlib.sha256).hexdigest()[:32],
        "device_id": DEVICE,
        "device_time_ms": 1_500_000_000_000,
        "duration_ms": 1234.0,
        "file": "assets/main.js",
        "install_source": "google_play",
        "key_id": "MIIBIjANBgkqhkiG9w0B",
        "message": "two lines",
        "metadata": '{"duration_ms":"1234","message":"said \\"no\\""}',
        "old_version": "1.2.2",
        "plugin_version": "8.51.14",
        "version_build": 'quoted "2.0" \\ back',
        "version_code": "201",
        "version_os": "14",
        "version_raw": " 1.2.3",
    },
)


def clock_at(now_ms: int) -> Clock:
    """Give a clock whose wall time stands still."""
    return Clock(wall_ns=lambda: now_ms * 1_000_000)


def minimal(**fields: Any) -> dict[str, Any]:
    """Make an event with as little as possible."""
    return {"app_id": "com.example.app", "action": "set", **fields}


def identity_of(event: dict[str, Any]) -> int:
    """Give the identity that an event with a timestamp has."""
    (decoded,) = decode(json.dumps(event).encode()).events
    assert isinstance(decoded, Event)
    found = identity(decoded)
    assert found is not None
    return found


async def stored(influxdb: V2InfluxDB, *batch: dict[str, Any], **settings: Any) -> list[Point]:
    """Deliver events to the real InfluxDB, and read the points back, in the order of time."""
    async with delivering(
        influxdb.proxy, clock=clock_at(NOW_MS), influx_token=influxdb.token, hash_key=HASH_KEY, **settings
    ) as exporter:
        await accept(exporter, list(batch))
        await emptied(exporter)
    return await influxdb.server.points("capgo_stats")


async def test_every_tag_and_field(v2_influxdb: V2InfluxDB) -> None:
    """An event with every field becomes a point with every tag and field of the schema, each with its value."""
    assert [FULL_POINT] == await stored(v2_influxdb, FULL_EVENT)


async def test_types(v2_influxdb: V2InfluxDB) -> None:
    """InfluxDB has the tags and the field types of the schema, and nothing else."""
    await stored(v2_influxdb, FULL_EVENT, minimal(metadata={"duration_ms": "0.5"}))
    assert TAGS == await v2_influxdb.server.tag_keys("capgo_stats")
    assert FIELD_TYPES == await v2_influxdb.server.field_types("capgo_stats")


async def test_empty_fields_are_left_out(v2_influxdb: V2InfluxDB) -> None:
    """An event with nothing but an action and an app becomes a point with its tags and the count alone."""
    tags = {"app_id": "com.example.app", "action": "set", "version": "unknown", "environment": "prod"}
    (point,) = await stored(v2_influxdb, minimal(device_id="", custom_id=None, channel="", metadata={}))
    assert Point(NOW_MS * 1_000_000, {**tags, "platform": "other"}, {"count": 1}) == point


async def test_device_time_and_arrival_time(v2_influxdb: V2InfluxDB) -> None:
    """A believable device time is the point's; else it is the time of arrival, with the device's in a field."""
    believed, ahead = NOW_MS - 3600_000, NOW_MS + 3600_000
    event = minimal(timestamp=believed, device_id="a")
    points = await stored(
        v2_influxdb, event, minimal(timestamp=ahead, device_id="b"), minimal(device_id="c"), minimal(device_id="d")
    )
    assert [
        (believed * 1_000_000 + identity_of(event) % 1_000_000, {"count": 1, "device_id": "a"}),
        (NOW_MS * 1_000_000, {"count": 1, "device_id": "b", "device_time_ms": ahead}),
        (NOW_MS * 1_000_000 + 1, {"count": 1, "device_id": "c"}),
        (NOW_MS * 1_000_000 + 2, {"count": 1, "device_id": "d"}),
    ] == [(point.time_ns, point.fields) for point in points]


async def test_same_millisecond(v2_influxdb: V2InfluxDB) -> None:
    """Two events of one series in the same millisecond are two points; one that is sent again is none."""
    batch = [minimal(timestamp=NOW_MS, device_id="a"), minimal(timestamp=NOW_MS, device_id="b")]
    points = await stored(v2_influxdb, *batch, batch[0])
    assert ["a", "b"] == sorted(str(point.fields["device_id"]) for point in points)
    assert {NOW_MS} == {point.time_ns // 1_000_000 for point in points}


async def test_sent_again_to_a_new_exporter(v2_influxdb: V2InfluxDB) -> None:
    """An event that an exporter without memory sends again overwrites its own point."""
    event = minimal(timestamp=NOW_MS, device_id="a")
    assert [1, 1] == [len(await stored(v2_influxdb, event)) for _ in range(2)]


async def test_values_past_a_cap(v2_influxdb: V2InfluxDB) -> None:
    """Past a cap the tag is `other`, and the raw text stands in a field."""
    points = await stored(
        v2_influxdb,
        *[minimal(version_name=version, timestamp=NOW_MS + number) for number, version in enumerate(("1", "2", "3"))],
        max_versions_per_app=2,
    )
    assert [("1", None), ("2", None), ("other", "3")] == [
        (point.tags["version"], point.fields.get("version_raw")) for point in points
    ]


async def test_samples(v2_influxdb: V2InfluxDB, samples: Mapping[str, bytes], tmp_path: Path) -> None:
    """InfluxDB has of every client's body exactly the points that were put into the journal."""
    # The newest time in a body, so that every device's clock is believed.
    clock = clock_at(1_795_140_000_000)
    settings: dict[str, Any] = {"data_dir": tmp_path / "data", "max_event_age": "30d"}
    async with running(settings, clock) as exporter:
        for body in samples.values():
            assert 200 == (await exporter.post(body)).status
        journalled = exporter.points()
    async with delivering(v2_influxdb.proxy, influx_token=v2_influxdb.token, **settings) as exporter:
        await emptied(exporter)
    points = await v2_influxdb.server.points("capgo_stats")
    assert sorted(journalled, key=_order) == sorted(points, key=_order)
    types = await v2_influxdb.server.field_types("capgo_stats")
    assert {name: FIELD_TYPES[name] for name in types} == types


def _order(point: Point) -> tuple[int, str]:
    """Sort points by time, and those of one time by their tags."""
    return point.time_ns, json.dumps(sorted(point.tags.items()))


async def test_victoria_metrics(victoria: VictoriaMetrics) -> None:
    """VictoriaMetrics gets every one of 50,000 points, in the series of their tags."""
    counts = {"ios": 30_000, "android": 20_000}
    async with delivering(victoria) as exporter:
        for platform, count in counts.items():
            for _ in range(count // 5000):
                await accept(exporter, events(5000, platform=platform))
        await emptied(exporter)
        assert 50_000 == await exporter.sample("capgo_exporter_delivered_points_total")
        assert 0 == await exporter.sample("capgo_exporter_dead_letter_points")
    for platform, count in counts.items():
        assert count == await victoria.count(f'capgo_stats_count{{platform="{platform}",action="set"}}')
