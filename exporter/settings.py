"""Settings: their names, defaults, bounds and meanings."""

from ipaddress import ip_network
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from exporter.units import parse_duration_seconds, parse_size_bytes

PREFIX: Final = "EXPORTER_"
_UNIX: Final = "unix:"
MAX_BUCKETS: Final = 10
"""Each bucket is a series for each app, platform and version."""


def _duration(value: object) -> object:
    return parse_duration_seconds(value) if isinstance(value, str) else value


def _size(value: object) -> object:
    return parse_size_bytes(value) if isinstance(value, str) else value


def _names(value: object) -> object:
    if not isinstance(value, str):
        return value
    names = [name for part in value.replace("\n", ",").split(",") if (name := part.strip())]
    if value and not names:
        msg = f"{value!r} holds no name; unset it, or give names"
        raise ValueError(msg)
    return names


def _buckets(value: object) -> object:
    bounds = tuple(parse_duration_seconds(part) for part in value.split(",")) if isinstance(value, str) else value
    if not isinstance(bounds, tuple) or not 0 < len(bounds) <= MAX_BUCKETS:
        msg = f"{value!r} does not hold 1 to {MAX_BUCKETS} durations, like 1s,10s,2m"
        raise ValueError(msg)
    if bounds[0] <= 0 or any(low >= high for low, high in pairwise(bounds)):
        msg = f"{value!r} does not rise from bound to bound"
        raise ValueError(msg)
    return bounds


Duration = Annotated[float, BeforeValidator(_duration)]
Size = Annotated[int, BeforeValidator(_size)]
Names = Annotated[frozenset[str], BeforeValidator(_names)]
Buckets = Annotated[tuple[float, ...], BeforeValidator(_buckets)]
Privacy = Literal["keep", "hash", "drop"]


