"""The wire contract, request by request: what clients send, what they are answered, and what is counted."""

import asyncio
import gzip
import json
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.actions import CATALOGUE
from tests.conftest import StartExporter
from tests.support.exporter import CounterKey, Reply
from tests.support.inprocess import JSON_HEADERS, ManualClock, Running, running
from tests.support.jsonvalues import json_values
from tests.support.ports import wait_for

DEVICE = "A3E1C0DE-0000-4000-8000-3B3B3B3B3B3B"
EVENT: dict[str, Any] = {
    "app_id": "com.example.shop",
    "device_id": DEVICE,
    "platform": "ios",
    "action": "set",
    "version_name": "1.2.3",
    "version_build": "1.2.0",
    "version_code": "120",
    "version_os": "17.5.1",
    "plugin_version": "8.51.14",
    "custom_id": "",
    "is_prod": True,
    "is_emulator": False,
}
SET = CounterKey("com.example.shop", "ios", "set", "1.2.3", "prod")
OK: dict[str, Any] = {"status": "ok"}
INVALID_JSON = {"error": "invalid_json_parse_body", "message": "Invalid JSON body"}

Body = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@pytest.fixture
async def exporter() -> AsyncIterator[Running]:
    """A running exporter with the default settings."""
    async with running() as exporter:
        yield exporter


def accepted(count: int) -> dict[str, Any]:
    """Give the reply to an array whose events are all well."""
    return {"status": "ok", "results": [{"status": "ok", "index": index} for index in range(count)]}


def expected_key(event: Mapping[str, Any]) -> CounterKey:
    """Give the series of an event that is as a client writes it."""
    version = str(event.get("version_name") or "unknown").split(":")[0]
    environment = "emulator" if event.get("is_emulator") else "prod" if event.get("is_prod", True) else "dev"
    return CounterKey(event["app_id"], event["platform"], event["action"], version, environment)


def counts_of(body: Body) -> dict[CounterKey, int]:
    """Give what a body must add to the counters."""
    return dict(Counter(expected_key(event) for event in ([body] if isinstance(body, Mapping) else body)))


async def counted(settings: Mapping[str, Any] | None, *bodies: Any) -> dict[CounterKey, int]:
    """Give the counters after some bodies that must be answered 200."""
    async with running(settings) as exporter:
        for body in bodies:
            reply = await exporter.post(body)
            assert 200 == reply.status, reply
        return await exporter.counters()


async def label(name: str, **change: Any) -> str:
    """Give one label of the only event counted."""
    ((key, count),) = (await counted(None, {**EVENT, **change})).items()
    assert 1 == count
    return str(key._asdict()[name])


async def stored_fields(**change: Any) -> dict[str, Any]:
    """Give the fields of the point of one event."""
    async with running({"custom_id": "keep"}) as exporter:
        assert 200 == (await exporter.post({**EVENT, **change})).status
        (point,) = exporter.points()
        return dict(point.fields)


# --- the documented contract ------------------------------------------------------------------------------------------


async def test_an_event_is_answered_as_documented(exporter: Running) -> None:
    """One object gives 200 and exactly `{"status":"ok"}`, as JSON."""
    reply = await exporter.post(EVENT)
    assert (200, b'{"status":"ok"}') == (reply.status, reply.body)
    assert "application/json" == reply.headers["Content-Type"].split(";")[0]
    assert {SET: 1} == await exporter.counters()


@pytest.mark.parametrize("action", [action.name for action in CATALOGUE])
@pytest.mark.parametrize("unknown_actions", ["accept", "reject"])
async def test_every_known_action_is_counted(action: str, unknown_actions: str) -> None:
    """All 91, the 25 documented ones among them, are counted under their own names, whatever happens to others."""
    event = {**EVENT, "action": action}
    assert {SET._replace(action=action): 1} == await counted({"unknown_actions": unknown_actions}, event)


async def test_get_says_that_the_endpoint_is_there(exporter: Running) -> None:
    """A check of the endpoint counts nothing."""
    reply = await exporter.request("GET", "/stats")
    assert (200, OK) == (reply.status, reply.json())
    assert {} == await exporter.counters(zeros=True)


# --- bodies as clients send them --------------------------------------------------------------------------------------

SAMPLES = {
    "android-8.51-batch-good-update": 12,
    "android-8.51-batch-rollback": 3,
    "android-8.51-manifest-file-fail": 1,
    "android-8.51-worker-single": 1,
    "electron-0.0.6-download_complete": 1,
    "electron-0.0.6-set_fail": 1,
    "ios-8.51-batch": 5,
    "mobile-4-single": 1,
}


def test_every_sample_is_tested(samples: Mapping[str, bytes]) -> None:
    """A new sample is a new case."""
    assert sorted(SAMPLES) == sorted(samples)


