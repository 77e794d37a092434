"""The service manager is told what it asks for, over a real socket; the unit is one that systemd takes."""

import asyncio
import contextlib
import gc
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from exporter.cli import EXIT_SETTINGS
from exporter.connections import RESERVED_FILES
from exporter.journal.salvage import Salvage, Salvaged
from exporter.notify import ServiceManager
from exporter.settings import Settings
from exporter.tools.keeper import open_keeper
from exporter.worker import Worker
from tests.support.exporter import ExporterProcess, influx_settings
from tests.support.fakeinflux import ScriptedInflux
from tests.support.inprocess import running
from tests.support.ports import wait_for
from tests.support.strace import Strace

UNIT = Path(__file__).resolve().parent.parent / "deploy/systemd/capgo-exporter.service"
# Made by the libraries, which go on without: numpy asks for memory near the core, SQLite keeps the owner as root.
REFUSED = {"mbind", "fchown"}
EXPOSURE_LIMIT = 12  # tenths; what is left is the network and the machine's own root directory
ANSWER_SECONDS = 20.0


class Manager:
    """A service manager's end of the notification socket.

    Attributes:
        address: what `NOTIFY_SOCKET` is to hold.
    """

    def __init__(self, path: str) -> None:
        """Listen at a path, or, with `@`, at an abstract name."""
        self.address = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{path[1:]}" if path.startswith("@") else path)
        self._socket.setblocking(False)  # noqa: FBT003 -- the standard library's signature

    async def message(self) -> list[str]:
        """Return the lines of the next message."""
        async with asyncio.timeout(ANSWER_SECONDS):
            return (await asyncio.get_running_loop().sock_recv(self._socket, 4096)).decode().splitlines()

    async def until(self, line: str) -> list[str]:
        """Return the first message that begins with a line; others before it are passed over."""
        while (message := await self.message())[0] != line:
            pass
        return message

    def forget(self) -> None:
        """Pass over what was sent so far."""
        with contextlib.suppress(BlockingIOError):
            while self._socket.recv(4096):
                pass

    def has_heard(self) -> bool:
        """Tell whether something was sent that is not read yet."""
        try:
            return bool(self._socket.recv(4096, socket.MSG_PEEK))
        except BlockingIOError:
            return False

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    """Both kinds of address that systemd gives."""
    manager = Manager(str(tmp_path / "notify") if request.param == "path" else f"@capgo-{os.getpid()}-{tmp_path.name}")
    yield manager
    manager.close()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Manager]:
    """A manager at a path."""
    manager = Manager(str(tmp_path / "notify"))
    yield manager
    manager.close()


async def test_manager_is_told_of_start_life_and_end(manager: Manager, tmp_path: Path) -> None:
    """A real process says that it is ready once it listens, gives signs of life, and says that it stops."""
    env = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000"}
    async with ExporterProcess(tmp_path / "exporter", env) as exporter:
        assert ["READY=1", f"STATUS=listening on {exporter.url}"] == await manager.message()
        assert ["WATCHDOG=1"] == await manager.message()
        assert ["WATCHDOG=1"] == await manager.message()
        exporter.process.send_signal(signal.SIGTERM)
        assert ["STOPPING=1"] == await manager.until("STOPPING=1")
        assert await exporter.wait() == 0
    assert not manager.has_heard()


