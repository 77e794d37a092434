"""How an exporter is asked how it is: by the image's health check and by the command, wherever it listens."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import StartExporter
from tests.support.exporter import ExporterProcess
from tests.support.ports import free_port, wait_for
from tests.support.process import minimal_environment
from tests.support.proxies import Certificate

ROOT = Path(__file__).resolve().parent.parent
PROBE = ("-m", "exporter.health")
COMMAND = ("-m", "exporter", "health")


def run(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python beside an exporter, with its environment."""
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, check=False)


async def running(start: StartExporter, kind: str, directory: Path) -> ExporterProcess:
    """Start an exporter on a kind of listener."""
    port = free_port()
    if kind == "tls":
        certificate = Certificate(directory)
        env = {"EXPORTER_TLS_CERTIFICATE": str(certificate.path), "EXPORTER_TLS_KEY": str(certificate.key_path)}
        return await start(env, listen=f"127.0.0.1:{port}")
    if kind == "unix":
        return await start(listen=f"unix:{directory}/stats.sock")
    if kind == "second":
        return await start({"EXPORTER_METRICS_LISTEN": f"unix:{directory}/metrics.sock"})
    return await start(listen=f"{kind}:{port}")


@pytest.mark.server("openssl")
@pytest.mark.parametrize("kind", ["0.0.0.0", "tls", "unix", "second"])  # noqa: S104 -- the default
async def test_the_probe_finds_every_listener(exporter_process: StartExporter, kind: str, tmp_path: Path) -> None:
    """It succeeds while the exporter runs, also with a certificate that nobody trusts, and fails when it is gone."""
    exporter = await running(exporter_process, kind, tmp_path)
    well = run(exporter.env, *PROBE)
    assert (0, '{"status": "ok", "ended_tasks": []}\n', "") == (well.returncode, well.stdout, well.stderr)
    await exporter.kill9()
    gone = run(exporter.env, *PROBE)
    assert (1, "") == (gone.returncode, gone.stdout)
    assert gone.stderr.startswith(exporter.env.get("EXPORTER_METRICS_LISTEN", exporter.env["EXPORTER_LISTEN"]))


async def test_the_command_tells_health_from_readiness(exporter_process: StartExporter) -> None:
    """An exporter that is about to stop is well, and not ready; an option says where it listens, as for `serve`."""
    listen = f"127.0.0.1:{free_port()}"
    exporter = await exporter_process({"EXPORTER_SHUTDOWN_DELAY": "600s"}, listen=listen)
    env = {**exporter.env, "EXPORTER_LISTEN": "127.0.0.1:1"}
    os.kill(exporter.pid, signal.SIGTERM)
    said = "stopping; a second signal ends the process at once"
    await wait_for(lambda: exporter.events(said), "the signal to be noticed")
    assert 0 == run(env, *COMMAND, "--listen", listen).returncode
    unready = run(env, *COMMAND, "--ready", "--listen", listen)
    assert (1, "") == (unready.returncode, unready.stdout)
    assert '"draining"' in unready.stderr
    await exporter.kill9()


def test_wrong_settings_are_named() -> None:
    """What the exporter would not start with is no answer about its health: a line, and an exit code of its own."""
    env = minimal_environment(PYTHONPATH=str(ROOT), EXPORTER_LISTEN="nowhere")
    wrong = run(env, *PROBE)
    assert 2 == wrong.returncode
    assert wrong.stderr.startswith("error: EXPORTER_LISTEN: ")
