"""What is replayed: a file of events as JSON lines, or of points as line protocol or JSON lines."""

import contextlib
import gzip
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple, Protocol

import msgspec

from exporter.lineprotocol import clean
from exporter.tools.points import from_json, parse
from exporter.tools.problems import UsageError

Kind = Literal["events", "points"]
STANDARD_INPUT: Final = "-"
MAX_LINE_BYTES: Final = 64 << 20
"""Longest line: an array of events, of which no exporter takes a longer one."""


class Batch(NamedTuple):
    """Some lines of a file.

    Attributes:
        kind: what they are.
        items: events as JSON, or points as line protocol.
        last_line: the number of the last line, from 1.
        share: how much of the file is read, None if nobody knows.
    """

    kind: Kind
    items: list[str]
    last_line: int
    share: float | None


class _Readable(Protocol):
    """A file of lines."""

    def readline(self, size: int, /) -> bytes:
        """Read a line, or as much of it."""


class _Point(msgspec.Struct):
    """What tells a point from an event."""

    fields: dict[str, object]
    measurement: str


def read_batches(path: str, size: int, from_line: int) -> Iterator[Batch]:
    """Read a file, in batches of about so many items; empty lines, and comments of line protocol, are left out.

    Args:
        path: the file, gzip-compressed if its name ends in `.gz`; `-` is standard input.
        size: items of a batch; a line that is an array of events stays in one.
        from_line: the number of the first line that counts, from 1.

    Raises:
        UsageError: if the file cannot be read, or a line is neither, or not of the kind of the first one.
    """
    try:
        with _open(path) as (file, share):
            yield from _batches(path, file, share, size, from_line)
    except (OSError, EOFError) as error:
        msg = f"{path}: {getattr(error, 'strerror', None) or error}"
        raise UsageError(msg) from error


@contextlib.contextmanager
def _open(path: str) -> Iterator[tuple[Iterator[bytes], Callable[[], float | None]]]:
    """Open a file; gives its lines, and what tells how much of it is read."""
    if path == STANDARD_INPUT:
        yield _lines(sys.stdin.buffer), lambda: None
        return
    with Path(path).open("rb", buffering=0) as raw:
        size = Path(path).stat().st_size
        file: _Readable = gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else io.BufferedReader(raw)
        yield _lines(file), lambda: raw.tell() / size if size else None


def _lines(file: _Readable) -> Iterator[bytes]:
    """Read line by line; one that is too long ends with what is too much, and not where the memory does."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line


def _batches(
    path: str, file: Iterator[bytes], share: Callable[[], float | None], size: int, from_line: int
) -> Iterator[Batch]:
    kind: Kind | None = None
    items: list[str] = []
    number = 0
    for number, raw in enumerate(file, 1):
        if len(raw) > MAX_LINE_BYTES:
            msg = f"{path}: line {number}: is longer than {MAX_LINE_BYTES >> 20} MiB"
            raise UsageError(msg)
        line = raw.strip()
        if number < from_line or not line or line.startswith(b"#"):
            continue
        try:
            found, read = _read(line)
        except (ValueError, msgspec.DecodeError) as error:
            msg = f"{path}: line {number}: {error}"
            raise UsageError(msg) from None
        except RecursionError:
            msg = f"{path}: line {number}: is nested too deeply"
            raise UsageError(msg) from None
        if kind is not None and found != kind:
            msg = f"{path}: line {number}: holds {found}, and those before {kind}; replay them apart"
            raise UsageError(msg)
        kind = found
        items += read
        if len(items) >= size:
            yield Batch(kind, items, number, share())
            items = []
    if items and kind is not None:
        yield Batch(kind, items, number, share())


def _read(line: bytes) -> tuple[Kind, list[str]]:
    if line.startswith(b"["):
        return "events", [bytes(raw).decode() for raw in msgspec.json.decode(line, type=list[msgspec.Raw])]
    if not line.startswith(b"{"):
        text = line.decode()
        if clean(text) != text:
            msg = "no line protocol: a control character is in it"
            raise ValueError(msg)
        parse(text)
        return "points", [text]
    try:
        msgspec.json.decode(line, type=_Point)
    except msgspec.ValidationError:
        msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        return "events", [line.decode()]
    return "points", [from_json(line)]
