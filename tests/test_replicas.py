"""Three exporters behind a real nginx: they add up, a rolling restart loses nothing, and what counts twice."""

import json
import os
import re
import signal
import subprocess
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from ruamel.yaml import YAML

from tests.conftest import StartPrometheus, V2InfluxDB
from tests.support.exporter import EVENTS_TOTAL, CounterKey, ExporterProcess
from tests.support.kills import by_series, nonzero_counters, points, sample
from tests.support.ports import wait_for
from tests.support.prometheus import Series
from tests.support.proxies import Caddy, Nginx, Phone, Proxy
from tests.support.replicas import REPLICAS, Cluster, Reporter, at_work, cluster, reporters

PROMETHEUS: Final = Path(__file__).parents[1] / "prometheus"
# Those that take longest are left out: spike, usual, no-events.
CASES: Final = ("downloads", "health", "likely", "recording")
_COUNTER: Final = re.compile(r"capgo_\w+_(total|bucket|count|sum)\{")


@pytest.mark.server("nginx", "openssl")
async def test_a_rolling_restart_loses_nothing_and_doubles_nothing(
    v2_influxdb: V2InfluxDB, prometheus_server: StartPrometheus, tmp_path: Path
) -> None:
    """Under load each exporter is stopped and started: exporters, Prometheus and InfluxDB have each event once."""
    env = {**v2_influxdb.settings, "EXPORTER_SCRAPE_INTERVAL": "1s"}
    async with cluster(tmp_path / "cluster", env) as replicas, reporters(replicas.proxy, 4, seed=1) as devices:
        prometheus = await prometheus_server([exporter.url for exporter in replicas.exporters])
        async with at_work(devices):
            for exporter in replicas.exporters:
                await exporter.restart(same_port=True)
            await prometheus.wait_up()
            for exporter in replicas.exporters:
                # nginx leaves one that was away alone for a while.
                await wait_for(partial(nonzero_counters, exporter), "each exporter to have its share")
        events = [event for device in devices for event in device.device.acknowledged]
        expected = by_series(events)
        assert expected == await replicas.counted()
        assert {200, 502} >= {status for device in devices for status in device.statuses}

        async def prometheus_has_all() -> bool:
            return expected == _rises(await prometheus.raw_samples(EVENTS_TOTAL))

        await wait_for(prometheus_has_all, "Prometheus to have seen every series rise by its events")

        async def journals_are_empty() -> bool:
            waiting = [await sample(exporter, "capgo_exporter_journal_points") for exporter in replicas.exporters]
            return [0.0] * REPLICAS == waiting

        await wait_for(journals_are_empty, "the journals to be empty")
        assert len(points(events)) == await v2_influxdb.server.count("capgo_stats", "count")


@pytest.mark.parametrize(
    ("kind", "restarts", "answers"),
    [
        pytest.param(Caddy, 2, {200}, marks=pytest.mark.server("caddy")),
        # A reload of nginx closes idle connections, also one that a device is about to use.
        pytest.param(Nginx, 1, {200, 0}, marks=pytest.mark.server("nginx")),
    ],
)
@pytest.mark.server("openssl")
async def test_a_restart_that_proxies_are_told_of_costs_no_answer(
    kind: type[Nginx | Caddy], restarts: int, answers: set[int], tmp_path: Path
) -> None:
    """With a delay, in which Caddy asks and nginx is told, no POST is answered 502 while exporters are restarted."""
    env = {"EXPORTER_SHUTDOWN_DELAY": "3s"}
    async with cluster(tmp_path / "cluster", env, kind) as replicas, reporters(replicas.proxy, 8, seed=3) as devices:
        async with at_work(devices):
            for exporter in replicas.exporters[:restarts]:
                await _restart_unnoticed(replicas.proxy, exporter)
        expected = by_series([event for device in devices for event in device.device.acknowledged])
        assert expected == await replicas.counted()
        for exporter in replicas.exporters:
            await exporter.kill9()  # else each would wait for proxies once more
    assert answers >= {status for device in devices for status in device.statuses}


