"""A simulated fleet that posts to real servers, as a part and as the command."""

import asyncio
import contextlib
import io
import json
import os
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import web
from click.testing import CliRunner, Result

from exporter.cli import main
from exporter.progress import progress
from exporter.simulate.fleet import Fleet
from exporter.simulate.live import Live, Target
from exporter.simulate.scenario import Noise, Scenario, demo
from tests.conftest import StartExporter
from tests.support.exporter import ExporterProcess, parse_counters
from tests.support.influxdb import InfluxDB16
from tests.support.inprocess import running
from tests.support.ports import free_port, wait_for
from tests.support.process import minimal_environment
from tests.support.truth import happened, shown
from tests.support.webserver import WebServer, drop_connection

REPOSITORY: Final = Path(__file__).parents[1]
QUIET: Final = Noise(*(0.0 for _ in range(10)))
HASTE: Final = 100
"""So many times as fast passes the fleet's time in these tests, retries and all."""


def hasty_fleet(devices: int = 60) -> tuple[Fleet, Callable[[], int]]:
    """Make a fleet whose present began half an hour ago and comes nearer, and its clock."""
    made = demo(devices=devices, speed=500.0)
    scenario = Scenario(
        devices=devices,
        releases=made.releases,
        base_version=made.base_version,
        noise=QUIET,
        offline_share=0.0,
        wrong_clock_share=0.0,
        speed=made.speed,
    )
    start_ms = time.time_ns() // 1_000_000 - 1_800_000
    began = time.monotonic()
    return Fleet(scenario, start_ms), lambda: start_ms + int((time.monotonic() - began) * 1000 * HASTE)


@contextlib.asynccontextmanager
async def posting(live: Live) -> AsyncIterator[None]:
    """Let a fleet live within; at the end it is stopped."""
    stop = asyncio.Event()
    task = asyncio.create_task(live.run(stop))
    try:
        yield
    finally:
        stop.set()
        async with asyncio.timeout(60):
            await task


def doubtful(fleet: Fleet) -> Counter[tuple[str, ...]]:
    """Count what a server may have once more than is known, by the labels of events."""
    reports = fleet.truth.doubtful
    return Counter((*each.track[:2], each.action, *each.track[2:]) for each in reports)


# --- the fleet and a real exporter ------------------------------------------------------------------------------------


async def test_nothing_is_lost_when_the_exporter_is_killed(exporter_process: StartExporter) -> None:
    """After `kill -9` and a restart the page is the truth; clients that send again have lost nothing."""
    exporter = await exporter_process()
    fleet, clock = hasty_fleet()
    truth = fleet.truth
    live = Live(fleet, Target(f"{exporter.url}/stats"), clock)
    async with posting(live):
        await wait_for(lambda: truth.delivered >= 400, "events to be delivered")
        await exporter.kill9()
        await wait_for(lambda: live.sent.answers["refused"] >= 20, "posts to be refused")
        await exporter.restart(same_port=True)
        before = truth.delivered
        await wait_for(lambda: truth.delivered >= before + 400, "events to be delivered again")

    assert truth.said == truth.delivered + truth.lost + fleet.waiting
    safe = [device for device in fleet.devices if device.profile.generation.persists]
    assert {0} == {device.outbox.lost for device in safe if device.profile.platform == "ios"}
    assert 0 < truth.lost < truth.delivered

    page = await exporter.metrics()
    expected, actual, more = truth.tally(fleet.now_ms).events, shown(page)["events"], doubtful(fleet)
    assert [] == [
        (key, expected[key], actual.get(key), more[key])
        for key in {*expected, *actual}
        if not expected[key] <= actual.get(key, 0.0) <= expected[key] + more[key]
    ]


async def test_the_page_is_the_truth(exporter_process: StartExporter) -> None:
    """With a server that works, events, installs and replaced versions are exact, and nothing is lost."""
    exporter = await exporter_process()
    fleet, clock = hasty_fleet()
    live = Live(fleet, Target(f"{exporter.url}/stats", connections=4), clock)
    async with posting(live):
        await wait_for(lambda: fleet.truth.delivered >= 600, "events to be delivered")
    assert (0, []) == (fleet.truth.lost, fleet.truth.doubtful)
    assert {"200"} == set(live.sent.answers)
    assert live.sent.events == fleet.truth.delivered + fleet.truth.repeats
    page = await exporter.metrics()
    expected = happened(fleet.truth.tally(fleet.now_ms))
    for figure in ("events", "installs", "uninstalls"):
        assert expected[figure] == shown(page)[figure], figure
    assert {} != expected["installs"]


