"""What ends a command: a message for people, and an exit code for scripts."""

from typing import ClassVar


class ToolError(Exception):
    """A command cannot go on.

    Attributes:
        code: the exit code.
    """

    code: ClassVar[int] = 1


class UsageError(ToolError):
    """A setting or an argument is wrong."""

    code = 2


class DataError(ToolError):
    """The data directory or the journal cannot be used."""

    code = 4


class RemoteError(ToolError):
    """A server cannot be reached, or refuses."""

    code = 5
