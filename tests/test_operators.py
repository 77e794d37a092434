"""The operator's commands beside a running exporter and a real InfluxDB: nothing is lost, nothing doubled."""

import asyncio
import errno
import json
import sqlite3
import stat
import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from exporter.control import SOCKET_NAME
from exporter.journal.codec import decompress
from exporter.journal.opening import FILE_NAME
from exporter.lineprotocol import clean
from exporter.tools import keeper
from tests.conftest import StartExporter, V2InfluxDB
from tests.support.commands import Operator
from tests.support.delivering import dead_devices, devices, devices_in, events, fill, stored_in
from tests.support.exporter import ExporterProcess
from tests.support.ports import free_port, wait_for
from tests.support.victoria import VictoriaMetrics

ODD_DEVICE = "It's\t\"A\\,\u2028= 3\u00c9\U0001f642"
DEVICE = "A3E1C0DE-0000-4000-8000-3B3B3B3B3B3B"
NOT_IN_INFLUXDB = "InfluxDB: EXPORTER_INFLUX_URL is not set, so nothing is deleted there"
CONFLICT = "capgo_stats,app_id=x version_os=1i"
"""A point after which InfluxDB 1.x refuses texts in the field `version_os`, in the shard of its time."""


def of(device: str, count: int) -> list[dict[str, Any]]:
    """Make events of one device, of several series."""
    return [
        {**event, "device_id": device, "version_name": f"1.{number % 3}", "metadata": {"was": event["device_id"]}}
        for number, event in enumerate(events(count))
    ]


async def operator_of(exporter: ExporterProcess, tmp_path: Path, **env: str) -> Operator:
    """Make somebody who types commands with the exporter's settings."""
    settings = {name: value for name, value in exporter.env.items() if name.startswith("EXPORTER_")}
    return Operator(tmp_path, {**settings, **env})


async def accepted(exporter: ExporterProcess, batch: list[dict[str, Any]]) -> None:
    """Post events; all must be taken."""
    assert 200 == (await exporter.post(batch)).status


async def sample(exporter: ExporterProcess, name: str) -> float:
    """Give a sample without labels."""
    page = await exporter.metrics()
    return float(next(line for line in page.splitlines() if line.startswith(f"{name} ")).split()[1])


async def emptied(exporter: ExporterProcess) -> None:
    """Wait until no point waits."""

    async def is_empty() -> bool:
        return await sample(exporter, "capgo_exporter_journal_points") == 0

    await wait_for(is_empty, "the journal to be empty")


def waiting(data_dir: Path, table: str = "points") -> list[str]:
    """Give the devices of the points in a table of the journal."""
    with closing(sqlite3.connect(data_dir / FILE_NAME)) as connection:
        rows = connection.execute(f"SELECT lines FROM {table}").fetchall()  # noqa: S608 -- the test's own
    return devices_in(line for (blob,) in rows for line in decompress(blob))


async def verified(operator: Operator) -> None:
    """Check the journal."""
    outcome = await operator.run("journal", "verify")
    assert (0, "") == (outcome.code, outcome.stderr), outcome


async def refuse_texts(influx: V2InfluxDB, batch: Iterable[dict[str, Any]]) -> None:
    """Let InfluxDB refuse events that name a version of the system."""
    first = min(event["timestamp"] for event in batch)
    assert 204 == (await influx.server.write(f"{CONFLICT} {first * 1_000_000}"))[0]


async def write_neighbours(influx: V2InfluxDB, device: str) -> None:
    """Write two points of another device: in a series of the device's, and at a time of the device's."""
    quoted = device.replace("\\", "\\\\").replace("'", "\\'")
    point = (await influx.server.points("capgo_stats", f"device_id = '{quoted}'"))[0]
    tags = ",".join(f"{key}={value}" for key, value in point.tags.items())
    lines = [f"{tags} {point.time_ns + 1}", f"{tags}x {point.time_ns}"]
    body = "".join('capgo_stats,{} count=1i,device_id="neighbour" {}\n'.format(*line.split()) for line in lines)
    assert 204 == (await influx.server.write(body))[0]


