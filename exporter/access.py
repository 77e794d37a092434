"""Who may send, who may read: tokens, and the apps that may report."""

import binascii
import fnmatch
import hmac
import re
from base64 import b64decode
from collections.abc import Iterable
from typing import Final

from aiohttp import web
from pydantic import SecretStr

from exporter.events import UNKNOWN

_WILDCARDS: Final = frozenset("*?[")
_EXCLUDES: Final = "-"


def token_texts(secret: SecretStr | None) -> list[str]:
    """Give the tokens of a setting, which commas or ends of lines separate; the first is what our own commands send."""
    text = "" if secret is None else secret.get_secret_value()
    return [token for part in text.replace("\n", ",").split(",") if (token := part.strip())]


class Tokens:
    """Tokens, each of which will do: while one takes another's place, both are there."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        """Take the tokens."""
        self._tokens: list[bytes] = []
        self.replace(texts)

    def __bool__(self) -> bool:
        """Tell whether there is any."""
        return bool(self._tokens)

    def replace(self, texts: Iterable[str]) -> None:
        """Let other tokens be right from now on."""
        self._tokens = [text.encode(errors="surrogatepass") for text in texts]

    def include(self, shown: str) -> bool:
        """Tell whether a text is one of them, in a time that says neither which one nor how much of it is right."""
        # aiohttp gives bytes that are not UTF-8 as lone surrogates, which strict encoding would refuse.
        text = shown.encode(errors="surrogatepass")
        matches = [hmac.compare_digest(text, token) for token in self._tokens]
        return any(matches)


def bearer(request: web.Request) -> str:
    """Give the bearer token of a request, or an empty text."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def bearer_or_password(request: web.Request) -> str:
    """Give the bearer token of a request, or its password if it has HTTP's basic credentials; whoever the user is."""
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return bearer(request)
    try:
        return b64decode(credentials.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


class AllowList:
    """The apps that may report.

    A name may hold the wildcards `*`, `?` and `[…]` of a shell; a name after `-` is excluded, whatever else is there.
    Where only names after `-` stand, all others may report. `unknown`, which the Android worker sends, may unless it is
    excluded.

    Attributes:
        exact: the names without wildcards, for which room is kept.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        """Take the names of the setting."""
        names = frozenset(names)
        excluded = {name.removeprefix(_EXCLUDES) for name in names if name.startswith(_EXCLUDES)}
        included = {name for name in names if not name.startswith(_EXCLUDES)}
        self.exact = frozenset(name for name in included if not _WILDCARDS & set(name))
        self._allows_all = not included
        self._included = _pattern(included - self.exact)
        self._excluded = _pattern(excluded)

    def allows(self, app_id: str) -> bool:
        """Tell whether an app may report."""
        if self._excluded is not None and self._excluded.match(app_id):
            return False
        if self._allows_all or app_id in self.exact or app_id == UNKNOWN:
            return True
        return self._included is not None and self._included.match(app_id) is not None


def _pattern(names: Iterable[str]) -> re.Pattern[str] | None:
    expressions = [fnmatch.translate(name) for name in sorted(names)]
    return re.compile("|".join(expressions)) if expressions else None
