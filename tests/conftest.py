"""Fixtures of all tests: real servers, scripted ones, the exporter as a process, the clients' bodies."""

import itertools
import os
import shutil
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import pytest
from hypothesis import Phase, settings

from tests.support.exporter import ExporterProcess, influx_settings
from tests.support.fakeinflux import ScriptedInflux
from tests.support.influxdb import InfluxDB16
from tests.support.prometheus import Prometheus
from tests.support.v2proxy import V2Proxy
from tests.support.victoria import VictoriaMetrics

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell lets what it runs in the background ignore SIGINT, and every process that a test starts would too.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# --- hypothesis -------------------------------------------------------------------------------------------------------

# Deadlines measure the machine, not the code: a busy one would fail good examples.
# To explain failures every line of every run is traced before Python 3.12, which makes some tests several times slower.
PHASES: Final = tuple(phase for phase in Phase if phase is not Phase.explain)
settings.register_profile("ci", deadline=None, derandomize=False, print_blob=True, max_examples=200, phases=PHASES)
settings.register_profile("dev", deadline=None, max_examples=50, phases=PHASES)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

# --- servers that may be missing --------------------------------------------------------------------------------------

DEBIAN_PACKAGES = {
    "influxd": "influxdb",
    "influx": "influxdb-client",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
    "victoria-metrics": "victoria-metrics",
    "nginx": "nginx",
    "caddy": "caddy",
    "kubectl": "kubernetes-client",
    "openssl": "openssl",
    "node": "nodejs",
    "npm": "npm",
    "strace": "strace",
    "systemd-analyze": "systemd",
    "wrk": "wrk",
}
FIXTURE_COMMANDS = {
    "influxdb": ("influxd",),
    "v2_influxdb": ("influxd",),
    "victoria": ("victoria-metrics",),
    "prometheus_server": ("prometheus",),
}

_left_out: pytest.StashKey[dict[str, list[str]]] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        "server(*commands): needs these commands; without them it is skipped, or fails when REQUIRE_SERVERS=1",
    )
    config.stash[_left_out] = {}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose servers are missing, or fail it where they are required."""
    missing = sorted(command for command in needed_commands(item) if shutil.which(command) is None)
    if not missing:
        return
    for command in missing:
        item.config.stash[_left_out].setdefault(command, []).append(item.nodeid)
    reason = f"not on PATH: {', '.join(missing)} (Debian: apt-get install {' '.join(packages(missing))})"
    if os.environ.get("REQUIRE_SERVERS") == "1":
        pytest.fail(f"{reason}; REQUIRE_SERVERS=1", pytrace=False)
    pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say at the end what was left out and how to have it."""
    left_out = config.stash.get(_left_out, {})
    if not left_out:
        return
    terminalreporter.section("left out: servers not on PATH")
    for command, tests in sorted(left_out.items()):
        terminalreporter.line(f"{command}: {len(tests)} test(s)")
    terminalreporter.line(f"on Debian: apt-get install {' '.join(packages(left_out))}")


def needed_commands(item: pytest.Item) -> set[str]:
    """Return the commands a test needs, by its marker and by its fixtures."""
    marked = {command for marker in item.iter_markers("server") for command in marker.args}
    fixtures = getattr(item, "fixturenames", ())
    return marked.union(*(FIXTURE_COMMANDS.get(name, ()) for name in fixtures))


def packages(commands: Sequence[str] | Mapping[str, object]) -> list[str]:
    """Return the Debian packages that have the commands."""
    return sorted({DEBIAN_PACKAGES.get(command, command) for command in commands})


# --- InfluxDB and its relatives ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class V2InfluxDB:
    """A real InfluxDB behind the 2.x write endpoint: what a client needs, and both servers."""

    url: str
    token: str
    org: str
    bucket: str
    server: InfluxDB16
    proxy: V2Proxy

    @property
    def settings(self) -> dict[str, str]:
        """The exporter's settings for writing here."""
        return influx_settings(self.url, token=self.token, org=self.org, bucket=self.bucket)


@pytest.fixture
async def influxdb(tmp_path: Path) -> AsyncIterator[InfluxDB16]:
    """A running InfluxDB 1.6 with an empty database that keeps everything."""
    async with InfluxDB16(tmp_path / "influxdb") as server:
        yield server


@pytest.fixture
async def v2_influxdb(influxdb: InfluxDB16) -> AsyncIterator[V2InfluxDB]:
    """The running InfluxDB 1.6 behind `/api/v2/write`; every body must be one gzip member."""
    token = "test-token"  # noqa: S105 -- a token of the test's own
    async with V2Proxy(influxdb.url, token=token) as proxy:
        yield V2InfluxDB(proxy.url, token, "test-org", influxdb.database, influxdb, proxy)
        assert proxy.gzip_errors == []


@pytest.fixture
async def scripted_influx() -> AsyncIterator[ScriptedInflux]:
    """A running InfluxDB that does what the test says; every body must be one gzip member."""
    async with ScriptedInflux() as server:
        yield server
        assert server.gzip_errors == []


@pytest.fixture
async def victoria(tmp_path: Path) -> AsyncIterator[VictoriaMetrics]:
    """A running, empty VictoriaMetrics."""
    async with VictoriaMetrics(tmp_path / "victoria") as server:
        yield server


# --- Prometheus and the exporter --------------------------------------------------------------------------------------


class StartPrometheus(Protocol):
    """Starts a Prometheus that scrapes the targets; see `Prometheus` for the options."""

    async def __call__(
        self,
        targets: Sequence[str],
        *,
        scrape_interval: str = "1s",
        external_labels: Mapping[str, str] | None = None,
        rule_files: Sequence[Path] = (),
    ) -> Prometheus:
        """Return it running."""
        ...


class StartExporter(Protocol):
    """Starts an exporter with these settings; see `ExporterProcess` for the options."""

    async def __call__(self, env: Mapping[str, str] | None = None, *, listen: str = "127.0.0.1:0") -> ExporterProcess:
        """Return it running, with a data directory of its own."""
        ...


@pytest.fixture
async def prometheus_server(tmp_path: Path) -> AsyncIterator[StartPrometheus]:
    """Starts Prometheus servers, and stops them all at the end."""
    async with AsyncExitStack() as stack:
        directories = (tmp_path / f"prometheus-{number}" for number in itertools.count(1))

        async def start(
            targets: Sequence[str],
            *,
            scrape_interval: str = "1s",
            external_labels: Mapping[str, str] | None = None,
            rule_files: Sequence[Path] = (),
        ) -> Prometheus:
            server = Prometheus(
                next(directories),
                targets,
                scrape_interval=scrape_interval,
                external_labels=external_labels,
                rule_files=rule_files,
            )
            return await stack.enter_async_context(server)

        yield start


@pytest.fixture
async def exporter_process(tmp_path: Path) -> AsyncIterator[StartExporter]:
    """Starts exporters, and stops them all at the end."""
    async with AsyncExitStack() as stack:
        directories = (tmp_path / f"exporter-{number}" for number in itertools.count(1))

        async def start(env: Mapping[str, str] | None = None, *, listen: str = "127.0.0.1:0") -> ExporterProcess:
            return await stack.enter_async_context(ExporterProcess(next(directories), env, listen=listen))

        yield start


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def samples() -> Mapping[str, bytes]:
    """The bodies as clients send them, by file name without the ending (see `tests/samples`)."""
    return {path.stem: path.read_bytes() for path in sorted((Path(__file__).parent / "samples").glob("*.json"))}
