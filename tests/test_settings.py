"""Settings: every one of them, from every source, and one clear line per mistake."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from exporter.configuration import SettingsError, describe, load
from exporter.settings import SECRETS, Settings, split_address, variable

DAY = 86_400.0

# Name, default, a text to set, the value it becomes.
DOWNLOAD_BUCKETS = (0.5, 2.0, 5.0, 15.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 7200.0)
LAUNCH_BUCKETS = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0, 60.0)
TABLE: list[tuple[str, Any, str, Any]] = [
    ("EXPORTER_LISTEN", "0.0.0.0:9746", "[::1]:80", "[::1]:80"),
    ("EXPORTER_METRICS_LISTEN", None, "127.0.0.1:9747", "127.0.0.1:9747"),
    ("EXPORTER_TLS_CERTIFICATE", None, "/etc/tls/cert.pem", Path("/etc/tls/cert.pem")),
    ("EXPORTER_TLS_KEY", None, "/etc/tls/key.pem", Path("/etc/tls/key.pem")),
    ("EXPORTER_STATS_PATH", "/stats", "/capgo/stats", "/capgo/stats"),
    ("EXPORTER_DATA_DIR", Path("data"), "/var/lib/exporter", Path("/var/lib/exporter")),
    ("EXPORTER_JOURNAL_MAX_BYTES", 1 << 30, "512MiB", 1 << 29),
    ("EXPORTER_JOURNAL_FULL", "drop-oldest", "reject", "reject"),
    ("EXPORTER_MAX_BODY_BYTES", 32 << 20, "8MiB", 8 << 20),
    ("EXPORTER_MAX_CONNECTIONS", 4096, "100", 100),
    ("EXPORTER_MAX_CLIENT_EVENTS_PER_SECOND", None, "50", 50),
    ("EXPORTER_MAX_APP_EVENTS_PER_SECOND", None, "5000", 5000),
    ("EXPORTER_TRUSTED_PROXIES", frozenset(), "10.0.0.0/8, fd00::/8", frozenset({"10.0.0.0/8", "fd00::/8"})),
    ("EXPORTER_MAX_EVENT_AGE", 7 * DAY, "36h", 1.5 * DAY),
    ("EXPORTER_MAX_VERSIONS_PER_APP", 100, "7", 7),
    ("EXPORTER_MAX_APPS", 50, "7", 7),
    ("EXPORTER_MAX_UNKNOWN_ACTIONS", 50, "0", 0),
    ("EXPORTER_MAX_SERIES", 200_000, "1000", 1000),
    ("EXPORTER_MAX_SKETCHES", 5000, "100", 100),
    ("EXPORTER_SERIES_TTL", 30 * DAY, "2w", 14 * DAY),
    ("EXPORTER_SCRAPE_INTERVAL", 60.0, "15", 15.0),
    ("EXPORTER_DEDUPE_EVENTS", 1_000_000, "5000", 5000),
    ("EXPORTER_ALLOWED_APPS", frozenset(), " com.a, com.b,,-unknown", frozenset({"com.a", "com.b", "-unknown"})),
    ("EXPORTER_UNLISTED_APPS", "ignore", "reject", "reject"),
    ("EXPORTER_INGEST_TOKEN", None, "s3cret-1", SecretStr("s3cret-1")),
    ("EXPORTER_METRICS_TOKEN", None, "s3cret-2", SecretStr("s3cret-2")),
    ("EXPORTER_RELEASES_TOKEN", None, "s3cret-5", SecretStr("s3cret-5")),
    ("EXPORTER_CUSTOM_ID", "hash", "drop", "drop"),
    ("EXPORTER_DEVICE_ID", "keep", "hash", "hash"),
    ("EXPORTER_ERROR_TEXT", "keep", "drop", "drop"),
    ("EXPORTER_HASH_KEY", None, "s3cret-3", SecretStr("s3cret-3")),
    ("EXPORTER_UNKNOWN_ACTIONS", "accept", "reject", "reject"),
    ("EXPORTER_LEGACY_DOWNLOAD_FAIL", "keep", "drop", "drop"),
    ("EXPORTER_DERIVED", "on", "off", "off"),
    ("EXPORTER_DOWNLOAD_BUCKETS", DOWNLOAD_BUCKETS, "1s,2m", (1.0, 120.0)),
    ("EXPORTER_LAUNCH_BUCKETS", LAUNCH_BUCKETS, " 250ms , 1", (0.25, 1.0)),
    ("EXPORTER_INFLUX_URL", None, "https://influx.example:8086/x", "https://influx.example:8086/x"),
    ("EXPORTER_INFLUX_ORG", "", "acme", "acme"),
    ("EXPORTER_INFLUX_TOKEN", None, "s3cret-4", SecretStr("s3cret-4")),
    ("EXPORTER_INFLUX_BUCKET", "capgo", "stats/autogen", "stats/autogen"),
    ("EXPORTER_INFLUX_TIMEOUT", 10.0, "250ms", 0.25),
    ("EXPORTER_LOG_FORMAT", "auto", "json", "json"),
    ("EXPORTER_LOG_LEVEL", "info", "warning", "warning"),
    ("EXPORTER_SHUTDOWN_DELAY", 0.0, "5s", 5.0),
    ("EXPORTER_SHUTDOWN_TIMEOUT", 10.0, "1.5m", 90.0),
]
SECRET_NAMES = [
    "EXPORTER_INGEST_TOKEN",
    "EXPORTER_METRICS_TOKEN",
    "EXPORTER_RELEASES_TOKEN",
    "EXPORTER_HASH_KEY",
    "EXPORTER_INFLUX_TOKEN",
]
each_setting = pytest.mark.parametrize(("name", "text", "value"), [(row[0], row[2], row[3]) for row in TABLE])
each_secret = pytest.mark.parametrize("name", SECRET_NAMES)

# What a setting cannot be set without.
NEEDED = {
    "EXPORTER_INFLUX_TOKEN": {"EXPORTER_INFLUX_URL": "http://influx:8086"},
    "EXPORTER_TLS_CERTIFICATE": {"EXPORTER_TLS_KEY": "/etc/tls/key.pem"},
    "EXPORTER_TLS_KEY": {"EXPORTER_TLS_CERTIFICATE": "/etc/tls/cert.pem"},
}


def field(name: str) -> str:
    """Give the field of a variable."""
    return name.removeprefix("EXPORTER_").lower()


def problems(
    environ: Mapping[str, str], options: Mapping[str, Any] | None = None, dotenv: Path | None = None
) -> list[str]:
    """Load settings that must be wrong, and give the lines."""
    with pytest.raises(SettingsError) as caught:
        load(environ, options, dotenv)
    return caught.value.problems


# --- every setting, from every source ---------------------------------------------------------------------------------


def test_the_table_holds_every_setting() -> None:
    """A new setting is tested here too."""
    assert [row[0] for row in TABLE] == [variable(name) for name in Settings.model_fields]


def test_the_defaults_are_those_of_the_design() -> None:
    """Nothing set gives the documented defaults."""
    assert {row[0]: row[1] for row in TABLE} == {variable(name): value for name, value in load({}, None, None)}


def test_the_secrets_are_known() -> None:
    """What is masked, has no option and may come from a file."""
    assert set(SECRET_NAMES) == {variable(name) for name in SECRETS}


@each_setting
def test_from_the_environment(name: str, text: str, value: object) -> None:
    """A variable sets it."""
    assert value == getattr(load({**NEEDED.get(name, {}), name: text}, None, None), field(name))


@each_setting
def test_from_an_option(name: str, text: str, value: object) -> None:
    """An option wins over the environment."""
    needed = NEEDED.get(name, {})
    assert value == getattr(load({**needed, name: "never read"}, {field(name): text}, None), field(name))


@each_setting
def test_from_dotenv(tmp_path: Path, name: str, text: str, value: object) -> None:
    """A line of the `.env` file sets it; what belongs to others in that file is left alone."""
    dotenv = tmp_path / ".env"
    lines = {**NEEDED.get(name, {}), name: text, "GRAFANA_PASSWORD": "x", "INFLUXDB_TOKEN": "y", "EMPTY": ""}
    dotenv.write_text("# a comment\n" + "".join(f"export {key}='{value}'\n" for key, value in lines.items()))
    assert value == getattr(load({}, None, dotenv), field(name))


@each_secret
def test_a_secret_from_a_file(tmp_path: Path, name: str) -> None:
    """A file holds it, with the newline that editors put at the end."""
    path = tmp_path / "secret"
    path.write_text("from a file\n")
    settings = load({**NEEDED.get(name, {}), f"{name}_FILE": str(path)}, None, None)
    assert "from a file" == getattr(settings, field(name)).get_secret_value()


@pytest.mark.parametrize("suffix", ["", "_FILE"])
def test_influxdbs_own_names(tmp_path: Path, suffix: str) -> None:
    """The variables of InfluxDB's client do the same as ours."""
    values = {"URL": "http://influx:8086", "ORG": "acme", "TOKEN": "s3cret", "BUCKET": "stats"}
    environ = {}
    for name, value in values.items():
        path = tmp_path / name
        path.write_text(value)
        environ[f"INFLUXDB_V2_{name}{suffix}"] = str(path) if suffix else value
    settings = load(environ, None, None)
    assert ("http://influx:8086", "acme", SecretStr("s3cret"), "stats") == (
        settings.influx_url,
        settings.influx_org,
        settings.influx_token,
        settings.influx_bucket,
    )


