"""Hostile texts: whatever stands in a field, it forges no line, no label, no log line and no dead letter."""

import json
import re
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics

from exporter.journal.codec import decompress
from tests.conftest import V2InfluxDB
from tests.support.exporter import CounterKey, ExporterProcess, influx_settings, parse_samples
from tests.support.fakeinflux import RefuseRecords, ScriptedInflux
from tests.support.hostile import Fire, under_fire
from tests.support.influxdb import Point
from tests.support.points import read_point
from tests.support.ports import free_port, wait_for
from tests.support.process import http_ok
from tests.support.recordings import V2_MALFORMED

TEXTS = [
    "\n",
    "a\nb",
    "a\r\nb",
    "a\0b",
    "a\tb",
    "a\x1b[31mred\x1b]0;title\x07",
    "a\x7fb",
    "a\x85b",
    "a\u2028b",
    "a\u2029b",
    "\u202eabc\u2066\u200f",
    "a\ud800b",
    "\udfff",
    "\ufeffa\uffff",
    'a"b',
    "a\\",
    "a\\\\",
    "a\\nb",
    "a b",
    "a,b=c",
    "{a}",
    "# HELP a b",
    "x\ncapgo_stats,app_id=forged count=99i 1",
    'x" 1\ncapgo_stats,app_id=forged count=99i 1',
    "x\\\ncapgo_stats,app_id=forged count=99i 1",
    'x"} 99\ncapgo_stats_events_total{app_id="forged"} 99\n# ',
    'x",app_id="forged',
    '\\",count=99i,x=\\"',
    '\n{"event"- "forged", "level"- "error"}\n',
    "\n2026-01-01 [error    ] forged",
]
FIELDS = {
    "version_name": None,
    "platform": None,
    "device_id": "device_id",
    "old_version_name": "old_version",
    "version_build": "version_build",
    "version_code": "version_code",
    "version_os": "version_os",
    "plugin_version": "plugin_version",
    "custom_id": "custom_id",
    "channel": "channel",
    "defaultChannel": None,
    "key_id": "key_id",
    "install_source": "install_source",
    "bundle_id": "bundle_id",
    "message": "message",
}
OVERFLOW = "a cap on labels is reached; events are counted as `other`"
REFUSED = "points were refused for good; they are kept as dead letters"
CONSOLE = re.compile(r"[-0-9T:.]{26}Z \[\w+ *\] (.*)")
SETTINGS = {"EXPORTER_CUSTOM_ID": "keep"}


def event(text: str) -> dict[str, Any]:
    """Give an event with one text everywhere."""
    return {**dict.fromkeys(FIELDS, text), "app_id": text, "action": text, "metadata": {text: text, "k": text}}


def whole(text: str) -> str:
    """Give a text without half characters."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def harmless(text: str) -> str:
    """Give a text as a field must hold it: by the Unicode database, without what ends or controls a line."""
    return "".join(" " if unicodedata.category(char) in {"Cc", "Zl", "Zp"} else char for char in whole(text))


def label(text: str) -> str:
    """Give a text as a label and a tag must hold it."""
    return harmless(text).replace("\\", "/").strip() or "unknown"


def key(text: str) -> CounterKey:
    """Give the series of an event."""
    return CounterKey(label(text), "other", label(text), label(text), "prod")


def fields(text: str) -> dict[str, Any]:
    """Give the fields of an event's point."""
    stored: dict[str, Any] = {name: harmless(text) for name in FIELDS.values() if name is not None}
    stored["device_id"] = harmless(text.lower())
    stored["custom_id"] = harmless(text.strip())
    if label(text) != whole(text):
        stored |= dict.fromkeys(("app_id_raw", "action_raw", "version_raw"), harmless(text))
    # JSON writes the control characters of ASCII as escapes, which end no line.
    told = "".join(char if char < "\x7f" else harmless(char) for char in whole(text))
    stored = {name: value for name, value in stored.items() if value}
    return {**stored, "count": 1, "metadata": {told: told, "k": told}}


def seen(points: Iterable[Point]) -> Counter[str]:
    """Give what points hold, metadata read as JSON, as texts that can be counted."""
    counted: Counter[str] = Counter()
    for point in points:
        values = dict(point.fields)
        values["metadata"] = json.loads(str(values["metadata"]))
        counted[json.dumps([CounterKey(**point.tags), values], sort_keys=True)] += 1
    return counted


def expected() -> Counter[str]:
    """Give the same of the events."""
    return Counter(json.dumps([key(text), fields(text)], sort_keys=True) for text in TEXTS)


def dead_letters(exporter: ExporterProcess) -> list[str]:
    """Give the lines of the dead letters."""
    with closing(sqlite3.connect(f"file:{exporter.data_dir}/journal.sqlite3?mode=ro", uri=True)) as journal:
        return [line for (blob,) in journal.execute("SELECT lines FROM dead_letters") for line in decompress(blob)]


async def post_texts(fire: Fire) -> None:
    """Post each text in an event of its own, half of them in one array."""
    reply = await fire.exporter.post([event(text) for text in TEXTS[::2]])
    assert 200 == reply.status
    for text in TEXTS[1::2]:
        assert 200 == (await fire.exporter.post(event(text))).status


