"""What an answer of InfluxDB means, and how it is asked."""

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from exporter.influx import Answer, InfluxWriter, Verdict, hide_user, judge
from exporter.journal.codec import compress
from tests.support import recordings
from tests.support.fakeinflux import DROP, NEVER, ScriptedInflux, Step, answer
from tests.support.lineprotocol import read_records
from tests.support.ports import free_port
from tests.support.recordings import Refusal, Refused

TOKEN = "a-token-that-nobody-may-see"  # noqa: S105 -- the test's own
LINES = [f'capgo_stats,action=set,app_id=app,version=1.{number} count=1i,message="m" 17{number}' for number in range(9)]
REFUSED_NUMBERS = (2, 5)

# What each refusal says of two lines out of nine: verdict, beyond retention, refused by count, named by number.
REFUSALS = [
    (recordings.V1_TYPE_CONFLICT, Verdict.REFUSED, 0, 2, ()),
    (recordings.V1_BEYOND_RETENTION, Verdict.STORED, 2, 0, ()),
    (recordings.V1_MAX_VALUES_PER_TAG, Verdict.REFUSED, 0, 2, ()),
    (recordings.V1_MALFORMED, Verdict.REFUSED, 0, 0, ()),
    (recordings.V2_TYPE_CONFLICT, Verdict.REFUSED, 0, 2, ()),
    (recordings.V2_BEYOND_RETENTION, Verdict.STORED, 2, 0, ()),
    (recordings.V2_OUTSIDE_RETENTION, Verdict.STORED, 2, 0, ()),
    (recordings.V2_MALFORMED, Verdict.REFUSED, 0, 0, ()),
    (recordings.V3_PARTIAL, Verdict.REFUSED, 0, 0, (2, 5)),
    (recordings.V3_PARTIAL_422, Verdict.REFUSED, 0, 0, (2, 5)),
    (recordings.V3_REJECTED, Verdict.REFUSED, 0, 0, (2,)),
    (recordings.V3_CLOUD_PARTIAL, Verdict.REFUSED, 0, 0, ()),
]

# Everything else a server says: verdict, reason to retry, seconds it asks for.
STATUSES = [
    (recordings.Answer(200), Verdict.STORED, "", 0.0),
    (recordings.Answer(204), Verdict.STORED, "", 0.0),
    (recordings.Answer(201), Verdict.STORED, "", 0.0),
    (recordings.Answer(201, {"ok": True}), Verdict.STORED, "", 0.0),
    (recordings.v3_created(), Verdict.REFUSED, "refused", 0.0),
    (recordings.unauthorized(), Verdict.RETRY, "rejected_credentials", 0.0),
    (recordings.forbidden(), Verdict.RETRY, "rejected_credentials", 0.0),
    (recordings.bucket_not_found(), Verdict.RETRY, "not_found", 0.0),
    (recordings.too_many_requests(7), Verdict.RETRY, "throttled", 7.0),
    (recordings.internal_error(), Verdict.RETRY, "server_error", 0.0),
    (recordings.unavailable(), Verdict.RETRY, "server_error", 0.0),
    (recordings.unavailable(3), Verdict.RETRY, "server_error", 3.0),
    (recordings.v1_too_large(), Verdict.TOO_LARGE, "", 0.0),
    (recordings.v2_too_large(), Verdict.TOO_LARGE, "", 0.0),
    (recordings.invalid_precision(), Verdict.REFUSED, "refused", 0.0),
    (recordings.Answer(302), Verdict.RETRY, "refused", 0.0),
    (recordings.Answer(405), Verdict.RETRY, "refused", 0.0),
]


def judged(recorded: recordings.Answer) -> Answer:
    """Judge a recorded answer."""
    body = "" if recorded.body is None else json.dumps(recorded.body)
    return judge(recorded.status, recorded.headers.get("Retry-After", ""), body)


def refused_lines(lines: list[str] = LINES, numbers: tuple[int, ...] = REFUSED_NUMBERS) -> list[Refused]:
    """Give lines of a body as the refused ones."""
    records = read_records("\n".join(lines))
    return [Refused(number, records[number - 1]) for number in numbers]


