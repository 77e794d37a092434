"""What the commands' options have in common: what they say of the fleet, and where it posts to."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import click
from pydantic import SecretStr

from exporter.access import token_texts
from exporter.configuration import SettingsError, load
from exporter.parameters import Duration
from exporter.simulate.scenario import BAD

EXIT_USAGE: Final = 2
NOTHING_BAD: Final = "none"
_MAX_DEVICES: Final = 100_000

_Command = TypeVar("_Command", bound=Callable[..., Any])


def fleet_options(command: _Command) -> _Command:
    """Give a command the options that say which fleet is simulated."""
    options = (
        click.option(
            "--devices",
            type=click.IntRange(1, _MAX_DEVICES),
            default=300,
            show_default=True,
            help="How many there are.",
        ),
        click.option("--seed", type=int, default=1, show_default=True, help="Of all chance: the same gives the same."),
        click.option(
            "--bad",
            type=click.Choice((*BAD, NOTHING_BAD)),
            default="update_fail",
            show_default=True,
            help="What is wrong with the release that goes wrong.",
        ),
        click.option("--app-id", default="com.example.shop", show_default=True, help="App of all devices."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def time_options(command: _Command) -> _Command:
    """Give a command the options that say how time passes for a fleet under way."""
    speed = click.option(
        "--speed",
        type=click.FloatRange(0.01, 1e6),
        default=60.0,
        show_default=True,
        help="How many times as fast days pass; a session takes its real time.",
    )
    duration = click.option(
        "--duration", type=Duration(), help="How long, like 90s or 10m; by default until SIGTERM or SIGINT."
    )
    return speed(duration(command))


def tokens() -> tuple[str, str]:
    """Read the tokens for events and for releases from where `serve` has them; empty if there is none."""
    try:
        settings = load(os.environ, dotenv=Path(".env"))
    except SettingsError as error:
        fail(*error.problems)
    return _text(settings.ingest_token), _text(settings.releases_token)


def stats_url(url: str, token: str) -> str:
    """Complete a URL as the plugins have it in `statsUrl`: with a path, and with the token as its last segment."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/") or "/stats"
    return urlunsplit(parts._replace(path=f"{path}/{quote(token, safe='')}" if token else path, fragment=""))


def releases_url(url: str) -> str:
    """Tell where releases are marked if events are posted to a URL."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, "/releases", "", ""))


def fail(*problems: str) -> NoReturn:
    """Say what is wrong with what was asked for, and exit."""
    for problem in problems:
        click.echo(f"error: {problem}", err=True)
    sys.exit(EXIT_USAGE)


def _text(secret: SecretStr | None) -> str:
    return next(iter(token_texts(secret)), "")
