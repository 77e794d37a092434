"""`/stats`: the endpoint that devices post to.

What a reply does to a device decides its status (Capgo's plugin sources): 4xx makes a device drop its whole batch, an
empty 200 makes iOS send it again every second, 429 stops more than the statistics, and 503 makes it send the batch
again.
"""

import asyncio
from http import HTTPStatus
from typing import Any, Final

import msgspec
from aiohttp import web

from exporter.access import Tokens, bearer
from exporter.bodies import LARGE_BYTES, BodyError, BodyReader
from exporter.events import Batch, Rejection, decode
from exporter.intake import FULL_JOURNAL, SLOW_DISK, Intake, UnavailableError
from exporter.replies import JSON, ReadyReply
from exporter.rules import NOT_ALLOWED
from exporter.shares import FairShare, OverShareError
from exporter.telemetry import Telemetry

RETRY_AFTER_SECONDS: Final = 5
_OK: Final = b'{"status":"ok"}'
_CACHED_REPLIES: Final = 1000
_LIMITS: Final = {SLOW_DISK: "waiting", FULL_JOURNAL: "journal"}
_NOT_NOW: Final = "Events cannot be stored now; send them again"


class StatsHandler:
    """Answers `GET` and `POST` on the stats path."""

    def __init__(
        self, intake: Intake, telemetry: Telemetry, bodies: BodyReader, tokens: Tokens, fair: FairShare
    ) -> None:
        """Set the bounds.

        Args:
            intake: takes the events.
            telemetry: counts what is refused.
            bodies: reads what is posted.
            tokens: of which senders must show one, if there are any.
            fair: says who sends too much.
        """
        self._intake = intake
        self._telemetry = telemetry
        self._bodies = bodies
        self._tokens = tokens
        self._fair = fair
        self._replies: dict[tuple[int | None, bool], ReadyReply] = {}

    async def get(self, request: web.Request) -> web.Response:
        """Answer a check of the endpoint."""
        if not self._may_send(request):
            return self._unauthorized()
        return web.Response(body=_OK, content_type=JSON)

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Take events, and answer when they are on disk."""
        if not self._may_send(request):
            return self._unauthorized()
        if reason := self._intake.closed_because:
            return self._unavailable(reason)
        taken = 0
        try:
            client = self._fair.admit(request)
            body, taken = await self._bodies.read(request)
            # What is large and odd takes seconds to read, in which others want to be answered.
            batch = decode(body) if len(body) <= LARGE_BYTES else await asyncio.to_thread(decode, body)
            self._fair.charge(client, batch)
            rejections = await self._intake.accept(batch)
        except OverShareError as error:
            self._telemetry.requests_shed[error.limit].inc()
            self._telemetry.notices.warn(
                "a limit of events a second is reached; requests are answered 503", error.limit
            )
            return unavailable(error.message, error.retry_after_seconds)
        except BodyError as error:
            return self._refuse(error.status, error.reason, error.error, error.message)
        except UnavailableError as error:
            return self._unavailable(str(error))
        finally:
            self._bodies.give_back(taken)
        return self._reply(request, batch, rejections)

    def _reply(self, request: web.Request, batch: Batch, rejections: dict[int, Rejection]) -> web.StreamResponse:
        if rejections and (status := _refusal(batch, rejections)):
            return reply_error(status, rejections[0].error, rejections[0].message)
        count = batch.size if batch.is_array else None
        if rejections or not ReadyReply.fits(request):
            return web.Response(body=_accepted(count, rejections), content_type=JSON)
        return self._ready_reply(count, closes=not request.keep_alive)

    def _ready_reply(self, count: int | None, *, closes: bool) -> ReadyReply:
        reply = self._replies.get((count, closes))
        if reply is None:
            reply = ReadyReply(_accepted(count, {}), closes=closes)
            if count is None or count <= _CACHED_REPLIES:
                self._replies[count, closes] = reply
        return reply

    def _may_send(self, request: web.Request) -> bool:
        if not self._tokens:
            return True
        return self._tokens.include(request.match_info.get("token") or request.query.get("token") or bearer(request))

    def _unauthorized(self) -> web.Response:
        return self._refuse(401, "unauthorized", "unauthorized", "The token is missing or wrong")

    def _refuse(self, status: int, reason: str, error: str, message: str) -> web.Response:
        self._telemetry.bodies_rejected[reason].inc()
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            self._telemetry.notices.warn("bodies are refused with 503", reason)
            return unavailable(message)
        return reply_error(status, error, message)

    def _unavailable(self, reason: str) -> web.Response:
        if limit := _LIMITS.get(reason):  # what else is wrong with the journal is told where it is found
            self._telemetry.requests_shed[limit].inc()
            self._telemetry.notices.warn("events are refused with 503", reason)
        return unavailable()


def _refusal(batch: Batch, rejections: dict[int, Rejection]) -> int:
    """Give the status that a body is refused with as a whole; 0 if it is not, for the sake of its other events."""
    if len(rejections) == batch.size and all(each is NOT_ALLOWED for each in rejections.values()):
        return HTTPStatus.FORBIDDEN
    return 0 if batch.is_array else HTTPStatus.BAD_REQUEST


def _accepted(count: int | None, rejections: dict[int, Rejection]) -> bytes:
    """Write the body for a batch of so many events; None stands for a single one."""
    if count is None:
        return _OK
    return msgspec.json.encode(
        {"status": "ok", "results": [_result(index, rejections.get(index)) for index in range(count)]}
    )


def _result(index: int, rejection: Rejection | None) -> dict[str, Any]:
    if rejection is None:
        return {"status": "ok", "index": index}
    return {"status": "error", "error": rejection.error, "message": rejection.message, "index": index}


def reply_error(status: int, error: str, message: str) -> web.Response:
    """Give an error reply in the form of Capgo's own backend."""
    return web.Response(
        status=status, body=msgspec.json.encode({"error": error, "message": message}), content_type=JSON
    )


def unavailable(message: str = _NOT_NOW, retry_after_seconds: int = RETRY_AFTER_SECONDS) -> web.Response:
    """Give the reply that makes a device keep its events and send them again."""
    body = {"error": "unavailable", "message": message, "retryAfterSeconds": retry_after_seconds}
    headers = {"Retry-After": str(retry_after_seconds)}
    return web.Response(status=503, body=msgspec.json.encode(body), content_type=JSON, headers=headers)
