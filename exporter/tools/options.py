"""What the commands have in common: their options, how they read settings, and how they end."""

import contextlib
import functools
import io
import os
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from exporter.configuration import SettingsError, load
from exporter.settings import Settings, variable
from exporter.tools.problems import DataError, ToolError, UsageError

_Command = TypeVar("_Command", bound=Callable[..., Any])
_INFLUX = ("influx_url", "influx_org", "influx_bucket", "influx_timeout")


def data_option(command: _Command) -> _Command:
    """Give a command the option that names the data directory."""
    return _option("data_dir")(command)


def influx_options(command: _Command) -> _Command:
    """Give a command the options that name InfluxDB; its token is a secret, and has none."""
    for name in reversed(_INFLUX):
        command = _option(name)(command)
    return command


def _option(name: str) -> Callable[[_Command], _Command]:
    help_text = f"{Settings.model_fields[name].description} [{variable(name)}]"
    return click.option(f"--{name.replace('_', '-')}", name, metavar="VALUE", help=help_text)


def read_settings(**options: str | None) -> Settings:
    """Read the settings as `serve` does.

    Raises:
        UsageError: with one line per mistake.
    """
    try:
        return load(os.environ, options, Path(".env"))
    except SettingsError as error:
        raise UsageError("\n".join(error.problems)) from error


def ending(command: _Command) -> _Command:
    """End a command that cannot go on with a line per mistake and its exit code, whatever it was writing to."""

    @functools.wraps(command)
    def wrapped(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 -- whatever the command takes
        _write_any_text()
        try:
            result = command(*arguments, **options)
            sys.stdout.flush()  # at the end of the process it would be too late to say what is wrong
        except BrokenPipeError:
            raise  # nobody reads on; click ends the command in silence
        except ToolError as error:
            _fail(error, error.code)
        except OSError as error:
            _drop_output()
            _fail(error, DataError.code)
        return result

    return wrapped  # type: ignore[return-value]  # it takes and gives what the command does


def _fail(error: Exception, code: int) -> NoReturn:
    for line in str(error).splitlines():
        click.echo(f"error: {line}", err=True)
    sys.exit(code)


def _drop_output() -> None:
    """Forget what could not be written; Python would try once more when the process ends, and take its exit code."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write_any_text() -> None:
    """Let no character of a device stop a command: files and pipes get UTF-8, a terminal what it can show."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        if sys.stdout.isatty():
            sys.stdout.reconfigure(errors="backslashreplace")
        else:
            sys.stdout.reconfigure(encoding="utf-8")


def show_time(milliseconds: int) -> str:
    """Write a moment given in milliseconds since 1970, in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def show_size(size_bytes: int) -> str:
    """Write a size in a unit that is easy to read."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:  # noqa: PLR2004 -- each unit is so many of the one before
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def show_table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Write rows of texts in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
