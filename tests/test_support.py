"""The test support does what the other tests rely on."""

import asyncio
import gzip
import os
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from influxdb_client.client.influxdb_client_async import InfluxDBClientAsync
from influxdb_client.domain.write_precision import WritePrecision
from influxdb_client.rest import ApiException
from influxdb_client.service.write_service import WriteService

from tests.conftest import StartExporter, StartPrometheus, V2InfluxDB
from tests.support import recordings
from tests.support.exporter import CounterKey, ExporterProcess, parse_counters
from tests.support.fakeinflux import (
    DROP,
    DROP_AFTER_STORING,
    NEVER,
    Limits,
    RefuseRecords,
    ScriptedInflux,
    answer,
)
from tests.support.influxdb import InfluxDB16, Point, QueryError, quote_identifier, quote_string
from tests.support.influxdb import Limits as InfluxLimits
from tests.support.lineprotocol import GzipError, Record, gunzip_one_member, read_records
from tests.support.ports import free_port, wait_for, wait_for_sync
from tests.support.process import ServerExitedError, ServerProcess
from tests.support.recordings import Refusal, Refused
from tests.support.v2proxy import V2Proxy
from tests.support.victoria import VictoriaMetrics
from tests.support.webserver import WebServer

# Long enough ago for every server to answer queries about it.
NOW_NS = time.time_ns() - 60_000_000_000
ACCEPTED_TOKEN = "token"  # noqa: S105 -- the servers here take any

pytest_plugins = ["pytester"]


async def write(
    url: str, lines: str, *, token: str = ACCEPTED_TOKEN, bucket: str = "capgo", timeout_ms: int = 10_000
) -> int:
    """Write as the exporter does: the real client, one gzip member; return the status."""
    async with InfluxDBClientAsync(url, token, "org", timeout=timeout_ms) as client:
        service = WriteService(client.api_client)
        _, status, _ = await service.post_write_async(
            org="org",
            bucket=bucket,
            body=gzip.compress(lines.encode()),
            precision=WritePrecision.NS,
            content_encoding="gzip",
            content_type="text/plain; charset=utf-8",
            _return_http_data_only=False,
        )
        return int(status)


async def refused_write(url: str, lines: str, *, token: str = ACCEPTED_TOKEN, bucket: str = "capgo") -> ApiException:
    """Write lines that must be refused and return the client's error."""
    with pytest.raises(ApiException) as caught:
        await write(url, lines, token=token, bucket=bucket)
    return caught.value


class TestWaiting:
    """`wait_for`, `wait_for_sync` and `free_port`."""

    async def test_returns_what_the_condition_returned(self) -> None:
        """A true value ends the wait, from a function and from a coroutine function."""
        values = iter([0, 0, 7])

        async def later() -> str:
            return "yes"

        assert await wait_for(lambda: next(values)) == 7
        assert await wait_for(later) == "yes"
        assert wait_for_sync(lambda: "now") == "now"

    async def test_says_what_it_waited_for_and_what_it_saw(self) -> None:
        """The failure holds the message and the last state."""
        with pytest.raises(AssertionError, match=r"waited 0.02 s for 3 points; last state: \[\]"):
            await wait_for(list, "3 points", 0.02)

        def refuse() -> bool:
            message = "not yet"
            raise ConnectionRefusedError(message)

        with pytest.raises(AssertionError, match=r"a port; last state: ConnectionRefusedError\('not yet'\)"):
            wait_for_sync(refuse, "a port", 0.02)

    async def test_a_condition_that_hangs_does_not_hang_the_test(self) -> None:
        """The deadline holds while a condition is awaited too."""
        with pytest.raises(AssertionError, match="an answer"):
            await wait_for(asyncio.Event().wait, "an answer", 0.02)

    def test_no_port_twice(self) -> None:
        """Ports are handed out once."""
        ports = [free_port() for _ in range(50)]
        assert len(set(ports)) == 50


