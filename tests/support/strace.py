"""The system calls of an exporter, as strace writes them down."""

import os
import signal
from pathlib import Path

from tests.support.exporter import ExporterProcess


class Strace:
    """Lets an exporter run under strace from its next start on, all its threads included."""

    def __init__(self, exporter: ExporterProcess, directory: Path, *options: str) -> None:
        """Put the command in front of the exporter's.

        Args:
            exporter: One that does not run yet.
            directory: Where the calls are written to.
            options: What strace is to look at, or to change.
        """
        self._exporter = exporter
        self._output = directory / "strace.txt"
        exporter.process.argv[:0] = ["strace", "--follow-forks", "--quiet=all", f"--output={self._output}", *options]

    def calls(self) -> list[str]:
        """Return the calls so far, each on a line that begins with the number of its thread."""
        return self._output.read_text(encoding="utf-8", errors="replace").splitlines()

    async def terminate(self) -> int:
        """Send SIGTERM to the exporter itself, wait for its end, and return its exit code."""
        os.kill(int(self.calls()[0].split()[0]), signal.SIGTERM)
        return await self._exporter.wait()
