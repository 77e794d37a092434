"""The check of the connection to InfluxDB: what is wrong, and how it is mended."""

import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Final, NamedTuple

import aiohttp

from exporter.configuration import mask_url
from exporter.influx import Answer, InfluxWriter, Verdict, hide_user
from exporter.journal.codec import compress
from exporter.settings import Settings
from exporter.tools.influxdb import Influx, InfluxError, Kind, PointKey, Server
from exporter.units import format_duration

TEST_MEASUREMENT: Final = "capgo_exporter_check"


class Finding(NamedTuple):
    """One thing that was tried.

    Attributes:
        what: what it was.
        problem: what is wrong; empty if nothing is.
        remedy: how it is mended.
        matters: whether the exporter needs it.
    """

    what: str
    problem: str = ""
    remedy: str = ""
    matters: bool = True


async def check_connection(settings: Settings) -> AsyncIterator[Finding]:
    """Try an InfluxDB as the exporter uses it: health, then a test point that is written, read and deleted."""
    timeout = aiohttp.ClientTimeout(total=settings.influx_timeout)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        influx = Influx(session, settings)
        try:
            server = await influx.identify()
        except (InfluxError, aiohttp.ClientError, TimeoutError) as error:
            yield _unreachable(settings, error)
            return
        yield Finding(f"{mask_url(settings.influx_url or '')} is {server.kind} {server.version}".rstrip())
        point = PointKey((("check", uuid.uuid4().hex),), time.time_ns())
        answer = await _write(settings, point)
        finding = _judge(settings, server, answer)
        yield finding
        if not finding.problem:
            async for each in _read_and_delete(influx, server, point):
                yield each
            yield _judge_retention(settings, await influx.retention_seconds(server.kind))


def _unreachable(settings: Settings, error: Exception) -> Finding:
    where = f"reaching {mask_url(settings.influx_url or '')}"
    if isinstance(error, InfluxError):
        return Finding(where, f"status {error.status}: {error}", _status_remedy(settings, error.status))
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        remedy = "give the server a certificate that this machine trusts, or the machine its authority (SSL_CERT_FILE)"
    elif isinstance(error, aiohttp.ClientSSLError):
        remedy = "it speaks no TLS there, or none that both know: correct scheme and port in EXPORTER_INFLUX_URL"
    elif isinstance(error, aiohttp.ClientConnectorDNSError):
        remedy = "the host's name is not known here: correct EXPORTER_INFLUX_URL, or the name service"
    elif isinstance(error, TimeoutError):
        remedy = "nothing answers there: look at firewalls and routes, or raise EXPORTER_INFLUX_TIMEOUT"
    else:
        remedy = "start InfluxDB, or correct host, port and scheme in EXPORTER_INFLUX_URL"
    said = hide_user(str(error), settings.influx_url or "")
    return Finding(where, said or "no answer in time", remedy)


async def _write(settings: Settings, point: PointKey) -> Answer:
    """Write the test point with what delivery writes with."""
    token = "" if settings.influx_token is None else settings.influx_token.get_secret_value()
    writer = InfluxWriter(
        url=settings.influx_url or "",
        org=settings.influx_org,
        token=token,
        bucket=settings.influx_bucket,
        timeout_seconds=settings.influx_timeout,
    )
    tags = "".join(f",{key}={value}" for key, value in point.tags)
    try:
        return await writer.write(compress([f"{TEST_MEASUREMENT}{tags} count=1i {point.time_ns}"]))
    finally:
        await writer.close()


def _judge(settings: Settings, server: Server, answer: Answer) -> Finding:
    what = f"writing a test point to bucket {settings.influx_bucket!r}"
    if answer.verdict is Verdict.STORED and not answer.beyond_retention:
        return Finding(what)
    problem = f"status {answer.status}: {answer.error}".rstrip(": ")
    if answer.status == "404" and server.kind is Kind.V1 and "page not found" in answer.error:
        return Finding(what, problem, "only InfluxDB 1.8 and later 1.x have /api/v2/write: upgrade it to 1.8")
    status = int(answer.status) if answer.status.isdigit() else 0
    return Finding(what, problem, _status_remedy(settings, status))