# --- forget -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "device"), [("1.8.10", DEVICE), ("v2.7.12", DEVICE), ("1.8.10", ODD_DEVICE)], ids=["1", "2", "odd"]
)
async def test_a_device_is_forgotten_everywhere_while_it_is_delivered(
    version: str, device: str, exporter_process: StartExporter, v2_influxdb: V2InfluxDB, tmp_path: Path
) -> None:
    """Journal, dead letters and InfluxDB lose the points of that device, in any case of its id, and no other's."""
    v2_influxdb.proxy.version = version
    exporter = await exporter_process(v2_influxdb.settings)
    operator = await operator_of(exporter, tmp_path)
    delivered = [*events(40), *of(device, 30), *of(device.lower(), 30)]
    await accepted(exporter, delivered)
    await emptied(exporter)
    refused = [{**event, "version_os": "14"} for event in [*events(5, name="refused"), *of(device, 5)]]
    await refuse_texts(v2_influxdb, refused)
    await accepted(exporter, refused)
    await emptied(exporter)
    assert 10 == len(dead_devices(exporter.data_dir))

    await write_neighbours(v2_influxdb, clean(device.lower()))
    await v2_influxdb.proxy.stop()
    late = [*events(200), *of(device, 200)]
    await accepted(exporter, late[::2])
    await accepted(exporter, late[1::2])
    await v2_influxdb.proxy.start()
    outcome = await operator.run("forget", device)
    assert 0 == outcome.code, outcome
    assert clean(device.lower()) not in waiting(exporter.data_dir) + dead_devices(exporter.data_dir)
    await emptied(exporter)
    kept = [event for event in [*delivered, *late] if event["device_id"].lower() != device.lower()]
    assert sorted([*devices(kept), "neighbour", "neighbour"]) == await stored_in(v2_influxdb.server)
    assert not [path.name for path in exporter.data_dir.iterdir() if "damaged" in path.name]
    assert devices(refused[:5]) == dead_devices(exporter.data_dir)
    assert 510 == sum((await exporter.counters()).values())
    assert 0 == await sample(exporter, "capgo_exporter_journal_repairs_total")
    await verified(operator)
    assert (0, "InfluxDB: 0 points deleted") == (
        (again := await operator.run("forget", device)).code,
        again.stdout.splitlines()[-1],
    )


@pytest.mark.parametrize("rule", ["keep", "hash"])
async def test_a_device_is_forgotten_while_the_exporter_stands_still(
    rule: str, exporter_process: StartExporter, tmp_path: Path
) -> None:
    """Nothing of it is left in the directory's journal, not even in empty pages; hashed ids are found by the key."""
    exporter = await exporter_process({"EXPORTER_DEVICE_ID": rule})
    operator = await operator_of(exporter, tmp_path)
    others = events(300)
    await accepted(exporter, [*others, *of(DEVICE, 100)])
    await accepted(exporter, of(DEVICE, 2000))
    await exporter.terminate()
    stored = set(waiting(exporter.data_dir))
    with closing(sqlite3.connect(exporter.data_dir / FILE_NAME)) as connection:
        blobs = [blob for (blob,) in connection.execute("SELECT lines FROM points")]
    outcome = await operator.run("forget", DEVICE.lower())
    assert (0, ["journal: 2100 waiting points and 0 dead letters deleted", NOT_IN_INFLUXDB]) == (
        outcome.code,
        outcome.stdout.splitlines(),
    )
    left = waiting(exporter.data_dir)
    assert (300, 300) == (len(left), len(set(left)))
    (gone,) = stored - set(left)
    assert (DEVICE.lower() == gone) == (rule == "keep")
    content = (exporter.data_dir / FILE_NAME).read_bytes()
    assert 0 == json.loads((await operator.run("journal", "status", "--json")).stdout)["free_bytes"]
    assert not [blob for blob in blobs for at in range(50, len(blob) - 50, 50) if blob[at : at + 50] in content]
    assert sorted([FILE_NAME, "hash.key", "lock"]) == sorted(path.name for path in exporter.data_dir.iterdir())
    await verified(operator)
    await exporter.start()
    assert 300.0 == await sample(exporter, "capgo_exporter_journal_points")
    assert 2400 == sum((await exporter.counters()).values())


