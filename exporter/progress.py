"""Progress: a bar on a terminal, a line now and then elsewhere; always on standard error."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

Show = Callable[[float | None, str], None]
"""Takes the share that is done, None if there is no end, and what to say about it."""

_LINE_SECONDS: Final = 10.0


@contextlib.contextmanager
def progress(name: str, file: IO[str] | None = None) -> Iterator[Show]:
    """Show how something goes on, for as long as the context is open.

    Args:
        name: of what goes on.
        file: where it is shown; by default standard error.
    """
    console = Console(file=file or sys.stderr)
    if not console.is_terminal:
        yield _Lines(name, console.file).show
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=None, text="")

        def show(share: float | None, text: str) -> None:
            if share is None:
                bar.update(task, text=text)
            else:
                bar.update(task, total=1.0, completed=share, text=text)

        yield show


class _Lines:
    """Writes a line now and then, and one when all is done."""

    def __init__(self, name: str, file: IO[str]) -> None:
        self._name = name
        self._file = file
        self._written_at = time.monotonic()
        self._is_done = False

    def show(self, share: float | None, text: str) -> None:
        now = time.monotonic()
        if self._is_done or (share != 1.0 and now - self._written_at < _LINE_SECONDS):
            return
        self._is_done = share == 1.0
        self._written_at = now
        done = "" if share is None else f" {int(share * 100)}%"
        self._file.write(f"{self._name}:{done} {text}".rstrip() + "\n")
        self._file.flush()
