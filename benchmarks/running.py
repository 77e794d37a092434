"""An exporter on the server's core, on a data directory that may have been prepared."""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from benchmarks.machine import LOAD_CORE, SERVER_CORE, get, process
from tests.support.ports import free_port

SCRAPE_HEADERS: Final = {"X-Prometheus-Scrape-Timeout-Seconds": "10", "Accept-Encoding": "gzip"}
_BODY_BYTES: Final = 1 << 16


class Running(NamedTuple):
    """A running exporter."""

    pid: int
    port: int
    seconds_to_start: float

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def sample(self, name: str) -> float:
        """Read a metric that has no labels."""
        for line in get(f"{self.url}/metrics").splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        sys.exit(f"there is no {name} on the page")

    def scrape(self) -> int:
        """Ask for the page as Prometheus does; gives its size as it came."""
        request = urllib.request.Request(f"{self.url}/metrics", headers=SCRAPE_HEADERS)  # noqa: S310 -- our own server
        size = 0
        with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310 -- the same
            while part := reply.read(_BODY_BYTES):
                size += len(part)
        return size


@contextlib.contextmanager
def exporter(data_dir: Path | None = None, **options: str) -> Iterator[Running]:
    """Run an exporter with these settings, by their names without the prefix, until the block ends.

    Args:
        data_dir: its data directory; None: a new one.
        options: settings, such as `influx_url`.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="exporter-") as directory:
        environment = {
            "EXPORTER_LISTEN": f"127.0.0.1:{port}",
            "EXPORTER_DATA_DIR": str(data_dir or directory),
            "EXPORTER_LOG_LEVEL": "error",
            "EXPORTER_SHUTDOWN_TIMEOUT": "2",
            **{f"EXPORTER_{name.upper()}": value for name, value in options.items()},
        }
        began = time.perf_counter()
        command = [sys.executable, "-m", "exporter", "serve"]
        url = f"http://127.0.0.1:{port}/healthz"
        with process(command, core=SERVER_CORE, environment=environment, ready=lambda: get(url)) as started:
            yield Running(started.pid, port, time.perf_counter() - began)


class Pacer:
    """POSTs at a fixed rate from a process of its own on the load's core, while the block runs."""

    def __init__(self, port: int, *, rate: float, seconds: float, batch: int = 1, first: int = 0) -> None:
        """Set what is sent."""
        options = {"rate": rate, "seconds": seconds, "batch": batch, "first": first}
        self._command = [
            "taskset",
            "-c",
            str(LOAD_CORE),
            sys.executable,
            "-m",
            "benchmarks.pacer",
            "127.0.0.1",
            str(port),
        ]
        self._command += [f"--{name}={value}" for name, value in options.items()]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Begin."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE)
        return self

    @property
    def is_running(self) -> bool:
        """Whether it still sends."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Stop sending; there is no result then."""
        if self._process is not None:
            self._process.terminate()

    def result(self) -> dict[str, float]:
        """Wait for the end, and give the latencies in milliseconds."""
        if self._process is None:
            raise AssertionError
        output, _ = self._process.communicate()
        found: dict[str, float] = json.loads(output)
        if found["failed"]:
            sys.exit(f"{found['failed']} paced POSTs failed")
        return found

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it, if it has not ended."""
        self.stop()
        if self._process is not None:
            self._process.wait()