@pytest.mark.server("victoria-metrics")
async def test_what_cannot_forget_is_said_plainly(
    exporter_process: StartExporter, v2_influxdb: V2InfluxDB, victoria: VictoriaMetrics, tmp_path: Path
) -> None:
    """InfluxDB 3.x deletes nothing, which is an error; VictoriaMetrics has no ids, which is none."""
    exporter = await exporter_process()
    operator = await operator_of(exporter, tmp_path, **v2_influxdb.settings)
    v2_influxdb.proxy.version = "3.4.0"
    outcome = await operator.run("forget", DEVICE)
    assert (5, "error: InfluxDB 3.x deletes no points, only whole tables and databases;") == (
        outcome.code,
        outcome.stderr[:71],
    )
    outcome = await operator.run("forget", DEVICE, "--influx-url", victoria.url)
    assert (0, True) == (outcome.code, "VictoriaMetrics keeps numbers only" in outcome.stdout)
    outcome = await operator.run("forget", DEVICE, "--influx-url", f"http://127.0.0.1:{free_port()}")
    assert (5, True) == (outcome.code, "cannot be reached" in outcome.stderr)
    assert 2 == (await operator.run("forget", " ")).code
    outcome = await operator.run("forget", "\udcff")  # what Python makes of a byte that is no UTF-8
    assert (2, "error: DEVICE_ID: is not UTF-8, as every id is\n") == (outcome.code, outcome.stderr)


# --- dead letters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_running", [True, False])
async def test_dead_letters_are_tried_again_or_discarded(
    is_running: bool,  # noqa: FBT001 -- a parameter of the test
    exporter_process: StartExporter,
    v2_influxdb: V2InfluxDB,
    tmp_path: Path,
) -> None:
    """After retrying two of three letters InfluxDB has their points and those that it took at once, each once."""
    exporter = await exporter_process(v2_influxdb.settings)
    operator = await operator_of(exporter, tmp_path)
    good = events(20)
    await accepted(exporter, good)
    await emptied(exporter)
    bad = [[{**event, "version_os": "14"} for event in events(10, name=f"bad{number}")] for number in range(3)]
    await refuse_texts(v2_influxdb, bad[-1])
    for batch in bad:
        await accepted(exporter, batch)
        await emptied(exporter)
    if not is_running:
        await exporter.terminate()
    listed = await operator.run("dead-letters", "list", "--json")
    letters = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [10, 10, 10] == [letter["points"] for letter in letters]
    shown = await operator.run("dead-letters", "show", str(letters[0]["letter_id"]))
    assert devices(bad[0]) == devices_in(shown.stdout.splitlines())

    await v2_influxdb.server.query('DELETE FROM "capgo_stats" WHERE "app_id" = \'x\'')
    await v2_influxdb.server.query("DROP MEASUREMENT capgo_stats")  # with it goes the type of the field
    outcome = await operator.run("dead-letters", "discard", str(letters[1]["letter_id"]))
    assert (0, "10 points of 1 dead letters are deleted\n") == (outcome.code, outcome.stdout)
    outcome = await operator.run("dead-letters", "retry", "--all")
    assert (0, "20 points of 2 dead letters wait for InfluxDB again\n") == (outcome.code, outcome.stdout)
    if not is_running:
        await exporter.start()
    await emptied(exporter)
    assert devices([*bad[0], *bad[2]]) == await stored_in(v2_influxdb.server)
    assert [] == dead_devices(exporter.data_dir)
    assert 0 == await sample(exporter, "capgo_exporter_dead_letter_points")
    assert 50 == sum((await exporter.counters()).values())
    await verified(operator)
    for wrong in (["retry"], ["discard", "--all", "1"], ["retry", "77"], ["show", "77"]):
        assert 2 == (await operator.run("dead-letters", *wrong)).code


# --- the journal ------------------------------------------------------------------------------------------------------


