"""The targets: each takes bytes, and raises if a promise is broken."""

import io
import json
import math
import zlib
from collections.abc import Callable
from typing import Any, Final

from exporter.bodies import BodyError, decompress
from exporter.clock import Clock
from exporter.events import Batch, Event, MalformedBodyError, Rejection, decode
from exporter.identity import identity
from exporter.labels import normalise
from exporter.lineprotocol import series_prefix
from exporter.points import PointEncoder
from exporter.privacy import IdPolicy
from exporter.telemetry import Telemetry
from tests.support.points import read_point

_LIMIT: Final = 4096
_NOW_NS: Final = 1_795_140_000_000_000_000
_ENCODINGS: Final = ("gzip", "deflate", "x-gzip")
_encoder = PointEncoder(
    device_ids=IdPolicy("keep", b"k"),
    custom_ids=IdPolicy("keep", b"k"),
    max_event_age_seconds=7 * 86400.0,
    clock=Clock(wall_ns=lambda: _NOW_NS, monotonic=lambda: 0.0),
    telemetry=Telemetry(),
)


class BrokenPromiseError(AssertionError):
    """A promise does not hold for an input."""


def _check(holds: bool, what: str, *values: object) -> None:  # noqa: FBT001 -- as in assert
    if not holds:
        message = f"{what}: {values!r}"
        raise BrokenPromiseError(message)


def decode_bodies(data: bytes) -> None:
    """Nothing but a `MalformedBodyError` comes out, and what comes out is what a slow reading gives."""
    batch = _decode(data)
    try:
        slow = _slow_elements(data)
    except RecursionError:
        return  # only the quick way reads around what is nested too deep
    if batch is None or slow is None:
        _check(batch is None and slow is None, "refused by one reading only", batch, slow)
        return
    _check(len(slow) == len(batch.events), "another number of events", slow, batch)
    for value, event in zip(slow, batch.events, strict=True):
        countable = isinstance(value, dict) and _is_text(value.get("action")) and _is_text(value.get("app_id"))
        _check(countable == isinstance(event, Event), "countable or not", value, event)
        if isinstance(event, Event) and isinstance(value, dict):
            for name in ("action", "app_id", "message", "device_id", "version_name"):
                if isinstance(value.get(name), str) and _is_whole(value[name]):
                    _check(value[name] == getattr(event, name), "another text", name, value, event)


def lines(data: bytes) -> None:
    """Every event of a body becomes exactly one line, which reads back with the event's own tags."""
    batch = _decode(data)
    for event in () if batch is None else batch.events:
        if isinstance(event, Rejection):
            continue
        labels = [normalise(text) or "unknown" for text in (event.app_id, event.action, event.version_name or "")]
        app_id, action, version = labels
        event_id = identity(event)
        raw = (("app_id_raw", event.app_id), ("action_raw", event.action), ("version_raw", event.version_name or "x"))
        texts = [event.message, event.bundle_id]
        prefix = series_prefix(app_id, "ios", action, version, "prod")
        (line,) = _encoder.encode([event], [prefix], [event_id], {0: raw}, _NOW_NS // 1_000_000)
        _check(len(line.splitlines()) == 1, "more than one line", line)
        point = read_point(line)
        tags = {"app_id": app_id, "action": action, "version": version, "platform": "ios", "environment": "prod"}
        _check(tags == point.tags, "other tags", tags, point)
        _check(point.fields["count"] == 1, "another count", point)
        for name, text in zip(("message", "bundle_id"), texts, strict=True):
            if text and len(text.encode()) < _LIMIT and text.isprintable():
                _check(text == point.fields.get(name), "another text", text, point)
            _check(bool(text) or name not in point.fields, "a text from nowhere", point)


def bodies(data: bytes) -> None:
    """Nothing but a `BodyError` comes out, nothing larger than allowed, and what another reader gives."""
    if not data:
        return
    encoding = _ENCODINGS[data[0] % 3]
    body = data[1:]
    try:
        unpacked = decompress(body, encoding, _LIMIT)
    except BodyError as error:
        _check(error.status in {400, 413}, "another status", error.status)
        return
    _check(len(unpacked) <= _LIMIT, "too large", len(unpacked))
    _check(unpacked == _slow_unpack(body, encoding), "other bytes", unpacked)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {"decode": decode_bodies, "lines": lines, "bodies": bodies}


def seeds(target: str) -> list[bytes]:
    """Give inputs to start from."""
    event: dict[str, Any] = {
        "app_id": "com.example.shop",
        "action": "set",
        "version_name": "1.2.3",
        "message": 'a"b\\c\n\u2028',
        "metadata": {"k": "v", "duration_ms": "12.5"},
        "timestamp": _NOW_NS // 1_000_000,
        "is_prod": True,
        "version_code": 7,
    }
    texts = [
        json.dumps(each).encode() for each in (event, [event, event], [event, None, 1, {}], [], {**event, "action": 1})
    ]
    if target != "bodies":
        return [*texts, b'[{"app_id":"\\ud800","action":"\xff"}]', b'{"app_id":1e999,"action":-0}']
    packed = [
        each for text in texts for each in (b"\0" + _gzip(text), b"\1" + zlib.compress(text), b"\2" + _gzip(text))
    ]
    return [*packed, b"\0" + _gzip(b"a") * 3, b"\1" + _raw(texts[0])]


def _decode(data: bytes) -> Batch | None:
    try:
        return decode(data)
    except MalformedBodyError:
        return None


def _slow_elements(data: bytes) -> list[object] | None:
    try:
        value = json.loads(data.decode("utf-8-sig", "replace"), strict=False, parse_int=_slow_int)
    except ValueError:
        return None
    if isinstance(value, dict):
        return [value]
    return value if isinstance(value, list) else None


def _slow_int(digits: str) -> float:
    """Read a number; one of more than 400 digits is none that a field could hold."""
    return int(digits) if len(digits) <= 400 else math.inf  # noqa: PLR2004 -- said in the docstring


def _is_text(value: object) -> bool:
    return value != "" and (isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)))


def _is_whole(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _gzip(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=31)
    return packer.compress(data) + packer.flush()


def _raw(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def _slow_unpack(body: bytes, encoding: str) -> bytes:
    """Unpack byte by byte."""
    window = 31 if encoding != "deflate" else 15 if body and body[0] & 15 == zlib.DEFLATED else -15
    out = io.BytesIO()
    stream = None
    for position in range(len(body)):
        stream = stream or zlib.decompressobj(window)
        out.write(stream.decompress(body[position : position + 1]))
        if stream.eof:
            stream = None
    return out.getvalue()