class Moody(WebServer):
    """A server that takes events, or fails in some way, in turn.

    Attributes:
        stored: events by their text, as often as they were stored; those with a time only once.
        hangs: whether it never answers.
        posts: how often it was asked.
    """

    def __init__(self, *, hangs: bool = False) -> None:
        """Have stored nothing yet."""
        super().__init__()
        self.stored: Counter[str] = Counter()
        self.hangs = hangs
        self.posts = 0

    def build(self, app: web.Application) -> None:
        """Add the endpoint."""
        app.router.add_post("/stats", self._take)

    async def _take(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        self.posts += 1
        if self.hangs:
            await self.hang()
        mood = self.posts % 9
        if mood in {0, 1, 2, 3, 8}:
            self._store(body)
        if mood == 4:
            return web.json_response({"error": "unavailable"}, status=503)
        if mood == 5:
            return web.json_response({"error": "bad"}, status=400)
        if mood == 6:
            return web.json_response({}, status=429, headers={"Retry-After": "2"})
        if mood == 7:
            await self.hang(2.0)
        if mood == 8:
            return drop_connection(request)
        return web.Response() if mood == 3 else web.json_response({"status": "ok"})

    def _store(self, body: Any) -> None:
        for event in body if isinstance(body, list) else [body]:
            text = json.dumps(event)
            if "timestamp" not in event or not self.stored[text]:
                self.stored[text] += 1


async def test_a_server_with_moods() -> None:
    """Whatever a server does, each event's fate is known, or known to be unknown."""
    fleet, clock = hasty_fleet(40)
    truth = fleet.truth
    async with Moody() as server:
        live = Live(fleet, Target(f"{server.url}/stats", timeout_seconds=0.5), clock)
        async with posting(live):
            # What is taken twice depends on which device meets which mood.
            await wait_for(lambda: sum(live.sent.answers.values()) >= 300 and truth.repeats, "answers and repeats")
        assert {"200", "503", "400", "429", "timeout", "network"} == set(live.sent.answers)
    assert truth.said == truth.delivered + truth.lost + fleet.waiting
    assert truth.delivered <= server.stored.total() <= truth.delivered + len(truth.doubtful)
    assert live.sent.repeats > 0
    assert truth.lost > 0
    assert "rate_limit_reached" in {key[2] for key in truth.tally(fleet.now_ms).events}


async def test_the_end_does_not_wait_for_a_server_that_hangs() -> None:
    """What was sent without an answer by then is doubtful, or waits to be sent again."""
    fleet, clock = hasty_fleet(40)
    async with Moody(hangs=True) as server:
        live = Live(fleet, Target(f"{server.url}/stats", timeout_seconds=3600.0, connections=5), clock)
        async with posting(live):
            await wait_for(lambda: server.posts == 5, "posts")
    assert (0, 5, {}) == (fleet.truth.delivered, live.sent.posts, dict(live.sent.answers))
    assert live.sent.events == sum(doubtful(fleet).values())
    assert fleet.truth.said == fleet.truth.lost + fleet.waiting


# --- the command ------------------------------------------------------------------------------------------------------


async def start(directory: Path, *arguments: str, env: Mapping[str, str] | None = None) -> asyncio.subprocess.Process:
    """Start `capgo-exporter simulate` as a process of its own."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "exporter", "simulate", *arguments),
        cwd=directory,
        env=minimal_environment(PYTHONPATH=str(REPOSITORY), **(env or {})),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    """Wait for a process, and return its exit code and what it wrote."""
    try:
        async with asyncio.timeout(60):
            stdout, stderr = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    return process.returncode, stdout.decode(), stderr.decode()


async def test_live_sums_up(tmp_path: Path) -> None:
    """The fleet posts with the token in its path, marks releases, ends by itself, and says what was done, no token."""
    secrets = {"EXPORTER_INGEST_TOKEN": "SECRET/INGEST", "EXPORTER_RELEASES_TOKEN": "SECRET-RELEASES"}
    settings = {"ingest_token": secrets["EXPORTER_INGEST_TOKEN"], "releases_token": secrets["EXPORTER_RELEASES_TOKEN"]}
    (tmp_path / "token").write_text(secrets.pop("EXPORTER_RELEASES_TOKEN"))
    options = (
        "--devices",
        "500",
        "--speed",
        "100000",
        "--duration",
        "2s",
        "--bad",
        "none",
        "--app-id",
        "com.example.a",
    )
    async with running(settings) as exporter:
        process = await start(
            *(tmp_path, "live", exporter.url, *options),
            env={**secrets, "EXPORTER_RELEASES_TOKEN_FILE": "token"},
        )
        code, stdout, stderr = await ended(process)
        marked = await exporter.sample(
            "capgo_release_rollout_ratio", app_id="com.example.a", channel="production", version="2.5.1"
        )
        accepted = await exporter.sample("capgo_exporter_events_total", outcome="accepted", reason="")
        counters = await exporter.counters()
    assert 0 == code, stderr
    assert 1.0 == marked
    assert accepted > 0
    assert f"{accepted:,.0f} delivered" in stdout
    assert {"com.example.a"} == {key.app_id for key in counters} - {"unknown"}
    assert "simulate: 100%" in stderr
    assert "SECRET" not in stdout + stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_live_stops_at_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    """One signal ends it with the summary, as asked."""
    async with Moody() as server:
        process = await start(tmp_path, "live", server.url, "--speed", "20000")
        await wait_for(lambda: server.posts > 0, "a post")
        process.send_signal(number)
        code, stdout, stderr = await ended(process)
    assert (0, "") == (code, stderr)
    assert "posts " in stdout
    assert "delivered" in stdout


async def test_live_ends_at_once_at_a_second_signal(tmp_path: Path) -> None:
    """A server that never answers does not hold up who presses Ctrl-C twice."""
    async with Moody(hangs=True) as server:
        process = await start(tmp_path, "live", server.url, "--speed", "20000", "--timeout", "1h")
        await wait_for(lambda: server.posts > 0, "a post")

        def gone() -> bool:
            # Not `send_signal`: before Python 3.13 that may take the exit code, which asyncio then does not know.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGINT)
            return process.returncode is not None

        await wait_for(gone, "the end")
        assert (130, "", "") == await ended(process)


async def test_demo_starts_an_exporter_and_leaves_nothing(tmp_path: Path) -> None:
    """The demo has an exporter of its own, whatever the settings say; both are gone in the end."""
    port = free_port()
    taken = {"EXPORTER_STATS_PATH": "/elsewhere", "EXPORTER_INGEST_TOKEN": "secret", "TMPDIR": str(tmp_path)}
    arguments = ("demo", f"--listen=127.0.0.1:{port}", "--devices=200", "--speed=2000", "--duration=4s")
    process = await start(tmp_path, *arguments, env=taken)

    async def counts() -> bool:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}/metrics") as response,
        ):
            return bool(parse_counters(await response.text()))

    await wait_for(counts, "the demo's counters")
    code, said, progress = await ended(process)
    assert 0 == code, progress
    assert f"http://127.0.0.1:{port}/metrics" in progress
    assert "200:" in said
    assert [] == await asyncio.to_thread(lambda: list(tmp_path.glob("capgo-demo-*")))
    with pytest.raises(aiohttp.ClientConnectorError):
        await counts()


async def test_demo_does_not_get_into_another_exporter(tmp_path: Path) -> None:
    """Where the address is taken the demo ends, before it posts anything."""
    async with ExporterProcess(tmp_path / "exporter") as exporter:
        process = await start(tmp_path, "demo", f"--listen={exporter.url.removeprefix('http://')}", "--devices=1")
        code, _, said = await ended(process)
        assert 2 == code
        assert "the exporter does not start" in said
        assert {} == await exporter.counters()


async def test_live_without_a_server(tmp_path: Path) -> None:
    """Nobody listens: that is no failure of the simulator, and the summary says it without the URL's secrets."""
    url = f"http://user:SECRET@127.0.0.1:{free_port()}/stats/SECRET?token=SECRET"
    process = await start(tmp_path, "live", url, "--devices", "1500", "--speed", "20000", "--duration", "1s")
    code, stdout, stderr = await ended(process)
    assert 0 == code
    assert "refused: " in stdout
    assert "0 delivered" in stdout
    assert "SECRET" not in stdout + stderr


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run `simulate` in the test's process, with settings of the test alone."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("EXPORTER_", "INFLUXDB_V2_")):
            monkeypatch.delenv(name)

    def run(*arguments: str, env: Mapping[str, str] | None = None) -> Result:
        return CliRunner(env=env).invoke(main, ["simulate", *arguments])

    return run


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("live",), "Missing argument 'URL'"),
        (("live", "ftp://SECRET@host"), "not an http:// or https:// URL"),
        (("live", "http://SECRET:x@[::"), "not an http:// or https:// URL"),
        (("live", "http://SECRET..h"), "not an http:// or https:// URL"),
        (("live", "http://h", "--duration", "soon"), "'soon' is not a duration"),
        (("live", "http://h", "--duration", "0s"), "'0s' is not longer than 0"),
        (("live", "http://h", "--devices", "0"), "0 is not in the range"),
        (("live", "http://h", "--bad", "luck"), "'luck' is not one of"),
        (("live", "http://h", "--releases-url", "SECRET"), "not an http:// or https:// URL"),
        (("backfill",), "Missing argument 'DIRECTORY'"),
        (("backfill", "d", "--days", "0"), "0.0 is not in the range"),
        (("backfill", "d", "--step", "7s"), "'7s' is not one of"),
        (("backfill", "d", "--end", "yesterday"), "'yesterday' does not match the formats"),
        (("backfill", "file/d"), "file"),
        (("dance",), "No such command 'dance'"),
    ],
)
def test_wrong_options(arguments: tuple[str, ...], problem: str, invoke: Callable[..., Result], tmp_path: Path) -> None:
    """Each mistake gives one line that says what is wrong, and exit code 2; no secret is repeated."""
    (tmp_path / "file").touch()
    result = invoke(*arguments)
    (line,) = [line for line in result.stderr.splitlines() if line.lower().startswith("error: ")]
    assert (2, "") == (result.exit_code, result.stdout)
    assert problem in line
    assert "SECRET" not in result.stderr