def test_the_order_of_the_sources(tmp_path: Path) -> None:
    """Options win over the environment, which wins over the `.env` file, under whatever name."""
    dotenv = tmp_path / ".env"
    dotenv.write_text(
        "EXPORTER_MAX_APPS=1\nEXPORTER_MAX_SERIES=101\nEXPORTER_DEDUPE_EVENTS=1001\nINFLUXDB_V2_ORG=file\n"
    )
    environ = {"EXPORTER_MAX_APPS": "2", "EXPORTER_MAX_SERIES": "102", "EXPORTER_INFLUX_ORG": "environment"}
    settings = load(environ, {"max_apps": "3", "max_series": None}, dotenv)
    assert (3, 102, 1001, "environment") == (
        settings.max_apps,
        settings.max_series,
        settings.dedupe_events,
        settings.influx_org,
    )


def test_an_empty_variable_is_unset() -> None:
    """Compose files pass on what is not set as an empty text."""
    assert Settings() == load({row[0]: "" for row in TABLE}, None, None)


def test_variables_of_others_are_ignored() -> None:
    """Only the two prefixes are ours; of InfluxDB's client we read four names."""
    assert Settings() == load(
        {"PATH": "/bin", "INFLUXDB_V2_TIMEOUT": "1", "EXPORTER": "1", "exporter_x": "1"}, None, None
    )


