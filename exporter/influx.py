"""Writing to InfluxDB: influxdb-client's async client as transport, and a verdict on each answer.

Sources: InfluxDB's documentation of `/api/v2/write` ("Troubleshoot issues writing data" of 1.8, 2.x and 3.x).
"""

import asyncio
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import aiohttp
from influxdb_client.client.influxdb_client_async import InfluxDBClientAsync
from influxdb_client.service.write_service import WriteService

# What follows is matched at this place alone: later in the message there may be text that devices sent.
_PARTIAL_WRITE: Final = "partial write: "
_BEYOND_RETENTION: Final = re.compile(
    r"points beyond retention policy dropped=(\d{1,15})\b"
    r"|dropped (\d{1,15}) points outside retention policy"  # 2.7.11 and later
)
_REFUSED: Final = re.compile(r"dropped=(\d{1,15})\Z")
_ECHO: Final = re.compile(r"""'[^']*=.*'|\bcapgo_\w+,.*|=\\?".*""")
"""What a server repeats of a refused line, as far as the last quote: that holds what devices sent."""

_USER: Final = re.compile(r"//[^/?#]*@")
"""User name and password in a URL, whichever way they are encoded."""

_MAX_ERROR_TEXT: Final = 500
_OK: Final = range(200, 300)
_THROTTLED: Final = 429
_TOO_LARGE: Final = 413
_CREATED: Final = 201
_BAD_LINES: Final = (_CREATED, 400, 422)
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
        error: what the server said, in short, without what it repeats of the lines.
        retry_after_seconds: how long it asks to wait; 0 if it does not say.
        beyond_retention: lines that were refused because they are older than the bucket keeps.
        refused: lines that were refused for another reason, as far as the server counts them.
        bad_lines: 1-based numbers of refused lines, with what is wrong with each; empty if the server does not name
            them.
    """

    verdict: Verdict
    status: str
    reason: str = ""
    error: str = ""
    retry_after_seconds: float = 0.0
    beyond_retention: int = 0
    refused: int = 0
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
        self._token = token
        self._url = url

    async def write(self, body: bytes) -> Answer:
        """Send lines, gzip-compressed into one member, with times in nanoseconds."""
        try:
            # The client drops the body of a 2xx; so the answer is read here.
            response: aiohttp.ClientResponse = await self._service.post_write_async(
                self._org,
                self._bucket,
                body,
                precision="ns",
                content_encoding="gzip",
                content_type="text/plain",
                _preload_content=False,
            )
            async with response:
                said = (await response.read()).decode(errors="replace") or response.reason or ""
        except TimeoutError:
            return Answer(Verdict.RETRY, "timeout", "timeout", "no answer within EXPORTER_INFLUX_TIMEOUT")
        except (aiohttp.ClientError, OSError, ValueError, asyncio.IncompleteReadError) as error:
            # ValueError: a URL that the client cannot use, such as one with a password beside the token.
            return Answer(
                Verdict.RETRY, "network", "network", _shorten(hide_user(f"{type(error).__name__}: {error}", self._url))
            )
        return judge(response.status, response.headers.get("Retry-After", ""), said, self._token)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def judge(status: int, retry_after: str, body: str, token: str = "") -> Answer:
    """Judge an answer by its status, its `Retry-After` header and its body.

    The token, which a server may repeat, is masked in error texts.
    """
    message, named_lines = _read_error(body)
    # Earlier releases of Cloud Dedicated and Clustered said 201, with a message, where they rejected some points.
    if status in _OK and (status != _CREATED or message == body):
        return Answer(Verdict.STORED, str(status))
    error = _shorten(message, token)
    named = {number: _shorten(text, token) for number, text in named_lines.items()}
    if status == _TOO_LARGE:
        return Answer(Verdict.TOO_LARGE, str(status), error=error)
    # The first releases of 2.0 answered partial writes with 500. A page is a proxy's: it says nothing about the lines.
    if (status in _BAD_LINES and not body.lstrip().startswith("<")) or _PARTIAL_WRITE in message:
        _, _, partial_write = message.strip().partition(_PARTIAL_WRITE)
        if not named and (beyond := _BEYOND_RETENTION.match(partial_write)):
            return Answer(Verdict.STORED, str(status), error=error, beyond_retention=int(beyond[beyond.lastindex or 1]))
        refused = _REFUSED.search(partial_write)
        return Answer(
            Verdict.REFUSED, str(status), "refused", error, refused=int(refused[1]) if refused else 0, bad_lines=named
        )
    return Answer(Verdict.RETRY, str(status), _reason(status), error, _seconds(retry_after))


def hide_user(text: str, url: str) -> str:
    """Take user names and passwords of URLs out of a text, and those of one URL however the text has them."""
    user, _, _ = urlsplit(url).netloc.rpartition("@")
    for form in {user, unquote(user)} - {""}:
        text = text.replace(form, "***")
    return _USER.sub("//***@", text)


def _reason(status: int) -> str:
    """Name why an answer that is not about lines means to retry."""
    if status in _CREDENTIALS:
        return "rejected_credentials"
    if status == _NOT_FOUND:
        return "not_found"
    if status == _THROTTLED:
        return "throttled"
    return "server_error" if status >= _SERVER_ERROR else "refused"


def _read_error(body: str) -> tuple[str, dict[int, str]]:
    """Read the message of an error body, and the lines that InfluxDB 3 names in `data`."""
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError):
        return body, {}
    if not isinstance(content, dict):
        return body, {}
    message = str(content.get("message") or content.get("error") or body)
    data = content.get("data")
    entries = data if isinstance(data, list) else [data]
    named = {
        entry["line_number"]: str(entry.get("error_message", message))
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("line_number"), int)
    }
    return message, named


def _seconds(retry_after: str) -> float:
    """Read `Retry-After`: seconds or a date (RFC 9110, section 10.2.3); at most five minutes are obeyed."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            when = parsedate_to_datetime(retry_after)
        except (ValueError, OverflowError):  # The second is what a huge year or time zone raises.
            return 0.0
        seconds = (when - datetime.now(UTC)).total_seconds() if when.tzinfo else 0.0
    return min(max(0.0, seconds), _MAX_RETRY_AFTER_SECONDS)  # In this order `nan` counts as 0.


def _shorten(text: str, token: str = "") -> str:
    """Take out what must not be logged, and put the rest on one line of a bounded length."""
    without_echo = _ECHO.sub("…", text)
    flat = " ".join((without_echo.replace(token, "***") if token else without_echo).split())
    return flat if len(flat) <= _MAX_ERROR_TEXT else f"{flat[:_MAX_ERROR_TEXT]}…"