async def test_the_journal_is_looked_into_and_vacuumed_under_load(
    exporter_process: StartExporter, tmp_path: Path
) -> None:
    """Whatever is typed while events come, each is answered, and each is there afterwards, once."""
    exporter = await exporter_process()
    operator = await operator_of(exporter, tmp_path)
    posted: list[dict[str, Any]] = []
    done = asyncio.Event()

    async def load() -> None:
        while not done.is_set():
            batch = events(50)
            await accepted(exporter, batch)
            posted.extend(batch)

    loads = [asyncio.create_task(load()) for _ in range(2)]
    commands = (("vacuum",), ("verify",), ("status",), ("peek",), ("export", "-o", str(tmp_path / "x")), ("vacuum",))
    outcomes = [await operator.run("journal", *command) for command in commands]
    done.set()
    await asyncio.gather(*loads)
    assert [0] * len(commands) == [outcome.code for outcome in outcomes], outcomes
    outcome = await operator.run("journal", "export", "--format", "json")
    points = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert devices(posted) == sorted(point["fields"]["device_id"] for point in points)
    status = json.loads((await operator.run("journal", "status", "--json")).stdout)
    assert (len(posted), len(posted), True) == (status["totals"]["points"], status["events"], status["in_use"])
    assert 10 == len((await operator.run("journal", "peek")).stdout.splitlines())
    assert len(posted) == sum((await exporter.counters()).values())
    await verified(operator)


async def test_no_terminal_and_no_full_disk_confuses_a_command(exporter_process: StartExporter, tmp_path: Path) -> None:
    """Files and pipes get UTF-8 whatever the locale is; what cannot be written is an error of one line."""
    exporter = await exporter_process()
    await accepted(exporter, [{**events(1)[0], "app_id": "com.exämple"}])
    operator = await operator_of(exporter, tmp_path, PYTHONIOENCODING="ascii")
    for command in ("peek", "export"):
        outcome = await operator.run_process("journal", command)
        assert (0, True) == (outcome.code, "app_id=com.exämple," in outcome.stdout), outcome
        process = await asyncio.create_subprocess_shell(
            f"exec {sys.executable} -m exporter journal {command} > /dev/full",
            stderr=asyncio.subprocess.PIPE,
            env=exporter.env,
        )
        _, told = await process.communicate()
        assert (4, b"error: [Errno 28] No space left on device\n") == (process.returncode, told)


async def test_a_directory_that_may_not_be_read_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, and what to do: systemd's directory is its user's alone."""
    is_file = Path.is_file

    def refuse(path: Path) -> bool:
        if path.name == FILE_NAME:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refuse)  # whoever is root may read it
    operator = Operator(tmp_path, {"EXPORTER_DATA_DIR": str(tmp_path)})
    for command in (["journal", "status"], ["dead-letters", "retry", "--all"], ["forget", "x"]):
        outcome = await operator.run(*command)
        expected = f"error: {tmp_path}: Permission denied; run this as the exporter's user, or as root\n"
        assert (4, expected) == (outcome.code, outcome.stderr)


async def test_only_the_owner_reaches_the_control_socket(
    exporter_process: StartExporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others cannot open it; it goes with the exporter, and one that was left by a killed exporter is replaced."""
    exporter = await exporter_process()
    operator = await operator_of(exporter, tmp_path)
    monkeypatch.setattr(keeper, "STARTING_SECONDS", 0.1)
    path = exporter.data_dir / SOCKET_NAME
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    await exporter.kill9()
    assert path.exists()
    assert 0 == (await operator.run("journal", "vacuum")).code
    await exporter.start()
    assert 0 == (await operator.run("dead-letters", "discard", "--all")).code
    path.unlink()
    outcome = await operator.run("dead-letters", "discard", "--all")
    assert (4, True) == (outcome.code, "by an exporter that cannot be reached" in outcome.stderr)
    await exporter.restart()
    assert 0 == (await operator.run("dead-letters", "discard", "--all")).code
    await exporter.terminate()
    assert not path.exists()