def test_a_missing_dotenv_is_no_mistake(tmp_path: Path) -> None:
    """Neither is a directory of that name."""
    (tmp_path / "directory").mkdir()
    assert Settings() == load({}, None, tmp_path / ".env") == load({}, None, tmp_path / "directory")


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"EXPORTER_LISTN": "x"}, "EXPORTER_LISTN: unknown setting; did you mean EXPORTER_LISTEN?"),
        ({"EXPORTER_ALLOWED_APP": "x"}, "EXPORTER_ALLOWED_APP: unknown setting; did you mean EXPORTER_ALLOWED_APPS?"),
        ({"EXPORTER_QQQ": "x"}, "EXPORTER_QQQ: unknown setting"),
        ({"EXPORTER_LISTEN_FILE": "x"}, "EXPORTER_LISTEN_FILE: unknown setting; did you mean EXPORTER_LISTEN?"),
        ({"EXPORTER_LISTEN": "9746"}, "EXPORTER_LISTEN: '9746' is not host:port, like 0.0.0.0:9746 or [::]:9746"),
        ({"EXPORTER_LISTEN": "a:b"}, "EXPORTER_LISTEN: 'a:b' is not host:port, like 0.0.0.0:9746 or [::]:9746"),
        (
            {"EXPORTER_METRICS_LISTEN": "a:65536"},
            "EXPORTER_METRICS_LISTEN: 'a:65536' is not host:port, like 0.0.0.0:9746 or [::]:9746",
        ),
        ({"EXPORTER_STATS_PATH": "stats"}, "EXPORTER_STATS_PATH: 'stats' is not a path of its own, like /stats"),
        ({"EXPORTER_STATS_PATH": "/"}, "EXPORTER_STATS_PATH: '/' is not a path of its own, like /stats"),
        (
            {"EXPORTER_STATS_PATH": "/metrics/"},
            "EXPORTER_STATS_PATH: '/metrics/' is not a path of its own, like /stats",
        ),
        ({"EXPORTER_STATS_PATH": "/{a}"}, "EXPORTER_STATS_PATH: '/{a}' is not a path of its own, like /stats"),
        ({"EXPORTER_MAX_APPS": "many"}, "EXPORTER_MAX_APPS: 'many': input should be a valid integer"),
        ({"EXPORTER_MAX_APPS": "0"}, "EXPORTER_MAX_APPS: '0': input should be greater than or equal to 1"),
        (
            {"EXPORTER_MAX_CLIENT_EVENTS_PER_SECOND": "0"},
            "EXPORTER_MAX_CLIENT_EVENTS_PER_SECOND: '0': input should be greater than or equal to 1",
        ),
        (
            {"EXPORTER_TRUSTED_PROXIES": "10.0.0.1/8"},
            "EXPORTER_TRUSTED_PROXIES: 10.0.0.1/8 has host bits set; give networks like 10.0.0.0/8,fd00::/8",
        ),
        (
            {"EXPORTER_TRUSTED_PROXIES": "10.0.0.0/8,nginx"},
            "EXPORTER_TRUSTED_PROXIES: 'nginx' does not appear to be an IPv4 or IPv6 network; give networks like",
        ),
        (
            {"EXPORTER_DEDUPE_EVENTS": "2000000000"},
            "EXPORTER_DEDUPE_EVENTS: '2000000000': input should be less than or equal to 1000000000",
        ),
        ({"EXPORTER_MAX_SERIES": "99"}, "EXPORTER_MAX_SERIES: '99': input should be greater than or equal to 100"),
        (
            {"EXPORTER_SERIES_TTL": "soon"},
            "EXPORTER_SERIES_TTL: 'soon' is not a duration (15s, 5m, 12h, 30d, or a number of seconds)",
        ),
        ({"EXPORTER_SERIES_TTL": "1s"}, "EXPORTER_SERIES_TTL: '1s': input should be greater than or equal to 60"),
        ({"EXPORTER_SCRAPE_INTERVAL": "0"}, "EXPORTER_SCRAPE_INTERVAL: '0': input should be greater than 0"),
        (
            {"EXPORTER_MAX_BODY_BYTES": "big"},
            "EXPORTER_MAX_BODY_BYTES: 'big' is not a size (64KiB, 8MiB, 1GiB, or a number of bytes)",
        ),
        ({"EXPORTER_JOURNAL_FULL": "stop"}, "EXPORTER_JOURNAL_FULL: 'stop': input should be 'drop-oldest' or 'reject'"),
        ({"EXPORTER_LOG_LEVEL": "INFO"}, "EXPORTER_LOG_LEVEL: 'INFO': input should be 'debug', 'info', 'warning' or"),
        ({"EXPORTER_INGEST_TOKEN": " , "}, "EXPORTER_INGEST_TOKEN: is empty; unset it, or give a value"),
        ({"EXPORTER_INGEST_TOKEN": " "}, "EXPORTER_INGEST_TOKEN: is empty; unset it, or give a value"),
        ({"EXPORTER_INFLUX_URL": "influx:8086"}, "EXPORTER_INFLUX_URL: not an http:// or https:// URL"),
        ({"EXPORTER_INFLUX_URL": "http://"}, "EXPORTER_INFLUX_URL: not an http:// or https:// URL"),
        ({"EXPORTER_INFLUX_URL": "http://influx:99999"}, "EXPORTER_INFLUX_URL: not an http:// or https:// URL"),
        ({"EXPORTER_INFLUX_URL": "http://[::1"}, "EXPORTER_INFLUX_URL: not an http:// or https:// URL"),
        (
            {"EXPORTER_LISTEN": "a:1", "EXPORTER_METRICS_LISTEN": "a:1"},
            "EXPORTER_METRICS_LISTEN: the same address as EXPORTER_LISTEN; unset it to serve everything on one",
        ),
        (
            {"EXPORTER_INFLUX_TOKEN": "x"},
            "EXPORTER_INFLUX_TOKEN: set without EXPORTER_INFLUX_URL; set both or none",
        ),
        (
            {"EXPORTER_INFLUX_TOKEN": "x", "EXPORTER_INFLUX_URL": "http://user:pw@influx:8086"},
            "EXPORTER_INFLUX_URL: holds credentials beside EXPORTER_INFLUX_TOKEN; keep one of the two",
        ),
        (
            {"EXPORTER_LISTEN": "unix:run/stats.sock"},
            "EXPORTER_LISTEN: 'unix:run/stats.sock' holds no absolute path, like unix:/run/capgo-exporter/stats.sock",
        ),
        (
            {"EXPORTER_LISTEN": "unix:/a", "EXPORTER_METRICS_LISTEN": "unix:/a"},
            "EXPORTER_METRICS_LISTEN: the same address as EXPORTER_LISTEN; unset it to serve everything on one",
        ),
        (
            {"EXPORTER_TLS_KEY": "/key.pem"},
            "EXPORTER_TLS_CERTIFICATE, EXPORTER_TLS_KEY: one is set without the other; set both or none",
        ),
        ({"EXPORTER_ALLOWED_APPS": " , "}, "EXPORTER_ALLOWED_APPS: ' , ' holds no name; unset it, or give names"),
        (
            {"EXPORTER_INFLUX_URL": "http://a", "INFLUXDB_V2_URL": "http://b"},
            "INFLUXDB_V2_URL: set twice, also under another name; keep one",
        ),
        (
            {"EXPORTER_HASH_KEY": "x", "EXPORTER_HASH_KEY_FILE": os.devnull},
            "EXPORTER_HASH_KEY_FILE: set twice, also under another name; keep one",
        ),
        (
            {"EXPORTER_HASH_KEY_FILE": "/no/such/file"},
            "EXPORTER_HASH_KEY_FILE: /no/such/file: No such file or directory",
        ),
        ({"EXPORTER_HASH_KEY_FILE": os.devnull}, "EXPORTER_HASH_KEY: is empty; unset it, or give a value"),
    ],
)
def test_a_mistake_is_one_line(environ: dict[str, str], expected: str) -> None:
    """It names the variable, the value where that is no secret, and the way out."""
    (problem,) = problems(environ)
    assert expected == problem[: len(expected)]
    assert [problem] == problem.splitlines()