class Settings(BaseModel):
    """All settings of `capgo-exporter serve`; durations are seconds, sizes are bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    listen: str = Field(
        "0.0.0.0:9746",
        description="Address and port that serve everything, or `unix:/path`; port 0 lets the system choose.",
    )
    metrics_listen: str | None = Field(
        None, description="A second address, or `unix:/path`, that takes everything but the stats path off the first."
    )
    tls_certificate: Path | None = Field(
        None, description="Certificate, with its chain, for TLS on all addresses that are not Unix sockets (PEM)."
    )
    tls_key: Path | None = Field(None, description="Key of the certificate, without a password (PEM).")
    stats_path: str = Field("/stats", description="Path that devices post to.")
    data_dir: Path = Field(Path("data"), description="Directory of the journal and the generated hash key.")
    journal_max_bytes: Size = Field(
        1 << 30, ge=1 << 16, description="Largest size of the points that wait for InfluxDB in the journal."
    )
    journal_full: Literal["drop-oldest", "reject"] = Field(
        "drop-oldest",
        description="What a full journal does: drop the oldest points, or refuse new events with 503.",
    )
    max_body_bytes: Size = Field(32 << 20, ge=1024, description="Largest body of a POST, after decompression.")
    max_connections: int = Field(
        4096, ge=1, description="Open connections of a listener; one more closes the one that is idle longest."
    )
    max_client_events_per_second: int | None = Field(
        None,
        ge=1,
        description="Events a second from one client address, on average; more is answered 503. Unset: no limit.",
    )
    max_app_events_per_second: int | None = Field(
        None, ge=1, description="Events a second of one app, on average; more is answered 503. Unset: no limit."
    )
    trusted_proxies: Names = Field(
        frozenset(),
        description="Networks (CIDR), separated by commas, of proxies whose `X-Forwarded-For` names the client.",
    )
    max_event_age: Duration = Field(
        7 * 86400.0,
        gt=0,
        description="Oldest device time that is believed; must be shorter than the bucket's retention.",
    )
    max_versions_per_app: int = Field(100, ge=1, description="Versions of an app that get labels of their own.")
    max_apps: int = Field(50, ge=1, description="Apps that get labels of their own; allowed apps are reserved on top.")
    max_unknown_actions: int = Field(50, ge=0, description="Unknown actions that get labels of their own.")
    max_series: int = Field(
        200_000, ge=100, description="Series of `capgo_stats_events_total` in all, and as many of derived figures."
    )
    max_sketches: int = Field(
        5000, ge=100, description="Daily sketches of distinct devices in all; each takes 4 KiB at most."
    )
    series_ttl: Duration = Field(30 * 86400.0, ge=60, description="A series without an event for so long is expired.")
    scrape_interval: Duration = Field(
        60.0, gt=0, description="The longest scrape interval of all Prometheus servers that scrape this exporter."
    )
    dedupe_events: int = Field(
        1_000_000, ge=1000, le=1_000_000_000, description="Events remembered, at least, to recognise re-sent ones."
    )
    allowed_apps: Names = Field(
        frozenset(),
        description=(
            "App ids that may report, separated by commas, with wildcards like `com.example.*`; unset: all. "
            "`-name` excludes, also `-unknown`."
        ),
    )
    unlisted_apps: Literal["ignore", "reject"] = Field(
        "ignore",
        description="What events of other apps are answered: 200, and nothing is stored; or 403.",
    )
    ingest_token: SecretStr | None = Field(
        None,
        description="Tokens, of which devices must send one: last path segment, `?token=` or bearer; commas between.",
    )
    metrics_token: SecretStr | None = Field(
        None, description="Tokens of which `/metrics` demands one, as bearer token or as password of any user."
    )
    releases_token: SecretStr | None = Field(
        None, description="Tokens of which `POST /releases` demands one, as bearer token; unset: there is no such path."
    )
    custom_id: Privacy = Field("hash", description="What InfluxDB gets of a device's custom id.")
    device_id: Privacy = Field("keep", description="What InfluxDB gets of the random install id.")
    error_text: Literal["keep", "drop"] = Field(
        "keep",
        description="What InfluxDB gets of errors' texts: `message`; metadata `message`, `source`, `href`, `stack`.",
    )
    hash_key: SecretStr | None = Field(
        None, description="Key for `hash`; unset: made once, kept in the data directory."
    )
    unknown_actions: Literal["accept", "reject"] = Field(
        "accept", description="Whether actions that the catalogue does not know are counted."
    )
    legacy_download_fail: Literal["keep", "drop"] = Field(
        "keep", description="Whether the false `download_fail` of old plugins are counted."
    )
    derived: Literal["on", "off"] = Field(
        "on", description="Whether figures are derived: installs, failures, durations, devices, releases."
    )
    download_buckets: Buckets = Field(
        (0.5, 2.0, 5.0, 15.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 7200.0),
        description="Upper bounds of the buckets of downloads' durations, at most 10.",
    )
    launch_buckets: Buckets = Field(
        (0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0, 60.0),
        description="Upper bounds of the buckets of launches' and page loads' durations, at most 10.",
    )
    influx_url: str | None = Field(None, description="InfluxDB's URL; unset: points wait in the journal.")
    influx_org: str = Field("", description="InfluxDB's organisation.")
    influx_token: SecretStr | None = Field(None, description="InfluxDB's token.")
    influx_bucket: str = Field("capgo", description="InfluxDB's bucket (1.x: database, or `database/policy`).")
    influx_timeout: Duration = Field(10.0, gt=0, description="Longest wait for InfluxDB's answer to one write.")
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="Log lines for people or as JSON; auto: for people on a terminal."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severity that is logged."
    )
    shutdown_delay: Duration = Field(
        0.0,
        ge=0,
        description="How long, on SIGTERM, `/readyz` says 503 and events are still taken: until proxies have noticed.",
    )
    shutdown_timeout: Duration = Field(
        10.0, gt=0, description="Longest wait for requests under way, and then for the last delivery, on SIGTERM."
    )

    @field_validator("listen", "metrics_listen")
    @classmethod
    def _check_address(cls, value: str | None) -> str | None:
        if value is not None and unix_path(value) is None:
            split_address(value)
        return value

    @field_validator("stats_path")
    @classmethod
    def _check_path(cls, value: str) -> str:
        path = value.rstrip("/")
        if not path.startswith("/") or any(char in path for char in "{}?# ") or path in _RESERVED_PATHS:
            msg = f"{value!r} is not a path of its own, like /stats"
            raise ValueError(msg)
        return path

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, value: frozenset[str]) -> frozenset[str]:
        for text in sorted(value):
            try:
                ip_network(text)
            except ValueError as error:
                msg = f"{error}; give networks like 10.0.0.0/8,fd00::/8"
                raise ValueError(msg) from None
        return value

    @field_validator("influx_url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is not None and not _is_http_url(value):
            msg = "not an http:// or https:// URL"  # The value stays out: a URL may hold a password.
            raise ValueError(msg)
        return value

    @field_validator("ingest_token", "metrics_token", "releases_token", "hash_key", "influx_token")
    @classmethod
    def _check_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().strip(", \t\r\n"):
            msg = "is empty; unset it, or give a value"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _check_together(self) -> "Settings":
        problems = []
        if self.metrics_listen is not None and self.metrics_listen == self.listen and not self.listen.endswith(":0"):
            problems.append(
                "EXPORTER_METRICS_LISTEN: the same address as EXPORTER_LISTEN; unset it to serve everything on one"
            )
        if (self.tls_certificate is None) != (self.tls_key is None):
            problems.append(
                "EXPORTER_TLS_CERTIFICATE, EXPORTER_TLS_KEY: one is set without the other; set both or none"
            )
        if self.influx_url is None and self.influx_token is not None:
            problems.append("EXPORTER_INFLUX_TOKEN: set without EXPORTER_INFLUX_URL; set both or none")
        if self.influx_url is not None and self.influx_token is not None and "@" in urlsplit(self.influx_url).netloc:
            problems.append("EXPORTER_INFLUX_URL: holds credentials beside EXPORTER_INFLUX_TOKEN; keep one of the two")
        if self.derived == "off" and self.releases_token is not None:
            problems.append("EXPORTER_RELEASES_TOKEN: set although EXPORTER_DERIVED is off; unset one of the two")
        if problems:
            raise ValueError("\n".join(problems))
        return self


_RESERVED_PATHS: Final = frozenset({"", "/metrics", "/healthz", "/readyz", "/releases"})
SECRETS: Final = frozenset(
    name for name, field in Settings.model_fields.items() if field.annotation in {SecretStr, SecretStr | None}
)


def _is_http_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # Its message may quote the password.
        return False


def unix_path(address: str) -> Path | None:
    """Give the path of a Unix socket, `unix:/path`; None if the address is none.

    Raises:
        ValueError: if the path is not absolute.
    """
    if not address.startswith(_UNIX):
        return None
    path = Path(address.removeprefix(_UNIX))
    if not path.is_absolute():
        msg = f"{address!r} holds no absolute path, like unix:/run/capgo-exporter/stats.sock"
        raise ValueError(msg)
    return path


def split_address(address: str) -> tuple[str, int]:
    """Split `host:port` or `[v6]:port`.

    Raises:
        ValueError: if it is not an address with a port.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:  # noqa: PLR2004 -- the largest port
        msg = f"{address!r} is not host:port, like 0.0.0.0:9746 or [::]:9746"
        raise ValueError(msg)
    return host.removeprefix("[").removesuffix("]"), int(port)


def variable(field: str) -> str:
    """Give the environment variable of a setting."""
    return PREFIX + field.upper()
