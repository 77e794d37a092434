"""The command line: `capgo-exporter serve`, `check-config`, `simulate`, and the operator's commands."""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import uvloop

from exporter import __version__, logs
from exporter.configuration import SettingsError, Source, describe, render
from exporter.health import EXIT_UNWELL, ask
from exporter.journal.lock import LockedError
from exporter.journal.opening import UnusableError
from exporter.server import ListenError, serve
from exporter.settings import SECRETS, Settings, variable
from exporter.tls import Tls
from exporter.tools.connection import report_connection
from exporter.tools.forget import forget
from exporter.tools.journal import journal
from exporter.tools.letters import dead_letters
from exporter.tools.replay import replay

EXIT_SETTINGS: Final = 2
EXIT_LISTEN: Final = 3
EXIT_DATA: Final = 4
EXIT_REMOTE: Final = 5

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _setting_options(command: _Command) -> _Command:
    """Give a command one option for each setting; secrets have none, because other users can see a command line."""
    for name, field in reversed(Settings.model_fields.items()):
        if name in SECRETS:
            continue
        default = render(name, field.default)
        command = click.option(
            f"--{name.replace('_', '-')}",
            name,
            metavar="VALUE",
            help=f"{field.description} [{variable(name)}; default: {default}]",
        )(command)
    return command


def _secrets_help() -> str:
    """Name the settings that have no option, one a line; click leaves the lines after a backspace as they are."""
    lines = [f"  {variable(name)}: {Settings.model_fields[name].description}" for name in sorted(SECRETS)]
    return "\n".join(("\b", "Secrets have no option; set VARIABLE, or VARIABLE_FILE to the path of a file:", *lines))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="capgo-exporter")
def main() -> None:
    """Turn the statistics of Capgo live updates into Prometheus counters and InfluxDB points.

    Settings come from options, from environment variables EXPORTER_*, and from a file .env in the working directory, in
    this order of precedence. Secrets come from variables only, or from files named by variables that end in _FILE.
    """


@main.command("serve", epilog=_secrets_help())
@_setting_options
def serve_command(**options: str | None) -> None:
    """Run the exporter until SIGTERM or SIGINT; on SIGHUP, or when one of their files changes, settings are read anew.

    Exit codes: 0 stopped as asked, 2 wrong settings, 3 an address cannot be listened on, 4 the data directory or the
    journal cannot be used, 130 ended by a second signal.
    """
    source = Source(os.environ, options, Path(".env"))
    settings = _load(source)
    logs.configure(settings.log_format, settings.log_level)
    try:
        uvloop.run(serve(settings, source))
    except SettingsError as error:
        _fail(str(error), EXIT_SETTINGS)
    except ListenError as error:
        _fail(str(error), EXIT_LISTEN)
    except (LockedError, UnusableError) as error:
        _fail(str(error), EXIT_DATA)
    except OSError as error:
        _fail(f"EXPORTER_DATA_DIR: {error.filename or settings.data_dir}: {error.strerror or error}", EXIT_DATA)


@main.command("check-config", epilog=_secrets_help())
@click.option("--connect", is_flag=True, help="Try InfluxDB, too: write, read and delete a test point.")
@_setting_options
def check_config_command(*, connect: bool, **options: str | None) -> None:
    """Check the settings and say what would be used, secrets masked.

    Exit codes: 0 the settings are right, 2 they are not, 5 InfluxDB cannot be used.
    """
    settings = _load(Source(os.environ, options, Path(".env")))
    for name, value in describe(settings):
        click.echo(f"{name}={value}")
    try:
        Tls.of(settings)
    except SettingsError as error:
        _fail(str(error), EXIT_SETTINGS)
    if not connect:
        return
    if settings.influx_url is None:
        _fail("EXPORTER_INFLUX_URL: not set, so there is nothing to connect to", EXIT_SETTINGS)
    if not asyncio.run(report_connection(settings, lambda line: click.echo(line, err=True))):
        sys.exit(EXIT_REMOTE)


@main.command("health")
@click.option("--ready", is_flag=True, help="Ask whether it can take events now, /readyz, instead of /healthz.")
@_setting_options
def health_command(*, ready: bool, **options: str | None) -> None:
    """Ask the exporter that runs with these settings how it is: over TCP, TLS or a Unix socket.

    `python -m exporter.health` asks /healthz in a sixth of the CPU time, which is better for probes.

    Exit codes: 0 it is well, 1 it is not, or cannot be reached, 2 wrong settings.
    """
    is_well, answer = ask(_load(Source(os.environ, options, Path(".env"))), "/readyz" if ready else "/healthz")
    click.echo(answer, err=not is_well)
    sys.exit(0 if is_well else EXIT_UNWELL)


@main.command(
    "simulate",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def simulate_command(context: click.Context, arguments: tuple[str, ...]) -> None:
    """Simulate a fleet of devices: the demo, and data to try dashboards on."""
    from exporter.simulate.command import simulate  # noqa: PLC0415 -- the other commands start faster without it

    simulate.main(list(arguments), prog_name=context.command_path)


for _command in (journal, dead_letters, replay, forget):
    main.add_command(_command)


def _load(source: Source) -> Settings:
    try:
        return source.load()
    except SettingsError as error:
        for problem in error.problems:
            click.echo(f"error: {problem}", err=True)
        sys.exit(EXIT_SETTINGS)


def _fail(message: str, code: int) -> None:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)
