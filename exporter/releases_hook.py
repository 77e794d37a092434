"""`/releases`: the endpoint where a release pipeline says what it has just released."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated, Final

import msgspec
from aiohttp import web

from exporter.access import Tokens, bearer
from exporter.bodies import BodyError, BodyReader
from exporter.group import NotStoredError
from exporter.journal.derived_records import MarkRow
from exporter.labels import normalise
from exporter.stats import reply_error, unavailable

MAX_BODY_BYTES: Final = 65_536
"""Largest body, before and after decompression."""

MAX_TEXT_LENGTH: Final = 128
"""Longest app, version or channel, in characters: that of a label."""

MAX_NOTE_LENGTH: Final = 2000
"""Longest note, in characters."""

_OK: Final = b'{"status":"ok"}'
_JSON: Final = "application/json"


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    app_id: str
    version: str
    channel: str | None = None
    rollout_percentage: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    note: Annotated[str, msgspec.Meta(max_length=MAX_NOTE_LENGTH)] | None = None


_decoder = msgspec.json.Decoder(_Body)


class ReleasesHandler:
    """Answers `POST /releases`."""

    def __init__(self, store: Callable[[MarkRow], Awaitable[None]], wall_ms: Callable[[], int], tokens: Tokens) -> None:
        """Set where marks go.

        Args:
            store: returns when a mark is on disk, and raises NotStoredError if it is not.
            wall_ms: the time, in milliseconds since 1970.
            tokens: of which senders must show one, as bearer token.
        """
        self._store = store
        self._bodies = BodyReader(MAX_BODY_BYTES)
        self._wall_ms = wall_ms
        self._tokens = tokens

    async def post(self, request: web.Request) -> web.Response:
        """Take a mark, and answer when it is on disk."""
        if not self._tokens.include(bearer(request)):
            response = reply_error(401, "unauthorized", "The bearer token is missing or wrong")
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        try:
            body, _ = await self._bodies.read(request)  # all are small
            await self._store(read_mark(body, self._wall_ms()))
        except BodyError as error:
            if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
                return unavailable(error.message)
            return reply_error(error.status, error.error, error.message)
        except NotStoredError:
            return unavailable("The release cannot be stored now; mark it again")
        return web.Response(body=_OK, content_type=_JSON)


def read_mark(body: bytes, now_ms: int) -> MarkRow:
    """Read the body of a request.

    Raises:
        BodyError: if it is too large, is not JSON, lacks something, or says something that is not known.
    """
    try:
        said = _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BodyError(400, "invalid_json", "invalid_json", f"The body is not JSON: {error}") from None
    return MarkRow(
        app_id=_required("app_id", said.app_id),
        version=_required("version", said.version),
        channel=_label("channel", said.channel or ""),
        marked_ms=now_ms,
        # Adding 0 makes -0.0, which JSON can say, 0.0.
        rollout_percentage=None if said.rollout_percentage is None else said.rollout_percentage + 0.0,
        note=said.note or "",
    )


def _required(name: str, text: str) -> str:
    label = _label(name, text)
    if not label:
        message = f"{name} must not be empty"
        raise _invalid(message)
    return label


def _label(name: str, text: str) -> str:
    label = normalise(text)
    if len(label) > MAX_TEXT_LENGTH:
        message = f"{name} has {len(label)} characters; at most {MAX_TEXT_LENGTH} are allowed"
        raise _invalid(message)
    return label


def _invalid(message: str) -> BodyError:
    return BodyError(400, "invalid_shape", "invalid_release", message)