def _status_remedy(settings: Settings, status: int) -> str:
    if status == 401:  # noqa: PLR2004 -- unauthorized
        return "EXPORTER_INFLUX_TOKEN is missing or wrong: set a token (1.x: `user:password`)"
    if status == 403:  # noqa: PLR2004 -- forbidden
        return f"give the token the right to write to bucket {settings.influx_bucket!r}"
    if status == 404:  # noqa: PLR2004 -- not found
        return (
            f"create bucket {settings.influx_bucket!r} (1.x: the database) in organisation {settings.influx_org!r}, or "
            "correct EXPORTER_INFLUX_BUCKET and EXPORTER_INFLUX_ORG"
        )
    if 300 <= status < 400:  # noqa: PLR2004 -- redirections
        return "redirects are not followed: set EXPORTER_INFLUX_URL to where it leads"
    return "look at InfluxDB's own log, and at that of a proxy before it"


async def _read_and_delete(influx: Influx, server: Server, point: PointKey) -> AsyncIterator[Finding]:
    select = f'SELECT "count" FROM "{TEST_MEASUREMENT}" WHERE "check" = \'{point.tags[0][1]}\''  # noqa: S608 -- of hexadecimal digits
    reads = "reading the test point (dashboards and `forget` read; the exporter does not)"
    can_read = False
    try:
        can_read = bool(await influx.query(select))
        yield Finding(reads, "" if can_read else "it is not there", _READ_REMEDY, matters=False)
    except (InfluxError, aiohttp.ClientError, TimeoutError) as error:
        yield Finding(reads, str(error) or "no answer in time", _READ_REMEDY, matters=False)
    deletes = "deleting the test point (`forget` deletes; the exporter does not)"
    if server.kind not in {Kind.V1, Kind.V2}:
        stays = f"{server.kind} deletes no single points; the test point stays in {TEST_MEASUREMENT}"
        yield Finding(deletes, stays, _CANNOT_FORGET.get(server.kind, _UNKNOWN_SERVER), matters=False)
        return
    try:
        await influx.delete(server.kind, [point], TEST_MEASUREMENT)
        is_left = can_read and bool(await influx.query(select))
        yield Finding(deletes, "it is still there" if is_left else "", _DELETE_REMEDY, matters=False)
    except (InfluxError, aiohttp.ClientError, TimeoutError) as error:
        yield Finding(deletes, str(error) or "no answer in time", _DELETE_REMEDY, matters=False)


_CANNOT_FORGET: Final = {
    Kind.V3: "`capgo-exporter forget` cannot forget a device there: choose a retention that you can answer for",
    Kind.VICTORIA: "nothing: it keeps numbers only, so it has no device's id to forget",
}
_UNKNOWN_SERVER: Final = "`capgo-exporter forget` deletes in InfluxDB 1.x and 2.x"
_READ_REMEDY: Final = "give the token the right to read, and in 2.x the bucket a DBRP mapping (`influx v1 dbrp create`)"
_DELETE_REMEDY: Final = "give the token the right to write (1.x: to the database, for DELETE)"


def _judge_retention(settings: Settings, seconds: float | None) -> Finding:
    what = "the bucket keeps points longer than EXPORTER_MAX_EVENT_AGE"
    if seconds is None or seconds > settings.max_event_age:
        return Finding(what)
    kept, age = format_duration(seconds), format_duration(settings.max_event_age)
    remedy = f"let the bucket keep more than {age}, or set EXPORTER_MAX_EVENT_AGE below {kept}"
    return Finding(what, f"it keeps {kept}: older events that are late are refused for good", remedy)


async def report_connection(settings: Settings, tell: Callable[[str], None]) -> bool:
    """Check the connection, tell of each thing that was tried, and whether the exporter can work with it."""
    is_fine = True
    async for finding in check_connection(settings):
        if not finding.problem:
            tell(f"ok: {finding.what}")
            continue
        tell(f"{'error' if finding.matters else 'note'}: {finding.what}: {finding.problem}")
        tell(f"  do: {finding.remedy}")
        is_fine = is_fine and not finding.matters
    return is_fine