@pytest.mark.parametrize(("name", "count"), SAMPLES.items())
async def test_samples(exporter: Running, samples: Mapping[str, bytes], name: str, count: int) -> None:
    """Every body of the clients is answered as they expect, and every event in it counted once and stored once."""
    body = json.loads(samples[name])
    reply = await exporter.post(samples[name])
    assert (200, accepted(count) if isinstance(body, list) else OK) == (reply.status, reply.json())
    counters = await exporter.counters()
    assert counts_of(body) == counters
    assert count == sum(counters.values()) == len(exporter.points())


@pytest.mark.parametrize("name", [name for name, count in SAMPLES.items() if count > 1])
async def test_a_re_sent_sample_is_not_counted_again(
    exporter: Running, samples: Mapping[str, bytes], name: str
) -> None:
    """A client that did not see the answer sends its batch again, with its keys in another order."""
    body = json.loads(samples[name])
    await exporter.post(samples[name])
    reply = await exporter.post([dict(sorted(event.items())) for event in body])
    assert (200, accepted(len(body))) == (reply.status, reply.json())
    assert counts_of(body) == await exporter.counters()
    assert len(body) == await exporter.sample("capgo_exporter_events_total", outcome="duplicate", reason="")


@pytest.mark.parametrize("name", [name for name, count in SAMPLES.items() if count == 1])
async def test_an_event_without_a_time_is_counted_each_time(
    exporter: Running, samples: Mapping[str, bytes], name: str
) -> None:
    """Such clients never re-send: two equal events are two events."""
    for _ in range(2):
        assert 200 == (await exporter.post(samples[name])).status
    assert dict.fromkeys(counts_of(json.loads(samples[name])), 2) == await exporter.counters()


def device(platform: str, plugin_version: str, **more: Any) -> dict[str, Any]:
    """Give an event of one generation of a plugin."""
    return {**EVENT, "platform": platform, "plugin_version": plugin_version, "device_id": DEVICE.lower(), **more}


EARLY = {key: EVENT[key] for key in ("app_id", "device_id", "platform", "action", "version_name")}
NOW_MS = 1_795_140_000_000

CLIENTS: dict[str, tuple[Body, dict[str, str]]] = {
    "mobile 4.0, without booleans": ({**EARLY, "plugin_version": "4.0.0"}, {}),
    "mobile 6.14": (device("android", "6.14.30"), {"Content-Type": "application/json; charset=utf-8"}),
    "mobile 8.41": (device("ios", "8.41.0", old_version_name="1.2.2", defaultChannel="production"), {}),
    "mobile 8.42, one in an array": ([device("ios", "8.42.0", timestamp=NOW_MS)], {}),
    "backport 5.50": ([device("android", "5.50.1", timestamp=NOW_MS, action="download_fail")], {}),
    "mobile 8.46, metadata": (
        [device("ios", "8.46.0", timestamp=NOW_MS, action="app_launch_ready", metadata={"duration_ms": "812"})],
        {},
    ),
    "mobile 8.51.14, 200 in an array": (
        [device("android", "8.51.14", timestamp=NOW_MS + number) for number in range(200)],
        {"User-Agent": "CapacitorUpdater/8.51.14 (com.example.shop) android/14"},
    ),
    "electron 0.0.2, which says android": (
        device("android", "0.0.1", version_os="6.1.0-generic", bundle_id="b-1", message="done"),
        {"User-Agent": "CapacitorUpdater/0.0.1 (com.example.shop) electron/6.1.0"},
    ),
    "electron 0.0.6": (device("electron", "0.0.6", bundle_id="b-1", message="notifyAppReady timeout"), {}),
    "android worker": (device("android", "8.51.14", app_id="unknown", action="download_zip_start"), {}),
    "rate limit": (device("ios", "8.51.14", action="rate_limit_reached"), {}),
}


@pytest.mark.parametrize(("body", "headers"), CLIENTS.values(), ids=list(CLIENTS))
async def test_every_generation_of_clients(exporter: Running, body: Body, headers: dict[str, str]) -> None:
    """Each shape that ever left a device is taken."""
    reply = await exporter.post(body, {**JSON_HEADERS, **headers})
    assert (200, OK if isinstance(body, Mapping) else accepted(len(body))) == (reply.status, reply.json())
    assert counts_of(body) == await exporter.counters()


async def test_single_events_and_arrays_of_one_device_mix(exporter: Running) -> None:
    """The Android worker posts alone while the app posts batches."""
    worker = device("android", "8.51.14", action="download_zip_start")
    batch = [device("android", "8.51.14", timestamp=NOW_MS + number) for number in range(3)]
    replies = await asyncio.gather(exporter.post(worker), exporter.post(batch), exporter.post(worker))
    assert [OK, accepted(3), OK] == [reply.json() for reply in replies]
    assert counts_of([worker, *batch, worker]) == await exporter.counters()


async def test_an_empty_array(exporter: Running) -> None:
    """`[]` is answered with an empty list of results."""
    reply = await exporter.post([])
    assert (200, {"status": "ok", "results": []}) == (reply.status, reply.json())


