"""Decoding a body: what is mended, what is refused, and that neighbours never suffer."""

import contextlib
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.bodies import BodyError
from exporter.events import Batch, Event, Rejection, decode
from tests.support.jsonvalues import any_text, json_values

GOOD: dict[str, Any] = {"app_id": "com.example.shop", "action": "set"}
WIRE_NAMES = dict(zip(Event.__struct_encode_fields__, Event.__struct_fields__, strict=True))


def one(body: bytes) -> Event:
    """Decode a body that holds exactly one event."""
    (event,) = decode(body).events
    assert isinstance(event, Event)
    return event


def field(name: str, value: object) -> object:
    """Give what an event's field becomes, by its name on the wire."""
    return getattr(one(json.dumps({**GOOD, name: value}).encode()), WIRE_NAMES[name])


TEXT_FIELDS = sorted(
    set(WIRE_NAMES) - {"app_id", "action", "is_prod", "is_emulator", "timestamp", "metadata", "version_code"}
)


@pytest.mark.parametrize("name", TEXT_FIELDS)
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text", "text"),
        ("", ""),
        (None, None),
        (12, "12"),
        (1.5, "1.5"),
        (True, "true"),
        (False, "false"),
        ([], None),
        ({"a": 1}, None),
        (10**30, str(10**30)),
    ],
)
def test_text_fields_are_mended(name: str, value: object, expected: object) -> None:
    """Numbers and booleans become text; what is not a scalar counts as missing."""
    assert expected == field(name, value)


@pytest.mark.parametrize("name", ["is_prod", "is_emulator"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        (False, False),
        ("true", True),
        ("false", False),
        (" TRUE ", True),
        ("False", False),
        (1, True),
        (0, False),
        ("1", True),
        ("0", False),
        ("yes", True),
        ("no", False),
        (None, None),
        ("", None),
        ("maybe", None),
        (2, None),
        ([], None),
    ],
)
def test_booleans_are_mended(name: str, value: object, expected: object) -> None:
    """The ways in which clients write a boolean are read; anything else counts as missing."""
    assert expected == field(name, value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1795140000000, 1795140000000),
        (1795140000000.0, 1795140000000),
        (1795140000000.9, 1795140000000),
        ("1795140000000", 1795140000000),
        (" 1795140000000.5 ", 1795140000000),
        (-1, -1),
        (0, 0),
        (10**25, 10**25),
        (None, None),
        ("", None),
        ("yesterday", None),
        ("nan", None),
        ("inf", None),
        ("9" * 500, None),
        (True, None),
        ([], None),
        ({}, None),
    ],
)
def test_timestamps_are_mended(value: object, expected: object) -> None:
    """Numbers and numeric texts are milliseconds; anything else counts as missing."""
    assert expected == field("timestamp", value)


def test_a_number_too_long_to_read_counts_as_missing() -> None:
    """An integer of ten thousand digits, which Python refuses to convert, does not hurt the event."""
    event = one(b'{"app_id":"a","action":"set","timestamp":%b,"version_os":%b}' % (b"9" * 10_000, b"9" * 10_000))
    assert (None, None) == (event.timestamp, event.version_os)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": "1"}, {"a": "1"}),
        ({"a": 1, "b": True, "c": None, "d": 1.5}, {"a": "1", "b": "true", "d": "1.5"}),
        ({"a": {"b": [1, "ü"]}}, {"a": '{"b": [1, "ü"]}'}),
        ({}, {}),
        (None, None),
        ([], None),
        ("text", None),
        (7, None),
    ],
)
def test_metadata_is_mended(value: object, expected: object) -> None:
    """Scalars become text, nested values their JSON, null is left out; what is no object counts as missing."""
    assert expected == field("metadata", value)


def test_a_numeric_version_code_is_kept() -> None:
    """The one field that clients really send as a number keeps it."""
    assert 201 == field("version_code", 201)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (1, "invalid_event"),
        ("text", "invalid_event"),
        (None, "invalid_event"),
        (True, "invalid_event"),
        ([GOOD], "invalid_event"),
        ({}, "missing_action"),
        ({"app_id": "a"}, "missing_action"),
        ({"app_id": "a", "action": ""}, "missing_action"),
        ({"app_id": "a", "action": None}, "missing_action"),
        ({"app_id": "a", "action": ["set"]}, "missing_action"),
        ({"action": "set"}, "missing_app_id"),
        ({"action": "set", "app_id": ""}, "missing_app_id"),
        ({"action": "set", "app_id": None}, "missing_app_id"),
        ({"action": "set", "app_id": {}}, "missing_app_id"),
    ],
)
def test_an_event_is_refused_only_if_it_cannot_be_counted(value: object, error: str) -> None:
    """What is no object, or has no action or no app, is refused by itself; the neighbours are not."""
    first, middle, last = decode(json.dumps([GOOD, value, GOOD]).encode()).events
    assert isinstance(middle, Rejection)
    assert (Event("com.example.shop", "set"), error) == (first, middle.error)
    assert first == last


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[",
        b'{"a":}',
        b"[1,]",
        b"{} {}",
        b"nul",
        b"\xff\xfe",
        b"\x00",
        b'{"a":"b}',
        b"[[[[" * 1000,
        b"[null] x",
        b"[null] []",
        b"[null null]",
        b"[,]",
        b"[null,]",
        b"[null",
        b"[null}",
    ],
)
def test_what_is_no_json_is_malformed(body: bytes) -> None:
    """The error has the code and the message of Capgo's own backend."""
    with pytest.raises(BodyError) as caught:
        decode(body)
    assert (400, "invalid_json_parse_body", "Invalid JSON body") == (
        caught.value.status,
        caught.value.error,
        caught.value.message,
    )


