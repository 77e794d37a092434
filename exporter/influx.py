"""Writing to InfluxDB: influxdb-client's async client as transport, and a verdict on each answer.

Sources: InfluxDB's documentation of `/api/v2/write` ("Troubleshoot issues writing data" of 1.8, 2.x and 3.x).
"""

import asyncio
import json
import re
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import Any, Final

import aiohttp
from influxdb_client.client.influxdb_client_async import InfluxDBClientAsync
from influxdb_client.rest import ApiException
from influxdb_client.service.write_service import WriteService

_DROPPED = re.compile(r"dropped=(\d+)")
_BEYOND_RETENTION: Final = ("beyond retention policy", "outside retention policy")  # the second since 2.7.11
_PARTIAL_WRITE: Final = "partial write"
_MAX_ERROR_TEXT: Final = 500
_OK: Final = range(200, 300)
_THROTTLED: Final = 429
_TOO_LARGE: Final = 413
_BAD_LINES: Final = (400, 422)
_CREDENTIALS: Final = (401, 403)
_NOT_FOUND: Final = 404
_SERVER_ERROR: Final = 500
_MAX_RETRY_AFTER_SECONDS: Final = 300.0


class Verdict(Enum):
    """What an answer means for the lines of a request."""

    STORED = auto()
    """All are stored, or refused for a final reason that was counted."""
    RETRY = auto()
    """None may be stored; the same request will succeed later."""
    TOO_LARGE = auto()
    """None are stored; smaller requests will succeed."""
    REFUSED = auto()
    """Some are refused for good; `bad_lines` names them where the server does."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The verdict on one write.

    Attributes:
        verdict: what it means for the lines.
        status: the HTTP status as text, or `network` or `timeout`.
        reason: why to retry, as the metrics name it.
        error: what the server said, in short.
        retry_after_seconds: how long it asks to wait; 0 if it does not say.
        beyond_retention: lines that were refused because they are older than the bucket keeps.
        bad_lines: 1-based numbers of refused lines, with what is wrong with each; empty if the server does not name
            them.
    """

    verdict: Verdict
    status: str
    reason: str = ""
    error: str = ""
    retry_after_seconds: float = 0.0
    beyond_retention: int = 0
    bad_lines: dict[int, str] = field(default_factory=dict)


class InfluxWriter:
    """A connection to one bucket."""

    def __init__(self, *, url: str, org: str, token: str, bucket: str, timeout_seconds: float) -> None:
        """Prepare the client; nothing is sent yet. Must be called while the event loop runs."""
        self._client = InfluxDBClientAsync(
            url, token, org=org, timeout=int(timeout_seconds * 1000), allow_redirects=False, connection_pool_maxsize=4
        )
        self._service = WriteService(self._client.api_client)
        self._org = org
        self._bucket = bucket

    async def write(self, body: bytes) -> Answer:
        """Send lines, gzip-compressed into one member, with times in nanoseconds."""
        try:
            await self._service.post_write_async(
                self._org, self._bucket, body, precision="ns", content_encoding="gzip", content_type="text/plain"
            )
        except ApiException as error:
            return judge(int(error.status or 0), _header(error, "Retry-After"), _body(error))
        except TimeoutError:
            return Answer(Verdict.RETRY, "timeout", "timeout", "no answer within EXPORTER_INFLUX_TIMEOUT")
        except (aiohttp.ClientError, OSError, ssl.SSLError, asyncio.IncompleteReadError) as error:
            return Answer(Verdict.RETRY, "network", "network", _shorten(f"{type(error).__name__}: {error}"))
        return Answer(Verdict.STORED, "204")

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def judge(status: int, retry_after: str, body: str) -> Answer:
    """Judge an answer with an error status by its status, its `Retry-After` header and its body."""
    text = str(status)
    message, named = _read_error(body)
    if status in _OK:
        return Answer(Verdict.STORED, text)
    if status == _TOO_LARGE:
        return Answer(Verdict.TOO_LARGE, text, error=message)
    if status in _BAD_LINES or _PARTIAL_WRITE in message:  # The first releases of 2.0 answered these with 500.
        dropped = _DROPPED.search(message)
        if dropped and not named and any(words in message for words in _BEYOND_RETENTION):
            return Answer(Verdict.STORED, text, error=message, beyond_retention=int(dropped[1]))
        return Answer(Verdict.REFUSED, text, "refused", message, bad_lines=named)
    if status in _CREDENTIALS:
        reason = "rejected_credentials"
    elif status == _NOT_FOUND:
        reason = "not_found"
    elif status == _THROTTLED:
        reason = "throttled"
    else:
        reason = "server_error" if status >= _SERVER_ERROR else "refused"
    return Answer(Verdict.RETRY, text, reason, message, _seconds(retry_after))


def _read_error(body: str) -> tuple[str, dict[int, str]]:
    """Read the message of an error body, and the lines that InfluxDB 3 names in `data`."""
    try:
        content: Any = json.loads(body)
    except ValueError:
        return _shorten(body), {}
    if not isinstance(content, dict):
        return _shorten(body), {}
    message = content.get("message") or content.get("error") or body
    data = content.get("data")
    entries = data if isinstance(data, list) else [data]
    named = {
        entry["line_number"]: _shorten(str(entry.get("error_message", message)))
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("line_number"), int)
    }
    return _shorten(str(message)), named


def _header(error: ApiException, name: str) -> str:
    return str((error.headers or {}).get(name, ""))  # type: ignore[call-overload]  # the library has no annotations


def _body(error: ApiException) -> str:
    body = error.body or b""
    return body.decode(errors="replace") if isinstance(body, bytes) else str(body)


def _seconds(retry_after: str) -> float:
    """Read `Retry-After`: seconds or a date (RFC 9110, section 10.2.3); at most five minutes are obeyed."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            when = parsedate_to_datetime(retry_after)
        except ValueError:
            return 0.0
        seconds = (when - datetime.now(UTC)).total_seconds() if when.tzinfo else 0.0
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_SECONDS)


def _shorten(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _MAX_ERROR_TEXT else f"{flat[:_MAX_ERROR_TEXT]}…"