def test_wrong_settings(invoke: Callable[..., Result]) -> None:
    """Tokens are read where `serve` reads them, with the same complaints."""
    result = invoke("live", "http://h", env={"EXPORTER_RELEASES_TOKEN_FILE": "missing"})
    assert (2, "error: EXPORTER_RELEASES_TOKEN_FILE: missing: No such file or directory\n") == (
        result.exit_code,
        result.stderr,
    )


@pytest.mark.parametrize("command", ["live", "demo", "backfill"])
def test_help(command: str, invoke: Callable[..., Result]) -> None:
    """The group names its commands; each command explains every option, and its exit codes."""
    assert command in invoke("--help").stdout
    text = invoke(command, "-h").stdout
    assert {"--devices", "--seed", "--bad", "--app-id", "--help"} < {word.strip(",") for word in text.split()}
    assert "Exit codes" in text


@pytest.mark.server("promtool", "influxd", "curl")
async def test_backfill_says_how_to_load_its_files(influxdb: InfluxDB16, tmp_path: Path) -> None:
    """The commands that it prints work as they are, but for the places of the servers."""
    options = ("--devices", "15", "--days", "0.5", "--step", "1h", "--fine-hours", "0", "--end", "2025-06-30T20:00:00Z")
    process = await start(tmp_path, "backfill", "my files", *options)
    code, stdout, stderr = await ended(process)
    assert 0 == code, stderr
    assert "backfill: 100%" in stderr
    commands = {line.split()[0]: line for line in stdout.splitlines() if line.startswith("  ")}
    assert {"promtool", "influx", "split"} == set(commands)
    for command in (
        commands["promtool"].replace("PROMETHEUS_DATA", "data"),
        commands["split"].replace("http://localhost:8086", influxdb.url),
    ):
        shell = await asyncio.create_subprocess_shell(command, cwd=tmp_path)
        assert 0 == await shell.wait()
    assert [] != list((tmp_path / "data").glob("*/index"))
    lines = (tmp_path / "my files" / "points.lp").read_text().splitlines()
    stored = [*await influxdb.query("SELECT * FROM capgo_stats"), *await influxdb.query("SELECT * FROM capgo_releases")]
    assert len(lines) == len(stored)
    assert shlex.split(commands["influx"])[-1] == "my files/points.lp"