class TestServerProcess:
    """A subprocess is started, watched and ended."""

    async def test_a_server_that_ends_early_shows_its_log(self, tmp_path: Path) -> None:
        """The failure names the exit code and the last lines of the output."""
        program = "import sys; print('bad setting', file=sys.stderr); sys.exit(7)"
        server = ServerProcess([sys.executable, "-c", program], tmp_path, ready=lambda: False, name="early")
        with pytest.raises(ServerExitedError, match=r"(?s)early ended with 7.*bad setting"):
            await server.start()

    async def test_a_server_that_is_never_ready_is_ended(self, tmp_path: Path) -> None:
        """Nothing is left when a start fails."""
        server = ServerProcess(["sleep", "60"], tmp_path, ready=lambda: False)
        with pytest.raises(AssertionError, match="sleep to be ready"):
            await server.start(timeout_seconds=0.05)
        assert not server.running

    async def test_a_deaf_server_and_its_children_are_killed(self, tmp_path: Path) -> None:
        """A group that ignores SIGTERM is killed as a whole."""
        server = ServerProcess(
            ["sh", "-c", "trap '' TERM; sleep 60 & echo $! > child; wait; wait"],
            tmp_path,
            ready=lambda: (tmp_path / "child").exists() and bool((tmp_path / "child").read_text().strip()),
        )
        await server.start()
        child = int((tmp_path / "child").read_text())
        with pytest.raises(AssertionError):
            await server.terminate(timeout_seconds=0.1)
        server.close()
        assert not server.running
        await wait_for(lambda: not _is_alive(child), "the child to be gone", 30)

    def test_a_server_dies_with_the_test_run(self, tmp_path: Path) -> None:
        """A test process that is killed leaves nothing behind."""
        program = (
            "import asyncio, os, pathlib, sys\n"
            "from tests.support.process import ServerProcess\n"
            "def sleeps(): return pathlib.Path(f'/proc/{server.pid}/comm').read_text() == 'sleep\\n'\n"
            "server = ServerProcess(['sleep', '60'], pathlib.Path(sys.argv[1]), ready=sleeps)\n"
            "asyncio.run(server.start())\n"
            "print(server.pid, flush=True)\n"
            "os.kill(os.getpid(), 9)\n"
        )
        root = Path(__file__).parents[1]
        run = subprocess.run([sys.executable, "-c", program, tmp_path], cwd=root, capture_output=True, check=False)
        assert run.returncode == -9
        wait_for_sync(lambda: not _is_alive(int(run.stdout)), "the server to be gone", 30)


class TestLineProtocol:
    """Reading what a client wrote."""

    def test_records(self) -> None:
        """Escapes, quotes and newlines inside text are read as InfluxDB reads them."""
        first = r'm,version=a"b\ c,x=1 text="two\" ' + "\n" + r'lines, 1",n=1i 17'
        assert read_records(f"{first}\n\nm n=2i\nbroken\n") == [
            Record(first, r'm,version=a"b\ c,x=1', first.split(" ", 2)[2].removesuffix(" 17"), 17),
            Record("m n=2i", "m", "n=2i", None),
            Record("broken", "broken", "", None),
        ]

    def test_one_gzip_member(self) -> None:
        """Exactly one whole member is good."""
        member = gzip.compress(b"m n=1i")
        assert gunzip_one_member(member) == b"m n=1i"
        for body, reason in ((member + member, "follow"), (member[:-3], "cut short"), (b"m n=1i", "not gzip")):
            with pytest.raises(GzipError, match=reason):
                gunzip_one_member(body)