def test_several_mistakes_are_several_lines(tmp_path: Path) -> None:
    """One start shows them all, from all sources."""
    dotenv = tmp_path / ".env"
    dotenv.write_text("EXPORTER_MAXAPPS=1\nEXPORTER_MAX_SERIES=few\n")
    environ = {"EXPORTER_LISTN": "x", "EXPORTER_LOG_LEVEL": "loud", "EXPORTER_HASH_KEY_FILE": "/no/such/file"}
    found = problems(environ, {"max_body_bytes": "big"}, dotenv)
    assert [
        "EXPORTER_HASH_KEY_FILE",
        "EXPORTER_LISTN",
        "EXPORTER_LOG_LEVEL",
        "EXPORTER_MAXAPPS",
        "EXPORTER_MAX_BODY_BYTES",
        "EXPORTER_MAX_SERIES",
    ] == sorted(line.partition(":")[0] for line in found)


def test_several_contradictions_are_several_lines() -> None:
    """Each has a line of its own."""
    environ = {"EXPORTER_LISTEN": "a:1", "EXPORTER_METRICS_LISTEN": "a:1", "EXPORTER_INFLUX_TOKEN": "x"}
    assert ["EXPORTER_METRICS_LISTEN", "EXPORTER_INFLUX_TOKEN"] == [
        line.partition(":")[0] for line in problems(environ)
    ]