async def test_backfill_can_be_interrupted(tmp_path: Path) -> None:
    """Ctrl-C ends it with its exit code, and without a traceback."""
    process = await start(tmp_path, "backfill", "files")
    await wait_for((tmp_path / "files" / "points.lp").exists, "the simulation to begin")
    process.send_signal(signal.SIGINT)
    code, stdout, stderr = await ended(process)
    assert (130, "") == (code, stdout), stderr
    assert "Traceback" not in stderr


# --- progress ---------------------------------------------------------------------------------------------------------


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """People see a bar and what is being done."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    shown_to = io.StringIO()
    with progress("simulate", shown_to) as show:
        show(None, "1 post")
        show(0.5, "2 posts")
    assert "━" in shown_to.getvalue()
    assert "2 posts" in shown_to.getvalue()


def test_progress_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log gets a line every ten seconds, and one at the end."""
    now = 1000.0
    monkeypatch.setattr("exporter.progress.time.monotonic", lambda: now)
    lines = io.StringIO()
    with progress("simulate", lines) as show:
        for second in range(26):
            now = 1000.0 + second
            show(second / 25, f"{second} posts")
        show(1.0, "25 posts")
    assert "simulate: 40% 10 posts\nsimulate: 80% 20 posts\nsimulate: 100% 25 posts\n" == lines.getvalue()
