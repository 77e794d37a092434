"""Durations and sizes as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.units import format_duration, format_size, parse_duration_seconds, parse_size_bytes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("15s", 15.0),
        ("5m", 300.0),
        ("1.5h", 5400.0),
        ("30d", 2_592_000.0),
        ("2w", 1_209_600.0),
        ("250ms", 0.25),
        ("15", 15.0),
        ("0.5", 0.5),
        ("0s", 0.0),
        (" 15 S ", 15.0),
    ],
)
def test_parse_duration(text: str, seconds: float) -> None:
    """A number with a unit, or a number of seconds."""
    assert seconds == parse_duration_seconds(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("64KiB", 65_536),
        ("8MiB", 8_388_608),
        ("1GiB", 1_073_741_824),
        ("2TiB", 2_199_023_255_552),
        ("500MB", 500_000_000),
        ("1kb", 1000),
        ("1.5GiB", 1_610_612_736),
        ("1024B", 1024),
        (" 8 mib ", 8_388_608),
    ],
)
def test_parse_size(text: str, size: int) -> None:
    """A number with a unit of a thousand or of 1024, or a number of bytes."""
    assert size == parse_size_bytes(text)


@pytest.mark.parametrize(
    "text", ["", " ", "s", "15x", "-15s", "1e3", "1,5s", "15 s m", "1m30s", "inf", "nan", "\u0665s", "8MiB", "9" * 16]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    """The message holds the text and tells what is expected."""
    with pytest.raises(ValueError, match=r"is not a duration \(15s, 5m, 12h, 30d, or a number of seconds\)") as caught:
        parse_duration_seconds(text)
    assert str(caught.value).startswith(repr(text))


@pytest.mark.parametrize("text", ["", "lots", "8 MiBs", "-1", "1e3", "15s", "0x10", "9" * 16])
def test_what_is_no_size_is_refused(text: str) -> None:
    """The message holds the text and tells what is expected."""
    with pytest.raises(ValueError, match=r"is not a size \(64KiB, 8MiB, 1GiB, or a number of bytes\)") as caught:
        parse_size_bytes(text)
    assert str(caught.value).startswith(repr(text))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (86400.0, "1d"),
        (3600.0, "1h"),
        (5400.0, "90m"),
        (60.0, "1m"),
        (61.0, "61s"),
        (0.5, "0.5s"),
        (1e-05, "0.00001s"),
        (0.0, "0s"),
    ],
)
def test_format_duration(seconds: float, text: str) -> None:
    """The largest unit that leaves a whole number, never an exponent."""
    assert text == format_duration(seconds)


@pytest.mark.parametrize(
    ("size", "text"), [(1 << 30, "1GiB"), (3 << 19, "1536KiB"), (1 << 20, "1MiB"), (1000, "1000B"), (0, "0B")]
)
def test_format_size(size: int, text: str) -> None:
    """The largest binary unit that leaves a whole number."""
    assert text == format_size(size)


@given(st.floats(1e-3, 1e9))
def test_a_duration_reads_back(seconds: float) -> None:
    """What is written is read as the same number of seconds."""
    assert seconds == parse_duration_seconds(format_duration(seconds))


@given(st.integers(0, 10**14))
def test_a_size_reads_back(size: int) -> None:
    """What is written is read as the same number of bytes."""
    assert size == parse_size_bytes(format_size(size))