async def test_damage_is_found(exporter_process: StartExporter, tmp_path: Path) -> None:
    """`verify` names a group that cannot be read, and totals that are not right."""
    exporter = await exporter_process()
    operator = await operator_of(exporter, tmp_path)
    await accepted(exporter, events(10))
    await exporter.terminate()
    with closing(sqlite3.connect(exporter.data_dir / FILE_NAME)) as connection:
        connection.execute("UPDATE points SET lines = zeroblob(length(lines)), bytes = bytes + 1")
        connection.commit()
    outcome = await operator.run("journal", "verify")
    assert 1 == outcome.code
    assert ["group 1: its 10 points cannot be read", "the totals (points,"] == [
        line[:37].rstrip() if "group" in line else line[:19] for line in outcome.stdout.splitlines()
    ]
    (exporter.data_dir / FILE_NAME).write_bytes(b"no journal" * 1000)
    assert 4 == (await operator.run("journal", "status")).code
    assert 4 == (await operator.run("journal", "status", "--data-dir", str(tmp_path / "none"))).code


@pytest.mark.parametrize(
    ("change", "table", "found", "status"),
    [
        (None, "points", "points: database disk image is malformed", 4),
        (None, "dead_letters", "dead letters: database disk image is malformed", 4),
        ("DELETE FROM state", None, "totals: the row of totals is missing", 4),
        ("UPDATE state SET points = 'x'", None, "the totals (points, bytes, dead letters, their bytes) are noted", 4),
        ("UPDATE points SET count = 'x'", None, "group 1: holds values of wrong types", 0),
        ("UPDATE points SET now_ms = 'x'", None, "totals: the oldest group holds values of wrong types", 4),
    ],
)
async def test_what_is_damaged_is_named(
    change: str | None, table: str | None, found: str, status: int, tmp_path: Path
) -> None:
    """`verify` ends with 1 wherever the damage is, and says where; `status` needs what it shows."""
    data_dir = tmp_path / "data"
    await fill(data_dir, events(10))
    with closing(sqlite3.connect(data_dir / FILE_NAME, isolation_level=None)) as connection:
        page_size = connection.execute("PRAGMA page_size").fetchone()[0]
        roots = dict(connection.execute("SELECT name, rootpage FROM sqlite_master"))
        if change is not None:
            connection.execute(change)
    if table is not None:
        with (data_dir / FILE_NAME).open("r+b") as file:
            file.seek((roots[table] - 1) * page_size)
            file.write(bytes(page_size))
    operator = Operator(tmp_path, {"EXPORTER_DATA_DIR": str(data_dir)})
    outcome = await operator.run("journal", "verify")
    assert (1, 1) == (outcome.code, [line[: len(found)] for line in outcome.stdout.splitlines()].count(found)), outcome
    outcome = await operator.run("journal", "status")
    assert (status, status == 4) == (outcome.code, outcome.stderr.startswith(f"error: {data_dir / FILE_NAME}: "))


# --- replay -----------------------------------------------------------------------------------------------------------


async def test_events_are_replayed_once(
    exporter_process: StartExporter, v2_influxdb: V2InfluxDB, tmp_path: Path
) -> None:
    """By URL, again by URL, and into the data directory: each event counts once; what is no event is told of."""
    exporter = await exporter_process({**v2_influxdb.settings, "EXPORTER_INGEST_TOKEN": "secret"})
    operator = await operator_of(exporter, tmp_path)
    batch = events(1000)
    lines = [json.dumps(event) for event in batch[:900]] + [json.dumps(batch[900:])]
    path = tmp_path / "events.jsonl"
    path.write_text("\n".join([*lines, '{"action": "set"}', ""]))
    for _ in range(2):
        outcome = await operator.run("replay", str(path), "--url", f"{exporter.url}/stats")
        assert (0, True) == (outcome.code, outcome.stdout.startswith("1000 events accepted, 1 rejected: ")), outcome
    refused = await operator.run("replay", str(path))
    assert (4, True) == (refused.code, "--url" in refused.stderr)
    assert 1000 == sum((await exporter.counters()).values())
    await emptied(exporter)
    await exporter.terminate()
    outcome = await operator.run_process("replay", str(path), "--from-line", "500")
    assert 0 == outcome.code, outcome
    await exporter.start()
    assert 1000 == sum((await exporter.counters()).values())
    await emptied(exporter)
    assert devices(batch) == await stored_in(v2_influxdb.server)


