"""Points outside of the journal: as line protocol, and as JSON lines."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from exporter.lineprotocol import clean

_KEY: Final = re.compile(r"((?:[^,= \\]|\\.)+)=", re.DOTALL)
_TAG_VALUE: Final = re.compile(r"(?:[^,= \\]|\\.)+", re.DOTALL)
_MEASUREMENT: Final = re.compile(r"(?:[^, \\]|\\.)+", re.DOTALL)
_TEXT: Final = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_NUMBER: Final = re.compile(r"(?:-?\d[^, ]*|true|True|TRUE|false|False|FALSE|[tTfF])(?=[, ]|\Z)")
_UNESCAPE: Final = re.compile(r"\\([,= ])")
_UNESCAPE_TEXT: Final = re.compile(r'\\(["\\])')
_ESCAPE: Final = str.maketrans({",": r"\,", "=": r"\=", " ": r"\ "})
_ESCAPE_TEXT: Final = str.maketrans({'"': r"\"", "\\": r"\\"})
_TRUE: Final = frozenset({"t", "T", "true", "True", "TRUE"})

Value = str | bool | int | float


@dataclass(frozen=True, slots=True)
class Point:
    """A point.

    Attributes:
        measurement: its measurement.
        tags: its tags.
        fields: its fields.
        time_ns: its time in nanoseconds since 1970; None: it has none.
    """

    measurement: str
    tags: Mapping[str, str]
    fields: Mapping[str, Value]
    time_ns: int | None


class JsonPoint(msgspec.Struct, forbid_unknown_fields=True):
    """A point as a JSON line holds it; numbers without a fraction are integers, `1.0` is a float."""

    measurement: str
    tags: dict[str, str]
    fields: dict[str, str | bool | int | float]
    time: int | None = None


_encoder = msgspec.json.Encoder(order="deterministic")
_decoder = msgspec.json.Decoder(JsonPoint)


def parse(line: str) -> Point:
    """Read a line of line protocol (InfluxDB's reference), with its time in nanoseconds.

    Raises:
        ValueError: if it is none.
    """
    measurement, at = _match(_MEASUREMENT, line, 0, "a measurement")
    tags: dict[str, str] = {}
    while line[at : at + 1] == ",":
        key, at = _match(_KEY, line, at + 1, "a tag's name and =")
        value, at = _match(_TAG_VALUE, line, at, "a tag's value")
        tags[_UNESCAPE.sub(r"\1", key)] = _UNESCAPE.sub(r"\1", value)
    fields: dict[str, Value] = {}
    at = _skip(line, at, " ", "a blank before the fields")
    while True:
        key, at = _match(_KEY, line, at, "a field's name and =")
        fields[_UNESCAPE.sub(r"\1", key)], at = _read_value(line, at)
        if line[at : at + 1] != ",":
            break
        at += 1
    time = line[at:].strip()
    return Point(_UNESCAPE.sub(r"\1", measurement), tags, fields, int(time) if time else None)


def _read_value(line: str, at: int) -> tuple[Value, int]:
    if line[at : at + 1] == '"':
        text, at = _match(_TEXT, line, at, "a text that ends")
        return _UNESCAPE_TEXT.sub(r"\1", text), at
    word, at = _match(_NUMBER, line, at, "a value")
    if word[0] in "tTfF":
        return word in _TRUE, at
    return (int(word[:-1]) if word.endswith("i") else float(word)), at


def _match(pattern: re.Pattern[str], line: str, at: int, what: str) -> tuple[str, int]:
    match = pattern.match(line, at)
    if match is None:
        msg = f"no line protocol: {what} should be at character {at + 1}"
        raise ValueError(msg)
    return match[match.lastindex or 0], match.end()


def _skip(line: str, at: int, expected: str, what: str) -> int:
    if line[at : at + 1] != expected:
        msg = f"no line protocol: {what} should be at character {at + 1}"
        raise ValueError(msg)
    return at + 1


def render(point: Point) -> str:
    """Write a point as line protocol."""
    tags = "".join(f",{_escape(key)}={_escape(value)}" for key, value in sorted(point.tags.items()) if value)
    fields = ",".join(f"{_escape(key)}={_render_value(value)}" for key, value in sorted(point.fields.items()))
    time = "" if point.time_ns is None else f" {point.time_ns}"
    measurement = point.measurement.replace(",", r"\,").replace(" ", r"\ ")
    return f"{measurement}{tags} {fields}{time}"


def _render_value(value: Value) -> str:
    if isinstance(value, str):
        return f'"{value.translate(_ESCAPE_TEXT)}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value}i" if isinstance(value, int) else str(value)


def _escape(text: str) -> str:
    return text.translate(_ESCAPE)


def to_json(line: str) -> str:
    """Turn line protocol into a JSON line.

    Raises:
        ValueError: if it is no line protocol.
    """
    point = parse(line)
    return _encoder.encode(JsonPoint(point.measurement, dict(point.tags), dict(point.fields), point.time_ns)).decode()


def from_json(text: bytes) -> str:
    """Turn a JSON line into line protocol.

    Raises:
        ValueError: if it is no point.
    """
    try:
        point = _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        msg = f"no point: {error}"
        raise ValueError(msg) from error
    line = render(Point(point.measurement, point.tags, point.fields, point.time))
    if not point.measurement or not point.fields or clean(line) != line:
        msg = "no point: a measurement and a field are needed, and no text may hold a control character"
        raise ValueError(msg)
    return line