async def test_no_limit_on_events_per_request(exporter: Running) -> None:
    """5,000 events in one POST are 5,000 events."""
    batch = [{**EVENT, "timestamp": NOW_MS + number} for number in range(5000)]
    reply = await exporter.post(batch)
    assert (200, accepted(5000)) == (reply.status, reply.json())
    assert {SET: 5000} == await exporter.counters()
    assert 5000 == len(exporter.points())


# --- fields as they really arrive -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version_name", "expected"),
    [
        ("1.2.3", "1.2.3"),
        ("1.2.3:assets/main.js", "1.2.3"),
        ("1.2.3:a:b", "1.2.3"),
        (":assets/main.js", ":assets/main.js"),
        ("builtin", "builtin"),
        ("unknown", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
        ([], "unknown"),
        (7, "7"),
        (1.5, "1.5"),
    ],
)
async def test_version_name(version_name: object, expected: str) -> None:
    """The part before the first colon is the version; what is missing is `unknown`."""
    assert expected == await label("version", version_name=version_name)


async def test_a_missing_version_name() -> None:
    """The same goes for a key that is not there."""
    event = {key: value for key, value in EVENT.items() if key != "version_name"}
    assert {SET._replace(version="unknown"): 1} == await counted(None, event)


async def test_the_file_of_a_composite_version_is_a_field() -> None:
    """It says which file failed."""
    fields = await stored_fields(action="manifest_path_fail", version_name="1.2.3:assets/main.js")
    assert ("assets/main.js", None) == (fields["file"], fields.get("version_raw"))


@pytest.mark.parametrize(
    ("device_id", "expected"),
    [(DEVICE, DEVICE.lower()), (DEVICE.lower(), DEVICE.lower()), ("", None), (None, None), (17, "17"), ({}, None)],
)
async def test_device_id(device_id: object, expected: str | None) -> None:
    """Old iOS clients send upper case."""
    assert expected == (await stored_fields(device_id=device_id)).get("device_id")


@pytest.mark.parametrize(
    ("custom_id", "expected"), [("", None), (None, None), (" user 7 \n", "user 7"), (7, "7"), (" ", None)]
)
async def test_custom_id(custom_id: object, expected: str | None) -> None:
    """It is trimmed."""
    assert expected == (await stored_fields(custom_id=custom_id)).get("custom_id")


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        ("android", "android"),
        ("IOS", "ios"),
        ("electron", "electron"),
        ("web", "web"),
        ("tv", "other"),
        (None, "other"),
    ],
)
async def test_platform(platform: object, expected: str) -> None:
    """Lower case; what Capgo does not know is `other`."""
    assert expected == await label("platform", platform=platform)


@pytest.mark.parametrize(
    ("is_prod", "is_emulator", "expected"),
    [
        (True, False, "prod"),
        (False, False, "dev"),
        (True, True, "emulator"),
        (False, True, "emulator"),
        (None, None, "prod"),
        ("true", "false", "prod"),
        ("false", "false", "dev"),
        ("true", "true", "emulator"),
        ("True", "FALSE", "prod"),
        (1, 0, "prod"),
        (0, 0, "dev"),
        (0, 1, "emulator"),
        ("1", "0", "prod"),
        ("0", "0", "dev"),
        ([], {}, "prod"),
    ],
)
async def test_environment(is_prod: object, is_emulator: object, expected: str) -> None:
    """Booleans in every way in which clients write them."""
    assert expected == await label("environment", is_prod=is_prod, is_emulator=is_emulator)


async def test_booleans_may_be_missing() -> None:
    """Early clients do not send them; such events are taken as production."""
    assert {SET: 1} == await counted(None, EARLY)


@pytest.mark.parametrize("version_code", ["120", 120])
async def test_version_code(version_code: object) -> None:
    """Some clients send it as a number; the field is a text."""
    assert "120" == (await stored_fields(version_code=version_code))["version_code"]


@pytest.mark.parametrize(
    "change",
    [
        {"new_key": "x", "nested": {"a": [1, 2]}, "": None},
        {"bundle_id": "b-1", "message": "m", "install_source": "", "key_id": None, "channel": None},
        dict.fromkeys([key for key in EVENT if key not in {"app_id", "action"}]),
        {"old_version_name": 7, "version_build": 2.5, "version_os": True, "plugin_version": [], "custom_id": {}},
    ],
    ids=["unknown keys", "optional keys", "everything null", "everything of another type"],
)
async def test_odd_events_are_counted(exporter: Running, change: dict[str, Any]) -> None:
    """An event that has an app and an action is counted, whatever else it holds; so are its neighbours."""
    reply = await exporter.post([EVENT, {**EVENT, **change}, EVENT])
    assert (200, accepted(3)) == (reply.status, reply.json())
    assert 3 == sum((await exporter.counters()).values())
    assert 3 == len(exporter.points())


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"duration_ms": "812", "source": "app"}, '{"duration_ms":"812","source":"app"}'),
        ({"b": "2", "a": 1}, '{"a":"1","b":"2"}'),
        ({"a": None}, None),
        ({}, None),
        (None, None),
        ("text", None),
    ],
)
async def test_metadata(metadata: object, expected: str | None) -> None:
    """It is kept as JSON text with sorted keys."""
    assert expected == (await stored_fields(metadata=metadata)).get("metadata")