class TestInfluxDB:
    """A real InfluxDB 1.6, behind the 2.x endpoint."""

    async def test_the_real_client_writes_and_every_type_reads_back(self, v2_influxdb: V2InfluxDB) -> None:
        """Integers, floats, texts and booleans come back as they were, to the nanosecond."""
        lines = f'm,version=a\\ b count=1i,ms=2,text="one\ntwo \\"x\\"",flag=t {NOW_NS}\nm count=2i {NOW_NS + 1}'
        assert await write(v2_influxdb.url, lines, token=v2_influxdb.token) == 204

        server = v2_influxdb.server
        first, second = await server.points("m")
        assert first == Point(NOW_NS, {"version": "a b"}, {"count": 1, "ms": 2.0, "text": 'one\ntwo "x"', "flag": True})
        assert isinstance(first.fields["ms"], float)
        assert second == Point(NOW_NS + 1, {}, {"count": 2})
        types = {"count": {"integer"}, "ms": {"float"}, "text": {"string"}, "flag": {"boolean"}}
        assert await server.field_types("m") == types
        assert await server.tag_keys("m") == {"version"}
        assert await server.count("m", "count") == 2
        assert await server.count("m", "count", where=f"version = {quote_string('a b')}") == 1
        assert await server.count("nothing", "count") == 0
        with pytest.raises(QueryError, match="SELECT nonsense"):
            await server.query("SELECT nonsense")
        assert (quote_identifier('a"b'), quote_string("a'b")) == (r'"a\"b"', r"'a\'b'")

    async def test_ping_health_and_tokens(self, v2_influxdb: V2InfluxDB) -> None:
        """The client's ping works; a wrong token gets the 401 of 2.x; a missing bucket gets the 404 of 1.x."""
        async with InfluxDBClientAsync(v2_influxdb.url, v2_influxdb.token, "org") as client:
            assert await client.ping()
            assert (await client.version()).startswith("1.6")
        async with aiohttp.ClientSession() as session, session.get(f"{v2_influxdb.url}/health") as response:
            assert (response.status, (await response.json())["status"]) == (200, "pass")

        error = await refused_write(v2_influxdb.url, "m count=1i", token="wrong")  # noqa: S106
        assert (error.status, error.body) == (401, b'{"code": "unauthorized", "message": "unauthorized access"}')
        error = await refused_write(v2_influxdb.url, "m count=1i", token=v2_influxdb.token, bucket="nowhere")
        assert (error.status, b"database not found" in error.body) == (404, True)
        assert error.headers["X-Influxdb-Error"] == 'database not found: "nowhere"'
        assert v2_influxdb.proxy.writes == 2

    async def test_a_body_of_two_members_is_noticed(self, influxdb: InfluxDB16) -> None:
        """The proxy keeps what was wrong, for the fixture to fail on."""
        async with V2Proxy(influxdb.url, token="t") as proxy:  # noqa: S106
            headers = {"Authorization": "Token t", "Content-Encoding": "gzip"}
            body = gzip.compress(b"m n=1i\n") + gzip.compress(b"m n=2i 5\n")
            async with (
                aiohttp.ClientSession() as session,
                session.post(f"{proxy.url}/api/v2/write?bucket=capgo", data=body, headers=headers) as response,
            ):
                assert response.status == 204
            assert len(proxy.gzip_errors) == 1

    async def test_stop_and_start(self, v2_influxdb: V2InfluxDB) -> None:
        """While it is down clients see the connection fail; afterwards address and data are the same."""
        await write(v2_influxdb.url, f"m count=1i {NOW_NS}", token=v2_influxdb.token)
        await v2_influxdb.server.stop()
        with pytest.raises(aiohttp.ClientError):
            await write(v2_influxdb.url, "m count=1i", token=v2_influxdb.token)
        await v2_influxdb.server.start()
        await write(v2_influxdb.url, f"m count=1i {NOW_NS + 1}", token=v2_influxdb.token)
        assert await v2_influxdb.server.count("m", "count") == 2

    @pytest.mark.server("influxd")
    async def test_the_recordings_of_1x_are_what_it_says(self, tmp_path: Path) -> None:
        """Statuses and texts of the recordings equal those of InfluxDB 1.6, word for word."""
        limits = InfluxLimits(max_values_per_tag=2, max_body_bytes=500)
        async with InfluxDB16(tmp_path, retention="24h", limits=limits) as server:
            assert await server.write("m,version=a count=1i\nm,version=b count=1i") == (204, "")
            for refusal, lines, tag_text in (
                (recordings.V1_TYPE_CONFLICT, "m count=1.5\nm count=2i", ""),
                (recordings.V1_BEYOND_RETENTION, "m count=1i 5\nm count=2i", ""),
                (recordings.V1_MAX_VALUES_PER_TAG, "m,version=1.2.3 count=1i\nm count=2i", "(2/2)"),
                (recordings.V1_MALFORMED, "m z\nm count=2i", ""),
            ):
                expected = refusal.answer([Refused(1, read_records(lines)[0])])
                text = str((expected.body or {})["error"])
                status, body = await server.write(lines)
                assert (expected.status, text.replace("(100000/100000)", tag_text)) == (status, _error(body))
            status, body = await server.write("m count=1i\n" * 100)
            too_large = recordings.v1_too_large()
            assert (too_large.status, too_large.body) == (status, {"error": _error(body)})
            assert await server.count("m", "count") == 2 + 4


