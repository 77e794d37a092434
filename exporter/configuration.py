"""Where settings come from: options, variables `EXPORTER_*` and a `.env` file; one clear line per mistake."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import ValidationError

from exporter.settings import PREFIX, SECRETS, Settings, variable
from exporter.units import format_duration, format_size

_INFLUX_CLIENT_PREFIX: Final = "INFLUXDB_V2_"
_PREFIXES: Final = (PREFIX, _INFLUX_CLIENT_PREFIX)
_INFLUX_CLIENT_NAMES: Final = {
    f"{_INFLUX_CLIENT_PREFIX}{name}": f"influx_{name.lower()}" for name in ("URL", "ORG", "TOKEN", "BUCKET")
}


_FROM_FILES: Final = SECRETS | {"allowed_apps"}
"""What may come from a file of its own; the allow-list, because it changes while the exporter runs."""


class SettingsError(Exception):
    """The settings are wrong; `problems` holds one line per mistake."""

    def __init__(self, problems: list[str]) -> None:
        """Keep the lines, and join them for people."""
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Source:
    """Where the settings of a process come from; of these, only files can change while it runs.

    Attributes:
        environ: environment variables.
        options: values of command-line options by field name; None means not given.
        dotenv: the `.env` file, which need not exist.
    """

    environ: Mapping[str, str]
    options: Mapping[str, Any]
    dotenv: Path | None

    def load(self, *, needs_dotenv: bool = False) -> Settings:
        """Read the settings.

        Args:
            needs_dotenv: whether it is a mistake that there is no `.env` file.

        Raises:
            SettingsError: with one line per mistake.
        """
        if needs_dotenv and not self.has_dotenv():
            msg = f"{self.dotenv}: is gone; SIGHUP does without it"
            raise SettingsError([msg])
        return load(self.environ, self.options, self.dotenv)

    def has_dotenv(self) -> bool:
        """Tell whether there is a `.env` file now."""
        return self.dotenv is not None and self.dotenv.is_file()

    def files(self) -> set[Path]:
        """Name the files that are read: the `.env` file, and those that variables name."""
        named = {**_read_dotenv(self.dotenv, []), **self.environ}
        paths = {Path(value) for name, value in named.items() if name.startswith(_PREFIXES) and _is_file_variant(name)}
        return paths if self.dotenv is None else {*paths, self.dotenv}


def load(
    environ: Mapping[str, str], options: Mapping[str, Any] | None = None, dotenv: Path | None = Path(".env")
) -> Settings:
    """Read the settings: command-line options win over the environment, which wins over the `.env` file.

    Args:
        environ: environment variables.
        options: values of command-line options by field name; None means not given.
        dotenv: the `.env` file, which need not exist.

    Raises:
        SettingsError: with one line per mistake: unknown names, unreadable values, contradictions.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    for source in (_read_dotenv(dotenv, problems), environ):
        values |= _fields(source, problems)
    values |= {name: value for name, value in (options or {}).items() if value is not None}
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise SettingsError(problems + list(_explain(error, values))) from None
    if problems:
        raise SettingsError(problems)
    return settings


def _read_dotenv(path: Path | None, problems: list[str]) -> dict[str, str]:
    if path is None:
        return {}
    try:
        if not path.is_file():
            return {}
        return {name: value for name, value in dotenv_values(path).items() if value is not None}
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}")
        return {}


def _fields(source: Mapping[str, str], problems: list[str]) -> dict[str, str]:
    """Pick the settings out of one source of variables; an empty variable counts as unset."""
    values: dict[str, str] = {}
    for name, value in source.items():
        if not name.startswith(_PREFIXES) or not value:
            continue
        plain, from_file = (name.removesuffix("_FILE"), True) if _is_file_variant(name) else (name, False)
        field = _INFLUX_CLIENT_NAMES.get(plain, plain.removeprefix(PREFIX).lower())
        if field not in Settings.model_fields:
            if name.startswith(PREFIX):
                problems.append(f"{name}: unknown setting{_suggestion(field)}")
        elif field in values:
            problems.append(f"{name}: set twice, also under another name; keep one")
        elif from_file:
            _read_secret(name, Path(value), field, values, problems)
        else:
            values[field] = value
    return values


def _is_file_variant(name: str) -> bool:
    field = name.removesuffix("_FILE").removeprefix(PREFIX).lower()
    return name.endswith("_FILE") and (field in _FROM_FILES or name.removesuffix("_FILE") in _INFLUX_CLIENT_NAMES)


def _read_secret(name: str, path: Path, field: str, values: dict[str, str], problems: list[str]) -> None:
    try:
        values[field] = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        problems.append(f"{name}: {path}: not UTF-8 text")
    except (OSError, ValueError) as error:
        problems.append(f"{name}: {path}: {getattr(error, 'strerror', None) or error}")


def _suggestion(field: str) -> str:
    close = difflib.get_close_matches(field, Settings.model_fields, n=1)
    return f"; did you mean {variable(close[0])}?" if close else ""


def _explain(error: ValidationError, values: Mapping[str, Any]) -> Iterable[str]:
    for problem in error.errors(include_url=False):
        field = str(problem["loc"][0]) if problem["loc"] else ""
        message = str(problem["msg"]).removeprefix("Value error, ")
        if not field:
            yield from message.splitlines()
        elif field in SECRETS or problem["type"] == "value_error":
            yield f"{variable(field)}: {message}"
        else:
            yield f"{variable(field)}: {values[field]!r}: {message[0].lower()}{message[1:]}"


def describe(settings: Settings) -> Iterable[tuple[str, str]]:
    """List every setting as it would be used, in order; secrets are masked."""
    for name in Settings.model_fields:
        yield variable(name), render(name, getattr(settings, name))


def render(name: str, value: object) -> str:
    """Write a setting's value the way it could be set; secrets are masked, as is a password in a URL."""
    if value is None or value in {frozenset(), ""}:
        return "(unset)"
    if name in SECRETS:
        return "***"
    if name == "influx_url":
        text = mask_url(str(value))
    elif isinstance(value, float):
        text = format_duration(value)
    elif name.endswith("_bytes") and isinstance(value, int):
        text = format_size(value)
    elif isinstance(value, tuple):
        text = ",".join(format_duration(bound) for bound in value)
    elif isinstance(value, frozenset):
        text = ",".join(sorted(value))
    else:
        text = str(value)
    return text


def mask_url(url: str) -> str:
    """Give a URL without user name, password and query."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"