@pytest.mark.parametrize(("refusal", "verdict", "beyond_retention", "refused", "named"), REFUSALS, ids=str)
def test_refusal(
    refusal: Refusal, verdict: Verdict, beyond_retention: int, refused: int, named: tuple[int, ...]
) -> None:
    """Every recorded refusal of 1.x, 2.x and 3.x is read for what it says of the lines."""
    result = judged(refusal.answer(refused_lines()))
    assert (verdict, beyond_retention, refused, named) == (
        result.verdict,
        result.beyond_retention,
        result.refused,
        tuple(result.bad_lines),
    )


def test_every_recorded_refusal_is_in_the_table() -> None:
    """No refusal is added to the recordings without saying here what it means."""
    assert set(recordings.PARTIAL_WRITES + recordings.WHOLE_REFUSALS) == {row[0] for row in REFUSALS}


@pytest.mark.parametrize(
    ("recorded", "verdict", "reason", "retry_after_seconds"),
    STATUSES,
    ids=[f"{row[0].status}-{row[1].name}" for row in STATUSES],
)
def test_status(recorded: recordings.Answer, verdict: Verdict, reason: str, retry_after_seconds: float) -> None:
    """Every other answer is judged by its status, and says for the metrics why and when to retry."""
    result = judged(recorded)
    assert (verdict, str(recorded.status), reason, retry_after_seconds) == (
        result.verdict,
        result.status,
        result.reason,
        result.retry_after_seconds,
    )


def test_partial_write_with_500() -> None:
    """A partial write is one also with the status 500 that the first releases of 2.0 gave it."""
    body = {"code": "internal error", "message": "unexpected error: partial write: field type conflict: x dropped=4"}
    result = judge(500, "", json.dumps(body))
    assert (Verdict.REFUSED, 4) == (result.verdict, result.refused)


@pytest.mark.parametrize(
    ("status", "verdict"), [(400, Verdict.RETRY), (422, Verdict.RETRY), (413, Verdict.TOO_LARGE), (502, Verdict.RETRY)]
)
def test_page_of_a_proxy(status: int, verdict: Verdict) -> None:
    """A proxy's page refuses no lines: its 400 is retried, its 413 is as good as InfluxDB's own."""
    assert verdict is judge(status, "", "\n<html><h1>400 Bad Request</h1></html>").verdict


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("0", 0.0),
        ("-3", 0.0),
        ("300", 300.0),
        ("86400", 300.0),
        ("inf", 300.0),
        ("nan", 0.0),
        ("", 0.0),
        ("soon", 0.0),
        ("Fri, 99 Foo 2025 99:99:99 GMT", 0.0),
        ("Wed, 01 Jan 2020 00:00:00 GMT", 0.0),
        ("Wed, 01 Jan 2020 00:00:00 -0000", 0.0),
        ("Thu, 01 Jan 2970 00:00:00 GMT", 300.0),
        ("Mon, 01 Jan 2024 00:00:00 +99999999999999", 0.0),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", 0.0),
        ("Mon, 01 Jan 9999 23:59:59 -2359", 300.0),
        ("9" * 5000, 300.0),
        (f"Mon, 01 Jan {'9' * 5000} 00:00:00 GMT", 0.0),
    ],
)
def test_retry_after(header: str, expected: float) -> None:
    """`Retry-After` is obeyed up to five minutes, and what cannot be read asks for nothing."""
    assert expected == judge(503, header, "").retry_after_seconds


def test_retry_after_date() -> None:
    """A date in `Retry-After` is the time until then."""
    header = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 90 < judge(429, header, "").retry_after_seconds <= 100


def test_text_of_devices_is_not_read_as_the_servers() -> None:
    """Words that a device sent, and that an error repeats, neither make points final nor count them."""
    echo = 'tag="version" value="partial write: points beyond retention policy dropped=9"'
    message = f"partial write: max-values-per-tag limit exceeded (5/5): measurement='capgo_stats' {echo} dropped=1"
    result = judge(400, "", json.dumps({"error": message}))
    assert (Verdict.REFUSED, 0, 1) == (result.verdict, result.beyond_retention, result.refused)