class TestVictoriaMetrics:
    """A real VictoriaMetrics."""

    async def test_takes_a_v2_write(self, victoria: VictoriaMetrics) -> None:
        """The client's gzip body arrives; the samples can be counted and read."""
        lines = "\n".join(f"m,version={n % 2} count=1i {NOW_NS + n * 1_000_000}" for n in range(10))
        assert await write(victoria.url, lines) == 204
        assert await victoria.count('{__name__="m_count"}') == 10
        (series,) = await victoria.export('m_count{version="1"}')
        assert (series.labels["version"], len(series.samples), series.samples[0][1]) == ("1", 5, 1.0)
        assert [value for _, value in await victoria.query("sum(count_over_time(m_count[1h]))")] == [10.0]


class _Counting(WebServer):
    """A target whose counter grows with every scrape."""

    def __init__(self) -> None:
        super().__init__()
        self.scrapes = 0
        self.headers: list[dict[str, str]] = []

    def build(self, app: web.Application) -> None:
        app.router.add_get("/metrics", self._metrics)

    async def _metrics(self, request: web.Request) -> web.Response:
        self.headers.append(dict(request.headers))
        self.scrapes += 1
        return web.Response(text=f"# TYPE scrapes_total counter\nscrapes_total {self.scrapes}\n")


class TestPrometheus:
    """A real Prometheus."""

    async def test_two_servers_scrape_at_different_phases(self, prometheus_server: StartPrometheus) -> None:
        """Both see the target; raw samples, ranges and health can be read."""
        async with _Counting() as target:
            one, two = await asyncio.gather(
                *(prometheus_server([target.url], external_labels={"replica": name}) for name in ("a", "b"))
            )
            await asyncio.gather(one.wait_up(), two.wait_up())

            async def samples() -> bool:
                series = [*await one.raw_samples("scrapes_total"), *await two.raw_samples("scrapes_total")]
                assert all(len(each.samples) >= 2 for each in series), series
                return len(series) == 2

            await wait_for(samples, "two scrapes by both")
            (first,), (second,) = await one.raw_samples("scrapes_total"), await two.raw_samples("scrapes_total")
            assert first.rise >= 1
            assert not {value for _, value in first.samples} & {value for _, value in second.samples}
            assert all("X-Prometheus-Scrape-Timeout-Seconds" in headers for headers in target.headers)
            (ranged,) = await one.query_range("up", first.samples[0][0], first.samples[-1][0], 1.0)
            assert {1.0} == {value for _, value in ranged.samples}
            assert [t.health for t in await one.targets()] == ["up"]
            assert await one.alerts() == []


