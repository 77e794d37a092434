"""Durations and sizes as people write them: `15s`, `5m`, `30d`; `8MiB`, `1GiB`."""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Final

_DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SIZE_UNITS: Final = {
    "b": 1,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_NUMBER_AND_UNIT = re.compile(r"\s*(\d{1,15}(?:\.\d{1,20})?)\s*([a-zA-Z]*)\s*", re.ASCII)


def parse_duration_seconds(text: str) -> float:
    """Read a duration such as `15s`, `5m`, `1.5h`, `30d`, or a plain number of seconds.

    Returns:
        The duration in seconds.

    Raises:
        ValueError: if it is not a duration.
    """
    return _parse(text, _DURATION_UNITS, "s", "a duration (15s, 5m, 12h, 30d, or a number of seconds)")


def parse_size_bytes(text: str) -> int:
    """Read a size such as `8MiB`, `1GiB`, `500MB`, or a plain number of bytes.

    Returns:
        The size in bytes.

    Raises:
        ValueError: if it is not a size.
    """
    return int(_parse(text, _SIZE_UNITS, "b", "a size (64KiB, 8MiB, 1GiB, or a number of bytes)"))


def format_duration(seconds: float) -> str:
    """Write a duration in the largest unit that leaves a whole number, so that it reads back the same."""
    for unit in ("d", "h", "m", "s"):
        if seconds >= _DURATION_UNITS[unit] and seconds % _DURATION_UNITS[unit] == 0:
            return f"{int(seconds // _DURATION_UNITS[unit])}{unit}"
    return f"{Decimal(str(seconds)):f}s" if seconds else "0s"


def format_size(size_bytes: int) -> str:
    """Write a size in the largest binary unit that leaves a whole number, so that it reads back the same."""
    for unit, name in (("gib", "GiB"), ("mib", "MiB"), ("kib", "KiB")):
        if size_bytes >= _SIZE_UNITS[unit] and size_bytes % _SIZE_UNITS[unit] == 0:
            return f"{size_bytes // _SIZE_UNITS[unit]}{name}"
    return f"{size_bytes}B"


def _parse(text: str, units: Mapping[str, float], default: str, expected: str) -> float:
    match = _NUMBER_AND_UNIT.fullmatch(text)
    unit = (match[2] or default).lower() if match else ""
    if match is None or unit not in units:
        msg = f"{text!r} is not {expected}"
        raise ValueError(msg)
    return float(match[1]) * units[unit]
