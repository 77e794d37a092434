"""Numbers as people read them, by Grafana's units."""

from datetime import UTC, datetime
from typing import Final

_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86_400
_LETTERS: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: float, unit: str) -> str:
    """Write a number in a unit of Grafana."""
    if value != value:  # noqa: PLR0124 -- NaN
        return "-"
    match unit:
        case "percentunit":
            return f"{float(f'{100 * value:.1f}'):g} %"
        case "s":
            return _duration(value)
        case "dateTimeAsIso":
            return datetime.fromtimestamp(value / 1000, UTC).strftime("%Y-%m-%d %H:%M")
        case "bytes":
            return f"{_short(value)}B"
        case _:
            return _short(value)


def _duration(seconds: float) -> str:
    for size, name in ((_DAY, "days"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.3g} s" if seconds >= 1 or not seconds else f"{1000 * seconds:.3g} ms"


def _short(value: float) -> str:
    for size, letter in _LETTERS:
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.0f}" if value == round(value) else f"{value:.3g}"