@pytest.mark.parametrize("body", [b"1", b"-1.5", b'"text"', b"null", b"true", b"false"])
def test_a_scalar_is_no_body(body: bytes) -> None:
    """Only an object or an array can hold events."""
    with pytest.raises(BodyError) as caught:
        decode(body)
    assert (400, "invalid_body") == (caught.value.status, caught.value.error)


def test_unknown_keys_are_ignored() -> None:
    """Clients add keys; they are no error."""
    assert Event("com.example.shop", "set") == one(json.dumps({**GOOD, "nonce": [1, {"a": None}]}).encode())


def test_a_byte_order_mark_is_ignored() -> None:
    """Some proxies write one."""
    assert Event("com.example.shop", "set") == one(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())


def test_bytes_that_are_not_utf8_are_replaced() -> None:
    """One damaged character costs that character and no event."""
    assert "1.0\ufffd" == one(b'{"app_id":"a","action":"set","version_name":"1.0\xff"}').version_name


def test_lone_surrogates_are_replaced() -> None:
    """Half a character, which UTF-8 cannot hold, is replaced; a pair is one character."""
    event = one(rb'{"app_id":"a\ud800","action":"set","message":"\ud83d\ude00\udc00","metadata":{"k\udfff":"\ud800"}}')
    assert ("a\ufffd", "\U0001f600\ufffd", {"k\ufffd": "\ufffd"}) == (event.app_id, event.message, event.metadata)


@pytest.mark.parametrize("depth", [*range(980, 1000), 2_000, 100_000])
def test_what_is_nested_too_deep_hurts_no_neighbour(depth: int) -> None:
    """An element, a key or metadata that no parser can read is left out; brackets inside texts do not count."""
    deep = b"[" * depth + b'"]}\\""' + b"]" * depth
    good = json.dumps(GOOD).encode()
    tricky = b'{"app_id":"]}[{\\"","action":"set"}'
    metadata = b'{"app_id":"a","action":"set","metadata":{"deep":%b,"k":"v"}}' % deep
    batch = decode(b"[%b,%b,%b,%b,%b]" % (good, deep, tricky, metadata, good))
    first, refused, second, third, last = batch.events
    assert first == last == Event("com.example.shop", "set")
    assert Rejection("invalid_event", "An event must be a JSON object") == refused
    assert Event(']}[{"', "set") == second
    assert isinstance(third, Event)
    assert third.metadata is not None
    assert "v" == third.metadata["k"]


@pytest.mark.parametrize("end", [b"", b'"', b"\\", b'"' + b"]" * 5000, b']"' + b"]" * 5000 + b"x"])
def test_texts_of_escapes_behind_brackets_cost_little(end: bytes) -> None:
    """Each character is looked at once, also if the text has no end, and nothing is kept; else this takes hours."""
    body = b"[" * 5000 + b'"' + b'\\"' * 1_000_000 + end
    tracemalloc.start()
    try:
        with pytest.raises(BodyError) if not end.endswith(b"]") else contextlib.nullcontext():
            decode(body)
        assert tracemalloc.get_traced_memory()[1] < 8 * len(body)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("digits", [1, 308, 309, 400, 4300, 4301])
@pytest.mark.parametrize("sign", ["", "-"])
def test_long_numbers_hurt_no_neighbour(digits: int, sign: str) -> None:
    """A number costs that value at most, and is read alike whatever stands beside it; 4300 characters are the bound."""
    number = f"{sign}{'9' * digits}"
    event = f'{{"app_id":"a","action":"set","timestamp":{number},"metadata":{{"k":"v"}}}}'
    odd = f'{{"app_id":"a","action":"set","version_build":{number},"timestamp":"{number}"}}'
    alone = one(event.encode())
    beside, other = decode(f"[{event},{odd}]".encode()).events
    assert alone == beside
    assert isinstance(other, Event)
    assert (int(number) if len(number) <= 4300 else None) == alone.timestamp


@given(
    st.lists(
        st.fixed_dictionaries(
            {"app_id": any_text(min_size=1), "action": any_text(min_size=1)},
            optional={
                **dict.fromkeys(TEXT_FIELDS, any_text() | st.none()),
                "is_prod": st.booleans() | st.none(),
                "timestamp": st.integers() | st.none(),
                "metadata": st.dictionaries(any_text(), any_text()) | st.none(),
                "unknown key": json_values(),
            },
        )
    )
)
def test_the_quick_and_the_lenient_way_agree(events: list[dict[str, Any]]) -> None:
    """A bad neighbour, which makes the whole body be read leniently, changes nothing about the other events."""
    quick = decode(json.dumps(events).encode())
    lenient = decode(json.dumps([*events, None]).encode())
    assert quick.events == lenient.events[:-1]


@given(st.binary() | json_values().map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_batch_or_malformed(body: bytes) -> None:
    """Nothing but a `BodyError` that says 400 ever comes out."""
    try:
        outcome: Batch | int = decode(body)
    except BodyError as error:
        outcome = error.status
    assert isinstance(outcome, Batch) or outcome == 400
