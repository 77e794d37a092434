"""The pieces of a line: what is cleaned, escaped and cut, and that it is what influxdb-client writes."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from influxdb_client.client.write.point import Point

from exporter.labels import normalise
from exporter.lineprotocol import (
    MAX_TEXT_BYTES,
    MEASUREMENT,
    clean,
    format_float,
    metadata_json,
    quote,
    series_prefix,
    truncate,
)
from tests.support.jsonvalues import any_text
from tests.support.points import read_point

TEXTS = any_text().map(lambda text: text.encode(errors="replace").decode())
LABELS = TEXTS.map(lambda text: normalise(text) or "unknown")


def is_control(char: str) -> bool:
    """Tell whether a character is a control character or ends a line, by the Unicode database."""
    return unicodedata.category(char) in {"Cc", "Zl", "Zp"}


@given(TEXTS)
def test_clean_replaces_control_characters_by_spaces(text: str) -> None:
    """Nothing that ends a line anywhere is left, and nothing else is changed."""
    assert "".join(" " if is_control(char) else char for char in text) == clean(text)
    assert 1 >= len(clean(text).splitlines())


@given(LABELS, LABELS, LABELS, LABELS, LABELS)
def test_the_series_equals_that_of_the_client(
    app_id: str, platform: str, action: str, version: str, environment: str
) -> None:
    """Measurement and tags are escaped as `Point` escapes them, in its order."""
    point = Point(MEASUREMENT).tag("app_id", app_id).tag("platform", platform).tag("action", action)
    point = point.tag("version", version).tag("environment", environment).field("count", 1)
    assert point.to_line_protocol() == f"{series_prefix(app_id, platform, action, version, environment)}count=1i"


@given(LABELS)
def test_a_label_reads_back_as_it_was(label: str) -> None:
    """The server sees the label's text: its own escapes are undone, and no backslash is left to be read as one."""
    assert {
        "app_id": label,
        "platform": "ios",
        "action": "set",
        "version": label,
        "environment": "prod",
    } == read_point(f"{series_prefix(label, 'ios', 'set', label, 'prod')}count=1i 1").tags


@given(TEXTS)
def test_a_text_equals_that_of_the_client(text: str) -> None:
    """Quotes and backslashes are escaped as `Point` escapes them."""
    assert Point("m").field("f", text).to_line_protocol() == f'm f="{quote(text)}"'


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_equals_that_of_the_client(value: float) -> None:
    """Floats are written as `Point` writes them."""
    assert Point("m").field("f", value).to_line_protocol() == f"m f={format_float(value)}"


@given(TEXTS, st.integers(0, 40))
def test_truncate_cuts_at_a_character(text: str, max_bytes: int) -> None:
    """What is left is the longest beginning of the text that fits."""
    short = truncate(text, max_bytes)
    assert text.startswith(short)
    assert max_bytes >= len(short.encode())
    assert short == text or len(text[: len(short) + 1].encode()) > max_bytes


def test_truncate_keeps_what_fits() -> None:
    """A text of exactly the bound is whole, one byte more is cut."""
    assert "x" * MAX_TEXT_BYTES == truncate("x" * MAX_TEXT_BYTES)
    assert "x" * MAX_TEXT_BYTES == truncate("x" * (MAX_TEXT_BYTES + 1))


@given(st.dictionaries(TEXTS, TEXTS, max_size=30))
def test_metadata_within_the_bounds_is_whole(metadata: dict[str, str]) -> None:
    """It is compact JSON with sorted keys, and reads back as it was."""
    text, is_cut = metadata_json(metadata)
    assert (metadata, False) == (json.loads(text), is_cut)
    assert sorted(metadata) == list(json.loads(text))
    assert len(text) <= len(json.dumps(metadata, separators=(",", ":")))


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({f"{number:02}": "" for number in range(31)}, {f"{number:02}": "" for number in range(30)}),
        ({"k" * 65: "v"}, {"k" * 64: "v"}),
        ({"k": "v" * 2049}, {"k": "v" * 2048}),
    ],
)
def test_metadata_past_a_bound_is_cut(metadata: dict[str, str], expected: dict[str, str]) -> None:
    """The contract allows 30 keys of 64 characters with values of 2048."""
    text, is_cut = metadata_json(metadata)
    assert (expected, True) == (json.loads(text), is_cut)


def test_metadata_stays_under_the_size_of_a_field() -> None:
    """30 values of 2048 characters of four bytes each would be too much for InfluxDB: whole keys are left out."""
    text, is_cut = metadata_json({f"{number:02}": "😀" * 2048 for number in range(30)})
    kept = json.loads(text)
    assert is_cut
    assert 65_536 > len(text.encode())
    assert {f"{number:02}": "😀" * 2048 for number in range(len(kept))} == kept
    assert 7 == len(kept)
