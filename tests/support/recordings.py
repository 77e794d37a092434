"""Answers of InfluxDB 1.x, 2.x and 3.x to writes, in their documented form, to be played back.

Each has its source. The 1.x texts are also compared with a real InfluxDB 1.6 in `test_support.py`.

Traps these hold, all of them real:

- 1.x does not count a line that it cannot parse: it is refused with `dropped=0`.
- 1.x and 2.x name one reason only: in a batch with points beyond the retention and points of a wrong type the message
  of the wrong type replaces the other, and `dropped=N` counts its own points alone.
- 2.x parses the whole body first: one malformed line and nothing is stored; a 422 stored all but the dropped ones.
- 3.x cuts `original_line` to 20 characters and writes its strings without quotes: only `line_number` tells the line.
  At most 100 lines are named, more may have been refused.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from tests.support.lineprotocol import Record

_V3_NAMED_LINES = 100
_V3_LINE_LENGTH = 20


@dataclass(frozen=True)
class Answer:
    """An HTTP answer with a JSON body, or with none."""

    status: int
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def as_response(self) -> web.Response:
        """Return the answer as aiohttp sends it."""
        if self.body is None:
            return web.Response(status=self.status, headers=self.headers)
        return web.json_response(dict(self.body), status=self.status, headers=self.headers)


@dataclass(frozen=True)
class Refused:
    """A record that the server refuses, with its place in the body, counted from 1."""

    number: int
    record: Record

    @property
    def measurement(self) -> str:
        """The measurement; no test has one with an escaped comma."""
        return self.record.series.partition(",")[0]


@dataclass(frozen=True)
class Refusal:
    """A way to refuse records: the answer, and whether the rest of the body is stored."""

    name: str
    answer: Callable[[Sequence[Refused]], Answer]
    stores_the_rest: bool = True

    def __str__(self) -> str:
        """Return the name, which pytest takes as the test id."""
        return self.name


def _type_conflict(refused: Sequence[Refused]) -> str:
    return (
        f'partial write: field type conflict: input field "count" on measurement "{refused[0].measurement}" '
        f"is type float, already exists as type integer dropped={len(refused)}"
    )


def _unable_to_parse(refused: Sequence[Refused]) -> str:
    return "\n".join(f"unable to parse '{each.record.text}': invalid field format" for each in refused)


# --- InfluxDB 1.x -----------------------------------------------------------------------------------------------------
# Source: https://docs.influxdata.com/influxdb/v1/tools/api/#status-codes-and-responses-2, and InfluxDB 1.6.7 itself.


def _v1(error: Callable[[Sequence[Refused]], str]) -> Callable[[Sequence[Refused]], Answer]:
    def answer(refused: Sequence[Refused]) -> Answer:
        text = error(refused)
        # Go's HTTP server writes a newline in a header value as a space.
        return Answer(
            400, {"error": text}, {"X-Influxdb-Error": text.replace("\n", " "), "X-Influxdb-Version": "1.8.10"}
        )

    return answer


V1_TYPE_CONFLICT = Refusal("1.x field type conflict", _v1(_type_conflict))
V1_BEYOND_RETENTION = Refusal(
    "1.x beyond retention",
    _v1(lambda refused: f"partial write: points beyond retention policy dropped={len(refused)}"),
)
V1_MAX_VALUES_PER_TAG = Refusal(
    "1.x max-values-per-tag",
    _v1(
        lambda refused: (
            "partial write: max-values-per-tag limit exceeded (100000/100000): "
            f'measurement="{refused[0].measurement}" tag="version" value="1.2.3" dropped={len(refused)}'
        )
    ),
)
V1_MALFORMED = Refusal(
    "1.x malformed line", _v1(lambda refused: f"partial write: {_unable_to_parse(refused)} dropped=0")
)


def v1_too_large() -> Answer:
    """A body above `max-body-size`, measured after decompression."""
    error = "Request Entity Too Large"
    return Answer(413, {"error": error}, {"X-Influxdb-Error": error})


# --- InfluxDB 2.x -----------------------------------------------------------------------------------------------------
# Source: influxdata/influxdb, branch main-2.x: http/write_handler.go, http/points/points_parser.go and
# kit/platform/errors/errors.go (codes), and https://docs.influxdata.com/influxdb/v2/write-data/troubleshoot/.

_V2_VERSION = {"X-Influxdb-Build": "OSS", "X-Influxdb-Version": "v2.7.12"}


def v2_error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Answer:
    """Any error of 2.x: a code and a message, the code in a header too."""
    return Answer(
        status, {"code": code, "message": message}, {**_V2_VERSION, "X-Platform-Error-Code": code, **(headers or {})}
    )


def _v2_partial(error: Callable[[Sequence[Refused]], str]) -> Callable[[Sequence[Refused]], Answer]:
    return lambda refused: v2_error(
        422, "unprocessable entity", f"failure writing points to database: {error(refused)}"
    )


def _v2_outside_retention(refused: Sequence[Refused]) -> str:
    lower_bound = "2025-05-20T19:06:17.612973Z"
    timed = sorted(refused, key=lambda each: each.record.time or 0)

    def dropped(which: str, each: Refused) -> str:
        seconds = (each.record.time or 0) // 1_000_000_000
        time = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
        return (
            f"{which} point {each.record.series} at {time} dropped because it violates a Retention Policy Lower Bound "
            f"at {lower_bound}"
        )

    return (
        f"partial write: dropped {len(refused)} points outside retention policy of duration 24h0m0s - "
        f"{dropped('oldest', timed[0])}, {dropped('newest', timed[-1])} dropped={len(refused)} "
        "for database: 9f282d63c7d3a5c0 for retention policy: autogen"
    )


V2_TYPE_CONFLICT = Refusal("2.x field type conflict", _v2_partial(_type_conflict))
V2_BEYOND_RETENTION = Refusal(
    "2.x beyond retention",
    _v2_partial(lambda refused: f"partial write: points beyond retention policy dropped={len(refused)}"),
)
# The words of 2.7.11 and later. Source: the page above, section "Troubleshoot rejected points".
V2_OUTSIDE_RETENTION = Refusal("2.7.11 outside retention", _v2_partial(_v2_outside_retention))
V2_MALFORMED = Refusal(
    "2.x malformed line",
    lambda refused: v2_error(400, "invalid", _unable_to_parse(refused)),
    stores_the_rest=False,
)


def v2_too_large() -> Answer:
    """A body above the limit, measured after decompression."""
    return v2_error(413, "request too large", "unable to read data: points batch is too large")


def unauthorized() -> Answer:
    """No token, or one that is not known."""
    return v2_error(401, "unauthorized", "unauthorized access")


def forbidden() -> Answer:
    """A token without the right to write to the bucket."""
    return v2_error(403, "forbidden", "insufficient permissions for write")


def bucket_not_found(bucket: str = "capgo") -> Answer:
    """A bucket that is not there."""
    return v2_error(404, "not found", f'bucket "{bucket}" not found')


def invalid_precision() -> Answer:
    """A precision that the server does not know."""
    return v2_error(400, "invalid", "invalid precision; valid precision units are ns, us, ms, and s")


def too_many_requests(retry_after_seconds: int) -> Answer:
    """Over quota, as InfluxDB Cloud answers, with `Retry-After` in seconds."""
    message = "org has exceeded limited_write plan limit"
    return v2_error(429, "too many requests", message, {"Retry-After": str(retry_after_seconds)})


def internal_error() -> Answer:
    """A server in trouble."""
    return v2_error(500, "internal error", "unexpected error writing points to database: timeout")


def unavailable(retry_after_seconds: int | None = None) -> Answer:
    """A server that starts, stops or has too much to do."""
    headers = {} if retry_after_seconds is None else {"Retry-After": str(retry_after_seconds)}
    return v2_error(503, "unavailable", "service unavailable", headers)


def health(version: str) -> Answer:
    """`/health` of a server that is well."""
    body = {"name": "influxdb", "message": "ready for queries and writes", "status": "pass", "version": version}
    return Answer(200, body)


# --- InfluxDB 3.x -----------------------------------------------------------------------------------------------------
# Source: https://docs.influxdata.com/influxdb3/core/write-data/http-api/v3-write-lp/#partial-writes, and
# influxdata/influxdb, branch main: influxdb3_write/src/write_buffer/validator.rs. `/api/v2/write` accepts partial
# writes.


def _v3_line(each: Refused) -> dict[str, Any]:
    return {
        "original_line": each.record.text.replace('"', "")[:_V3_LINE_LENGTH],
        "line_number": each.number,
        "error_message": (
            "invalid column type for column 'count', expected iox::column_type::field::integer, "
            "got iox::column_type::field::float"
        ),
    }


def _v3_partial(status: int) -> Callable[[Sequence[Refused]], Answer]:
    return lambda refused: Answer(
        status,
        {
            "error": "partial write of line protocol occurred",
            "data": [_v3_line(each) for each in refused[:_V3_NAMED_LINES]],
        },
    )


V3_PARTIAL = Refusal("3.x partial write", _v3_partial(400))
V3_PARTIAL_422 = Refusal("3.x partial write, 422", _v3_partial(422))
# What a server set to refuse partial writes says; `data` is an object here.
V3_REJECTED = Refusal(
    "3.x all rejected",
    lambda refused: Answer(400, {"error": "parsing failed for write_lp endpoint", "data": _v3_line(refused[0])}),
    stores_the_rest=False,
)
# Cloud Serverless, Dedicated and Clustered name the first line as `line`, and give one message a line.
# Source: https://docs.influxdata.com/influxdb3/cloud-serverless/write-data/troubleshoot/#troubleshoot-rejected-points
V3_CLOUD_PARTIAL = Refusal(
    "3.x cloud partial write",
    lambda refused: Answer(
        400,
        {
            "code": "invalid",
            "line": refused[0].number,
            "message": "\n".join(
                f"failed to parse line protocol: error parsing line {each.number} (1-based): field type conflict"
                for each in refused[:_V3_NAMED_LINES]
            ),
        },
    ),
)


def v3_created() -> Answer:
    """What Cloud Dedicated and Clustered said before they said 400: some points are stored, others rejected."""
    return Answer(201, {"code": "invalid", "message": "partial write: 1 of 2 points rejected", "line": 1})


PARTIAL_WRITES = (
    V1_TYPE_CONFLICT,
    V1_BEYOND_RETENTION,
    V1_MAX_VALUES_PER_TAG,
    V1_MALFORMED,
    V2_TYPE_CONFLICT,
    V2_BEYOND_RETENTION,
    V2_OUTSIDE_RETENTION,
    V3_PARTIAL,
    V3_PARTIAL_422,
    V3_CLOUD_PARTIAL,
)
WHOLE_REFUSALS = (V2_MALFORMED, V3_REJECTED)
