"""Whoever may change a journal: the exporter that runs, asked through its control socket, or else this command.

The lock of the data directory decides. While a command holds it, an exporter that is started says that the directory
is in use.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import aiohttp
import msgspec

from exporter.chores import Chores, Done, Forgotten
from exporter.control import SOCKET_NAME, Device, Letters, Lines, socket_address
from exporter.group import NotStoredError, Write
from exporter.journal.lock import DirectoryLock, LockedError
from exporter.journal.opening import FILE_NAME
from exporter.journal.records import Totals, Transaction
from exporter.journal.salvage import BEFORE_VACUUM, SalvageError, salvage
from exporter.journal.schema import APPLICATION_ID, SCHEMA_VERSION, connect
from exporter.journal.store import CommitFailedError, Journal
from exporter.journal.totals import corrected, read_totals
from exporter.tools.problems import DataError, RemoteError

STARTING_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.2
_FOR_EVER: Final = 1 << 62
_json = msgspec.json.Encoder()
_Answer = TypeVar("_Answer")


class Keeper(Protocol):
    """Changes a journal; all raise ToolError if that is not possible."""

    async def retry(self, ids: list[int] | None) -> Done:
        """Let dead letters wait for InfluxDB again; None: all."""

    async def discard(self, ids: list[int] | None) -> Done:
        """Delete dead letters; None: all."""

    async def forget(self, ids: tuple[str, ...]) -> Forgotten:
        """Delete what waits, or is a dead letter, of a device."""

    async def add(self, lines: list[str]) -> None:
        """Let points wait for InfluxDB."""

    async def vacuum(self) -> None:
        """Put the journal into a new file without empty pages."""


@contextlib.asynccontextmanager
async def open_keeper(data_dir: Path) -> AsyncIterator[Keeper]:
    """Find out who may change a journal.

    Raises:
        ToolError: if there is no journal, or nobody who can.
    """
    path = journal_path(data_dir)
    try:
        lock = DirectoryLock(data_dir)
    except LockedError:
        with socket_address(data_dir) as address:
            async with _session(address) as session:
                yield Remote(session, data_dir)
        return
    except OSError as error:
        raise _unusable(data_dir, error) from error
    with lock:
        local = Local(path)
        try:
            yield local
        finally:
            local.close()


def journal_path(data_dir: Path) -> Path:
    """Find the journal of a data directory.

    Raises:
        ToolError: if there is none.
    """
    path = data_dir / FILE_NAME
    try:
        is_there = path.is_file()
    except OSError as error:
        raise _unusable(data_dir, error) from error
    if not is_there:
        msg = f"{path}: there is no journal; name its directory with --data-dir or EXPORTER_DATA_DIR"
        raise DataError(msg)
    return path


def _unusable(data_dir: Path, error: OSError) -> DataError:
    remedy = "; run this as the exporter's user, or as root" if isinstance(error, PermissionError) else ""
    return DataError(f"{data_dir}: {error.strerror or error}{remedy}")


class Local:
    """This command, which holds the lock."""

    def __init__(self, path: Path) -> None:
        """Open the journal.

        Raises:
            ToolError: if it cannot be used.
        """
        self._path = path
        connection, totals = _open(path)
        self._journal = Journal(path, connection, totals, max_bytes=None, max_event_ids=_FOR_EVER)
        self._chores = Chores(
            path,
            self._journal.reader(),
            last_transaction=lambda: self._journal.totals.last_transaction,
            write=self._write,
            settle=_nothing,
        )

    async def retry(self, ids: list[int] | None) -> Done:
        """Let dead letters wait for InfluxDB again; None: all."""
        with _data_errors(self._path):
            return await self._chores.retry(ids)

    async def discard(self, ids: list[int] | None) -> Done:
        """Delete dead letters; None: all."""
        with _data_errors(self._path):
            return await self._chores.discard(ids)

    async def forget(self, ids: tuple[str, ...]) -> Forgotten:
        """Delete what waits, or is a dead letter, of a device."""
        with _data_errors(self._path):
            return await self._chores.forget(ids)

    async def add(self, lines: list[str]) -> None:
        """Let points wait for InfluxDB."""
        with _data_errors(self._path):
            await self._chores.add(lines)

    async def vacuum(self) -> None:
        """Put the journal into a new file without empty pages."""
        with _data_errors(self._path):
            self.close()
            salvaged = salvage(self._path, BEFORE_VACUUM)
            if salvaged.lost_points or salvaged.lost_dead_letter_points:
                lost = f"{salvaged.lost_points} points and {salvaged.lost_dead_letter_points} dead letters"
                kept = salvaged.kept or "removed, for want of room"
                msg = f"{self._path}: was damaged: {lost} could not be read; the damaged file is {kept}"
                raise DataError(msg)
            if salvaged.kept is not None:
                salvaged.kept.unlink()

    def close(self) -> None:
        """Close the journal."""
        self._chores.close()
        self._journal.close()

    async def _write(self, write: Write) -> None:
        transaction = Transaction(
            self._journal.totals.last_transaction + 1,
            time.time_ns() // 1_000_000,
            lines=write.lines,
            edits=write.edits,
        )
        try:
            self._journal.commit(transaction)
        except CommitFailedError as error:
            raise NotStoredError(str(error)) from error


class Remote:
    """The exporter that runs."""

    def __init__(self, session: aiohttp.ClientSession, data_dir: Path) -> None:
        """Take a session whose connections go to its control socket."""
        self._session = session
        self._data_dir = data_dir

    async def retry(self, ids: list[int] | None) -> Done:
        """Let dead letters wait for InfluxDB again; None: all."""
        return await self._ask("/dead-letters/retry", Letters(ids), Done)

    async def discard(self, ids: list[int] | None) -> Done:
        """Delete dead letters; None: all."""
        return await self._ask("/dead-letters/discard", Letters(ids), Done)

    async def forget(self, ids: tuple[str, ...]) -> Forgotten:
        """Delete what waits, or is a dead letter, of a device."""
        return await self._ask("/forget", Device(ids), Forgotten)

    async def add(self, lines: list[str]) -> None:
        """Let points wait for InfluxDB."""
        await self._ask("/points", Lines(lines), int)

    async def vacuum(self) -> None:
        """Put the journal into a new file without empty pages."""
        await self._ask("/vacuum", None, bool)

    async def _ask(self, path: str, body: object, kind: type[_Answer]) -> _Answer:
        deadline = time.monotonic() + STARTING_SECONDS
        while True:
            try:
                async with self._session.post(f"http://exporter{path}", data=_json.encode(body)) as response:
                    return _read(response.status, await response.read(), kind)
            except aiohttp.ClientConnectorError as error:
                if time.monotonic() > deadline:
                    where = f"{self._data_dir / SOCKET_NAME} ({error.os_error.strerror})"
                    msg = (
                        f"{self._data_dir}: in use by another command, or by an exporter that cannot be reached at "
                        f"{where}; wait for the command, or run this as the exporter's user, or stop it first"
                    )
                    raise DataError(msg) from error
                await asyncio.sleep(_PAUSE_SECONDS)  # It may be starting.
            except aiohttp.ClientError as error:
                msg = f"the exporter ended, or broke off: {error}"
                raise RemoteError(msg) from error


def _read(status: int, body: bytes, kind: type[_Answer]) -> _Answer:
    if status == 200:  # noqa: PLR2004 -- OK
        return msgspec.json.decode(body, type=kind)
    try:
        reason: Any = msgspec.json.decode(body)["error"]
    except (msgspec.DecodeError, KeyError, TypeError):
        reason = f"status {status}"
    msg = f"the exporter cannot do that now: {reason}"
    raise RemoteError(msg)


def _session(address: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.UnixConnector(address), timeout=aiohttp.ClientTimeout(total=None))


def _open(path: Path) -> tuple[sqlite3.Connection, Totals]:
    with _data_errors(path), contextlib.ExitStack() as stack:
        connection = stack.enter_context(contextlib.closing(connect(path)))
        found = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        if found != [APPLICATION_ID, SCHEMA_VERSION]:
            msg = f"{path}: not a journal of this version; start this version's exporter on it once"
            raise DataError(msg)
        totals = read_totals(connection)
        with contextlib.suppress(sqlite3.DatabaseError):  # A vacuum mends what cannot be counted.
            totals = corrected(connection, totals)
        stack.pop_all()
    return connection, totals


@contextlib.contextmanager
def _data_errors(path: Path) -> Iterator[None]:
    """Say which file it is that makes trouble."""
    try:
        yield
    except (NotStoredError, SalvageError, sqlite3.Error, OSError) as error:
        msg = f"{path}: {error}"
        raise DataError(msg) from error


async def _nothing() -> None:
    """Return: nothing is being sent."""
