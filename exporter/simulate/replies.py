"""Replies: what devices read out of an HTTP answer."""

from collections.abc import Mapping
from typing import Any

import msgspec

from exporter.simulate.outbox import Reply


def read_reply(status: int, headers: Mapping[str, str], body: bytes, now_ms: int) -> Reply:
    """Read an answer as the plugin does.

    Args:
        status: of the answer.
        headers: of the answer, with names in any case.
        body: of the answer.
        now_ms: the device's time, in milliseconds since 1970.
    """
    return Reply(status, _retry_after_seconds(headers, body, now_ms), has_body=bool(body.strip()))


def _retry_after_seconds(headers: Mapping[str, str], body: bytes, now_ms: int) -> float:
    """Read how long to wait: the header in seconds, never as a date; else the body, at its top or in `moreInfo`."""
    header = headers.get("Retry-After", "").strip()
    if header.isascii() and header.isdigit():
        return float(header)
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return 0.0
    if not isinstance(said, dict):
        return 0.0
    more = said.get("moreInfo")
    for place in (said, more if isinstance(more, dict) else {}):
        seconds = _number(place, "retryAfterSeconds")
        if seconds is None and (reset_ms := _number(place, "rateLimitResetAt")) is not None:
            seconds = (reset_ms - now_ms) / 1000
        if seconds is not None:
            return max(0.0, seconds)
    return 0.0


def _number(place: Mapping[str, Any], name: str) -> float | None:
    value = place.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