async def test_a_full_batch_of_metadata_fits(exporter: Running) -> None:
    """200 events with all the metadata that the contract allows, 12 MiB, are within the default limits."""
    metadata = {f"{number:064}": "x" * 2048 for number in range(30)}
    batch = [{**EVENT, "metadata": metadata, "timestamp": NOW_MS + number} for number in range(200)]
    reply = await exporter.post(batch)
    assert (200, accepted(200)) == (reply.status, reply.json())
    assert [metadata] == [json.loads(str(point.fields["metadata"])) for point in exporter.points()[:1]]


@pytest.mark.parametrize(
    ("timestamp", "is_believed"),
    [
        (NOW_MS, True),
        (NOW_MS - 3_600_000, True),
        (NOW_MS + 60_000, True),
        (float(NOW_MS), True),
        (NOW_MS + 0.75, True),
        (str(NOW_MS), True),
        (NOW_MS - 365 * 86_400_000, False),
        (NOW_MS + 365 * 86_400_000, False),
        (0, False),
        (-1, False),
        (-(10**18), False),
        (1 << 64, False),
        (10**300, False),
        (1e300, False),
        ("yesterday", None),
        ("", None),
        (None, None),
        (True, None),
        ([NOW_MS], None),
    ],
)
async def test_timestamp(timestamp: object, is_believed: object) -> None:
    """Every event is counted, however wrong its clock; a believable time is the point's, and any time makes an id."""
    clock = ManualClock(NOW_MS * 1_000_000)
    async with running(None, clock.clock) as exporter:
        for _ in range(2):
            reply = await exporter.post([{**EVENT, "timestamp": timestamp}])
            assert (200, accepted(1)) == (reply.status, reply.json())
        points = exporter.points()
        assert {SET: len(points)} == await exporter.counters()
    assert (2 if is_believed is None else 1) == len(points)
    at = points[0].time_ns // 1_000_000
    assert (int(float(timestamp)) if is_believed else NOW_MS) == at  # type: ignore[arg-type]  # numbers only


# --- unknown actions, apps, legacy ------------------------------------------------------------------------------------


async def test_an_unknown_action_is_data() -> None:
    """A new plugin's new action is counted under its name."""
    assert {SET._replace(action="app_teleported"): 1} == await counted(None, {**EVENT, "action": "app_teleported"})


async def test_an_unknown_action_may_be_rejected() -> None:
    """A setting refuses it, by itself in an array, with 400 alone."""
    unknown = {**EVENT, "action": "app_teleported"}
    async with running({"unknown_actions": "reject"}) as exporter:
        reply = await exporter.post([EVENT, unknown, EVENT])
        ok, error, last = reply.json()["results"]
        assert 200 == reply.status
        assert [{"status": "ok", "index": 0}, {"status": "ok", "index": 2}] == [ok, last]
        assert ("error", "unknown_action", 1) == (error["status"], error["error"], error["index"])
        alone = await exporter.post(unknown)
        assert (400, "unknown_action") == (alone.status, alone.json()["error"])
        assert {SET: 2} == await exporter.counters()
        assert 2.0 == await exporter.sample("capgo_exporter_events_total", outcome="rejected", reason="unknown_action")


