"""An exporter for the demo alone: a process of its own whose data is gone afterwards."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_POLL_SECONDS: Final = 0.05


class NotStartedError(Exception):
    """The exporter ended before it listened; the message is what it said."""


@contextlib.contextmanager
def throwaway_exporter(listen: str) -> Iterator[str]:
    """Run an exporter with embedded defaults.

    It ignores the settings of this process, so that a demo never gets into anybody's data.

    Args:
        listen: address and port.

    Yields:
        Its URL.

    Raises:
        NotStartedError: if it does not start, because the address is taken for example.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("EXPORTER_", "INFLUXDB_"))}
    with tempfile.TemporaryDirectory(prefix="capgo-demo-") as directory:
        path = Path(directory) / "log"
        command = [
            *(sys.executable, "-m", "exporter", "serve", f"--listen={listen}", f"--data-dir={directory}/data"),
            *("--scrape-interval=15s", "--log-format=json"),
        ]
        with path.open("w") as file:
            # A session of its own: Ctrl-C is for the fleet, which sums up before the exporter goes.
            process = subprocess.Popen(  # noqa: S603 -- ourselves
                command, cwd=directory, env=environment, stderr=file, start_new_session=True
            )
        try:
            yield _await_url(process, path)
        finally:
            process.terminate()
            process.wait()


def _await_url(process: subprocess.Popen[bytes], log: Path) -> str:
    while process.poll() is None:
        for line in log.read_text(encoding="utf-8").splitlines(keepends=True):
            # Errors of the command line are no JSON; the last line may be half written.
            if line.startswith("{") and line.endswith("}\n") and (said := json.loads(line))["event"] == "listening":
                return str(said["url"])
        time.sleep(_POLL_SECONDS)
    raise NotStartedError(log.read_text(encoding="utf-8").strip())