async def test_manager_is_told_of_a_reload(listener: Manager, tmp_path: Path) -> None:
    """SIGHUP is answered by a message that a reload begins, with its time, and one that it is over."""
    async with ExporterProcess(tmp_path / "exporter", {"NOTIFY_SOCKET": listener.address}) as exporter:
        await listener.until("READY=1")
        before = time.monotonic_ns() // 1000
        exporter.process.send_signal(signal.SIGHUP)
        message = await listener.message()
        assert "RELOADING=1" == message[0]
        assert before <= int(message[1].removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
        assert ["READY=1"] == await listener.message()


async def test_process_that_stands_still_gives_no_sign(listener: Manager, tmp_path: Path) -> None:
    """A process that does not run, as one whose event loop hangs, is silent, and is heard again when it goes on."""
    env = {"NOTIFY_SOCKET": listener.address, "WATCHDOG_USEC": "100000"}
    async with ExporterProcess(tmp_path / "exporter", env) as exporter:
        await listener.until("WATCHDOG=1")
        exporter.process.send_signal(signal.SIGSTOP)
        stat = Path(f"/proc/{exporter.pid}/stat")
        await wait_for(lambda: stat.read_text(encoding="ascii").rpartition(")")[2].split()[0] == "T")
        listener.forget()
        await asyncio.sleep(0.3)  # three times what the watchdog waits
        assert not listener.has_heard()
        exporter.process.send_signal(signal.SIGCONT)
        await listener.until("WATCHDOG=1")


def stand_still(thread: str) -> threading.Event:
    """Keep a thread busy that works for the event loop; return what lets it go on."""
    (found,) = (
        each for each in gc.get_objects() if isinstance(each, (Worker, ThreadPoolExecutor)) and name_of(each) == thread
    )
    go_on = threading.Event()
    if isinstance(found, Worker):
        found.run(go_on.wait)
    else:
        found.submit(go_on.wait)
    return go_on


def name_of(thread: Worker | ThreadPoolExecutor) -> str:
    """Return the name of a worker, or the one that a pool gives to its threads; of one that has ended nothing."""
    # Nothing public tells them apart.
    if isinstance(thread, Worker):
        return thread.name if thread._thread.is_alive() else ""  # noqa: SLF001
    return "" if thread._shutdown else str(thread._thread_name_prefix)  # noqa: SLF001


@pytest.mark.parametrize("thread", ["journal", "delivery"])
async def test_thread_that_hangs_ends_the_signs(listener: Manager, thread: str) -> None:
    """While the journal's thread or delivery's hangs there is no sign of life; when it goes on there is one again."""
    manager = ServiceManager(listener.address, watchdog_seconds=0.1)
    async with (
        running({"influx_url": "http://127.0.0.1:1"}) as exporter,
        manager.running("works", exporter.exporter.is_alive),
    ):
        await listener.until("WATCHDOG=1")
        go_on = stand_still(thread)
        try:
            await asyncio.sleep(0.1)  # one that was asked for before may still come
            listener.forget()
            await asyncio.sleep(0.3)  # three times what the watchdog waits
            assert not listener.has_heard()
        finally:
            go_on.set()
        await listener.until("WATCHDOG=1")


async def test_long_repair_is_alive_while_it_gets_on(listener: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a repair has the journal's thread there are signs as long as it copies, and none where it stands still."""
    finish = Salvage.finish
    began, stands, stood, go_on = (threading.Event() for _ in range(4))

    def slow(salvage: Salvage, *args: Any) -> Salvaged:
        began.set()
        while not stands.wait(0.01):
            salvage.note_step()
        stood.set()
        go_on.wait()
        return finish(salvage, *args)

    monkeypatch.setattr(Salvage, "finish", slow)
    manager = ServiceManager(listener.address, watchdog_seconds=0.1)
    async with running() as exporter, manager.running("works", exporter.exporter.is_alive):
        async with open_keeper(exporter.settings.data_dir) as keeper, asyncio.TaskGroup() as tasks:
            tasks.create_task(keeper.vacuum())
            try:
                await wait_for(began.is_set, "the journal's thread to be busy")
                listener.forget()
                for _ in range(3):
                    await listener.until("WATCHDOG=1")
                stands.set()
                await wait_for(stood.is_set)
                await asyncio.sleep(0.7)  # one that was due before may still come
                listener.forget()
                await asyncio.sleep(1.2)  # it is looked at twice
                assert not listener.has_heard()
            finally:
                stands.set()
                go_on.set()
        await listener.until("WATCHDOG=1")


async def test_ended_task_ends_the_signs() -> None:
    """An exporter of which a background task has ended is not alive, and one whose InfluxDB is away is."""
    async with running({"influx_url": "http://127.0.0.1:1"}) as exporter:
        assert await exporter.exporter.is_alive()
        (delivery,) = (task for task in asyncio.all_tasks() if task.get_name() == "delivery")
        delivery.cancel()
        await asyncio.wait([delivery])
        assert not await exporter.exporter.is_alive()


async def test_reload_is_told_with_its_moment(listener: Manager) -> None:
    """A reload is told with its time on the monotonic clock, and its end too, also when it failed."""
    before = time.monotonic_ns() // 1000

    def fail() -> None:
        msg = "no such setting"
        raise ValueError(msg)

    with pytest.raises(ValueError, match="no such"), ServiceManager(listener.address).reloading():
        fail()

    reloading, moment = await listener.message()
    assert "RELOADING=1" == reloading
    assert before <= int(moment.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    assert ["READY=1"] == await listener.message()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ServiceManager()),
        ({"NOTIFY_SOCKET": ""}, ServiceManager()),
        ({"NOTIFY_SOCKET": "relative"}, ServiceManager()),
        ({"NOTIFY_SOCKET": "vsock:2:1234"}, ServiceManager()),
        ({"WATCHDOG_USEC": "1000000"}, ServiceManager()),
        ({"NOTIFY_SOCKET": "/s"}, ServiceManager("/s")),
        ({"NOTIFY_SOCKET": "@s", "WATCHDOG_USEC": "3000000"}, ServiceManager("@s", 3.0)),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "7"}, ServiceManager("/s", 3.0)),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "8"}, ServiceManager("/s")),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "0"}, ServiceManager("/s")),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "soon"}, ServiceManager("/s")),
    ],
)
def test_environment_says_what_the_manager_wants(environ: dict[str, str], expected: ServiceManager) -> None:
    """Addresses that systemd gives are taken, others not; a watchdog that waits for another process is not ours."""
    assert expected == ServiceManager.from_environment(environ, pid=7)


