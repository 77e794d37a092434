"""Servers on one core, the load on another, and what `/proc` says of them. Linux only."""

import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
SERVER_CORE: Final = 0
LOAD_CORE: Final = 1
_READY_SECONDS: Final = 120
_STOP_SECONDS: Final = 30
_TICKS: Final = os.sysconf("SC_CLK_TCK")


def require(*commands: str) -> None:
    """End with a clear message if this cannot run here; else keep this process off the server's core."""
    if sys.platform != "linux":
        sys.exit("the benchmarks need Linux: they pin processes to cores and read /proc")
    if (os.cpu_count() or 1) <= LOAD_CORE:
        sys.exit("the benchmarks need two cores: one for the server, one for the load")
    paths = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/sbin"]
    for command in commands:
        if not any(os.access(Path(path) / command, os.X_OK) for path in paths):
            sys.exit(f"{command} is not installed; it is needed here")
    os.sched_setaffinity(0, {LOAD_CORE})


@contextlib.contextmanager
def process(
    command: Sequence[str],
    *,
    core: int,
    environment: Mapping[str, str] | None = None,
    ready: Callable[[], object] = lambda: None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server on one core, wait until it is ready, and stop it; SIGKILL if it does not end.

    Args:
        command: its command.
        core: where it may run.
        environment: variables besides the present ones.
        ready: raises OSError as long as it is not.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith(("EXPORTER_", "INFLUXDB_"))}
    started = subprocess.Popen(
        ["taskset", "-c", str(core), *command],
        cwd=ROOT,
        env={**own, "PYTHONPATH": str(ROOT), **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until(ready, lambda: started.poll() is not None, command[0])
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def wait_until(ready: Callable[[], object], has_ended: Callable[[], bool], name: str) -> None:
    """Wait until something raises no OSError any more."""
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        try:
            ready()
        except OSError:
            if has_ended() or time.monotonic() > deadline:
                sys.exit(f"{name} did not start")
            time.sleep(0.02)
        else:
            return


def get(url: str) -> str:
    """Fetch a text."""
    with urllib.request.urlopen(url, timeout=60) as reply:  # noqa: S310 -- a server of our own
        return str(reply.read().decode())


def cpu_seconds(pid: int) -> float:
    """Read a process's CPU time, user and system, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def thread_cpu_seconds(pid: int, thread: int) -> float:
    """Read the CPU time of one thread, to the nanosecond; the main thread has the process's id."""
    return int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0]) / 1e9


def resident_bytes(pid: int) -> int:
    """Read how much memory a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def wait_until_idle(pid: int, at_least: float, at_most: float = 90.0) -> None:
    """Wait for so long, and until a process uses hardly any CPU: all work that was put off is done."""
    began = time.monotonic()
    while True:
        before = cpu_seconds(pid)
        time.sleep(0.5)
        waited = time.monotonic() - began
        if (waited >= at_least and cpu_seconds(pid) - before <= 2 / _TICKS) or waited > at_most:
            return


def describe() -> str:
    """Name the machine in one line."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    model = models[0] if models else platform.machine()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"{len(models)} cores of {model}, {pages:.0f} GiB, Linux {platform.release()}, "
        f"{platform.python_implementation()} {platform.python_version()}"
    )


def fsync_milliseconds(directory: Path) -> float:
    """Measure what one fsync of a small write takes here, in the median."""
    path = directory / "fsync"
    taken = []
    with path.open("wb", buffering=0) as file:
        for _ in range(200):
            file.write(b"x" * 4096)
            began = time.perf_counter()
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - began)
    path.unlink()
    return sorted(taken)[len(taken) // 2] * 1000
