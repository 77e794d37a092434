"""Faults of the machine, made for real where that can be done: locks, full and failing disks, lost files, clocks."""

import contextlib
import hashlib
import os
import re
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

import exporter.commit
import exporter.journal.schema
from exporter.delivery import SENDERS
from exporter.journal.opening import FILE_NAME
from tests.conftest import StartExporter, V2InfluxDB
from tests.support.exporter import ExporterProcess, influx_settings
from tests.support.fakeinflux import HeldInflux, ScriptedInflux
from tests.support.inprocess import ManualClock, running
from tests.support.kills import sample
from tests.support.ports import wait_for

APP = "com.example.faults"


def noise(number: int) -> str:
    """Make a text that does not compress well, the same each time."""
    return hashlib.shake_256(str(number).encode()).hexdigest(400)


def events(start: int, count: int, **fields: Any) -> list[dict[str, Any]]:
    """Make events of their own."""
    return [
        {
            "app_id": APP,
            "device_id": "d",
            "platform": "ios",
            "action": "get",
            "version_name": "1.0.0",
            "timestamp": 1_795_140_000_000 + number,
            "metadata": {"message": f"{number}-{noise(number)}"},
            **fields,
        }
        for number in range(start, start + count)
    ]


async def counted(exporter: ExporterProcess) -> int:
    """Return how many events the counters hold."""
    return sum((await exporter.counters()).values())


async def post_until_taken(exporter: ExporterProcess, batch: list[dict[str, Any]]) -> None:
    """Send a batch as a device does, until it is answered 200."""

    async def is_taken() -> bool:
        return (await exporter.post(batch)).status == 200

    await wait_for(is_taken, "the batch to be taken")


def set_aside(data_dir: Path) -> list[str]:
    """Name the files that were set aside."""
    return [path.name for path in data_dir.iterdir() if "set-aside" in path.name]


# --- the disk ---------------------------------------------------------------------------------------------------------