async def test_points_are_replayed(exporter_process: StartExporter, v2_influxdb: V2InfluxDB, tmp_path: Path) -> None:
    """What was exported from one journal goes through another's, or straight into InfluxDB: the same points."""
    first = await exporter_process({"EXPORTER_HASH_KEY": "key"})
    batch = events(300, custom_id="somebody")
    await accepted(first, batch)
    exported = [tmp_path / "points.lp", tmp_path / "points.json"]
    one = await operator_of(first, tmp_path)
    for path, form in zip(exported, ("lines", "json"), strict=True):
        await one.run("journal", "export", "--format", form, "-o", str(path))

    second = await exporter_process(v2_influxdb.settings)
    outcome = await (await operator_of(second, tmp_path)).run_process("replay", str(exported[1]))
    assert (0, "300 points accepted\n") == (outcome.code, outcome.stdout), outcome
    await emptied(second)
    assert {} == await second.counters()
    through_journal = await v2_influxdb.server.points("capgo_stats")
    await v2_influxdb.server.query("DROP MEASUREMENT capgo_stats")
    straight = Operator(tmp_path, {**v2_influxdb.settings, "EXPORTER_HASH_KEY": "key"})
    outcome = await straight.run_process("replay", str(exported[0]), "--influx")
    assert (0, "300 points accepted\n") == (outcome.code, outcome.stdout), outcome
    assert through_journal == await v2_influxdb.server.points("capgo_stats")

    events_file = tmp_path / "events.jsonl"
    old = {**batch[0], "timestamp": batch[0]["timestamp"] - 30 * 86_400_000}
    events_file.write_text("\n".join(map(json.dumps, [old, *batch])))
    outcome = await straight.run("replay", str(events_file), "--influx")
    assert (0, True) == (outcome.code, "301 events accepted\n" in outcome.stdout), outcome
    oldest, *others = await v2_influxdb.server.points("capgo_stats")
    assert through_journal == others
    assert old["timestamp"] == oldest.time_ns // 1_000_000
    assert devices(batch) == sorted(str(point.fields["device_id"]) for point in through_journal)


async def test_a_replay_that_stops_says_where_to_go_on(tmp_path: Path, v2_influxdb: V2InfluxDB) -> None:
    """A wrong line, a server that is not there, a token that InfluxDB refuses: the line, the reason, an exit code."""
    path = tmp_path / "lines"
    path.write_text('{"app_id": "a", "action": "set"}\n' * 3 + "capgo_stats count=1i 1\n")
    operator = Operator(tmp_path, {**v2_influxdb.settings, "EXPORTER_INFLUX_TOKEN": "wrong"})
    url = f"http://127.0.0.1:{free_port()}/stats"
    outcome = await operator.run("replay", str(path), "--url", url, "--batch", "2", "--patience", "1s")
    assert (5, True) == (outcome.code, "go on with --from-line 1\n" in outcome.stderr), outcome
    outcome = await operator.run("replay", str(path), "--batch", "2")
    assert (2, True, True) == (
        outcome.code,
        "go on with --from-line 3\n" in outcome.stderr,
        f"error: {path}: line 4: holds points, and those before events; replay them apart\n" in outcome.stderr,
    ), outcome
    path.write_text('{"app_id": "a", "action": "set"}\n' + "[" * 100_000)
    outcome = await operator.run("replay", str(path), "--batch", "1")
    assert (2, f"go on with --from-line 2\nerror: {path}: line 2: is nested too deeply\n") == (
        outcome.code,
        outcome.stderr,
    )
    points = tmp_path / "points"
    points.write_text("# a comment\ncapgo_stats count=1i 1\n")
    operator.env["EXPORTER_STATS_PATH"] = "/capgo/stats"  # the reason is asked for at the server's root
    outcome = await operator.run("replay", str(points), "--influx", "--from-line", "2", "--patience", "1s")
    assert (5, True, False, True) == (
        outcome.code,
        "1 points are not in InfluxDB: rejected_credentials" in outcome.stderr,
        "accepted" in outcome.stdout,  # nobody has it
        "begin again with --from-line 2\n" in outcome.stderr,
    ), outcome


