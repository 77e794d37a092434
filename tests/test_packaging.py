"""What is shipped around the package: wheel, image, compose file, and the files that compose mounts."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

import exporter
from exporter import configuration, settings
from tests.support.exporter import ExporterProcess, parse_samples
from tests.support.inprocess import running

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def run(*command: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository, and give what it said."""
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environ, capture_output=True, text=True, timeout=120, check=False
    )


def assert_clean(result: subprocess.CompletedProcess[str]) -> None:
    """Fail with everything a command said unless it succeeded."""
    assert result.returncode == 0, result.stdout + result.stderr


def yaml(path: str) -> Any:
    """Read a YAML file of the repository."""
    return YAML(typ="safe", pure=True).load(ROOT / path)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build both distributions from a copy of what they are made of, so that nothing is left in the repository.

    The wheel is built from the unpacked source distribution.
    """
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, source)
    for name in ("exporter", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    dist = tmp_path_factory.mktemp("dist")
    assert_clean(run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source))
    return dist


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    """Give the built wheel."""
    (built,) = dist.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def source_distribution(dist: Path) -> Path:
    """Give the built source distribution."""
    (built,) = dist.glob("*.tar.gz")
    return built


def read(wheel: Path, suffix: str) -> str:
    """Read the one file of the wheel whose name ends so."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(suffix))
        return archive.read(name).decode()


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """The wheel holds every file of the package, type marker included, and no test."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "exporter").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    assert "exporter/py.typed" in expected
    assert expected == {name for name in names if ".dist-info/" not in name}


def test_wheel_has_the_console_script(wheel: Path) -> None:
    """Installing the wheel gives the command `capgo-exporter`, and nothing more."""
    assert "[console_scripts]\ncapgo-exporter = exporter.cli:main" == read(wheel, "/entry_points.txt").strip()


def test_wheel_has_the_version_of_the_package(wheel: Path) -> None:
    """The version is written in one place, `exporter.__version__`, and the wheel carries it."""
    assert f"\nVersion: {exporter.__version__}\n" in read(wheel, ".dist-info/METADATA")


def test_source_distribution_holds_what_the_wheel_is_made_of(source_distribution: Path) -> None:
    """The source distribution holds the package, the licence and the README, and neither tests nor documents."""
    with tarfile.open(source_distribution) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert {"pyproject.toml", "README.md", "LICENSE", "exporter/py.typed", "exporter/__init__.py"} <= names
    assert set() == {name for name in names if name.startswith(("tests", "docs"))}


async def test_distributions_run_in_a_clean_environment(source_distribution: Path, wheel: Path, tmp_path: Path) -> None:
    """Each distribution starts and counts where nothing is installed but it and what it depends on, from the index."""
    environment = tmp_path / "venv"
    assert_clean(run(sys.executable, "-m", "venv", "--without-pip", environment))
    pip = (sys.executable, "-m", "pip", "--python", environment / "bin/python", "--disable-pip-version-check")
    assert_clean(await asyncio.to_thread(run, *pip, "install", "--quiet", "--no-compile", source_distribution))
    assert_clean(run(*pip, "check"))
    await check_counting(environment / "bin/capgo-exporter", tmp_path / "source")
    assert_clean(run(*pip, "install", "--quiet", "--no-index", "--no-deps", "--force-reinstall", wheel))
    await check_counting(environment / "bin/capgo-exporter", tmp_path / "wheel")


async def check_counting(command: Path, directory: Path) -> None:
    """Run an installed exporter, without the repository's modules, and let it count an event."""
    exporter = ExporterProcess(directory)
    exporter.process.argv = [str(command), "serve"]
    del exporter.env["PYTHONPATH"]
    async with exporter:
        assert (await exporter.post([{"app_id": "com.example.clean", "action": "get"}])).status == 200
        assert 1 == sum((await exporter.counters()).values())