def test_the_kernel_may_pick_both_ports() -> None:
    """Port 0 twice is no contradiction."""
    assert "a:0" == load({"EXPORTER_LISTEN": "a:0", "EXPORTER_METRICS_LISTEN": "a:0"}, None, None).metrics_listen


def test_a_dotenv_that_is_no_text_is_a_mistake(tmp_path: Path) -> None:
    """It is named, and what is in it is not shown."""
    dotenv = tmp_path / ".env"
    dotenv.write_bytes(b"EXPORTER_INGEST_TOKEN=\xff\xfe\n")
    (problem,) = problems({}, None, dotenv)
    assert problem.startswith(f"{dotenv}: cannot be read: ")


def test_a_working_directory_that_may_not_be_read_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever changes user in `/root` is told where there may be a file of settings."""

    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)  # root may read everything
    assert [f"{tmp_path}/.env: cannot be read: Permission denied"] == problems({}, None, tmp_path / ".env")


def test_a_secret_file_that_is_no_text_is_a_mistake(tmp_path: Path) -> None:
    """The variable and the file are named."""
    path = tmp_path / "secret"
    path.write_bytes(b"\xff\xfe")
    assert [f"EXPORTER_HASH_KEY_FILE: {path}: not UTF-8 text"] == problems({"EXPORTER_HASH_KEY_FILE": str(path)})


@pytest.mark.parametrize(
    "environ",
    [
        {"EXPORTER_INGEST_TOKN": "TOPSECRET"},
        {"EXPORTER_INFLUX_TOKEN": "TOPSECRET"},
        {"EXPORTER_INFLUX_TOKEN": "TOPSECRET", "INFLUXDB_V2_TOKEN": "TOPSECRET"},
        {"EXPORTER_INFLUX_URL": "ftp://user:TOPSECRET@influx"},
        {"EXPORTER_INFLUX_URL": "http://user:TOPSECRET@influx:port"},
        {"EXPORTER_INFLUX_URL": "http://user:TOPSECRET\u2100@influx"},
        {"EXPORTER_INFLUX_URL": "user:TOPSECRET@influx:8086"},
        {"EXPORTER_INGEST_TOKEN": "TOPSECRET", "EXPORTER_MAX_APPS": "0"},
    ],
)
def test_no_mistake_shows_a_secret(environ: dict[str, str]) -> None:
    """Neither does the representation of settings."""
    found = problems(environ)
    assert [] == [line for line in found if "TOPSECRET" in line]


def test_settings_do_not_show_secrets() -> None:
    """What a traceback or a log might print of them is masked."""
    settings = load({**dict.fromkeys(SECRET_NAMES, "TOPSECRET"), "EXPORTER_INFLUX_URL": "http://influx"}, None, None)
    assert "TOPSECRET" not in repr(settings) + str(settings) + str(dict(describe(settings)))


# --- what would be used -----------------------------------------------------------------------------------------------


def described(settings: Settings) -> dict[str, str]:
    """Give what `check-config` prints, but what is unset or masked."""
    return {name: text for name, text in describe(settings) if text not in {"(unset)", "***"}}


def test_what_is_described_loads_back() -> None:
    """Every setting that is no secret, set or not, reads back as it was."""
    environ = {row[0]: row[2] for row in TABLE if row[0] not in SECRET_NAMES}
    settings = load(environ, None, None)
    assert settings == load(described(settings), None, None)
    assert Settings() == load(described(Settings()), None, None)


@given(
    seconds=st.floats(1e-3, 1e9).map(lambda value: round(value, 6)),
    size=st.integers(1024, 1 << 45),
    names=st.frozensets(st.from_regex(r"[a-z.-]{1,10}", fullmatch=True)),
)
def test_any_value_loads_back(seconds: float, size: int, names: frozenset[str]) -> None:
    """Durations, sizes and names are written so that they read back the same."""
    settings = Settings(influx_timeout=seconds, max_body_bytes=size, allowed_apps=names)
    assert settings == load(described(settings), None, None)


def test_secrets_and_passwords_are_masked() -> None:
    """The description shows that a secret is set, and where InfluxDB is, and no more."""
    secrets = dict.fromkeys(SECRET_NAMES, "TOPSECRET")
    url = "https://influx.example:8086/path?token=TOPSECRET"
    lines = dict(describe(load({**secrets, "EXPORTER_INFLUX_URL": url}, None, None)))
    assert dict.fromkeys(SECRET_NAMES, "***") == {name: lines[name] for name in SECRET_NAMES}
    assert "https://influx.example:8086/path" == lines["EXPORTER_INFLUX_URL"]
    with_password = {"EXPORTER_INFLUX_URL": "https://user:TOPSECRET@influx.example"}
    assert "https://influx.example" == dict(describe(load(with_password, None, None)))["EXPORTER_INFLUX_URL"]


@pytest.mark.parametrize(
    ("address", "expected"),
    [("0.0.0.0:9746", ("0.0.0.0", 9746)), ("[::]:0", ("::", 0)), ("localhost:65535", ("localhost", 65535))],  # noqa: S104 -- only parsed
)
def test_split_address(address: str, expected: tuple[str, int]) -> None:
    """The brackets of an IPv6 address belong to the notation."""
    assert expected == split_address(address)


@pytest.mark.parametrize(
    "text", ["", ",", "1s,1s", "2s,1s", "0,1", "-1s,1s", "1s,x", ",".join(f"{number}s" for number in range(1, 12))]
)
def test_buckets_rise_and_are_few(text: str) -> None:
    """Bounds of buckets must be durations that rise, from above 0, and at most 10."""
    assert ["EXPORTER_LAUNCH_BUCKETS"] == [
        line.partition(":")[0] for line in problems({"EXPORTER_LAUNCH_BUCKETS": text or " "})
    ]


def test_releases_need_derived_figures() -> None:
    """A token for a path that would not be there is a contradiction."""
    lines = problems({"EXPORTER_DERIVED": "off", "EXPORTER_RELEASES_TOKEN": "t"})
    assert ["EXPORTER_RELEASES_TOKEN: set although EXPORTER_DERIVED is off; unset one of the two"] == lines