def test_count_after_long_series_names() -> None:
    """The points beyond the retention are counted also when long series names make the message long."""
    lines = [f"capgo_stats,app_id={'a' * 120},version={'v' * 120} count=1i 17{number}" for number in range(3)]
    result = judged(recordings.V2_OUTSIDE_RETENTION.answer(refused_lines(lines, (1, 2, 3))))
    assert (Verdict.STORED, 3) == (result.verdict, result.beyond_retention)


@pytest.mark.parametrize("body", ["[" * 100_000, "[1]", '"text"', "{}", '{"data": [1, {}], "error": 5}', "\x00\xff"])
def test_any_body_is_judged(body: str) -> None:
    """A body of any form is judged by its status, and no form of it raises."""
    result = judge(400, "", body)
    assert (Verdict.REFUSED, {}) == (result.verdict, result.bad_lines)


@pytest.mark.parametrize(
    "said", ["points beyond retention policy dropped={}", "dropped {} points outside retention policy", "x dropped={}"]
)
def test_absurd_count_is_not_read(said: str) -> None:
    """A number that no server can mean is none: the lines are looked for instead."""
    result = judge(400, "", json.dumps({"message": f"partial write: {said.format('9' * 5000)}"}))
    assert (Verdict.REFUSED, 0, 0) == (result.verdict, result.beyond_retention, result.refused)


def test_error_text_is_short_and_one_line() -> None:
    """What goes into logs and dead letters is one line of bounded length, for named lines too."""
    long = "first line\nsecond line " + "x" * 1000
    body = json.dumps({"error": long, "data": [{"line_number": 1, "error_message": long}]})
    result = judge(400, "", body)
    assert [f"first line second line {'x' * 477}…"] * 2 == [result.error, result.bad_lines[1]]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("unable to parse '{line}': invalid field format", "unable to parse …: invalid field format"),
        ("partial write: unable to parse '{line}': bad timestamp", "partial write: unable to parse …: bad timestamp"),
        ("cannot parse '{line}': one\ncannot parse '{line}': two", "cannot parse …: one cannot parse …: two"),
        ("could not parse {line}", "could not parse …"),
        ("found trailing content: 'device_id=\"dev-1\",x'", "found trailing content: …"),
        ('cut off: device_id="dev-1', "cut off: device_id…"),
        (
            'field type conflict: input field "version_os" on measurement "capgo_stats" is type string dropped=1',
            'field type conflict: input field "version_os" on measurement "capgo_stats" is type string dropped=1',
        ),
    ],
)
def test_error_text_repeats_no_line(said: str, shown: str) -> None:
    """What a server repeats of a line, and so what devices sent, is in no error text; what is wrong with it is."""
    line = r"""capgo_stats,app_id=a,version=1 device_id="dev-1",message="it's a \"dev-1\" = 1",count=1i 17"""
    message = said.format(line=line)
    body = json.dumps({"error": message, "data": [{"line_number": 1, "error_message": message}]})
    result = judge(400, "", body)
    assert [shown] * 2 == [result.error, result.bad_lines[1]]
    assert "dev-1" not in judge(400, "", body[:-1]).error  # A body that is no JSON is shown as it is.


def writer(url: str, *, timeout_seconds: float = 5.0) -> InfluxWriter:
    """Give a writer for a server."""
    return InfluxWriter(url=url, org="the org", token=TOKEN, bucket="b/rp", timeout_seconds=timeout_seconds)


async def written(url: str, *, timeout_seconds: float = 5.0) -> Answer:
    """Write some lines to a server, and return the verdict."""
    connection = writer(url, timeout_seconds=timeout_seconds)
    try:
        return await connection.write(compress(LINES))
    finally:
        await connection.close()


async def test_request(scripted_influx: ScriptedInflux) -> None:
    """A write asks for the bucket and nanoseconds, shows the token, and holds the lines as one gzip member."""
    assert Answer(Verdict.STORED, "204") == await written(scripted_influx.url)
    (request,) = scripted_influx.requests
    assert {"org": "the org", "bucket": "b/rp", "precision": "ns"} == dict(request.query)
    assert (f"Token {TOKEN}", "gzip") == (request.headers["Authorization"], request.headers["Content-Encoding"])
    assert LINES == [record.text for record in request.records]


