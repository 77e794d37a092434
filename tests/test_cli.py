"""The command line, as a user types it."""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner, Result

from exporter import __version__
from exporter.cli import main
from exporter.settings import SECRETS, Settings, variable
from tests.conftest import StartExporter
from tests.support.exporter import influx_settings
from tests.support.ports import free_port, wait_for
from tests.support.process import minimal_environment
from tests.test_settings import NEEDED, SECRET_NAMES, TABLE

REPOSITORY = Path(__file__).parents[1]
OPTIONS = [variable(name) for name in Settings.model_fields if name not in SECRETS]


class Outcome(NamedTuple):
    """What a command did."""

    code: int | None
    stdout: str
    stderr: str


@pytest.fixture
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the caller's settings."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("EXPORTER_", "INFLUXDB_V2_")):
            monkeypatch.delenv(name)


@pytest.fixture
def invoke(clean_environment: None) -> "Invoke":
    """Run a command in the test's process, which is quick; settings come from the test alone."""
    del clean_environment
    return Invoke()


class Invoke:
    """Runs a command."""

    def __call__(self, *arguments: str, env: Mapping[str, str] | None = None) -> Result:
        """Return its outcome."""
        return CliRunner(env=env).invoke(main, arguments)


async def run(
    directory: Path, *arguments: str, env: Mapping[str, str] | None = None, under: Sequence[str] = ()
) -> Outcome:
    """Run `python -m exporter` as a process of its own, under another command if one is given."""
    process = await asyncio.create_subprocess_exec(
        *under,
        sys.executable,
        "-m",
        "exporter",
        *arguments,
        cwd=directory,
        env=minimal_environment(PYTHONPATH=str(REPOSITORY), **(env or {})),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        stdout, stderr = await process.communicate()
    return Outcome(process.returncode, stdout.decode(), stderr.decode())


def printed(text: str) -> dict[str, str]:
    """Read what `check-config` prints."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {name: value for name, _, value in pairs}


# --- help and version -------------------------------------------------------------------------------------------------


def test_version(invoke: Invoke) -> None:
    """The version is that of the package."""
    result = invoke("--version")
    assert (0, f"capgo-exporter, version {__version__}\n") == (result.exit_code, result.stdout)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_the_commands(invoke: Invoke, flag: str) -> None:
    """A newcomer finds what can be done."""
    result = invoke(flag)
    assert 0 == result.exit_code
    assert [] == [
        word for word in ("serve", "check-config", "EXPORTER_*", ".env", "_FILE") if word not in result.stdout
    ]


@pytest.mark.parametrize("command", ["serve", "check-config"])
def test_the_help_of_a_command_names_every_setting(invoke: Invoke, command: str) -> None:
    """Every setting is there with its variable; all but secrets with their option too."""
    text = invoke(command, "--help").stdout
    assert [] == [name for name in map(variable, Settings.model_fields) if name not in text]
    options = {f"--{name.removeprefix('EXPORTER_').lower().replace('_', '-')}" for name in OPTIONS}
    own = {"--help"} | ({"--connect"} if command == "check-config" else set())
    assert options | own == {word for word in text.split() if word.startswith("--")} - {"-h,"}


# --- check-config -----------------------------------------------------------------------------------------------------


def test_check_config_prints_every_setting(invoke: Invoke) -> None:
    """Without any settings it shows the defaults."""
    result = invoke("check-config")
    assert 0 == result.exit_code
    assert [row[0] for row in TABLE] == list(printed(result.stdout))
    assert "0.0.0.0:9746" == printed(result.stdout)["EXPORTER_LISTEN"]
    assert "32MiB" == printed(result.stdout)["EXPORTER_MAX_BODY_BYTES"]
    assert "7d" == printed(result.stdout)["EXPORTER_MAX_EVENT_AGE"]
    assert "(unset)" == printed(result.stdout)["EXPORTER_INGEST_TOKEN"]


def test_check_config_reads_the_certificate(invoke: Invoke) -> None:
    """One that is not there is a wrong setting, also when it is named by options."""
    result = invoke("check-config", "--tls-certificate", "/no/cert.pem", "--tls-key", "/no/key.pem")
    problem = "EXPORTER_TLS_CERTIFICATE, EXPORTER_TLS_KEY: /no/cert.pem, /no/key.pem: No such file or directory"
    assert (2, f"error: {problem}\n") == (result.exit_code, result.stderr)


@pytest.mark.parametrize(("name", "text"), [(row[0], row[2]) for row in TABLE if row[0] in OPTIONS - NEEDED.keys()])
def test_every_option_is_read(invoke: Invoke, name: str, text: str) -> None:
    """An option does what its variable does."""
    option = f"--{name.removeprefix('EXPORTER_').lower().replace('_', '-')}"
    by_option = invoke("check-config", option, text)
    by_variable = invoke("check-config", env={name: text})
    assert (0, by_variable.stdout) == (by_option.exit_code, by_option.stdout)
    assert invoke("check-config").stdout != by_option.stdout


def test_the_output_loads_back(invoke: Invoke) -> None:
    """What is printed, put into the environment, prints the same again."""
    first = invoke("check-config", env={row[0]: row[2] for row in TABLE if row[0] in OPTIONS}).stdout
    again = {name: value for name, value in printed(first).items() if value not in {"(unset)", "***"}}
    assert first == invoke("check-config", env=again).stdout


async def test_dotenv_is_read_from_the_working_directory(tmp_path: Path) -> None:
    """The file next to the command sets what the environment does not."""
    (tmp_path / ".env").write_text("EXPORTER_MAX_APPS=7\nEXPORTER_MAX_SERIES=777\nOTHER=1\n")
    outcome = await run(tmp_path, "check-config", env={"EXPORTER_MAX_SERIES": "888"})
    assert (0, "") == (outcome.code, outcome.stderr)
    settings = printed(outcome.stdout)
    assert ("7", "888") == (settings["EXPORTER_MAX_APPS"], settings["EXPORTER_MAX_SERIES"])


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["serve", "check-config"])
async def test_mistakes_are_one_line_each(tmp_path: Path, command: str) -> None:
    """Wrong settings stop the start with exit code 2, one line each on standard error, and nothing is made."""
    env = {"EXPORTER_LISTN": "x", "EXPORTER_MAX_APPS": "many", "EXPORTER_SERIES_TTL": "soon"}
    outcome = await run(tmp_path, command, env=env)
    assert (2, "") == (outcome.code, outcome.stdout)
    assert [
        "error: EXPORTER_LISTN: unknown setting; did you mean EXPORTER_LISTEN?",
        "error: EXPORTER_MAX_APPS: 'many': input should be a valid integer, unable to parse string as an integer",
        "error: EXPORTER_SERIES_TTL: 'soon' is not a duration (15s, 5m, 12h, 30d, or a number of seconds)",
    ] == outcome.stderr.splitlines()
    assert [] == os.listdir(tmp_path)  # noqa: PTH208 -- ruff finds pathlib blocking in a coroutine


async def test_a_window_that_does_not_fit_names_its_setting(tmp_path: Path) -> None:
    """A thousand million events take 32 GiB of addresses, more than this process may have."""
    env = {"EXPORTER_DEDUPE_EVENTS": "1000000000", "EXPORTER_LISTEN": "127.0.0.1:0"}
    outcome = await run(tmp_path, "serve", env=env, under=["prlimit", f"--as={8 << 30}"])
    problem = "EXPORTER_DEDUPE_EVENTS: 1,000,000,000 are too many here: Cannot allocate memory"
    assert (2, "", f"error: {problem}\n") == outcome


@pytest.mark.parametrize(
    "arguments",
    [["serve", "--max-apps", "many"], ["serve", "--no-such-option"], ["no-such-command"], ["serve", "argument"]],
)
def test_wrong_usage_has_exit_code_2(invoke: Invoke, arguments: Sequence[str]) -> None:
    """Whatever is wrong with a command line."""
    assert 2 == invoke(*arguments).exit_code


@pytest.mark.parametrize("name", SECRET_NAMES)
@pytest.mark.parametrize("form", ["--{}=TOPSECRET", "--{} TOPSECRET"])
def test_secrets_have_no_option(invoke: Invoke, name: str, form: str) -> None:
    """Others can see a command line; and what was typed by mistake is not repeated."""
    option = name.removeprefix("EXPORTER_").lower().replace("_", "-")
    result = invoke("check-config", *form.format(option).split())
    assert 2 == result.exit_code
    assert "No such option" in result.stderr
    assert "TOPSECRET" not in result.output


@pytest.mark.parametrize(
    "env",
    [
        dict.fromkeys(SECRET_NAMES, "TOPSECRET") | {"EXPORTER_INFLUX_URL": "http://u:TOPSECRET@influx/?p=TOPSECRET"},
        {"EXPORTER_INFLUX_TOKEN": "TOPSECRET"},
        {"EXPORTER_INFLUX_URL": "u:TOPSECRET@influx"},
        {"EXPORTER_INGEST_TOKN": "TOPSECRET"},
        {"EXPORTER_INFLUX_TOKEN": "TOPSECRET", "INFLUXDB_V2_TOKEN": "TOPSECRET"},
    ],
)
def test_check_config_shows_no_secret(invoke: Invoke, env: dict[str, str]) -> None:
    """Right or wrong, no secret is printed."""
    result = invoke("check-config", env=env)
    assert result.exit_code in {0, 2}
    assert "" != result.output
    assert "TOPSECRET" not in result.output


async def test_serve_shows_no_secret(exporter_process: StartExporter) -> None:
    """Neither logs nor pages hold a token or a password, also when InfluxDB cannot be reached."""
    secrets = {
        "EXPORTER_INGEST_TOKEN": "SECRET-INGEST",
        "EXPORTER_METRICS_TOKEN": "SECRET-METRICS",
        "EXPORTER_HASH_KEY": "SECRET-KEY",
        **influx_settings(
            f"http://127.0.0.1:{free_port()}",
            token="SECRET-INFLUX",  # noqa: S106 -- of the test's own
            org="o",
            bucket="b",
        ),
    }
    exporter = await exporter_process({**secrets, "EXPORTER_LOG_LEVEL": "debug"})
    metrics = {"Authorization": "Bearer SECRET-METRICS"}
    event = {"app_id": "a", "action": "set", "custom_id": "person"}
    assert 200 == (await exporter.post(event, "/stats/SECRET-INGEST")).status
    assert 401 == (await exporter.post(event, "/stats/SECRET-WRONG")).status

    async def page() -> str:
        reply = await exporter.request("GET", "/metrics", headers=metrics)
        assert 'capgo_exporter_delivery_failing{reason="network"} 1.0' in reply.body.decode()
        return reply.body.decode()

    pages = [await wait_for(page, "the delivery to fail")]
    pages += [(await exporter.request("GET", path)).body.decode() for path in ("/", "/readyz", "/healthz", "/stats")]
    assert 0 == await exporter.terminate()
    texts = [*pages, exporter.process.stderr_path.read_text(), exporter.process.stdout_path.read_text()]
    assert [] == [text for text in texts if "SECRET-" in text]
    assert [] != exporter.logs()


async def test_serve_takes_options(exporter_process: StartExporter) -> None:
    """An option on the command line of `serve` is used."""
    exporter = await exporter_process()
    await exporter.terminate()
    exporter.process.argv += ["--stats-path", "/other"]
    await exporter.start()
    assert 200 == (await exporter.request("GET", "/other")).status
    assert 404 == (await exporter.request("GET", "/stats")).status
