"""Opening the journal: a new file is made, a damaged or foreign one is set aside, and what it holds is read."""

import sqlite3
from array import array
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from exporter.journal.damage import is_damage
from exporter.journal.derived_store import is_damaged_text, read_derived
from exporter.journal.records import Birth, Restored, SeriesRow
from exporter.journal.salvage import Salvaged, SalvageError, discard_unfinished, salvage
from exporter.journal.schema import APPLICATION_ID, SCHEMA_VERSION, connect, create, upgrade
from exporter.journal.totals import corrected, read_totals

FILE_NAME: Final = "journal.sqlite3"
_COMPANIONS: Final = ("-wal", "-shm", "-journal")
_PRIMARY_CODE: Final = 0xFF
_SERIES_TYPES: Final = (int, str, str, int, int, int)
_BIRTHS: Final = frozenset(Birth)
_Item = TypeVar("_Item")
_read_labels: Final = msgspec.json.Decoder(list[str]).decode
_DAMAGE: Final = frozenset(
    {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISMATCH}
)


class UnusableError(Exception):
    """The journal cannot be used, for a reason that setting it aside would not mend."""


class _UnfitError(Exception):
    """The file is damaged or not a journal of ours."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An opened journal.

    Attributes:
        path: the file.
        connection: a connection for writing.
        restored: what it held.
        salvaged: what became of a file with damaged points; None if there was none.
        set_aside: where a file went that could not be used, and why; None if there was none.
    """

    path: Path
    connection: sqlite3.Connection
    restored: Restored
    salvaged: Salvaged | None = None
    set_aside: tuple[Path, str] | None = None


def open_journal(data_dir: Path) -> Opened:
    """Open the journal of a data directory.

    Of a file in which only points or dead letters are damaged, the rest is salvaged. Any other that is damaged, or no
    journal, is renamed, with its companions, and a new one is made.

    Raises:
        UnusableError: if the file cannot be opened or written, or a newer exporter made it.
    """
    path = data_dir / FILE_NAME
    try:
        discard_unfinished(path)
        try:
            return Opened(path, *_open(path))
        except _UnfitError as error:
            return _open_salvaged(path, error) or _open_anew(path, error)
    except (sqlite3.Error, OSError) as error:
        msg = f"{path}: cannot be used: {error}"
        raise UnusableError(msg) from error


def _open_salvaged(path: Path, error: _UnfitError) -> Opened | None:
    if not is_damage(error.__cause__):
        return None
    try:
        salvaged = salvage(path)
        return Opened(path, *_open(path), salvaged=salvaged)
    except (SalvageError, _UnfitError):
        return None


def _open_anew(path: Path, error: _UnfitError) -> Opened:
    set_aside = _set_aside(path)
    return Opened(path, *_open(path), set_aside=(set_aside, str(error)))


def _open(path: Path) -> tuple[sqlite3.Connection, Restored]:
    connection = None
    try:
        is_new = _is_new(path)
        connection = connect(path)
        if is_new:
            create(connection)
        upgrade(connection)
        return connection, _load(connection)
    except (sqlite3.DatabaseError, ValueError, TypeError) as error:
        if connection is not None:
            connection.close()
        raise _judge(error) from error


def _is_new(path: Path) -> bool:
    """Tell whether the file has to be filled, looking at it before anything in it is changed.

    A read-only connection neither merges a write-ahead log when it is closed nor rolls an unfinished change back.
    """
    if not path.is_file():
        return True
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        application_id = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application_id == 0 and tables == 0:
        return True
    if application_id != APPLICATION_ID:
        msg = "an SQLite file of another program"
        raise _UnfitError(msg)
    if version > SCHEMA_VERSION:
        msg = (
            f"{path}: made by a newer exporter (schema {version}, this one knows {SCHEMA_VERSION}); "
            "run that one, or move the file away to start anew"
        )
        raise UnusableError(msg)
    return False


def _judge(error: Exception) -> Exception:
    """Tell damage, which is set aside, from trouble with the disk or with rights, which is not."""
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_READONLY_ROLLBACK:
        return _UnfitError("an SQLite file of another program, with an unfinished change")
    is_trouble = (code is None or code & _PRIMARY_CODE not in _DAMAGE) and not is_damage(error)
    if isinstance(error, sqlite3.Error) and is_trouble and not is_damaged_text(error):
        return error
    return _UnfitError(f"damaged: {error}")


def _load(connection: sqlite3.Connection) -> Restored:
    # All rows at once: a query that an error leaves half read keeps the file open behind `close`, while it is moved.
    rows = connection.execute("SELECT * FROM series ORDER BY series_id").fetchall()
    series = [_series_row(row) for row in consumed(rows)]
    event_ids = []
    for now_ms, blob in connection.execute("SELECT now_ms, ids FROM event_ids ORDER BY number").fetchall():
        ids = array("Q")
        ids.frombytes(blob)
        event_ids.append((int(now_ms), ids.tolist()))
    noted = read_totals(connection)
    if type(noted.last_transaction) is not int or type(noted.expired_events) is not int:
        msg = "a total is not a number"
        raise ValueError(msg)
    totals = corrected(connection, noted)
    return Restored(totals, series, event_ids, read_derived(connection), is_recounted=totals != noted)


def consumed(items: list[_Item]) -> Iterator[_Item]:
    """Give items in their order and take each out of the list, so that what is made of them takes their room."""
    items.reverse()
    while items:
        yield items.pop()


def _series_row(row: tuple[object, ...]) -> SeriesRow:
    """Check a row: SQLite reads a flipped bit in a page as a value of another type, without an error."""
    series = SeriesRow._make(row)
    if tuple(map(type, series)) != _SERIES_TYPES or series.birth not in _BIRTHS:
        msg = f"series {series.series_id!r} holds values of wrong types"
        raise ValueError(msg)
    _read_labels(series.labels)
    return series


def _set_aside(path: Path) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    target = path.with_name(f"{path.name}.set-aside-{stamp}")
    for companion in _COMPANIONS:
        beside = path.with_name(path.name + companion)
        if beside.exists():
            beside.rename(target.with_name(target.name + companion))
    path.rename(target)
    return target
