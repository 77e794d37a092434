"""An InfluxDB that answers as the test says, and remembers what it was sent and what it keeps."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from aiohttp import web

from tests.support import recordings
from tests.support.lineprotocol import GzipError, Record, gunzip_one_member, read_records
from tests.support.recordings import Answer, Refusal, Refused
from tests.support.webserver import WebServer, drop_connection

PointKey = tuple[str, int | None]


class Trouble(Enum):
    """Steps that are no answer."""

    NEVER = "never"
    """Take the request and let the client wait."""
    DROP = "drop"
    """Take the request and cut the connection."""


@dataclass(frozen=True)
class Step:
    """What happens to one request.

    Attributes:
        outcome: An answer, or what happens instead.
        delay_seconds: How long to wait before it.
        stores: Whether the points are kept; by default they are when the status is 2xx. A step that keeps them and then
            drops the connection is an acknowledgement that got lost.
    """

    outcome: Answer | Trouble
    delay_seconds: float = 0.0
    stores: bool | None = None

    @property
    def keeps_points(self) -> bool:
        """Whether the points of the request are kept."""
        if self.stores is not None:
            return self.stores
        return isinstance(self.outcome, Answer) and self.outcome.status < 300


@dataclass(frozen=True)
class RefuseRecords:
    """A way to behave: refuse the records that a predicate picks, in the words of one InfluxDB version."""

    refuses: Callable[[Record], bool]
    refusal: Refusal


Behaviour = Step | RefuseRecords


@dataclass(frozen=True)
class Limits:
    """How large a body may be, decompressed; above it the answer is a 413."""

    size_bytes: int | None = None
    records: int | None = None
    answer: Callable[[], Answer] = recordings.v2_too_large

    def exceeded_by(self, body: bytes, records: Sequence[Record]) -> bool:
        """Return whether a body is too large."""
        too_long = self.size_bytes is not None and len(body) > self.size_bytes
        return too_long or (self.records is not None and len(records) > self.records)


@dataclass
class WriteRequest:
    """One request to `/api/v2/write`.

    Attributes:
        query: Its query parameters.
        headers: Its headers.
        records: The records of its body.
        status: That of the answer; None while, and when, none was sent.
        at: When it came, in seconds of `time.monotonic`.
    """

    query: Mapping[str, str]
    headers: Mapping[str, str]
    records: Sequence[Record]
    status: int | None = field(default=None)
    at: float = field(default_factory=time.monotonic)


ACCEPT = Step(Answer(204))
NEVER = Step(Trouble.NEVER)
DROP = Step(Trouble.DROP)
DROP_AFTER_STORING = Step(Trouble.DROP, stores=True)


def answer(status: int, body: Mapping[str, object] | None = None, **headers: str) -> Step:
    """Return a step that answers; underscores in header names are read as dashes."""
    return Step(Answer(status, body, {name.replace("_", "-"): value for name, value in headers.items()}))


class ScriptedInflux(WebServer):
    """Plays a script, one step a request, then goes on with a default behaviour.

    Attributes:
        default: What happens when the script has ended; accept all by default.
        limits: What is too large in any case, checked before script and default.
        requests: Every write request, in the order of arrival.
        received: The text of every record, in the order of arrival, repeated ones and refused ones too.
        stored: The points that are kept, by series and time, as InfluxDB keeps them: written twice is one point.
        store_count: How many points were written, a point written twice counted twice.
        gzip_errors: What was wrong with bodies that were not one gzip member; a test wants this empty.
    """

    def __init__(self, script: Iterable[Behaviour] = (), default: Behaviour = ACCEPT) -> None:
        """Set the script; `play` adds to it later."""
        super().__init__()
        self._script: list[Behaviour] = list(script)
        self.default = default
        self.limits = Limits()
        self.requests: list[WriteRequest] = []
        self.received: list[str] = []
        self.stored: dict[PointKey, Record] = {}
        self.store_count = 0
        self.gzip_errors: list[str] = []

    @property
    def script_ended(self) -> bool:
        """Whether every step was played."""
        return not self._script

    def play(self, *steps: Behaviour) -> None:
        """Append steps to the script."""
        self._script.extend(steps)

    def build(self, app: web.Application) -> None:
        """Add the endpoints a 2.x client uses for writing."""
        app.router.add_post("/api/v2/write", self._write)
        app.router.add_get("/ping", self._ping)
        app.router.add_get("/health", self._health)

    async def _write(self, request: web.Request) -> web.Response:
        body = await request.read()
        if request.headers.get("Content-Encoding") == "gzip":
            try:
                body = gunzip_one_member(body)
            except GzipError as error:
                self.gzip_errors.append(str(error))
                return recordings.v2_error(400, "invalid", f"unable to read data: {error}").as_response()
        records = read_records(body.decode())
        write = WriteRequest(dict(request.query), dict(request.headers), records)
        self.requests.append(write)
        self.received.extend(record.text for record in records)
        if self.limits.exceeded_by(body, records):
            response = self.limits.answer().as_response()
        else:
            behaviour = self._script.pop(0) if self._script else self.default
            response = await self._behave(behaviour, request, records)
        if request.transport is not None and not request.transport.is_closing():
            write.status = response.status
        return response

    async def _behave(self, behaviour: Behaviour, request: web.Request, records: Sequence[Record]) -> web.Response:
        if isinstance(behaviour, RefuseRecords):
            return self._refuse(behaviour, records).as_response()
        if behaviour.delay_seconds:
            await self.hang(behaviour.delay_seconds)
        if behaviour.keeps_points:
            self._store(records)
        if behaviour.outcome is Trouble.NEVER:
            await self.hang()
        if isinstance(behaviour.outcome, Trouble):
            return drop_connection(request)
        return behaviour.outcome.as_response()

    def _refuse(self, behaviour: RefuseRecords, records: Sequence[Record]) -> Answer:
        refused = [Refused(number, each) for number, each in enumerate(records, 1) if behaviour.refuses(each)]
        if not refused:
            self._store(records)
            return Answer(204)
        if behaviour.refusal.stores_the_rest:
            self._store([each for each in records if not behaviour.refuses(each)])
        return behaviour.refusal.answer(refused)

    def _store(self, records: Sequence[Record]) -> None:
        self.store_count += len(records)
        self.stored.update({(each.series, each.time): each for each in records})

    async def _ping(self, _: web.Request) -> web.Response:
        return web.Response(status=204, headers={"X-Influxdb-Build": "OSS", "X-Influxdb-Version": "v2.7.12"})

    async def _health(self, _: web.Request) -> web.Response:
        return recordings.health("v2.7.12").as_response()


class HeldInflux(ScriptedInflux):
    """An InfluxDB that answers nothing before it is told to.

    Attributes:
        held: How many requests came.
        released: Set it to let them be answered.
    """

    def __init__(self) -> None:
        """Hold every request."""
        super().__init__()
        self.held = 0
        self.released = asyncio.Event()

    async def _write(self, request: web.Request) -> web.Response:
        self.held += 1
        await self.released.wait()
        return await super()._write(request)