class TestScriptedInflux:
    """An InfluxDB that does as it is told."""

    async def test_plays_its_script_and_then_accepts(self, scripted_influx: ScriptedInflux) -> None:
        """Each request meets the next step; only points answered with 2xx are kept, repeated ones once."""
        scripted_influx.play(
            answer(503, {"code": "unavailable"}, Retry_After="3"), DROP, DROP_AFTER_STORING, answer(204), NEVER
        )
        error = await refused_write(scripted_influx.url, "m n=1i 1")
        assert (error.status, error.headers["Retry-After"]) == (503, "3")
        for _ in ("dropped", "stored, then dropped"):
            with pytest.raises(aiohttp.ClientError):
                await write(scripted_influx.url, "m n=1i 1")
        assert len(scripted_influx.stored) == 1
        assert await write(scripted_influx.url, "m n=1i 1\nm n=1i 2") == 204
        with pytest.raises(TimeoutError):
            await write(scripted_influx.url, "m n=1i 3", timeout_ms=50)
        assert scripted_influx.script_ended
        assert await write(scripted_influx.url, "m n=1i 4") == 204

        assert [each.status for each in scripted_influx.requests] == [503, None, None, 204, None, 204]
        assert len(scripted_influx.received) == 7
        assert list(scripted_influx.stored) == [("m", 1), ("m", 2), ("m", 4)]
        assert scripted_influx.store_count == 4
        assert scripted_influx.requests[0].query["bucket"] == "capgo"

    @pytest.mark.parametrize("refusal", recordings.PARTIAL_WRITES, ids=str)
    async def test_partial_writes_keep_the_rest(self, scripted_influx: ScriptedInflux, refusal: Refusal) -> None:
        """Refused records are answered in the version's words, the others are kept."""
        scripted_influx.default = RefuseRecords(lambda record: "bad" in record.series, refusal)
        error = await refused_write(scripted_influx.url, "m n=1i 1\nm,t=bad n=1i 2\nm n=1i 3\nm,t=bad n=1i 4")
        assert error.status in {400, 422}
        assert list(scripted_influx.stored) == [("m", 1), ("m", 3)]
        assert await write(scripted_influx.url, "m n=1i 5") == 204

    @pytest.mark.parametrize("refusal", recordings.WHOLE_REFUSALS, ids=str)
    async def test_whole_refusals_keep_nothing(self, scripted_influx: ScriptedInflux, refusal: Refusal) -> None:
        """One refused record takes the whole body with it."""
        scripted_influx.default = RefuseRecords(lambda record: record.time == 2, refusal)
        error = await refused_write(scripted_influx.url, "m n=1i 1\nm,t=bad n=1i 2")
        assert (error.status, scripted_influx.stored) == (400, {})

    async def test_the_words_of_each_version(self) -> None:
        """The parts that a client reads stand where the documents have them."""
        refused = [Refused(n, read_records(f'home,room=Living text="a" {n}')[0]) for n in range(2, 152)]
        v2 = recordings.V2_OUTSIDE_RETENTION.answer(refused)
        message = str((v2.body or {})["message"])
        assert message.startswith(
            "failure writing points to database: partial write: dropped 150 points outside retention policy of "
        )
        assert "dropped=150 for database" in message
        v3 = recordings.V3_PARTIAL.answer(refused).body or {}
        assert v3["error"] == "partial write of line protocol occurred"
        assert (len(v3["data"]), v3["data"][0]["line_number"]) == (100, 2)
        assert v3["data"][0]["original_line"] == "home,room=Living tex"

    async def test_large_bodies(self, scripted_influx: ScriptedInflux) -> None:
        """Above the limit of bytes or of records the answer is a 413 and nothing is kept."""
        scripted_influx.limits = Limits(records=1)
        assert (await refused_write(scripted_influx.url, "m n=1i 1\nm n=1i 2")).status == 413
        scripted_influx.limits = Limits(size_bytes=5, answer=recordings.v1_too_large)
        error = await refused_write(scripted_influx.url, "m n=1i 1")
        assert (error.status, error.body) == (413, b'{"error": "Request Entity Too Large"}')
        assert scripted_influx.stored == {}

    async def test_goes_away_and_comes_back(self, scripted_influx: ScriptedInflux) -> None:
        """A stopped server refuses connections, a started one answers on the same port."""
        scripted_influx.play(NEVER)
        pending = asyncio.ensure_future(write(scripted_influx.url, "m n=1i 1"))
        await wait_for(lambda: scripted_influx.requests, "the request")
        await scripted_influx.stop()
        with pytest.raises(aiohttp.ClientError):
            await pending
        with pytest.raises(aiohttp.ClientError):
            await write(scripted_influx.url, "m n=1i 1")
        await scripted_influx.start()
        assert await write(scripted_influx.url, "m n=1i 1") == 204

    async def test_two_members_are_noticed(self) -> None:
        """A body of two gzip members is refused and remembered."""
        async with ScriptedInflux() as server, aiohttp.ClientSession() as session:
            body = gzip.compress(b"m n=1i 1\n") + gzip.compress(b"m n=1i 2\n")
            url = f"{server.url}/api/v2/write"
            async with session.post(url, data=body, headers={"Content-Encoding": "gzip"}) as response:
                assert response.status == 400
            assert (len(server.gzip_errors), server.received) == (1, [])


