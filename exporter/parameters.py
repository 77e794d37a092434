"""Types of options that several commands have: durations and URLs."""

from urllib.parse import urlsplit

import click

from exporter.units import parse_duration_seconds


class Duration(click.ParamType[float]):
    """A duration such as `15s`, `5m` or `30d`, as seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it."""
        try:
            seconds = value if isinstance(value, float) else parse_duration_seconds(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if seconds <= 0:
            self.fail(f"{value!r} is not longer than 0", param, ctx)
        return seconds


class Url(click.ParamType[str]):
    """A URL of http or https; what is wrong is said without the URL, which may hold a token."""

    name = "url"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check it."""
        try:
            parts = urlsplit(str(value))
            host = (parts.hostname or "").encode("idna")  # as name resolution does, which fails no more then
            is_fine = parts.scheme in {"http", "https"} and bool(host) and parts.port != 0
        except ValueError:
            is_fine = False
        if not is_fine:
            self.fail("not an http:// or https:// URL", param, ctx)
        return str(value)