async def test_what_is_rejected_is_rejected_each_time() -> None:
    """An event that is refused does not make its repeat in the same array a duplicate that is answered ok."""
    unknown = {**EVENT, "action": "app_teleported", "timestamp": time.time_ns() // 1_000_000}
    async with running({"unknown_actions": "reject"}) as exporter:
        results = (await exporter.post([unknown, unknown, EVENT])).json()["results"]
        assert ["error", "error", "ok"] == [result["status"] for result in results]
        assert 2.0 == await exporter.sample("capgo_exporter_events_total", outcome="rejected", reason="unknown_action")
        assert 0.0 == await exporter.sample("capgo_exporter_events_total", outcome="duplicate")


@pytest.mark.parametrize(
    ("allowed", "app_id", "is_counted"),
    [
        ("", "com.example.shop", True),
        ("", "unknown", True),
        ("com.example.shop", "com.example.shop", True),
        ("com.example.shop, com.example.other", "com.example.other", True),
        ("com.example.shop", "com.example.stranger", False),
        ("com.example.shop", "COM.example.shop", False),
        ("com.example.shop", "unknown", True),
        ("com.example.shop,-unknown", "unknown", False),
        ("-unknown", "unknown", False),
        ("-unknown", "com.example.shop", True),
    ],
)
async def test_allowed_apps(allowed: str, app_id: str, is_counted: object) -> None:
    """A stranger's events are answered ok, so that nobody sends them again, and are not counted; a metric says so."""
    async with running({"allowed_apps": allowed}) as exporter:
        reply = await exporter.post([{**EVENT, "app_id": app_id}] * 2)
        assert (200, accepted(2)) == (reply.status, reply.json())
        assert ({SET._replace(app_id=app_id): 2} if is_counted else {}) == await exporter.counters()
        filtered = await exporter.sample("capgo_exporter_events_total", outcome="filtered", reason="app_not_allowed")
        assert (0.0 if is_counted else 2.0) == filtered
        assert (2 if is_counted else 0) == len(exporter.points())


@pytest.mark.parametrize(
    ("setting", "platform", "plugin_version", "is_counted"),
    [
        ("keep", "android", "6.14.24", True),
        ("drop", "android", "6.14.24", False),
        ("drop", "ios", "7.16.0", False),
        ("drop", "android", "6.14.25", True),
        ("drop", "android", "5.50.1", True),
        ("drop", "android", "unknown", True),
        ("drop", "electron", "0.0.1", True),
        ("drop", "android", "0.0.1", True),
    ],
)
async def test_legacy_download_fail(setting: str, platform: str, plugin_version: str, is_counted: object) -> None:
    """The false `download_fail` of old plugins are kept, or left out and counted as such; other actions stay."""
    old = {**EVENT, "platform": platform, "plugin_version": plugin_version}
    async with running({"legacy_download_fail": setting}) as exporter:
        reply = await exporter.post([{**old, "action": "download_fail"}, old, {**old, "action": "download_fail"}])
        assert (200, accepted(3)) == (reply.status, reply.json())
        counters = await exporter.counters()
        assert 1 == counters[SET._replace(platform=platform)]
        assert (2 if is_counted else 0) == counters.get(SET._replace(platform=platform, action="download_fail"), 0)
        labels = {"outcome": "filtered", "reason": "legacy_download_fail"}
        filtered = await exporter.sample("capgo_exporter_events_total", **labels)
        assert (0.0 if is_counted else 2.0) == filtered


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (None, "invalid_event"),
        (7, "invalid_event"),
        ("text", "invalid_event"),
        (True, "invalid_event"),
        ([], "invalid_event"),
        ([EVENT], "invalid_event"),
        ({}, "missing_action"),
        ({**EVENT, "action": None}, "missing_action"),
        ({**EVENT, "action": ""}, "missing_action"),
        ({**EVENT, "action": {}}, "missing_action"),
        ({**EVENT, "app_id": None}, "missing_app_id"),
        ({**EVENT, "app_id": ""}, "missing_app_id"),
        ({**EVENT, "app_id": []}, "missing_app_id"),
    ],
)
async def test_a_bad_event_has_a_result_of_its_own(exporter: Running, value: object, error: str) -> None:
    """The batch is answered 200, the bad one with the code and the reason, and its neighbours are counted."""
    reply = await exporter.post([EVENT, value, EVENT])
    first, bad, last = reply.json()["results"]
    assert (200, "ok") == (reply.status, reply.json()["status"])
    assert [{"status": "ok", "index": 0}, {"status": "ok", "index": 2}] == [first, last]
    assert {"status": "error", "error": error, "message": bad["message"], "index": 1} == bad
    assert "" != bad["message"]
    assert {SET: 2} == await exporter.counters()
    assert 1.0 == await exporter.sample("capgo_exporter_events_total", outcome="rejected", reason=error)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({}, "missing_action"),
        ({"app_id": "a"}, "missing_action"),
        ({"action": "set"}, "missing_app_id"),
        ({"action": "set", "app_id": None}, "missing_app_id"),
    ],
)
async def test_a_bad_single_event_is_400(exporter: Running, body: dict[str, Any], error: str) -> None:
    """With the code and the reason, as Capgo's own backend answers."""
    reply = await exporter.post(body)
    assert (400, {"error": error, "message": reply.json()["message"]}) == (reply.status, reply.json())


@pytest.mark.parametrize("body", [b"", b"{", b'{"app_id":', b"[1,", b"not json", b"\xff\xff", b"<html>", b"a=1&b=2"])
async def test_malformed_json(exporter: Running, body: bytes) -> None:
    """400 with the code and the message of Capgo's own backend."""
    reply = await exporter.post(body)
    assert (400, INVALID_JSON) == (reply.status, reply.json())
    assert 1.0 == await exporter.sample("capgo_exporter_bodies_rejected_total", reason="invalid_json")


@pytest.mark.parametrize("body", [b'"text"', b"7", b"1.5", b"null", b"true", b"false"])
async def test_wrong_shapes(exporter: Running, body: bytes) -> None:
    """JSON that can hold no event."""
    reply = await exporter.post(body)
    assert (400, "invalid_body") == (reply.status, reply.json()["error"])
    assert 1.0 == await exporter.sample("capgo_exporter_bodies_rejected_total", reason="invalid_shape")


