"""Asking a running exporter how it is, for containers and probes: wherever it listens, with TLS or without.

`python -m exporter.health` imports next to nothing; `capgo-exporter health` does the same, and takes a second of CPU
time to start, which is much for what is asked every few seconds.
"""

import http.client
import os
import socket
import ssl
import sys
from pathlib import Path
from typing import Final

from exporter.configuration import SettingsError, Source
from exporter.settings import Settings, split_address, unix_path

EXIT_UNWELL: Final = 1
EXIT_SETTINGS: Final = 2
TIMEOUT_SECONDS: Final = 4.0
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 -- what others listen on
_BODY_BYTES: Final = 10_000


def ask(settings: Settings, path: str) -> tuple[bool, str]:
    """Ask the exporter that runs with some settings, and tell whether it is well, and what it answered.

    Args:
        settings: say where it listens.
        path: `/healthz` or `/readyz`.
    """
    address = settings.metrics_listen or settings.listen
    try:
        connection = _connection(address, has_tls=settings.tls_certificate is not None)
        try:
            connection.request("GET", path)
            reply = connection.getresponse()
            return reply.status == http.HTTPStatus.OK, reply.read(_BODY_BYTES).decode(errors="replace").strip()
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as error:
        return False, f"{address}: {str(error) or type(error).__name__}"


def _connection(address: str, *, has_tls: bool) -> http.client.HTTPConnection:
    path = unix_path(address)
    if path is not None:
        return _UnixConnection(path)
    host, port = split_address(address)
    host = _EVERYWHERE.get(host, host)
    if not has_tls:
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    # Nothing secret is said, and the name in the certificate is not this address: who answers here is the exporter. A
    # certificate that has run out is no reason to restart it.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_SECONDS, context=context)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP to a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_SECONDS)
        self.sock.connect(str(self._path))


def main() -> int:
    """Ask the exporter whose settings stand in the environment and in `.env`, and give the exit code."""
    try:
        settings = Source(os.environ, {}, Path(".env")).load()
    except SettingsError as error:
        sys.stderr.write("".join(f"error: {problem}\n" for problem in error.problems))
        return EXIT_SETTINGS
    is_well, answer = ask(settings, "/healthz")
    (sys.stdout if is_well else sys.stderr).write(f"{answer}\n")
    return 0 if is_well else EXIT_UNWELL


if __name__ == "__main__":
    sys.exit(main())
