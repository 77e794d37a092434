"""The operator's commands as a user types them, in a process of their own or, quicker, in the test's."""

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from click.testing import CliRunner

from exporter.cli import main
from tests.support.process import minimal_environment

_REPOSITORY = Path(__file__).parents[2]
_TIMEOUT_SECONDS = 300


class Outcome(NamedTuple):
    """What a command did."""

    code: int | None
    stdout: str
    stderr: str


class Operator:
    """Types commands; settings come from `env` alone."""

    def __init__(self, directory: Path, env: Mapping[str, str]) -> None:
        """Set the working directory of processes, and the settings."""
        self._directory = directory
        self.env = dict(env)

    async def run(self, *arguments: str) -> Outcome:
        """Run a command in this process, beside the event loop; logs go where those of the tests go."""
        hidden = {name: None for name in os.environ if name.startswith(("EXPORTER_", "INFLUXDB_V2_"))}
        with patch("exporter.logs.configure"):
            result = await asyncio.to_thread(CliRunner(env={**hidden, **self.env}).invoke, main, arguments)
        return Outcome(result.exit_code, result.stdout, result.stderr)

    async def run_process(self, *arguments: str) -> Outcome:
        """Run a command as a process."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "exporter",
            *arguments,
            cwd=self._directory,
            env=minimal_environment(PYTHONPATH=str(_REPOSITORY), **self.env),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            stdout, stderr = await process.communicate()
        return Outcome(process.returncode, stdout.decode(), stderr.decode())
