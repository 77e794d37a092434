"""A server as a subprocess that never outlives the tests."""

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from tests.support.ports import wait_for, wait_for_sync

LOG_TAIL_LINES = 30

# How long a server has for its own shutdown before it is killed.
TERMINATE_TIMEOUT_SECONDS = 30.0
READY_TIMEOUT_SECONDS = 60.0


class ServerExitedError(Exception):
    """The server ended where it should have gone on."""


def minimal_environment(**extra: str) -> dict[str, str]:
    """Return an environment with nothing of the caller's but the search path, the home and the language."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return {**environment, "LANG": "C.UTF-8", **extra}


def http_ok(url: str) -> Callable[[], Awaitable[bool]]:
    """Return a condition: a GET on the URL is answered with a status below 300."""

    async def answered() -> bool:
        timeout = aiohttp.ClientTimeout(total=2)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as response:
            return response.status < 300

    return answered


class Entered(ABC):
    """What starts when it is entered, and stops in the end, also when the test failed."""

    @abstractmethod
    async def start(self) -> None:
        """Start it."""

    @abstractmethod
    async def stop(self) -> None:
        """Stop it."""

    async def __aenter__(self) -> Self:
        """Start it."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop it."""
        await self.stop()


class ServerProcess(Entered):
    """A server process: start, wait until it is ready, stop; what it writes goes to files.

    The process leads a group of its own, so that one signal reaches its children too, and the kernel kills it when the
    test process dies (`setpriv --pdeathsig`, where there is one). `close` ends it whatever state it is in.
    """

    def __init__(
        self,
        argv: Sequence[str | Path],
        directory: Path,
        *,
        ready: Callable[[], bool | Awaitable[bool]],
        env: Mapping[str, str] | None = None,
        name: str | None = None,
    ) -> None:
        """Describe the server; nothing runs before `start`.

        Args:
            argv: The command.
            directory: The working directory, where the output files are written too; it must exist.
            ready: A condition that says whether the server is up (see `http_ok`).
            env: The whole environment; a minimal one by default.
            name: The name in messages and file names; by default that of the command.
        """
        self.argv = [str(part) for part in argv]
        self.directory = directory
        self.env = dict(env) if env is not None else minimal_environment()
        self.name = name or Path(self.argv[0]).name
        self.stdout_path = directory / f"{self.name}.stdout"
        self.stderr_path = directory / f"{self.name}.stderr"
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the process started last."""
        return self._started().pid

    @property
    def running(self) -> bool:
        """Whether a process was started and has not ended."""
        return self._process is not None and self.returncode is None

    @property
    def returncode(self) -> int | None:
        """The exit code of the process started last: None while it runs, negative after a signal."""
        process = self._started()
        if process.returncode is None and os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            # The leader ended: end what is left of its group while its id cannot belong to anyone else.
            self._signal_group(signal.SIGKILL)
            process.wait()
        return process.returncode

    def spawn(self) -> None:
        """Start the process without waiting for it to be ready; its output is appended to the files."""
        assert not self.running, f"{self.name} is already running"
        atexit.register(self.close)
        with self.stdout_path.open("ab") as stdout, self.stderr_path.open("ab") as stderr:
            self._process = subprocess.Popen(
                [*_dying_with_parent(), *self.argv],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=self.directory,
                env=self.env,
                start_new_session=True,
            )

    async def start(self, timeout_seconds: float = READY_TIMEOUT_SECONDS) -> None:
        """Start the process and wait until it is ready; a process that does not get there is ended.

        Raises:
            ServerExitedError: It ended before it was ready; the message holds the end of its log.
            AssertionError: It was not ready in time.
        """
        self.spawn()
        try:
            await self.wait_ready(timeout_seconds)
        except BaseException:
            self.close()
            raise

    async def wait_ready(self, timeout_seconds: float = READY_TIMEOUT_SECONDS) -> None:
        """Wait until the started process is ready.

        Raises:
            ServerExitedError: It ended before it was ready; the message holds the end of its log.
            AssertionError: It was not ready in time.
        """

        async def ready_or_gone() -> bool:
            if not self.running:
                message = f"{self.name} ended with {self.returncode} before it was ready:\n{self.log_tail()}"
                raise ServerExitedError(message)
            outcome = self._ready()
            return outcome if isinstance(outcome, bool) else await outcome

        try:
            await wait_for(ready_or_gone, f"{self.name} to be ready", timeout_seconds)
        except AssertionError as error:
            error.add_note(self.log_tail())
            raise

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the server process alone, not to its group."""
        self._started().send_signal(number)

    async def wait(self, timeout_seconds: float = TERMINATE_TIMEOUT_SECONDS) -> int:
        """Wait until the process has ended and return its exit code (negative after a signal).

        Raises:
            AssertionError: It still runs at the deadline; the process is left alone.
        """
        try:
            await wait_for(lambda: not self.running, f"{self.name} to end", timeout_seconds)
        except AssertionError as error:
            error.add_note(self.log_tail())
            raise
        return self._started().wait(0)

    async def terminate(self, timeout_seconds: float = TERMINATE_TIMEOUT_SECONDS) -> int:
        """Send SIGTERM and wait for the end; return the exit code (see `wait`)."""
        self.send_signal(signal.SIGTERM)
        return await self.wait(timeout_seconds)

    async def kill9(self) -> None:
        """Send SIGKILL to the whole group and wait until the process is gone."""
        if self.running:
            self._signal_group(signal.SIGKILL)
        await self.wait()

    async def stop(self) -> None:
        """End the process if it runs: SIGTERM first, SIGKILL when that does not help in time."""
        with contextlib.suppress(AssertionError):
            if self.running:
                await self.terminate()
        self.close()

    def close(self) -> None:
        """Kill what is left, without an event loop; calling it again does no harm."""
        atexit.unregister(self.close)
        if self.running:
            self._signal_group(signal.SIGKILL)
            wait_for_sync(lambda: not self.running, f"{self.name} to be killed", TERMINATE_TIMEOUT_SECONDS)

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """Return the last lines of what the server wrote to stdout and stderr."""
        parts = []
        for path in (self.stdout_path, self.stderr_path):
            text = path.read_text(errors="replace") if path.exists() else ""
            tail = "\n".join(text.splitlines()[-lines:])
            parts.append(f"--- {path.name} ---\n{tail}")
        return "\n".join(parts)

    def _started(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, f"{self.name} was never started"
        return self._process

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._started().pid, number)


class Server(Entered):
    """A server that runs as a process while it is entered, or from `start` to `stop`.

    Attributes:
        process: the process, which a subclass makes.
    """

    process: ServerProcess

    async def start(self) -> None:
        """Start the server."""
        await self.process.start()

    async def stop(self) -> None:
        """Stop the server; its data stays."""
        await self.process.stop()


def _dying_with_parent() -> list[str]:
    """Return the command prefix that makes the kernel kill the server when this process dies.

    `setpriv` sets the signal, the shell ends at once if this process died before that, and both replace themselves with
    the server. A `preexec_fn` would do the same, but it forks a process that may have threads, about which newer
    Pythons warn.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return []
    unless_orphaned = '[ "$PPID" = "$0" ] && exec "$@"'
    return [setpriv, "--pdeathsig", "KILL", "--", "sh", "-c", unless_orphaned, str(os.getpid())]