# --- check-config --connect -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.8.10", "v2.7.12"])
async def test_a_good_connection_is_good(version: str, v2_influxdb: V2InfluxDB, tmp_path: Path) -> None:
    """Everything is tried, and the test point is gone afterwards."""
    v2_influxdb.proxy.version = version
    outcome = await Operator(tmp_path, v2_influxdb.settings).run("check-config", "--connect")
    assert (0, ["ok"] * 5) == (outcome.code, [line.split(":")[0] for line in outcome.stderr.splitlines()]), outcome
    assert [] == await v2_influxdb.server.query("SELECT * FROM capgo_exporter_check")


@pytest.mark.parametrize(
    ("env", "problem", "remedy"),
    [
        ({"EXPORTER_INFLUX_TOKEN": "SECRET-1"}, "status 401", "EXPORTER_INFLUX_TOKEN is missing or wrong"),
        ({"EXPORTER_INFLUX_BUCKET": "none"}, "status 404", "create bucket 'none'"),
        ({"EXPORTER_INFLUX_URL": "http://127.0.0.1:1"}, "Cannot connect", "start InfluxDB"),
        ({"EXPORTER_INFLUX_URL": "{https}"}, "Cannot connect", "it speaks no TLS there"),
        ({"EXPORTER_INFLUX_URL": "{without v2}"}, "status 404", "only InfluxDB 1.8 and later 1.x have /api/v2/write"),
        ({"EXPORTER_INFLUX_URL": "http://no.such.host.invalid"}, "invalid", "the host's name is not known here"),
    ],
)
async def test_what_is_wrong_is_said_and_how_to_mend_it(
    env: dict[str, str], problem: str, remedy: str, v2_influxdb: V2InfluxDB, tmp_path: Path
) -> None:
    """Each has a line for the problem, one for the remedy, and exit code 5; no token is shown."""
    urls = {"{https}": v2_influxdb.url.replace("http:", "https:"), "{without v2}": v2_influxdb.server.url}
    env = {name: urls.get(value, value) for name, value in env.items()}
    outcome = await Operator(tmp_path, {**v2_influxdb.settings, **env}).run("check-config", "--connect")
    wrong, mend = outcome.stderr.splitlines()[-2:]
    assert (5, True, True, True) == (
        outcome.code,
        wrong.startswith("error: ") and problem in wrong,
        mend.startswith(f"  do: {remedy}"),
        "SECRET-1" not in outcome.stderr,
    ), outcome


@pytest.mark.parametrize("command", [("check-config", "--connect"), ("forget", "some-device")], ids=lambda row: row[0])
async def test_no_password_of_a_url_that_cannot_be_used(command: tuple[str, ...], tmp_path: Path) -> None:
    """The client's error text holds the whole URL; what is shown of it has no password."""
    await fill(tmp_path, events(1))
    env = {"EXPORTER_INFLUX_URL": "http://user:SECRET-1@xn--\u2603:8086"}
    outcome = await Operator(tmp_path, env).run(*command)
    assert 5 == outcome.code, outcome
    assert "http://***@xn--\u2603:8086/" in outcome.stderr
    assert "SECRET-1" not in outcome.stderr + outcome.stdout


async def test_a_bucket_that_forgets_too_soon_is_told_of(v2_influxdb: V2InfluxDB, tmp_path: Path) -> None:
    """Late events would be refused for good."""
    await v2_influxdb.server.query('ALTER RETENTION POLICY "autogen" ON "capgo" DURATION 3d SHARD DURATION 1d')
    outcome = await Operator(tmp_path, v2_influxdb.settings).run("check-config", "--connect")
    assert 5 == outcome.code
    assert "it keeps 3d" in outcome.stderr
    assert 2 == (await Operator(tmp_path, {}).run("check-config", "--connect")).code