async def test_influxdb_stores_one_point_an_event(tmp_path: Path, v2_influxdb: V2InfluxDB) -> None:
    """A real InfluxDB has exactly the points, tags and fields of the events, and nothing that a text made up."""
    settings = {**SETTINGS, **v2_influxdb.settings}
    async with under_fire(tmp_path, settings) as fire:
        await post_texts(fire)
        where = "app_id != 'com.example.good'"

        async def delivered() -> bool:
            return await v2_influxdb.server.count("capgo_stats", "count", where) >= len(TEXTS)

        await wait_for(delivered, "the points")
        assert expected() == seen(await v2_influxdb.server.points("capgo_stats", where))
        assert [{"name": "capgo_stats"}] == await v2_influxdb.server.query("SHOW MEASUREMENTS")


async def test_metrics_show_one_series_a_key(tmp_path: Path) -> None:
    """Both formats parse, with the families they always have, and the series of the events."""
    async with under_fire(tmp_path, SETTINGS) as fire:
        before = {sample.name for sample in parse_samples(await fire.exporter.metrics())}
        await post_texts(fire)
        assert Counter(key(text) for text in TEXTS) == await fire.hostile_counters()
        names = {each.name for each in parse_samples(await fire.exporter.metrics())}
        assert {name for name in names - before if not name.startswith("capgo_")} == set()
        reply = await fire.exporter.request("GET", "/metrics", headers={"Accept": "application/openmetrics-text"})
        keys = [
            CounterKey(**sample.labels)
            for family in read_openmetrics(reply.body.decode())
            for sample in family.samples
            if family.name == "capgo_stats_events" and sample.value and sample.labels["app_id"] != "com.example.good"
        ]
        assert Counter({key(text) for text in TEXTS}) == Counter(keys)


async def test_dead_letters_are_whole_lines(tmp_path: Path, scripted_influx: ScriptedInflux) -> None:
    """What InfluxDB refuses is kept one line an event, each readable."""
    scripted_influx.default = RefuseRecords(lambda record: "com.example.good" not in record.series, V2_MALFORMED)
    settings = influx_settings(scripted_influx.url, token="a-token", org="o", bucket="b")  # noqa: S106 -- the test's own
    async with under_fire(tmp_path, {**SETTINGS, **settings}, told=REFUSED) as fire:
        await post_texts(fire)
        await wait_for(lambda: len(dead_letters(fire.exporter)) >= len(TEXTS), "the dead letters")
        assert expected() == seen(read_point(line) for line in dead_letters(fire.exporter))


def long_texts() -> Iterable[str]:
    """Give four texts past the bound of a label that together hold all texts."""
    return ("".join(TEXTS[number::4]).replace(":", "") + "x" * 200 for number in range(4))


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_log_lines_are_the_exporters_own(tmp_path: Path, log_format: str) -> None:
    """A text that is logged, because it is past a cap, stays inside its line, and controls no terminal."""
    address = f"127.0.0.1:{free_port()}"
    settings = {"EXPORTER_LOG_FORMAT": log_format, "EXPORTER_LOG_LEVEL": "debug"}
    exporter = ExporterProcess(tmp_path, settings, listen=address)
    exporter.spawn()
    try:
        await wait_for(http_ok(f"http://{address}/healthz"), "the exporter")
        body = dict(zip(("app_id", "action", "version_name", "channel"), long_texts(), strict=True))
        async with aiohttp.ClientSession() as session, session.post(f"http://{address}/stats", json=body) as reply:
            assert 200 == reply.status
        await exporter.terminate()
    finally:
        await exporter.stop()
    text = exporter.process.stderr_path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    assert [] == [char for char in text.replace("\n", "") if not char.isprintable()]
    lines = text.splitlines()
    if log_format == "json":
        events = [json.loads(line)["event"] for line in lines]
    else:
        events = [match[1] for line in lines if (match := CONSOLE.match(line))]
    assert len(lines) == len(events)
    assert 3 == sum(event.startswith(OVERFLOW) for event in events)


NUMBERS = [
    b"1e999",
    b"-1e999",
    b"-0",
    b"-0.0",
    b"1e-999",
    b"9" * 5000,
    b"-" + b"9" * 5000,
    b"0." + b"9" * 5000,
    b"9223372036854775808",
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"[" * 5000 + b"]" * 5000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b'"\xff\xfe\xc0\x80"',
    b'"\xed\xa0\x80"',
    b'"\\ud800"',
    b'"\\u0000"',
    b'"raw\nline\x00"',
    b"null",
    b"{}",
    b"[]",
]
NAMES = [*FIELDS, "is_prod", "is_emulator", "timestamp", "metadata", "unknown"]


@pytest.mark.parametrize("place", ["field", "metadata"])
async def test_values_of_every_kind(tmp_path: Path, place: str) -> None:
    """Any value in any field, or in the metadata, costs that value at most: each event is counted and stored once."""
    async with under_fire(tmp_path, SETTINGS) as fire:
        count = 0
        for value in NUMBERS:
            if place == "metadata":
                parts = [b'"metadata":{"k":%b,"duration_ms":%b}' % (value, value)]
            else:
                parts = [b'"%b":%b' % (name.encode(), value) for name in NAMES]
            # The second of two equal keys counts, as everywhere; and each event is of another device.
            twice = b'"app_id":"com.example.forged","app_id":"com.example.hostile","action":"set","device_id":"%d"'
            events = [b"{%b,%b}" % (twice % number, part) for number, part in enumerate(parts, count)]
            reply = await fire.exporter.post(b"[%b]" % b",".join(events))
            assert (200, ["ok"] * len(parts)) == (reply.status, [each["status"] for each in reply.json()["results"]])
            count += len(parts)
        counters = await fire.hostile_counters()
        assert {"com.example.hostile"} == {each.app_id for each in counters}
        assert count == sum(counters.values())