async def test_a_lock_of_another_process_is_waited_for(exporter_process: StartExporter) -> None:
    """A backup that holds the write lock for a moment costs that moment: the answer is 200, and nothing failed."""
    exporter = await exporter_process()
    with contextlib.closing(sqlite3.connect(exporter.data_dir / FILE_NAME, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with aiohttp.ClientSession() as session:
            patience = aiohttp.ClientTimeout(total=0.5)
            with pytest.raises(TimeoutError):
                await session.post(f"{exporter.url}/stats", json=events(0, 5), timeout=patience)
        assert 0 == await counted(exporter)
        other.execute("COMMIT")
    await post_until_taken(exporter, events(5, 5))
    assert 0 == await sample(exporter, "capgo_exporter_journal_commit_failures_total")
    assert 10 == await counted(exporter)


async def test_a_lock_that_stays_is_a_failure_that_passes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Past SQLite's patience devices are told 503; when the lock is gone, what they send again is counted once."""
    monkeypatch.setattr(exporter.commit, "_PROBE_SECONDS", 0.02)
    connect = exporter.journal.schema.connect

    def impatient(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        connection.execute("PRAGMA busy_timeout = 50")
        return connection

    for module in ("exporter.journal.store", "exporter.journal.opening"):
        monkeypatch.setattr(f"{module}.connect", impatient)
    async with running({"data_dir": tmp_path}) as server:
        assert 200 == (await server.post(events(0, 1))).status
        with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            replies = [await server.post(events(1, 3)) for _ in range(3)]
            assert {(503, "5")} == {(reply.status, reply.headers["Retry-After"]) for reply in replies}
            assert 503 == (await server.request("GET", "/readyz")).status
            other.execute("COMMIT")

        async def is_taken() -> bool:
            return (await server.post(events(0, 4))).status == 200

        await wait_for(is_taken, "the journal to be written again")
        assert 4 == sum((await server.counters()).values()) == len(server.lines())


def limit(exporter: ExporterProcess, what: int, soft: int) -> None:
    """Set a limit of the running process; its hard limit stays."""
    _, hard = resource.prlimit(exporter.pid, what)
    resource.prlimit(exporter.pid, what, (soft, hard))


async def test_an_io_error_of_the_system(exporter_process: StartExporter) -> None:
    """The system refuses to write (EFBIG): SQLite's I/O error gives 503, one log line, and passes without a trace."""
    exporter = await exporter_process()
    await post_until_taken(exporter, events(0, 20))
    wal = exporter.data_dir / f"{FILE_NAME}-wal"
    limit(exporter, resource.RLIMIT_FSIZE, wal.stat().st_size)
    refused = [await exporter.post(events(20, 200)) for _ in range(2)]
    assert {(503, "5")} == {(reply.status, reply.headers["Retry-After"]) for reply in refused}
    assert 20 == await counted(exporter)
    assert 1 <= await sample(exporter, "capgo_exporter_journal_commit_failures_total")
    assert 200 == (await exporter.request("GET", "/healthz")).status
    (line,) = exporter.events("journal cannot be written; events are refused with 503 until it can")
    assert "disk I/O error" in line["error"]
    limit(exporter, resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
    await post_until_taken(exporter, events(20, 200))
    assert 220 == await counted(exporter)
    await exporter.kill9()
    await exporter.start()
    assert 220 == await counted(exporter)
    assert 200 == (await exporter.post(events(0, 220))).status
    assert (220, 220) == (await counted(exporter), await sample(exporter, "capgo_exporter_journal_points"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    as_root = ["sudo", "--non-interactive"] if os.geteuid() else []
    mount = [*as_root, "mount", "-t", "tmpfs", "-o", f"size=4m,uid={os.geteuid()}", "none", str(directory)]
    if shutil.which(mount[0]) is None or subprocess.run(mount, check=False).returncode != 0:
        left_out = pytest.fail if os.environ.get("REQUIRE_SERVERS") == "1" else pytest.skip
        left_out("a small disk cannot be mounted: that takes the superuser")
    yield directory
    subprocess.run([*as_root, "umount", "--lazy", directory], check=True)


async def test_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    """It is told once, however often a disk that is just full takes a small write; all else is exact in the end."""
    settings = {"EXPORTER_DATA_DIR": str(small_disk / "data")}
    async with ExporterProcess(tmp_path / "exporter", settings) as exporter:
        await post_until_taken(exporter, events(0, 20))
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)

        async def failed_again() -> bool:
            assert {503} == {(await exporter.post(events(20, 400))).status}
            return await sample(exporter, "capgo_exporter_journal_commit_failures_total") >= 3

        await wait_for(failed_again, "the journal to fail three times")
        assert 20 == await counted(exporter)
        (line,) = exporter.events("journal cannot be written; events are refused with 503 until it can")
        assert "full" in line["error"]
        assert [] == exporter.events("journal can be written again")
        filler.unlink()
        await post_until_taken(exporter, events(20, 400))
        assert (420, 420) == (await counted(exporter), await sample(exporter, "capgo_exporter_journal_points"))
        await exporter.restart()
        assert (420, 420) == (await counted(exporter), await sample(exporter, "capgo_exporter_journal_points"))


# --- the files --------------------------------------------------------------------------------------------------------


async def crashed(exporter: ExporterProcess) -> Path:
    """Store something, merge it, store more, and kill the process, so that there is a write-ahead log."""
    await post_until_taken(exporter, events(0, 20))
    await exporter.restart()
    await post_until_taken(exporter, events(20, 10))
    await post_until_taken(exporter, events(30, 10))
    await exporter.kill9()
    return exporter.data_dir / f"{FILE_NAME}-wal"


@pytest.mark.parametrize("loss", ["-wal", "a flipped bit in -wal"])
async def test_a_lost_or_damaged_write_ahead_log(exporter_process: StartExporter, loss: str) -> None:
    """What it held may be gone, but counters, ids and points are those of one moment, and what is sent again counts."""
    exporter = await exporter_process()
    wal = await crashed(exporter)
    content = wal.read_bytes()
    if loss == "-wal":
        wal.unlink()
    else:
        middle = len(content) // 2
        wal.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    await exporter.start()
    kept = await counted(exporter)
    assert kept == await sample(exporter, "capgo_exporter_journal_points")
    assert kept == await sample(exporter, "capgo_exporter_dedupe_events")
    assert kept in ({20} if loss == "-wal" else {20, 30, 40})
    assert [] == set_aside(exporter.data_dir)
    for start in (0, 20, 30):
        await post_until_taken(exporter, events(start, 20 if start == 0 else 10))
    assert (40, 40) == (await counted(exporter), await sample(exporter, "capgo_exporter_journal_points"))


def damage_first_page(path: Path, table: str) -> None:
    """Write garbage over the first page of a table."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        page = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()[0]
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


@pytest.mark.parametrize("table", ["points", "dead_letters"])
async def test_a_damaged_page_of_what_waits(tmp_path: Path, table: str) -> None:
    """At the start the exporter goes on with all else, as it was; it takes and keeps events afterwards."""
    async with running({"data_dir": tmp_path}) as server:
        assert 200 == (await server.post(events(0, 50))).status
    damage_first_page(tmp_path / FILE_NAME, table)
    async with running({"data_dir": tmp_path}) as server:
        assert 50 == sum((await server.counters()).values())
        assert [] == set_aside(tmp_path)
        assert (50 if table == "points" else 0) == await server.sample("capgo_exporter_journal_lost_points_total")
        assert 200 == (await server.post(events(45, 10))).status
    async with running({"data_dir": tmp_path}) as server:
        assert 55 == sum((await server.counters()).values())
        assert (5 if table == "points" else 55) == len(server.lines())


# --- pages of points that wait ----------------------------------------------------------------------------------------

REPAIRED = "the journal was damaged; what could be read of its points goes on in a new file, and counters are unharmed"


class NumberedInflux(HeldInflux):
    """An InfluxDB that tells which events it keeps."""

    def numbers(self) -> set[int]:
        """Return the numbers of the events whose points are kept."""
        return {number_of(record.fields) for record in self.stored.values()}


def number_of(fields: str) -> int:
    """Find the number of an event in the fields of its point."""
    (number,) = re.findall(r"(\d+)-[0-9a-f]{800}", fields)
    return int(number)


def damage_leaf(path: Path, position: float) -> int:
    """Write garbage over a leaf of the points, the first at 0.0, the last at 1.0; returns how many groups it holds."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        leaves = connection.execute(
            "SELECT pageno, ncell FROM dbstat WHERE name = 'points' AND pagetype = 'leaf' ORDER BY path"
        ).fetchall()
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    assert len(leaves) > 5
    page, groups = leaves[round(position * (len(leaves) - 1))]
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    return int(groups)


def assert_one_gap(expected: int, lost: set[int]) -> None:
    """Compare the number of events that were lost, which stood side by side."""
    assert expected == len(lost)
    assert set(range(min(lost), max(lost) + 1)) == lost


async def test_a_page_that_is_damaged_while_the_exporter_runs(exporter_process: StartExporter) -> None:
    """Points before and after it are delivered, nothing else is lost, counted or told twice, also after a restart."""
    async with NumberedInflux() as influx:
        settings = influx_settings(influx.url, token="t", org="o", bucket="b")  # noqa: S106 -- nobody checks it
        exporter = await exporter_process({**settings, "EXPORTER_INFLUX_TIMEOUT": "10m"})
        for sender in range(SENDERS):  # each has something to wait for, and so reads nothing of what follows
            assert 200 == (await exporter.post(events(sender, 1))).status
            await wait_for(lambda: influx.held > sender, "a sender to be held")  # noqa: B023 -- waited for at once
        for number in range(SENDERS, 80):
            assert 200 == (await exporter.post(events(number, 1))).status
        lost = damage_leaf(exporter.data_dir / FILE_NAME, 0.5)
        assert 200 == (await exporter.post(events(80, 5))).status
        influx.released.set()

        async def all_delivered() -> bool:
            return len(influx.stored) == 85 - lost

        await wait_for(all_delivered, "the readable points to be delivered")
        assert_one_gap(lost, set(range(85)) - influx.numbers())

        async def none_waits() -> bool:
            return await sample(exporter, "capgo_exporter_journal_points") == 0

        await wait_for(none_waits, "the journal to be empty")
        assert 85 == await counted(exporter)
        assert lost == await sample(exporter, "capgo_exporter_journal_lost_points_total")
        assert 1 == await sample(exporter, "capgo_exporter_journal_repairs_total")
        assert 85 - lost == await sample(exporter, "capgo_exporter_delivered_points_total")
        assert 0 == await sample(exporter, "capgo_exporter_journal_commit_failures_total")
        (line,) = exporter.events(REPAIRED)
        assert (lost, str(exporter.data_dir / f"{FILE_NAME}.damaged")) == (line["lost_points"], line["damaged_file"])
        assert 1 == len(exporter.events("points cannot be read from the journal"))
        assert 200 == (await exporter.post(events(0, 90))).status
        await exporter.kill9()
        await exporter.start()
        assert 90 == await counted(exporter)
        assert 0 == await sample(exporter, "capgo_exporter_journal_repairs_total")
        assert [] == set_aside(exporter.data_dir)
        assert {FILE_NAME, f"{FILE_NAME}.damaged"} == {
            path.name for path in exporter.data_dir.glob(f"{FILE_NAME}*") if not path.name.endswith(("-wal", "-shm"))
        }


@pytest.mark.parametrize("position", [0.0, 0.4, 1.0])
async def test_a_damaged_page_at_the_next_start(
    exporter_process: StartExporter, v2_influxdb: V2InfluxDB, position: float
) -> None:
    """The first page, one in the middle or the last, where points are added: InfluxDB gets all points but its own."""
    exporter = await exporter_process()
    for number in range(60):
        assert 200 == (await exporter.post(events(number, 1))).status
    await exporter.kill9()
    lost = damage_leaf(exporter.data_dir / FILE_NAME, position)
    exporter.env.update(v2_influxdb.settings)
    await exporter.start()
    await post_until_taken(exporter, events(60, 5))

    async def all_delivered() -> bool:
        return await v2_influxdb.server.count("capgo_stats", "count") == 65 - lost

    await wait_for(all_delivered, "the readable points to be delivered")
    assert 65 == await counted(exporter)
    assert lost == await sample(exporter, "capgo_exporter_journal_lost_points_total")
    assert 1 == len(exporter.events(REPAIRED))
    assert [] == set_aside(exporter.data_dir)
    await post_until_taken(exporter, events(0, 65))
    assert 65 == await counted(exporter)
    arrived = {number_of(str(point.fields)) for point in await v2_influxdb.server.points("capgo_stats")}
    assert_one_gap(lost, set(range(65)) - arrived)


async def test_a_row_with_values_of_wrong_types(tmp_path: Path, scripted_influx: ScriptedInflux) -> None:
    """What SQLite reads as if it were sound, but nobody has written, is left out as a damaged page is."""
    async with running({"data_dir": tmp_path}) as server:
        for number in range(0, 10, 2):
            assert 200 == (await server.post(events(number, 2))).status
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as connection:
        connection.execute("UPDATE points SET count = 'many' WHERE number = 3")
    async with running({"data_dir": tmp_path, "influx_url": scripted_influx.url}) as server:

        async def all_delivered() -> bool:
            return await server.sample("capgo_exporter_delivered_points_total") == 8

        await wait_for(all_delivered, "the other points to be delivered")
        assert 2 == await server.sample("capgo_exporter_journal_lost_points_total")
        assert 10 == sum((await server.counters()).values())
    assert_one_gap(2, set(range(10)) - {number_of(record.fields) for record in scripted_influx.stored.values()})


async def test_a_full_journal_with_a_damaged_page(tmp_path: Path) -> None:
    """It drops the oldest points, also where that page was; nobody reads them, so the transaction finds the damage."""
    settings = {"data_dir": tmp_path, "journal_max_bytes": 1 << 16}
    async with running(settings) as server:
        for number in range(60):
            assert 200 == (await server.post(events(number, 1))).status
    damage_leaf(tmp_path / FILE_NAME, 0.2)
    with capture_logs() as logs:
        async with running(settings) as server:

            async def is_taken(number: int) -> bool:
                return (await server.post(events(number, 1))).status == 200

            for number in range(60, 400):
                await wait_for(partial(is_taken, number), "the event to be taken")
            dropped = await server.sample("capgo_exporter_journal_dropped_points_total")
            lost = await server.sample("capgo_exporter_journal_lost_points_total")
            assert min(dropped, lost) > 0
            assert 400 == sum((await server.counters()).values()) == dropped + lost + len(server.lines())
            assert 1 == await server.sample("capgo_exporter_journal_writable")
    assert 1 == len([line for line in logs if line["event"] == REPAIRED])


# --- rights, files, exporters -----------------------------------------------------------------------------------------


async def test_a_read_only_directory_at_the_start(tmp_path: Path) -> None:
    """The start ends with exit code 4 and one line that names the path; nothing in it is changed."""
    # Not below `tmp_path`, which other users cannot enter.
    exporter = ExporterProcess(tmp_path / "exporter")
    async with exporter:
        await post_until_taken(exporter, events(0, 5))
        await exporter.terminate()
    path = exporter.data_dir / FILE_NAME
    content = path.read_bytes()
    for each in (exporter.data_dir, *exporter.data_dir.iterdir()):
        each.chmod(0o555 if each.is_dir() else 0o444)
    # The superuser may write anyway, unless it gives that up.
    without_rights = [] if os.geteuid() else ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--reuid=0", "--"]
    command = [*without_rights, *exporter.process.argv]
    result = subprocess.run(command, env=exporter.env, capture_output=True, text=True, timeout=30, check=False)  # noqa: ASYNC221 -- nothing else runs
    assert (4, content) == (result.returncode, path.read_bytes())
    assert str(exporter.data_dir) in result.stderr
    assert "Traceback" not in result.stderr


async def test_a_second_exporter_leaves_the_first_alone(exporter_process: StartExporter) -> None:
    """It ends at once, and events that come meanwhile are counted once by the first."""
    exporter = await exporter_process()
    second = ExporterProcess(exporter.data_dir.parent, name="second")
    await post_until_taken(exporter, events(0, 10))
    second.spawn()
    while second.running:
        await post_until_taken(exporter, events(0, 30))
    assert 4 == await second.wait()
    await exporter.kill9()
    await exporter.start()
    assert (30, 30) == (await counted(exporter), await sample(exporter, "capgo_exporter_journal_points"))


async def test_out_of_file_descriptors_while_running(exporter_process: StartExporter) -> None:
    """Newcomers wait; who is connected is served and stored; and once there are files again, everyone is."""
    exporter = await exporter_process()
    await post_until_taken(exporter, events(0, 10))  # On a connection that is kept open.
    limit(exporter, resource.RLIMIT_NOFILE, len(os.listdir(f"/proc/{exporter.pid}/fd")))  # noqa: PTH208 -- links that come and go
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1)) as newcomer:
        with pytest.raises((TimeoutError, aiohttp.ClientError)):
            await newcomer.get(f"{exporter.url}/healthz")
    assert 200 == (await exporter.post(events(10, 200))).status
    assert 210 == await counted(exporter)
    limit(exporter, resource.RLIMIT_NOFILE, 1024)

    async def is_served() -> bool:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session,
            session.get(f"{exporter.url}/healthz") as reply,
        ):
            return reply.status == 200

    await wait_for(is_served, "newcomers to be served")
    assert len(exporter.logs()) < 50
    await exporter.restart()
    assert 210 == await counted(exporter)


# --- the clock --------------------------------------------------------------------------------------------------------


async def test_a_clock_that_jumps_by_hours(tmp_path: Path) -> None:
    """Forwards and backwards, with a restart after each jump: each event counts once and is a point of its own."""
    time = ManualClock()
    sent: list[dict[str, Any]] = []
    jumps = (5, -9, 3, -30, 47, -1)
    for number, hours in enumerate(jumps):
        async with running({"data_dir": tmp_path}, time.clock) as server:
            batch = events(number * 10, 10, timestamp=time.wall_ns // 10**6 + number)
            for index, event in enumerate(batch):
                event["timestamp"] += index
            without_time = [{"app_id": APP, "platform": "ios", "action": "set", "version_name": "1.0.0"}] * 5
            for body in (batch, without_time):
                assert 200 == (await server.post(body)).status
            time.wall_ns += hours * 3_600_000_000_000
            sent += batch
            assert 200 == (await server.post(sent)).status
            expected = len(sent) + 5 * (number + 1)
            assert expected == sum((await server.counters()).values())
            points = server.points()
            assert expected == len({(point.tags["action"], point.time_ns) for point in points}) == len(points)
            assert (await server.sample("capgo_exporter_dedupe_window_seconds")) >= 0
            assert 0 == await server.sample("capgo_exporter_series_expired_total")