async def test_manager_that_is_gone_stops_nobody(tmp_path: Path) -> None:
    """An address at which nobody listens is no reason to fail: the exporter works, and says so in its log."""
    env = {"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "100000"}
    async with ExporterProcess(tmp_path / "exporter", env) as exporter:
        said = "the service manager cannot be told"
        await wait_for(lambda: {"READY=1", "WATCHDOG=1"} <= {line["message"] for line in exporter.events(said)})
        assert await exporter.terminate() == 0


# --- the unit ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a command that exists here, so that systemd has nothing to say about that."""
    text = UNIT.read_text(encoding="utf-8")
    path = tmp_path / UNIT.name
    path.write_text(re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={sys.executable}", text), encoding="utf-8")
    return path


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze."""
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.server("systemd-analyze")
def test_systemd_takes_the_unit(unit: Path) -> None:
    """The unit has only sections, keys and values that systemd knows: it finds nothing to complain of."""
    result = analyze("verify", "--man=no", unit)
    assert (0, "") == (result.returncode, result.stdout + result.stderr)


@pytest.mark.server("systemd-analyze")
def test_unit_is_hardened(unit: Path) -> None:
    """The review of systemd itself finds next to no exposure; what it counts is the network, which is its task."""
    result = analyze("security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE_LIMIT}", unit)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.server("systemd-analyze", "strace")
async def test_exporter_needs_no_call_that_the_unit_forbids(tmp_path: Path) -> None:
    """A process stores, delivers and stops with the system calls that are allowed; none makes memory executable."""
    async with ScriptedInflux() as influx:
        env = influx_settings(influx.url, token="t", org="o", bucket="b")  # noqa: S106 -- of the test's own
        exporter = ExporterProcess(tmp_path / "exporter", env)
        strace = Strace(exporter, tmp_path, f"--inject={','.join(sorted(REFUSED))}:error=EPERM")
        async with exporter:
            assert (await exporter.post([{"app_id": "com.example.calls", "action": "get"}])).status == 200
            await exporter.metrics()
            await wait_for(lambda: influx.requests, "the delivery")
            assert await strace.terminate() == 0
    made = {match[1] for call in strace.calls() if (match := re.match(r"\d+ +(\w+)\(", call))}
    writable = re.compile(r"PROT_WRITE\|PROT_EXEC|mprotect\(.*PROT_EXEC")

    assert {"execve", "openat", "listen"} <= made
    assert made - allowed_calls() <= REFUSED
    assert [] == [call for call in strace.calls() if writable.search(call)]


def allowed_calls() -> set[str]:
    """Return the names of the system calls that the unit's filter lets through."""
    allowed: set[str] = set()
    for line in re.findall(r"(?m)^SystemCallFilter=(.*)$", UNIT.read_text(encoding="utf-8")):
        named = set().union(*(members(name) for name in line.removeprefix("~").split()))
        allowed = allowed - named if line.startswith("~") else allowed | named
    return allowed


def members(name: str) -> set[str]:
    """Return the system calls of a set of systemd's, or the one of that name."""
    if not name.startswith("@"):
        return {name}
    lines = analyze("syscall-filter", "--no-pager", name).stdout.split("\n")[1:]
    names = {line.strip() for line in lines if line.strip() and not line.strip().startswith("#")}
    return set().union(*map(members, names))


def test_unit_keeps_the_exporters_promises() -> None:
    """The unit's time to stop covers both waits of the exporter's own, and wrong settings are not tried again."""
    unit = UNIT.read_text(encoding="utf-8")
    (minutes,) = re.findall(r"(?m)^TimeoutStopSec=(\d+)min$", unit)
    (files,) = re.findall(r"(?m)^LimitNOFILE=(\d+)$", unit)
    fields = Settings.model_fields
    longest_delay_seconds = 30  # what README.md beside it says
    assert int(minutes) * 60 > longest_delay_seconds + 2 * fields["shutdown_timeout"].default
    assert int(files) > 2 * fields["max_connections"].default + RESERVED_FILES
    assert [str(EXIT_SETTINGS)] == re.findall(r"(?m)^RestartPreventExitStatus=(.*)$", unit)
