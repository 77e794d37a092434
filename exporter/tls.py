"""TLS: a certificate and its key, which may be renewed while the exporter runs, and taking connections."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

from exporter.configuration import SettingsError
from exporter.settings import Settings, variable

_ACCEPTED_AT_ONCE: Final = 8  # those that make room for them close their files a few turns of the event loop later
_RETRY_SECONDS: Final = 0.1


class Tls:
    """What a listener encrypts with.

    Attributes:
        context: for the listener; connections that exist keep the certificate that they began with.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        """Read certificate and key.

        Args:
            certificate: file of the certificate and those that signed it, as PEM.
            key: file of its key, as PEM, without a password.

        Raises:
            SettingsError: if they cannot be read, or do not belong together.
        """
        self._certificate = certificate
        self._key = key
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.read()

    @classmethod
    def of(cls, settings: Settings) -> "Tls | None":
        """Read what settings name; None if they name nothing.

        Raises:
            SettingsError: if it cannot be used.
        """
        if settings.tls_certificate is None or settings.tls_key is None:
            return None
        return cls(settings.tls_certificate, settings.tls_key)

    def read(self) -> None:
        """Read both files anew; if they cannot be used, what was read before stays.

        Raises:
            SettingsError: if they cannot be used.
        """
        # First where it can do no harm: a context takes a certificate before it finds that the key is another's.
        self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        self._load(self.context)

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            # Without a password, a key that needs one is an error; OpenSSL would ask at the terminal.
            context.load_cert_chain(self._certificate, self._key, password="")
        except OSError as error:
            names = f"{variable('tls_certificate')}, {variable('tls_key')}"
            reason = error.strerror if error.filename is None and error.strerror else error
            msg = f"{names}: {self._certificate}, {self._key}: {reason}"
            raise SettingsError([msg]) from None


class TlsListener:
    """Accepts connections, and hands each over before its handshake.

    The event loop's own TLS server tells of a connection when the handshake is done. Until then it would hold a file
    that nobody counts, and that nobody can take away from it.
    """

    def __init__(self, listener: socket.socket, take: Callable[[socket.socket], None]) -> None:
        """Begin to accept.

        Args:
            listener: listens already, and does not block; it is closed with this.
            take: is given each connection.
        """
        self._listener = listener
        self._take = take
        self._retry: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Accept no more; connections that were taken stay."""
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                client, _address = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:  # no files are left, and asking again at once would take the processor besides
                self._loop.remove_reader(self._listener)
                self._retry = self._loop.call_later(_RETRY_SECONDS, self._loop.add_reader, self._listener, self._accept)
                return
            client.settimeout(0)
            self._take(client)