# --- HTTP -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/stats", "/stats/"])
async def test_both_paths_are_served_directly(exporter: Running, path: str) -> None:
    """A redirect would turn the POST into a GET."""
    posted = await exporter.post(EVENT, path=path)
    got = await exporter.request("GET", path)
    assert [(200, OK), (200, OK)] == [(posted.status, posted.json()), (got.status, got.json())]
    assert {SET: 1} == await exporter.counters()


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        "application/json; charset=latin-1",
        "text/plain",
        "application/x-www-form-urlencoded",
        "nonsense",
    ],
)
async def test_content_type(exporter: Running, content_type: str) -> None:
    """The body decides, whatever the header calls it; JSON is UTF-8."""
    event = json.dumps({**EVENT, "version_name": "1.0-ü"}, ensure_ascii=False).encode()
    reply = await exporter.post(event, {"Content-Type": content_type})
    assert (200, OK) == (reply.status, reply.json())
    assert {SET._replace(version="1.0-ü"): 1} == await exporter.counters()


async def test_no_content_type(exporter: Running) -> None:
    """The header may be missing."""
    reply = await exporter.request("POST", "/stats", data=json.dumps(EVENT), skip_auto_headers=["Content-Type"])
    assert (200, OK) == (reply.status, reply.json())


async def test_a_chunked_body(exporter: Running) -> None:
    """Proxies may not know the length."""

    async def chunks() -> AsyncIterator[bytes]:
        for byte in json.dumps([EVENT, EVENT]).encode():
            yield bytes([byte])

    reply = await exporter.request("POST", "/stats", data=chunks())
    assert (200, accepted(2)) == (reply.status, reply.json())


def raw_deflate(data: bytes) -> bytes:
    """Compress without zlib's header."""
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


ENCODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "GZIP": ("GZIP", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "zlib": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
    "identity": ("identity", bytes),
}
each_encoding = pytest.mark.parametrize(("encoding", "compress"), ENCODINGS.values(), ids=list(ENCODINGS))


@each_encoding
async def test_compressed_bodies(exporter: Running, encoding: str, compress: Callable[[bytes], bytes]) -> None:
    """A proxy may compress what the plugin sends plain."""
    body = compress(json.dumps([EVENT] * 100).encode())
    reply = await exporter.post(body, {**JSON_HEADERS, "Content-Encoding": encoding})
    assert (200, accepted(100)) == (reply.status, reply.json())
    assert {SET: 100} == await exporter.counters()


@each_encoding
async def test_the_limit_is_on_the_decompressed_body(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    """A body of exactly the limit is taken; one byte more is 413, as JSON."""
    headers = {**JSON_HEADERS, "Content-Encoding": encoding}
    body = json.dumps(EVENT).encode().ljust(4096)
    async with running({"max_body_bytes": 4096}) as exporter:
        fits = await exporter.post(compress(body), headers)
        assert (200, OK) == (fits.status, fits.json())
        too_large = await exporter.post(compress(body + b" "), headers)
        assert (413, "body_too_large") == (too_large.status, too_large.json()["error"])
        assert {SET: 1} == await exporter.counters()
        assert 1.0 == await exporter.sample("capgo_exporter_bodies_rejected_total", reason="too_large")


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress, raw_deflate])
async def test_a_zip_bomb(compress: Callable[[bytes], bytes]) -> None:
    """A hundred megabytes out of a hundred kilobytes are refused, and the exporter goes on."""
    encoding = "gzip" if compress is gzip.compress else "deflate"
    async with running({"max_body_bytes": "1MiB"}) as exporter:
        bomb = await exporter.post(compress(bytes(100 << 20)), {**JSON_HEADERS, "Content-Encoding": encoding})
        assert (413, "body_too_large") == (bomb.status, bomb.json()["error"])
        assert 200 == (await exporter.post(EVENT)).status


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("body", [b"{}", gzip.compress(json.dumps(EVENT).encode())[:-4], b"\x78\x9c\x00"])
async def test_a_body_that_is_not_what_its_encoding_says(exporter: Running, encoding: str, body: bytes) -> None:
    """400, as JSON."""
    reply = await exporter.post(body, {**JSON_HEADERS, "Content-Encoding": encoding})
    assert (400, "invalid_content_encoding") == (reply.status, reply.json()["error"])
    assert 1.0 == await exporter.sample("capgo_exporter_bodies_rejected_total", reason="invalid_encoding")


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "nonsense"])
async def test_an_unsupported_encoding(exporter: Running, encoding: str) -> None:
    """415, as JSON, which names what is supported."""
    reply = await exporter.post(b"{}", {**JSON_HEADERS, "Content-Encoding": encoding})
    assert (415, "unsupported_content_encoding") == (reply.status, reply.json()["error"])
    assert "gzip, deflate or identity" in reply.json()["message"]


@pytest.mark.parametrize("path", ["/stats", "/stats/"])
async def test_head(exporter: Running, path: str) -> None:
    """A monitor may ask with HEAD."""
    reply = await exporter.request("HEAD", path)
    assert (200, b"") == (reply.status, reply.body)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
async def test_other_methods(exporter: Running, method: str) -> None:
    """405, as JSON, with the methods that there are."""
    reply = await exporter.request(method, "/stats")
    assert (405, "method_not_allowed") == (reply.status, reply.json()["error"])
    assert {"GET", "HEAD", "POST"} == set(reply.headers["Allow"].replace(" ", "").split(","))


