"""Telling damage of the file from trouble with the disk, which may pass."""

import sqlite3
from typing import Final

_PRIMARY_CODE: Final = 0xFF


class DamagedRowError(sqlite3.DatabaseError):
    """A row holds values of wrong types: SQLite reads a flipped bit so, without an error."""


def is_damage(error: BaseException | None) -> bool:
    """Tell whether an error means that pages of the file are damaged, which trying again does not mend."""
    if isinstance(error, DamagedRowError):
        return True
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & _PRIMARY_CODE == sqlite3.SQLITE_CORRUPT
