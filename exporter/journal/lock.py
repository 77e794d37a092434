"""The lock that keeps a second exporter off a data directory."""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self


class LockedError(Exception):
    """Another process uses the data directory."""


class DirectoryLock:
    """Holds a data directory for this process; the system lets go of it when the process ends, however it ends."""

    def __init__(self, data_dir: Path) -> None:
        """Take the lock.

        Raises:
            LockedError: if another process holds it.
            OSError: if the lock file cannot be made.
        """
        self._file = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            msg = f"{data_dir}: in use by another exporter; stop it, or give this one another EXPORTER_DATA_DIR"
            raise LockedError(msg) from None

    def __enter__(self) -> Self:
        """Hold the lock, which is taken already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the lock."""
        os.close(self._file)
