"""What InfluxDB gets of ids that may point to a person: kept, hashed or dropped."""

import hashlib
import hmac
import os
import secrets
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

_KEY_FILE: Final = "hash.key"
_DIGEST_CHARS: Final = 32
_CACHED_HASHES: Final = 65_536


class IdPolicy:
    """One rule for one kind of id."""

    def __init__(self, rule: Literal["keep", "hash", "drop"], key: bytes) -> None:
        """Set the rule.

        Args:
            rule: keep the id, replace it by its HMAC-SHA256 (the first 128 bits in hex), or drop it.
            key: the key of the HMAC.
        """
        self._rule = rule

        @lru_cache(maxsize=_CACHED_HASHES)
        def digest(value: str) -> str:
            return hmac.new(key, value.encode(), hashlib.sha256).hexdigest()[:_DIGEST_CHARS]

        self._digest = digest

    def apply(self, value: str) -> str:
        """Give what may be stored of an id; the empty text stays empty."""
        if not value or self._rule == "drop":
            return ""
        return value if self._rule == "keep" else self._digest(value)


def stored_ids(device_id: str, key: bytes | None) -> tuple[str, ...]:
    """Give every form in which a device's id may be stored: kept or hashed, whatever the rule is now.

    Args:
        device_id: the id, in upper or lower case.
        key: the key of the HMAC; None: there is none, so that no id was hashed.
    """
    plain = dict.fromkeys((device_id.lower(), device_id))
    hashed = () if key is None else (IdPolicy("hash", key).apply(device_id.lower()),)
    return (*plain, *hashed)


def read_hash_key(data_dir: Path, configured: str | None) -> bytes | None:
    """Give the HMAC key without making one; None if there is none.

    Raises:
        OSError: if there is one that cannot be read.
    """
    path = data_dir / _KEY_FILE
    return load_hash_key(data_dir, configured) if configured is not None or path.exists() else None


def load_hash_key(data_dir: Path, configured: str | None) -> bytes:
    """Give the HMAC key: the configured one, else the one kept in the data directory, which is made at the first start.

    Raises:
        OSError: if the key can be neither read nor written.
    """
    if configured is not None:
        return configured.encode()
    path = data_dir / _KEY_FILE
    if not path.exists():
        partial = path.with_suffix(".new")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(secrets.token_hex(32).encode())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    return path.read_bytes()