# Behaves towards `ExporterProcess` as the exporter does: one log line, three endpoints, a counter on disk.
class TestExporterProcess:
    """The exporter's process."""

    async def test_restarts_on_its_data(self, exporter_process: StartExporter) -> None:
        """After `kill -9` and after SIGTERM the data is there, on the same port if wanted; logs are the new ones."""
        key = CounterKey("a", "ios", "get", "1", "prod")
        exporter = await exporter_process()
        first_url, first_pid = exporter.url, exporter.pid
        event = {"app_id": "a", "platform": "ios", "action": "get", "version_name": "1"}
        assert (await exporter.post(event)).json() == {"status": "ok"}
        await exporter.kill9()
        assert (exporter.running, await exporter.wait()) == (False, -9)
        await exporter.restart(same_port=True)
        assert exporter.url == first_url
        assert exporter.pid != first_pid
        assert [line["url"] for line in exporter.events("listening")] == [first_url]
        assert (await exporter.post(event)).json() == {"status": "ok"}
        assert (await exporter.counters())[key] == 2
        assert (await exporter.counters(prometheus=True))[key] == 0
        await exporter.restart()
        assert (await exporter.counters())[key] == 2
        assert await exporter.terminate() == 0

    async def test_a_start_that_fails(self, exporter_process: StartExporter) -> None:
        """The failure holds the log."""
        with pytest.raises(ServerExitedError, match=r"(?s)exporter ended with 2.*EXPORTER_FAIL: unknown setting"):
            await exporter_process({"EXPORTER_FAIL": "1"})

    def test_nothing_of_the_caller_leaks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The exporter's settings are those the test gives."""
        monkeypatch.setenv("EXPORTER_STATS_PATH", "/leaked")
        monkeypatch.setenv("INFLUXDB_V2_URL", "http://leaked")
        exporter = ExporterProcess(tmp_path, {"EXPORTER_SCRAPE_INTERVAL": "1s"})
        assert {name for name in exporter.env if name.startswith(("EXPORTER_", "INFLUXDB_"))} == {
            "EXPORTER_DATA_DIR",
            "EXPORTER_LISTEN",
            "EXPORTER_LOG_FORMAT",
            "EXPORTER_SCRAPE_INTERVAL",
        }

    def test_counters_are_read_from_a_page(self) -> None:
        """Labels become a named tuple, values integers; other metrics are left out."""
        labels = 'app_id="a\\"b",platform="ios",action="set",version="1",environment="prod"'
        page = f"# TYPE capgo_stats_events_total counter\ncapgo_stats_events_total{{{labels}}} 3\nup 1\n"
        assert parse_counters(page) == {CounterKey('a"b', "ios", "set", "1", "prod"): 3}


def test_samples(samples: dict[str, bytes]) -> None:
    """The clients' bodies are there."""
    assert len(samples) == 8
    assert samples["mobile-4-single"].startswith(b"{")


def test_missing_servers_are_skipped_or_fail(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing command skips the test and is listed at the end; with REQUIRE_SERVERS=1 it fails."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.server("sh", "no-such-server", "promtool-missing")
        def test_marked(): ...

        @pytest.mark.server("sh")
        def test_there(): ...
        """
    )
    arguments = ["-p", "tests.conftest", "-p", "no:cacheprovider", "-rs"]
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.delenv("REQUIRE_SERVERS", raising=False)
    result = pytester.runpytest_subprocess(*arguments)
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*left out: servers not on PATH*", "no-such-server: 1 test(s)", "on Debian: apt-get*"])
    monkeypatch.setenv("REQUIRE_SERVERS", "1")
    pytester.runpytest_subprocess(*arguments).assert_outcomes(passed=1, errors=1)


def _error(body: str) -> str:
    return body.strip().removeprefix('{"error":"').removesuffix('"}').replace('\\"', '"').replace("\\n", "\n")


def _is_alive(pid: int) -> bool:
    """Return whether a process runs; one that ended and waits for its parent does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] != "Z"