async def _restart_unnoticed(proxy: Proxy, exporter: ExporterProcess) -> None:
    """Restart an exporter; if it is behind nginx, nginx is told once `/readyz` says that it stops."""
    if not isinstance(proxy, Nginx):
        await exporter.restart(same_port=True)
        return
    address = exporter.url.removeprefix("http://")
    os.kill(exporter.pid, signal.SIGTERM)

    async def is_draining() -> bool:
        return (await exporter.request("GET", "/readyz")).status == 503

    await wait_for(is_draining)
    proxy.take_out(address)
    assert 0 == await exporter.wait()
    await exporter.restart(same_port=True)
    proxy.take_back(address)


@pytest.mark.server("nginx", "openssl")
async def test_what_is_sent_again_counts_twice_only_on_another_exporter(
    v2_influxdb: V2InfluxDB, tmp_path: Path
) -> None:
    """A batch sent again is known if its address or its shard is the same; else it counts twice, but is one point."""
    async with (
        cluster(tmp_path / "cluster", v2_influxdb.settings) as replicas,
        reporters(replicas.proxy, 60, seed=2) as devices,
    ):
        phones = [device.phone for device in devices]
        elsewhere = phones[2:] + phones[:2]
        assert 0 == await _sent_again(replicas, devices, phones)
        assert 0 == await _sent_again(replicas, devices[1::2], elsewhere)
        # Each third time it is the same exporter by chance; which ones depends on the exporters' ports.
        assert 0 < await _sent_again(replicas, devices[0::2], elsewhere) < 30
        events = [event for device in devices for event in device.device.acknowledged]

        async def all_are_written() -> bool:
            return len(points(events)) == await v2_influxdb.server.count("capgo_stats", "count")

        await wait_for(all_are_written)


@pytest.mark.server("promtool")
@pytest.mark.parametrize("name", CASES)
def test_rules_and_alerts_hold_over_three_exporters(name: str, tmp_path: Path) -> None:
    """The rules' own tests, with each series on one of three exporters and 0 on the others, give the same answers."""
    path = PROMETHEUS / "rules-tests" / f"{name}.yml"
    document: dict[str, Any] = YAML(typ="safe").load(path)
    document["rule_files"] = [str((path.parent / file).resolve()) for file in document["rule_files"]]
    spread = 0
    for case in document["tests"]:
        series = [each for one in case.get("input_series", []) for each in _spread(one)]
        spread += sum("replica-" in each["series"] for each in series)
        case["input_series"] = series
    assert spread > 0
    changed = tmp_path / path.name
    changed.write_text(json.dumps(document))
    result = subprocess.run(["promtool", "test", "rules", changed], capture_output=True, text=True, check=False)
    assert 0 == result.returncode, result.stdout + result.stderr


async def _sent_again(replicas: Cluster, devices: Sequence[Reporter], phones: Sequence[Phone]) -> int:
    """Let each device send an event, and send it again from another phone's address: tell how many counted twice."""
    before = sum((await replicas.counted()).values())
    for device, phone in zip(devices, phones, strict=False):
        batch = device.device.batch()[:1]
        device.device.acknowledged += batch
        for way in (device, replace(device, phone=phone)):
            assert await way.post(batch)
    return sum((await replicas.counted()).values()) - before - len(devices)


def _rises(found: Sequence[Series]) -> dict[CounterKey, int]:
    """Add up how far series rose, over the exporters."""
    rises: Counter[CounterKey] = Counter()
    for series in found:
        if series.rise:
            key = CounterKey(**{label: series.labels[label] for label in CounterKey._fields})
            rises[key] += int(series.rise)
    return dict(rises)


def _spread(one: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Put a series of devices on one of three exporters; a counter is there on the others too, and stays 0."""
    name = one["series"]
    if not name.startswith("capgo_") or name.startswith("capgo_exporter_") or "instance=" in name or "{" not in name:
        yield one
        return
    home = zlib.crc32(name.encode()) % REPLICAS
    for number in range(REPLICAS):
        labelled = name.replace("{", f'{{job="capgo-stats-exporter", instance="replica-{number}", ', 1)
        if number == home:
            yield {"series": labelled, "values": one["values"]}
        elif _COUNTER.match(name):
            yield {"series": labelled, "values": "0x20000"}
