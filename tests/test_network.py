"""The exporter opens connections to InfluxDB and to nobody else: no look-up, no report home, no check for updates."""

import re
from pathlib import Path

import pytest

from tests.support.exporter import ExporterProcess, influx_settings
from tests.support.fakeinflux import ScriptedInflux
from tests.support.ports import wait_for
from tests.support.strace import Strace

TOKEN = "of-the-test"  # noqa: S105 -- a token of the test's own
EVENT = {"app_id": "com.example.network", "device_id": "d", "platform": "ios", "action": "set", "version_name": "1.0.0"}
ADDRESSED = re.compile(r"(?:connect|sendto|sendmsg|sendmmsg)\(.*\{sa_family=(?!AF_UNIX\b|AF_NETLINK\b)(\w+), (.*?)\}")


def peers(calls: list[str]) -> set[str]:
    """Return what the calls name as addresses beyond Unix sockets and the kernel, as strace writes them."""
    return {" ".join(match.groups()) for call in calls if (match := ADDRESSED.search(call))}


async def use_everything(exporter: ExporterProcess) -> None:
    """Ask for everything that the exporter serves."""
    assert (await exporter.post([EVENT])).status == 200
    assert (await exporter.post(b"not json")).status == 400
    for path in ("/metrics", "/healthz", "/readyz", "/", "/stats", "/nothing"):
        await exporter.request("GET", path)


@pytest.mark.server("strace")
async def test_only_influxdb_is_connected_to(tmp_path: Path) -> None:
    """From start to end a process that stores, serves and delivers addresses InfluxDB's socket and no other."""
    async with ScriptedInflux() as influx:
        env = {**influx_settings(influx.url, token=TOKEN, org="o", bucket="b")}
        exporter = ExporterProcess(tmp_path / "exporter", env)
        strace = Strace(exporter, tmp_path, "--trace=network")
        async with exporter:
            await use_everything(exporter)
            await wait_for(lambda: influx.requests, "the delivery")
            assert await strace.terminate() == 0
        port = influx.url.rpartition(":")[2]
    assert {f'AF_INET sin_port=htons({port}), sin_addr=inet_addr("127.0.0.1")'} == peers(strace.calls())


@pytest.mark.server("strace")
async def test_without_influxdb_nobody_is_connected_to(tmp_path: Path) -> None:
    """An exporter that was told of no InfluxDB addresses nobody at all."""
    exporter = ExporterProcess(tmp_path / "exporter")
    strace = Strace(exporter, tmp_path, "--trace=network")
    async with exporter:
        await use_everything(exporter)
        assert await strace.terminate() == 0
    assert set() == peers(strace.calls())
