"""TLS: a certificate and its key, which may be renewed while the exporter runs."""

import ssl
from pathlib import Path

from exporter.configuration import SettingsError
from exporter.settings import Settings, variable


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