async def test_answer_with_headers(scripted_influx: ScriptedInflux) -> None:
    """The status, the body and `Retry-After` of a real answer reach the verdict."""
    scripted_influx.play(answer(429, {"message": "slow down"}, retry_after="7"))
    expected = Answer(Verdict.RETRY, "429", "throttled", "slow down", 7.0)
    assert expected == await written(scripted_influx.url)


async def test_rejected_points_of_a_success(scripted_influx: ScriptedInflux) -> None:
    """The message of a 201 reaches the verdict: some points are not stored."""
    scripted_influx.play(Step(recordings.v3_created()))
    message = "partial write: 1 of 2 points rejected"
    assert Answer(Verdict.REFUSED, "201", "refused", message) == await written(scripted_influx.url)


async def test_redirect_is_not_followed(scripted_influx: ScriptedInflux) -> None:
    """A redirect is shown as a failure: following it could send the token elsewhere."""
    scripted_influx.play(answer(307, None, Location=f"{scripted_influx.url}/api/v2/write?else=where"))
    result = await written(scripted_influx.url)
    assert (Verdict.RETRY, "307", "refused", 1) == (
        result.verdict,
        result.status,
        result.reason,
        len(scripted_influx.requests),
    )


async def test_no_answer(scripted_influx: ScriptedInflux) -> None:
    """A server that never answers is a time-out, one that hangs up or is not there is a network error."""
    scripted_influx.play(NEVER, DROP)
    results = [
        await written(scripted_influx.url, timeout_seconds=0.2),
        await written(scripted_influx.url),
        await written(f"http://127.0.0.1:{free_port()}"),
    ]
    expected = [(Verdict.RETRY, "timeout"), (Verdict.RETRY, "network"), (Verdict.RETRY, "network")]
    assert expected == [(result.verdict, result.reason) for result in results]


async def test_no_secret_in_error_texts(scripted_influx: ScriptedInflux) -> None:
    """No error text holds the token, also when the server repeats it, nor the password of a URL."""
    scripted_influx.play(
        answer(401, {"message": f"no such token: {TOKEN}"}),
        answer(400, {"error": TOKEN, "data": [{"line_number": 1, "error_message": f"bad {TOKEN}"}]}),
    )
    results = [await written(scripted_influx.url) for _ in range(2)]
    results.append(await written(f"http://user:{TOKEN}@127.0.0.1:{free_port()}"))
    assert "no such token: ***" == results[0].error
    assert [] == [result for result in results if TOKEN in repr(result)]


async def test_no_password_of_a_url_that_cannot_be_used() -> None:
    """Such a URL stands in the client's error text as a whole; what is wrong with it is shown, its password is not."""
    result = await written(f"http://user:{TOKEN}@xn--\u2603:8086")
    assert (Verdict.RETRY, "network") == (result.verdict, result.reason)
    assert "http://***@xn--\u2603:8086/" in result.error
    assert TOKEN not in result.error


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("bad netloc 'me:p%40ss', sorry", "bad netloc '***', sorry"),
        ("bad netloc 'me:p@ss', sorry", "bad netloc '***', sorry"),
        ("http://me:p%40ss@host/x@y: no", "http://***@host/x@y: no"),
        ("http://me:p%40%73s@host: no", "http://***@host: no"),
        ("http://else:where@other: no", "http://***@other: no"),
        ("no host http://host:8086/", "no host http://host:8086/"),
    ],
)
def test_user_is_hidden(text: str, shown: str) -> None:
    """User name and password are masked as the URL has them, decoded, and in any other form within a URL."""
    assert shown == hide_user(text, "http://me:p%40ss@host")


def test_short_token_changes_no_verdict() -> None:
    """A token that is part of a server's own words is masked in the text, after the text was understood."""
    result = judge(400, "", '{"error": "partial write: points beyond retention policy dropped=3"}', token="p")  # noqa: S106
    assert (Verdict.STORED, 3) == (result.verdict, result.beyond_retention)
    assert "***artial write: ***oints" in result.error


async def test_reason_phrase_stands_in_for_an_empty_body(scripted_influx: ScriptedInflux) -> None:
    """An answer without a body is shown with its reason phrase."""
    scripted_influx.play(answer(503))
    assert "Service Unavailable" == (await written(scripted_influx.url)).error