def test_changelog_knows_the_version() -> None:
    """The changelog has a section for the version that the package says it is."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

    assert re.search(rf"^## \[?{re.escape(exporter.__version__)}\b", changelog, re.MULTILINE)


def test_dockerfile_passes_hadolint() -> None:
    """The Dockerfile follows every rule of hadolint, with none switched off."""
    assert_clean(run(BIN / "hadolint", "Dockerfile"))
    assert "hadolint ignore" not in (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_image_gets_everything_its_build_copies() -> None:
    """Every file that the Dockerfile copies from the repository exists and is let through by .dockerignore."""
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    copied = {name for line in copies for name in line.split()}
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()

    assert copied == {line.removeprefix("!") for line in ignore if line.startswith("!")}
    assert set() == {name for name in copied if not (ROOT / name).exists()}


def test_image_health_check_is_the_exporters_own() -> None:
    """The image asks with the module that knows every kind of listener; compose leaves it at that."""
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (line,) = re.findall(r"^HEALTHCHECK .*\\\n\s+CMD (\[.*\])$", dockerfile, re.MULTILINE)

    assert ["python", "-m", "exporter.health"] == json.loads(line)
    assert "healthcheck" not in yaml("docker-compose.yml")["services"]["exporter"]


def test_compose_file_is_valid() -> None:
    """The compose file follows the compose specification's schema."""
    assert_clean(run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"))


def test_compose_mounts_exist() -> None:
    """Every path that the compose file mounts is in the repository: for a missing one Docker makes a directory."""
    volumes = [
        volume.split(":")[0]
        for service in yaml("docker-compose.yml")["services"].values()
        for volume in service.get("volumes", [])
    ]
    mounted = [volume for volume in volumes if volume.startswith("./")]

    assert mounted
    assert [] == [path for path in mounted if not (ROOT / path).exists()]


def test_compose_opens_only_the_exporter() -> None:
    """Only the exporter's port is published to the world; the consoles are bound to the loopback address."""
    services = yaml("docker-compose.yml")["services"]

    assert ["9746:9746"] == services.pop("exporter")["ports"]
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_compose_services_are_pinned_watched_and_restarted() -> None:
    """Every image has a full version, every service restarts, and has a health check of its own or of its image."""
    for name, service in yaml("docker-compose.yml")["services"].items():
        assert service["restart"] == "unless-stopped", name
        if "build" not in service:
            assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name
            assert service["healthcheck"], name


def test_compose_has_no_default_secret() -> None:
    """Every variable the compose file reads is required and named in .env.example, where it has no value."""
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    example = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    read_variables = set(re.findall(r"\$\{(\w+)", text))

    assert read_variables == set(re.findall(r"\$\{(\w+):\?", text))
    assert {f"{name}=" for name in read_variables} == {line for line in example if line and not line.startswith("#")}


async def test_compose_demo_runs(tmp_path: Path) -> None:
    """What the simulator's container is told to do works, but for the exporter's name and the time it takes."""
    service = yaml("docker-compose.yml")["services"]["simulator"]
    tokens = {"EXPORTER_RELEASES_TOKEN": "r" * 20, "EXPORTER_INGEST_TOKEN": "i" * 20}
    assert set(tokens) == set(service["environment"])
    async with ExporterProcess(tmp_path, {**tokens, "EXPORTER_METRICS_LISTEN": "127.0.0.1:0"}) as exporter:
        (listening,) = exporter.events("listening")
        addresses = {"http://exporter:9746": exporter.url, "http://exporter:9747": listening["metrics_url"]}
        arguments = [*service["command"], "--devices=5000", "--duration=3s"]  # at any time of the day some post
        for name, url in addresses.items():
            arguments = [argument.replace(name, url) for argument in arguments]
        result = await asyncio.to_thread(run, sys.executable, "-m", "exporter", *arguments, **tokens)

    assert_clean(result)
    assert re.search(r"^answers +200: \d+$", result.stdout, re.MULTILINE), result.stdout
    assert re.search(r"^releases +200: \d+$", result.stdout, re.MULTILINE), result.stdout


def test_compose_sets_only_settings_that_exist() -> None:
    """Every EXPORTER_* variable that the compose file gives to the exporter is a setting of it."""
    environment = yaml("docker-compose.yml")["services"]["exporter"]["environment"]

    assert set() == set(environment) - {settings.variable(name) for name in settings.Settings.model_fields}


def test_scrape_interval_is_the_same_on_both_sides() -> None:
    """The exporter is told the interval at which Prometheus scrapes it, and so is Grafana."""
    environment = yaml("docker-compose.yml")["services"]["exporter"]["environment"]
    (datasource,) = yaml("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    interval = yaml("prometheus/prometheus.yml")["global"]["scrape_interval"]

    assert interval == environment["EXPORTER_SCRAPE_INTERVAL"] == datasource["jsonData"]["timeInterval"]


def test_env_example_lists_every_setting_with_its_default(tmp_path: Path) -> None:
    """Uncommenting all of .env.example names every setting and changes none."""
    lines = re.findall(r"^# (EXPORTER_\w+=.*)$", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE)
    dotenv = tmp_path / ".env"
    dotenv.write_text("\n".join(lines), encoding="utf-8")

    assert [settings.variable(name) for name in settings.Settings.model_fields] == [
        line.split("=")[0] for line in lines
    ]
    assert configuration.load({}, dotenv=None) == configuration.load({}, dotenv=dotenv)


@pytest.fixture
def containers(tmp_path: Path) -> Path:
    """Lay out what the compose file mounts from the repository as each container sees it, below its service's name."""
    for name, service in yaml("docker-compose.yml")["services"].items():
        for source, path in (volume.split(":")[:2] for volume in service.get("volumes", [])):
            if source.startswith("./"):
                mounted = tmp_path / name / path.removeprefix("/")
                mounted.parent.mkdir(parents=True, exist_ok=True)
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                copy(ROOT / source, mounted)
    return tmp_path


def option(service: str, name: str) -> str:
    """Give what the compose file's command of a service has for an option."""
    (value,) = (
        part.removeprefix(f"{name}=")
        for part in yaml("docker-compose.yml")["services"][service]["command"]
        if part.startswith(f"{name}=")
    )
    return str(value)


@pytest.mark.server("promtool")
def test_prometheus_accepts_what_is_mounted(containers: Path) -> None:
    """Prometheus' own check passes on the files as they lie in its container, and finds every rule file there."""
    config = option("prometheus", "--config.file")
    result = run("promtool", "check", "config", "--lint=all", "--lint-fatal", f"{containers}/prometheus{config}")

    assert_clean(result)
    assert f"{len(list((ROOT / 'prometheus/rules').iterdir()))} rule files found" in result.stdout


@pytest.mark.server("amtool")
def test_alertmanager_accepts_what_is_mounted(containers: Path) -> None:
    """Alertmanager's own check passes on the file as it lies in its container."""
    config = option("alertmanager", "--config.file")
    assert_clean(run("amtool", "check-config", f"{containers}/alertmanager{config}"))


def test_grafana_finds_what_is_mounted(containers: Path) -> None:
    """The provider's directory holds the dashboards in Grafana's container, and the home dashboard is one of them."""
    root = containers / "grafana"
    (provider,) = yaml("grafana/provisioning/dashboards/capgo.yml")["providers"]
    home = yaml("docker-compose.yml")["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    found = sorted((root / provider["options"]["path"].removeprefix("/")).glob("*.json"))

    assert [path.name for path in sorted((ROOT / "grafana/dashboards").glob("*.json"))] == [path.name for path in found]
    assert root / home.removeprefix("/") in found
    assert {"datasources", "dashboards"} == {path.name for path in (root / "etc/grafana/provisioning").iterdir()}


def test_influxdb_maps_the_bucket_for_influxql(containers: Path, tmp_path: Path) -> None:
    """What the image runs after its set-up can be run, and maps the database that Grafana asks to the bucket."""
    (script,) = (containers / "influxdb/docker-entrypoint-initdb.d").glob("*.sh")
    (datasource,) = yaml("grafana/provisioning/datasources/influxdb.yml")["datasources"]
    environment = yaml("docker-compose.yml")["services"]["influxdb"]["environment"]
    # The command line client of InfluxDB 2.x is in no package: this one writes down what it is told.
    client = tmp_path / "bin/influx"
    client.parent.mkdir()
    client.write_text('#!/bin/sh\necho "$@"\n')
    client.chmod(0o755)
    told = run(
        script,
        PATH=f"{client.parent}:{os.environ['PATH']}",
        DOCKER_INFLUXDB_INIT_ORG=environment["DOCKER_INFLUXDB_INIT_ORG"],
        DOCKER_INFLUXDB_INIT_BUCKET=environment["DOCKER_INFLUXDB_INIT_BUCKET"],
        DOCKER_INFLUXDB_INIT_BUCKET_ID="0123456789abcdef",
    )

    assert_clean(told)
    assert os.access(ROOT / "influxdb" / script.name, os.X_OK)  # the image leaves out what is not executable
    assert (
        f"v1 dbrp create --org capgo --bucket-id 0123456789abcdef --db {datasource['jsonData']['dbName']}"
        " --rp autogen --default\n"
    ) == told.stdout


async def test_alert_rules_ask_for_metrics_that_exist() -> None:
    """Every metric of the exporter that an alert rule asks for is one that the exporter shows."""
    rules = (ROOT / "prometheus/rules/exporter.yml").read_text(encoding="utf-8")
    asked = set(re.findall(r"(?<![:\w])capgo_exporter_\w+", rules))  # behind a colon is a recording rule's name
    async with running() as server:
        shown = {sample.name for sample in parse_samples(await server.metrics())}

    assert asked
    assert set() == asked - shown


def test_grafana_provisioning_points_into_the_compose_network() -> None:
    """Every data source asks a service of the compose file, and dashboards are read from where they are mounted."""
    services = yaml("docker-compose.yml")["services"]
    hosts = {
        re.sub(r"^http://([^:]+):\d+$", r"\1", datasource["url"])
        for name in ("prometheus", "influxdb")
        for datasource in yaml(f"grafana/provisioning/datasources/{name}.yml")["datasources"]
    }
    (provider,) = yaml("grafana/provisioning/dashboards/capgo.yml")["providers"]

    assert hosts == {"prometheus", "influxdb"}
    assert hosts <= set(services)
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in services["grafana"]["volumes"]