@pytest.mark.parametrize("path", ["/stat", "/stats/x", "/stats//", "/channel_self", "/favicon.ico", "/%ff"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_unknown_paths(exporter: Running, method: str, path: str) -> None:
    """404, as JSON."""
    reply = await exporter.request(method, path)
    assert (404, {"error": "not_found", "message": "Not Found"}) == (reply.status, reply.json())


async def test_the_path_is_a_setting() -> None:
    """Only that path takes events then, with and without a slash."""
    async with running({"stats_path": "/capgo/v1/stats/"}) as exporter:
        statuses = [
            (await exporter.post(EVENT, path=path)).status for path in ("/capgo/v1/stats", "/capgo/v1/stats/", "/stats")
        ]
        assert [200, 200, 404] == statuses
        assert b"/capgo/v1/stats" in (await exporter.request("GET", "/")).body


async def test_a_second_listener_takes_everything_but_the_stats_path() -> None:
    """What is for operators is not on the public port, and devices find nothing on the other."""
    operators = ("/metrics", "/healthz", "/readyz", "/")
    async with running({"metrics_listen": "127.0.0.1:0"}) as exporter:
        assert exporter.url != exporter.metrics_url
        assert 200 == (await exporter.post(EVENT)).status
        public = [(await exporter.request("GET", path)).status for path in (*operators, "/stats")]
        private = [
            (await exporter.request("GET", path, url=exporter.metrics_url)).status for path in (*operators, "/stats")
        ]
        assert ([404] * 4 + [200], [200] * 4 + [404]) == (public, private)
        assert {SET: 1} == await exporter.counters()


async def test_one_listener_serves_everything(exporter: Running) -> None:
    """That is the default."""
    statuses = [(await exporter.request("GET", path)).status for path in ("/metrics", "/healthz", "/readyz", "/")]
    assert [200] * 4 == statuses


# --- the token --------------------------------------------------------------------------------------------------------

TOKEN = "t0ken-of-the-test"  # noqa: S105 -- of the test's own


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (f"/stats/{TOKEN}", {}),
        (f"/stats/{TOKEN}/", {}),
        (f"/stats?token={TOKEN}", {}),
        (f"/stats/?token={TOKEN}", {}),
        ("/stats", {"Authorization": f"Bearer {TOKEN}"}),
        ("/stats/", {"Authorization": f"bearer {TOKEN}"}),
    ],
)
async def test_the_right_token(path: str, headers: dict[str, str]) -> None:
    """The plugin sends no header of its own, so the token may stand in the URL too; GET wants it as well."""
    async with running({"ingest_token": TOKEN}) as exporter:
        posted = await exporter.post(EVENT, {**JSON_HEADERS, **headers}, path)
        got = await exporter.request("GET", path, headers=headers)
        assert [(200, OK), (200, OK)] == [(posted.status, posted.json()), (got.status, got.json())]
        assert {SET: 1} == await exporter.counters()


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/stats", {}),
        ("/stats/", {}),
        ("/stats/wrong", {}),
        ("/stats?token=wrong", {}),
        ("/stats?token=", {}),
        (f"/stats?TOKEN={TOKEN}", {}),
        (f"/stats/{TOKEN}x", {}),
        (f"/stats/{TOKEN.upper()}", {}),
        (f"/stats/wrong?token={TOKEN}", {}),
        ("/stats/%ff", {}),
        ("/stats?token=%ff", {}),
        ("/stats", {"Authorization": f"Basic {TOKEN}"}),
        ("/stats", {"Authorization": TOKEN}),
        ("/stats", {"Authorization": "Bearer"}),
        ("/stats", {"Authorization": "Bearer ü"}),
        ("/stats", {"Authorization": "Bearer \udcff"}),
    ],
)
async def test_a_wrong_token(path: str, headers: dict[str, str]) -> None:
    """401, as JSON, before the body is looked at; nothing is counted but the refusal."""
    async with running({"ingest_token": TOKEN}) as exporter:
        reply = await raw_post(exporter, path, headers)
        assert (401, "unauthorized") == (reply.status, reply.json()["error"])
        assert {} == await exporter.counters(zeros=True)
        assert 1.0 == await exporter.sample("capgo_exporter_bodies_rejected_total", reason="unauthorized")


async def raw_post(exporter: Running, path: str, headers: Mapping[str, str]) -> Reply:
    """Post nothing, with header bytes of any kind; aiohttp's client refuses those that are not UTF-8."""
    host, _, port = exporter.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    lines = [f"POST {path} HTTP/1.1", "Host: test", "Content-Length: 0", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode(errors="surrogateescape"))
    head, _, body = (await asyncio.wait_for(reader.read(), 60)).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return Reply(int(head.split()[1]), {}, body)


async def test_without_a_token_no_path_takes_one(exporter: Running) -> None:
    """A URL with a token is a mistake where none is set."""
    assert 404 == (await exporter.post(EVENT, path=f"/stats/{TOKEN}")).status


