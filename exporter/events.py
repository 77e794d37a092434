"""Events as they arrive: decoding and validating a body.

A body that is as the plugin writes it is decoded in one typed step. Only when that fails is it read again leniently,
and each event judged alone, so that one bad event never hurts its neighbours. An event is refused only when it cannot
be counted: when it is not an object, or has no action or no app id. Everything else that is missing, null or of another
type is mended.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import msgspec

from exporter.bodies import BodyError

UNKNOWN: Final = "unknown"
"""What the Android worker sends as app id, and what a missing version is counted as."""

MAX_REJECTED: Final = 10_000
"""Elements of an array that may be refused one by one; an array with more is refused as a whole.

The plugin puts at most a few hundred events into an array, and no bad ones.
"""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_TRUE: Final = frozenset({"true", "1", "yes"})
_FALSE: Final = frozenset({"false", "0", "no"})
_MAX_NUMBER_DIGITS: Final = 4300  # as msgspec, and Python's `int`
_MAX_DEPTH: Final = 32
_MAX_TOKENS: Final = 1 << 20
_SPACE = re.compile(r"[ \t\n\r]*")
# It never goes back, and a text without an end is one token, too: else each of its quotes would be looked at anew.
_STRING_OR_BRACKET = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)


_FilledText = Annotated[str, msgspec.Meta(min_length=1)]


class Event(msgspec.Struct, gc=False, rename={"default_channel": "defaultChannel"}):
    """One event with the fields of the contract; None stands for missing or null."""

    app_id: _FilledText
    action: _FilledText
    platform: str | None = None
    device_id: str | None = None
    version_name: str | None = None
    old_version_name: str | None = None
    version_build: str | None = None
    version_code: str | int | None = None
    version_os: str | None = None
    plugin_version: str | None = None
    custom_id: str | None = None
    is_prod: bool | None = None
    is_emulator: bool | None = None
    default_channel: str | None = None
    channel: str | None = None
    key_id: str | None = None
    install_source: str | None = None
    timestamp: int | None = None
    metadata: dict[str, str] | None = None
    bundle_id: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Rejection:
    """An event that cannot be counted: the error code and a message for the sender."""

    error: str
    message: str


class MalformedBodyError(BodyError):
    """The body is not JSON, or neither an object nor an array."""


@dataclass(slots=True)
class Batch:
    """A decoded body.

    Attributes:
        events: one entry per element of the body, in order; whoever is done with them may empty the list.
        is_array: whether the body was an array; a single object gets another form of reply.
        size: how many elements the body had.
    """

    events: list[Event | Rejection]
    is_array: bool
    size: int = field(init=False)

    def __post_init__(self) -> None:
        """Count the elements."""
        self.size = len(self.events)


_NO_OBJECT: Final = Rejection("invalid_event", "An event must be a JSON object")
_NO_ACTION: Final = Rejection("missing_action", "An event needs an action, a non-empty string")
_NO_APP_ID: Final = Rejection("missing_app_id", "An event needs an app_id, a non-empty string")


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MAX_NUMBER_DIGITS else math.inf


_json: Final = json.JSONDecoder(parse_int=_parse_int, strict=False)
_decoder = msgspec.json.Decoder[Any](list[Event] | Event)
_OPTIONAL_TEXTS: Final = {
    name: wire_name
    for name, wire_name in zip(Event.__struct_fields__, Event.__struct_encode_fields__, strict=True)
    if name not in {"app_id", "action", "is_prod", "is_emulator", "timestamp", "metadata"}
}


def decode(body: bytes) -> Batch:
    """Decode the body of a POST.

    Raises:
        MalformedBodyError: if the body is not JSON, or neither an object nor an array.
    """
    try:
        decoded: list[Event | Rejection] | Event = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decode_leniently(body)
    if isinstance(decoded, Event):
        return Batch([decoded], is_array=False)
    return Batch(decoded, is_array=True)


def _decode_leniently(body: bytes) -> Batch:
    """Read as the standard library does, which accepts lone surrogates; bytes that are not UTF-8 are replaced."""
    text = body.decode("utf-8-sig", "replace")
    try:
        try:
            return _read(text)
        except RecursionError:
            return _read(_without_depths(text))
    except (ValueError, RecursionError):
        raise MalformedBodyError(400, "invalid_json", "invalid_json_parse_body", "Invalid JSON body") from None


def _read(text: str) -> Batch:
    start = _after_space(text, 0)
    if text[start : start + 1] == "[":
        return Batch(_read_array(text, start + 1), is_array=True)
    value, end = _json.raw_decode(text, start)
    _check_end(text, end)
    if isinstance(value, dict):
        return Batch([_judge(value)], is_array=False)
    message = "The body must be a JSON object or an array of objects"
    raise _invalid_shape(message)


def _read_array(text: str, position: int) -> list[Event | Rejection]:
    """Read and judge one element after the other: millions of tiny ones would take gigabytes and stop everything."""
    events: list[Event | Rejection] = []
    rejected = 0
    position = _after_space(text, position)
    separator = "," if text[position : position + 1] != "]" else "]"
    while separator == ",":
        value, end = _json.raw_decode(text, position)
        event = _judge(value)
        rejected += isinstance(event, Rejection)
        if rejected > MAX_REJECTED:
            message = f"More than {MAX_REJECTED} elements of the array are no events"
            raise _invalid_shape(message)
        events.append(event)
        end = _after_space(text, end)
        separator = text[end : end + 1]
        position = _after_space(text, end + 1) if separator == "," else end
    if separator != "]":
        raise ValueError(separator)
    _check_end(text, position + 1)
    return events


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return position if match is None else match.end()


def _check_end(text: str, position: int) -> None:
    if _after_space(text, position) != len(text):
        raise ValueError(position)


def _invalid_shape(message: str) -> MalformedBodyError:
    return MalformedBodyError(400, "invalid_shape", "invalid_body", message)


def _without_depths(text: str) -> str:
    """Put null for what is nested too deep to be read, so that it does not hurt its neighbours.

    It takes a step of Python for each text and bracket, so of a body with very many nothing is left.
    """
    kept = []
    depth = start = 0
    for number, token in enumerate(_STRING_OR_BRACKET.finditer(text)):
        if number == _MAX_TOKENS:
            return ""
        if token[0] in {"[", "{"}:
            depth += 1
            if depth == _MAX_DEPTH + 1:
                kept += [text[start : token.start()], "null"]
        elif token[0] in {"]", "}"}:
            depth -= 1
            if depth == _MAX_DEPTH:
                start = token.end()
    return "".join([*kept, text[start:]]) if depth == 0 else ""


def _judge(value: object) -> Event | Rejection:
    if not isinstance(value, dict):
        return _NO_OBJECT
    action = _text(value.get("action"))
    app_id = _text(value.get("app_id"))
    if not action:
        return _NO_ACTION
    if not app_id:
        return _NO_APP_ID
    metadata = value.get("metadata")
    return Event(
        app_id,
        action,
        **{name: _text(value.get(wire_name)) for name, wire_name in _OPTIONAL_TEXTS.items()},
        is_prod=_boolean(value.get("is_prod")),
        is_emulator=_boolean(value.get("is_emulator")),
        timestamp=_timestamp(value.get("timestamp")),
        metadata=_metadata(metadata) if isinstance(metadata, dict) else None,
    )


def _text(value: object) -> str | None:
    """Read a text field: numbers and booleans become text, anything that is not a scalar counts as missing."""
    if isinstance(value, str):
        return _LONE_SURROGATE.sub("\ufffd", value) if not value.isascii() else value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    return None


def _boolean(value: object) -> bool | None:
    text = (_text(value) or "").strip().lower()
    return True if text in _TRUE else False if text in _FALSE else None


def _timestamp(value: object) -> int | None:
    """Read milliseconds since 1970; a fraction is cut off."""
    if isinstance(value, str):
        try:
            value = float(value) if len(value) <= _MAX_NUMBER_DIGITS else None
        except ValueError:
            return None
    if isinstance(value, float):
        return int(value) if math.isfinite(value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _metadata(value: Mapping[str, object]) -> dict[str, str]:
    """Read metadata: scalars become text, nested values their JSON text, null is left out."""
    metadata: dict[str, str] = {}
    for key, item in value.items():
        text = _nested_text(item) if isinstance(item, dict | list) else _text(item)
        if text is not None:
            metadata[_text(key) or ""] = _text(text) or ""
    return metadata


def _nested_text(value: object) -> str | None:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return None
