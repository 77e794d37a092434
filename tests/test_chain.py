"""The whole chain, with the committed configurations: devices, exporter, Prometheus, rules, Alertmanager, the pager."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from ruamel.yaml import YAML

from exporter.simulate.fleet import Fleet
from exporter.simulate.live import Live, Target
from exporter.simulate.scenario import AT_ONCE, Release, Scenario
from tests.support.alertmanager import Alertmanager, Receivers, connected
from tests.support.exporter import ExporterProcess, parse_counters
from tests.support.ports import free_port, wait_for
from tests.support.process import ServerProcess, http_ok

ROOT: Final = Path(__file__).parents[1]
APP: Final = "com.example.shop"
BAD_VERSION: Final = "2.5.0"
MINUTES_BEFORE: Final = 5
QUICKLY: Final = 15
"""How many times as fast the devices' time passes until it is ours."""

WORST_SECONDS: Final = 150.0
"""The promise: from the first event that qualifies to the page. docs/runbooks.md has the arithmetic."""

QUALIFYING: Final = 5
"""Roll-backs of a version on one platform: capgo:threshold_rollbacks_min:const."""


@dataclass
class Chain:
    """What runs from the exporter to the pager."""

    exporter: ExporterProcess
    prometheus_url: str
    pager: Receivers


@pytest.fixture
async def chain(tmp_path: Path) -> AsyncIterator[Chain]:
    """Start everything with the files that compose mounts; only addresses are changed."""
    exporter = ExporterProcess(tmp_path / "exporter", {"EXPORTER_SCRAPE_INTERVAL": "15s"})
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(exporter)
        pager = await stack.enter_async_context(Receivers())
        routes = YAML(typ="safe").load(ROOT / "prometheus" / "alertmanager.yml")
        alertmanager = Alertmanager(tmp_path / "alertmanager", connected(routes, pager.url))
        await stack.enter_async_context(alertmanager)
        addresses = {
            "exporter:9747": exporter.url.removeprefix("http://"),
            "alertmanager:9093": alertmanager.url.removeprefix("http://"),
        }
        prometheus, url = make_prometheus(tmp_path / "prometheus", addresses)
        await prometheus.start()
        stack.push_async_callback(prometheus.stop)
        yield Chain(exporter, url, pager)


def make_prometheus(directory: Path, addresses: dict[str, str]) -> tuple[ServerProcess, str]:
    """Make a Prometheus with the committed configuration, in which services are found at other addresses."""
    directory.mkdir()
    config = YAML(typ="safe").load(ROOT / "prometheus" / "prometheus.yml")
    config["rule_files"] = [str(ROOT / "prometheus" / pattern) for pattern in config["rule_files"]]
    config["scrape_configs"] = [job for job in config["scrape_configs"] if job["job_name"] == "capgo-stats-exporter"]
    for part in (*config["scrape_configs"], *config["alerting"]["alertmanagers"]):
        for static in part["static_configs"]:
            static["targets"] = [addresses[target] for target in static["targets"]]
    path = directory / "prometheus.yml"
    path.write_text(json.dumps(config))  # JSON is YAML
    address = f"127.0.0.1:{free_port()}"
    url = f"http://{address}"
    argv = [
        "prometheus",
        f"--config.file={path}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    return ServerProcess(argv, directory, ready=http_ok(f"{url}/-/ready")), url


async def unhealthy_rules(url: str) -> dict[str, str]:
    """Give the rules of a Prometheus that were not evaluated without an error, with what it says of them."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/api/v1/rules") as response:
        groups = (await response.json())["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert rules
    return {rule["name"]: rule.get("lastError") or rule["health"] for rule in rules if rule["health"] != "ok"}


@contextlib.asynccontextmanager
async def living(url: str) -> AsyncIterator[None]:
    """Let devices live that get a bad release; what leads to their first updates passes quickly."""
    release = Release(BAD_VERSION, 1 / 60, AT_ONCE, bad="update_fail", bad_share=0.5)
    scenario = Scenario(seed=7, devices=1500, app_id=APP, base_version="2.4.0", releases=(release,), speed=600)
    began = time.time()
    start_ms = int((began - MINUTES_BEFORE * 60) * 1000)

    def now_ms() -> int:
        return min(int(time.time() * 1000), start_ms + int((time.time() - began) * 1000 * QUICKLY))

    stop = asyncio.Event()
    live = asyncio.create_task(Live(Fleet(scenario, start_ms), Target(f"{url}/stats"), now_ms).run(stop))
    try:
        yield
    finally:
        stop.set()
        await live


async def rollbacks(exporter: ExporterProcess) -> dict[str, int]:
    """Count the roll-backs of the bad version by platform, as they arrived."""
    counters = parse_counters(await exporter.metrics())
    return {
        key.platform: count
        for key, count in counters.items()
        if (key.action, key.version, key.environment) == ("update_fail", BAD_VERSION, "prod") and count
    }


@pytest.mark.server("prometheus", "prometheus-alertmanager")
async def test_a_bad_release_is_in_the_pager_within_the_promised_time(
    chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    """A simulated fleet gets a release that rolls back: somebody is paged, is told what is wrong and where to look."""
    async with living(chain.exporter.url):
        await wait_for(lambda: rollbacks(chain.exporter), "the first roll-back", 120)
        first = time.time()

        async def qualifies() -> bool:
            return max((await rollbacks(chain.exporter)).values()) >= QUALIFYING

        await wait_for(qualifies, "enough roll-backs", 120)
        qualified = time.time()

        def paged() -> list[dict[str, Any]]:
            return [alert for name, message in chain.pager.messages if name == "page" for alert in message["alerts"]]

        await wait_for(paged, "the page", 2 * WORST_SECONDS)
        received = time.time()
    alert = paged()[0]
    labels, annotations = alert["labels"], alert["annotations"]
    assert ("firing", "critical", APP, BAD_VERSION) == (
        alert["status"],
        labels["severity"],
        labels["app_id"],
        labels["version"],
    )
    assert labels["alertname"] in {"CapgoUpdateFailSpike", "CapgoUpdateFailLikely"}
    assert "grafana_url" not in labels
    for part in (APP, BAD_VERSION, labels["platform"]):
        assert part in annotations["description"]
    assert annotations["runbook_url"].endswith(f"#{labels['alertname'].lower()}")
    assert f"/d/capgo-failures?var-app={APP}&var-platform={labels['platform']}" in annotations["dashboard_url"]
    assert received - qualified < WORST_SECONDS
    assert {} == await unhealthy_rules(chain.prometheus_url)
    with capsys.disabled():
        print(  # noqa: T201 -- the figure is what people ask for
            f"\npaged {received - first:.0f} s after the first roll-back, {received - qualified:.0f} s after the"
            f" {QUALIFYING}th: {labels['alertname']}: {annotations['summary']} {annotations['description']}"
        )