async def test_the_metrics_token() -> None:
    """It is for readers of `/metrics`; devices need none."""
    async with running({"metrics_token": TOKEN}) as exporter:
        assert 200 == (await exporter.post(EVENT)).status
        statuses = [
            (await exporter.request("GET", "/metrics", headers=headers)).status
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {TOKEN}"})
        ]
        assert [401, 401, 200] == statuses


# --- clients that go away ---------------------------------------------------------------------------------------------


async def test_a_client_that_goes_away_is_no_error(exporter: Running, caplog: pytest.LogCaptureFixture) -> None:
    """Phones lose their network in the middle of a body; that is nothing for the log, and nothing is counted."""
    host, _, port = exporter.url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b'POST /stats HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\n[{"app_id":"a"')
    await writer.drain()
    await wait_for(lambda: exporter.request("GET", "/healthz"), "the exporter to read what was sent")
    writer.close()
    await writer.wait_closed()

    async def is_over() -> bool:
        return await exporter.sample("capgo_exporter_http_requests_total", handler="stats", code="400") > 0

    await wait_for(is_over, "the request to end")
    assert {} == await exporter.counters(zeros=True)
    assert [] == [record.getMessage() for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}]


# --- anything at all --------------------------------------------------------------------------------------------------

NEVER = {429, 301, 302, 303, 307, 308}


def check_reply(reply: Reply) -> None:
    """See that a reply is one that hurts no device: no 5xx, 429 or redirect, and always a JSON object that is full."""
    assert reply.status < 500, reply
    assert reply.status not in NEVER, reply
    assert reply.json(), reply
    assert isinstance(reply.json(), dict), reply


@given(json_values())
def test_any_json_value_is_answered(value: object) -> None:
    """Whatever the body says, the reply is 200 or 400, never a 5xx."""

    async def check() -> None:
        async with running() as exporter:
            reply = await exporter.post(json.dumps(value))
            check_reply(reply)
            assert reply.status in {200, 400}
            assert len(exporter.points()) == sum((await exporter.counters()).values())

    asyncio.run(check())


@given(json_values() | json_values().map(lambda value: {**EVENT, "app_id": "neighbour", "metadata": value}))
def test_any_json_value_leaves_its_neighbours_alone(value: object) -> None:
    """Between two good events it has a result of its own, and they are counted exactly once each."""
    good = {**EVENT, "timestamp": NOW_MS}
    other = {**EVENT, "timestamp": NOW_MS, "action": "get"}

    async def check() -> None:
        async with running() as exporter:
            reply = await exporter.post(json.dumps([good, value, other]))
            check_reply(reply)
            assert 200 == reply.status
            first, middle, last = reply.json()["results"]
            assert [{"status": "ok", "index": 0}, {"status": "ok", "index": 2}] == [first, last]
            assert (1, True) == (middle["index"], middle["status"] in {"ok", "error"})
            counters = await exporter.counters()
            assert [1, 1] == [counters[SET], counters[SET._replace(action="get")]]
            assert (3 if middle["status"] == "ok" else 2) == sum(counters.values()) == len(exporter.points())

    asyncio.run(check())


VALID = json.dumps([EVENT, EVENT]).encode()
mutilated = st.tuples(st.integers(0, len(VALID)), st.integers(0, 20), st.binary(max_size=20)).map(
    lambda cut: VALID[: cut[0]] + cut[2] + VALID[cut[0] + cut[1] :]
)


@given(st.binary() | mutilated, st.sampled_from([None, "gzip", "deflate", "identity", "br"]), st.booleans())
def test_any_bytes_are_answered(body: bytes, encoding: str | None, is_compressed: bool) -> None:  # noqa: FBT001 -- drawn
    """Whatever the bytes and their encoding are, the reply is no 5xx, and the next event is taken."""
    headers = {**JSON_HEADERS, **({} if encoding is None else {"Content-Encoding": encoding})}

    async def check() -> None:
        async with running() as exporter:
            check_reply(await exporter.post(gzip.compress(body) if is_compressed else body, headers))
            reply = await exporter.post({**EVENT, "app_id": "next"})
            assert (200, OK) == (reply.status, reply.json())
            assert 1 == (await exporter.counters())[SET._replace(app_id="next")]

    asyncio.run(check())


# --- as a process -----------------------------------------------------------------------------------------------------


async def test_the_real_process_keeps_the_contract(
    exporter_process: StartExporter, samples: Mapping[str, bytes]
) -> None:
    """What users run answers as the exporter in the test's own process does, compressed bodies included."""
    exporter = await exporter_process()
    expected: Counter[CounterKey] = Counter()
    for body in samples.values():
        reply = await exporter.request(
            "POST", "/stats/", data=gzip.compress(body), headers={**JSON_HEADERS, "Content-Encoding": "gzip"}
        )
        assert 200 == reply.status
        events = json.loads(body)
        expected.update(counts_of(events))
    assert 400 == (await exporter.post(b"{")).status
    assert dict(expected) == {key: value for key, value in (await exporter.counters()).items() if value}
