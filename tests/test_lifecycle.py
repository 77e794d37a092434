"""The life of a process: start, drain, forced end, and each way in which it cannot start."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exporter.expiry import Expiry
from exporter.journal.opening import FILE_NAME, open_journal
from tests.conftest import StartExporter
from tests.support.exporter import CounterKey, ExporterProcess, influx_settings
from tests.support.fakeinflux import ACCEPT, NEVER, ScriptedInflux, answer
from tests.support.inprocess import running
from tests.support.ports import wait_for

KEY = CounterKey("com.example.life", "ios", "get", "1.0.0", "prod")
NOW_MS = int(time.time() * 1000)


def event(number: int) -> dict[str, Any]:
    """Make an event of its own."""
    return {**KEY._asdict(), "version_name": KEY.version, "device_id": "d", "timestamp": NOW_MS + number}


def to(influx: ScriptedInflux, **more: str) -> dict[str, str]:
    """Return the settings for writing to an InfluxDB."""
    return {**influx_settings(influx.url, token="t", org="o", bucket="b"), **more}  # noqa: S106 -- of the test's own


async def value(exporter: ExporterProcess) -> int:
    """Return what is counted."""
    return (await exporter.counters()).get(KEY, 0)


def waiting_points(exporter: ExporterProcess) -> int:
    """Return how many points the journal of a stopped exporter holds."""
    with contextlib.closing((found := open_journal(exporter.data_dir)).connection):
        return found.restored.totals.points


def open_files(exporter: ExporterProcess) -> set[str]:
    """Name the files that the data directory holds."""
    return {path.name for path in exporter.data_dir.iterdir()}


async def stopping(exporter: ExporterProcess) -> None:
    """Wait until a signal is noticed."""
    said = "stopping; a second signal ends the process at once"
    await wait_for(lambda: exporter.events(said), "the signal to be noticed")


@contextlib.contextmanager
def half_a_request(url: str, body: bytes) -> Iterator[socket.socket]:
    """Send a request without the end of its body."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        head = f"POST /stats HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        client.sendall(head.encode() + body[:-1])
        yield client


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains(
    exporter_process: StartExporter, scripted_influx: ScriptedInflux, number: signal.Signals
) -> None:
    """A request under way is answered, its point delivered, the journal closed, and the exit code 0."""
    exporter = await exporter_process(to(scripted_influx))
    body = json.dumps(event(1)).encode()
    with half_a_request(exporter.url, body) as client:

        async def is_under_way() -> bool:
            # The head has arrived once a later request on another connection is answered.
            return (await exporter.request("GET", "/healthz")).status == 200

        await wait_for(is_under_way, "the exporter to answer")
        os.kill(exporter.pid, number)

        await stopping(exporter)
        client.sendall(body[-1:])
        reply = await asyncio.to_thread(lambda: b"".join(iter(lambda: client.recv(4096), b"")))
    assert b"200 OK" in reply.splitlines()[0]
    assert reply.endswith(b'{"status":"ok"}')
    assert 0 == await exporter.wait()
    assert 1 == scripted_influx.store_count
    assert {FILE_NAME, "lock", "hash.key"} == open_files(exporter)
    assert ["stopped"] == [line["event"] for line in exporter.logs()][-1:]


async def test_a_slow_influxdb_is_waited_for(exporter_process: StartExporter, scripted_influx: ScriptedInflux) -> None:
    """Writes that are answered within the shutdown time-out are delivered, none is left in the journal."""
    scripted_influx.default = replace(ACCEPT, delay_seconds=0.5)
    exporter = await exporter_process(to(scripted_influx, EXPORTER_SHUTDOWN_TIMEOUT="60s"))
    assert 200 == (await exporter.post(event(1))).status
    await wait_for(lambda: scripted_influx.requests, "a write to begin")
    assert 200 == (await exporter.post(event(2))).status
    assert 0 == await exporter.terminate()
    assert (2, 0) == (scripted_influx.store_count, waiting_points(exporter))


async def test_a_failing_influxdb_is_tried_once_more(
    exporter_process: StartExporter, scripted_influx: ScriptedInflux
) -> None:
    """On the way out the next attempt is not waited for: it is made at once, and what it delivers is taken off."""
    scripted_influx.play(answer(503, Retry_After="600"))
    exporter = await exporter_process(to(scripted_influx, EXPORTER_SHUTDOWN_TIMEOUT="60s"))
    assert 200 == (await exporter.post(event(1))).status
    failing = "InfluxDB takes no points; they wait in the journal"
    await wait_for(lambda: exporter.events(failing), "the failure to be noticed")
    assert 0 == await exporter.terminate()
    assert (1, 0) == (scripted_influx.store_count, waiting_points(exporter))


async def test_the_last_delivery_has_a_deadline(
    exporter_process: StartExporter, scripted_influx: ScriptedInflux
) -> None:
    """An InfluxDB that never answers does not hold the end up, and its points stay in the journal."""
    scripted_influx.default = NEVER
    exporter = await exporter_process(
        to(scripted_influx, EXPORTER_SHUTDOWN_TIMEOUT="0.3s", EXPORTER_INFLUX_TIMEOUT="600s")
    )
    assert 200 == (await exporter.post(event(1))).status
    assert 0 == await exporter.terminate()
    assert 1 == waiting_points(exporter)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_the_process_at_once(
    exporter_process: StartExporter, scripted_influx: ScriptedInflux, number: signal.Signals
) -> None:
    """It does not wait for a delivery that hangs, ends with 130, and nothing acknowledged is lost."""
    scripted_influx.default = NEVER
    exporter = await exporter_process(
        to(scripted_influx, EXPORTER_SHUTDOWN_TIMEOUT="600s", EXPORTER_INFLUX_TIMEOUT="600s")
    )
    assert 200 == (await exporter.post(event(1))).status

    await wait_for(lambda: scripted_influx.requests, "a write to begin")
    os.kill(exporter.pid, signal.SIGTERM)
    await stopping(exporter)
    assert exporter.running
    os.kill(exporter.pid, number)
    assert 130 == await exporter.wait()
    assert 1 == waiting_points(exporter)


async def test_a_restart_restores_counters(exporter_process: StartExporter) -> None:
    """What was counted is there after SIGTERM and after SIGKILL, and an event sent again is a duplicate."""
    exporter = await exporter_process()
    assert 200 == (await exporter.post([event(1), event(2)])).status
    await exporter.restart()
    assert 2 == await value(exporter)
    await exporter.kill9()
    await exporter.restart()
    assert 2 == await value(exporter)
    assert 200 == (await exporter.post([event(1), event(2), event(3)])).status
    assert 3 == await value(exporter)


async def test_points_are_delivered_once_influxdb_is_configured(
    exporter_process: StartExporter, scripted_influx: ScriptedInflux
) -> None:
    """Without InfluxDB points wait; the first start with it delivers them."""
    exporter = await exporter_process()
    assert 200 == (await exporter.post([event(number) for number in range(50)])).status
    await exporter.terminate()
    assert 50 == waiting_points(exporter)
    exporter.env.update(to(scripted_influx))
    await exporter.restart()

    await wait_for(lambda: scripted_influx.store_count == 50, "all points to be delivered")


async def test_points_refused_while_stopping_stay(
    exporter_process: StartExporter, scripted_influx: ScriptedInflux
) -> None:
    """A failing InfluxDB is tried once more at the end; its points are delivered after the next start."""
    scripted_influx.default = answer(503)
    exporter = await exporter_process(to(scripted_influx))
    assert 200 == (await exporter.post(event(1))).status
    assert 0 == await exporter.terminate()
    assert 1 == waiting_points(exporter)
    scripted_influx.default = answer(204)
    await exporter.restart()

    await wait_for(lambda: scripted_influx.store_count == 1, "the point to be delivered")


async def refused_start(exporter: ExporterProcess) -> tuple[int, list[str]]:
    """Start an exporter that cannot; returns its exit code and what it printed."""
    exporter.spawn()
    code = await exporter.wait()
    return code, [str(line.get("raw", "")) for line in exporter.logs()]


def error_lines(printed: list[str]) -> list[str]:
    """Return the lines that tell of an error; there must be no traceback among the others."""
    assert not [line for line in printed if "Traceback" in line]
    return [line for line in printed if "error: " in line]


async def test_a_port_in_use_is_one_clear_line(exporter_process: StartExporter) -> None:
    """The start ends with the address, the reason and exit code 3; the other listener's address likewise."""
    first = await exporter_process()
    address = first.url.removeprefix("http://")
    second = await exporter_process()
    await second.terminate()
    for setting in ("EXPORTER_LISTEN", "EXPORTER_METRICS_LISTEN"):
        second.env["EXPORTER_LISTEN"] = "127.0.0.1:0"
        second.env[setting] = address
        code, printed = await refused_start(second)
        assert (3, [f"error: {setting}: {address}: Address already in use"]) == (code, error_lines(printed))


async def test_a_directory_in_use_is_one_clear_line(exporter_process: StartExporter) -> None:
    """Two exporters on one directory: the second names it, says what to do, and ends with exit code 4."""
    first = await exporter_process()
    second = await exporter_process()
    await second.terminate()
    second.env["EXPORTER_DATA_DIR"] = str(first.data_dir)
    code, printed = await refused_start(second)
    (line,) = error_lines(printed)
    assert (4, f"error: {first.data_dir}: in use by another exporter") == (code, line.partition(";")[0])
    assert 200 == (await first.post(event(1))).status


@pytest.mark.parametrize("place", ["a file", "under a file", "not writable"])
async def test_a_directory_that_cannot_be_used_is_one_clear_line(
    exporter_process: StartExporter, tmp_path: Path, place: str
) -> None:
    """The start ends with the setting, the path, the reason and exit code 4."""
    exporter = await exporter_process()
    await exporter.terminate()
    file = tmp_path / "file"
    file.touch()
    paths = {"a file": str(file), "under a file": str(file / "data"), "not writable": "/proc/exporter"}
    exporter.env["EXPORTER_DATA_DIR"] = paths[place]
    code, printed = await refused_start(exporter)
    (line,) = error_lines(printed)
    assert (4, True) == (code, line.startswith(f"error: EXPORTER_DATA_DIR: {paths[place]}: "))


async def test_a_background_task_that_ends_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """`/healthz` names it, with 503; events are still taken."""

    async def ends(expiry: Expiry) -> None:
        del expiry

    monkeypatch.setattr(Expiry, "run", ends)
    async with running() as server:

        async def is_unhealthy() -> bool:
            return (await server.request("GET", "/healthz")).status == 503

        await wait_for(is_unhealthy, "the end of the task to be told of")
        health = await server.request("GET", "/healthz")
        assert {"status": "failed", "ended_tasks": ["expiry"]} == health.json()
        assert 200 == (await server.post(event(1))).status


async def test_a_background_task_that_fails_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that raises is named as one that returns is, and the exporter can still be stopped."""

    async def fails(expiry: Expiry) -> None:
        message = f"{expiry} cannot go on"
        raise RuntimeError(message)

    monkeypatch.setattr(Expiry, "run", fails)
    async with running() as server:
        health = await server.request("GET", "/healthz")
        assert (503, {"status": "failed", "ended_tasks": ["expiry"]}) == (health.status, health.json())


async def test_kept_alive_connections_are_closed_by_the_next_answer() -> None:
    """While the exporter stops, a client on an old connection is told 503 and to go; before that it is kept."""
    async with running() as server:
        ready = await server.request("GET", "/readyz")
        server.exporter.drain.begun = True
        draining = await server.request("GET", "/readyz")
        stored = await server.post(event(1))
    assert [200, 503, 200] == [reply.status for reply in (ready, draining, stored)]
    assert [None, "close", "close"] == [reply.headers.get("Connection") for reply in (ready, draining, stored)]


async def test_a_body_that_never_ends_does_not_hold_the_end_up(exporter_process: StartExporter) -> None:
    """A client that stops in the middle of its body is waited for no longer than the time-out."""
    exporter = await exporter_process({"EXPORTER_SHUTDOWN_TIMEOUT": "0.3s"})
    with half_a_request(exporter.url, json.dumps(event(1)).encode()):
        assert 0 == await exporter.terminate()


async def test_what_comes_while_proxies_are_to_notice_is_taken(exporter_process: StartExporter) -> None:
    """After a signal `/readyz` says so, and what is posted is stored; each reply ends its connection."""
    exporter = await exporter_process({"EXPORTER_SHUTDOWN_DELAY": "600s"})
    before = await exporter.post(event(1))
    os.kill(exporter.pid, signal.SIGTERM)
    await stopping(exporter)
    ready = await exporter.request("GET", "/readyz")
    old, new, nowhere = (
        await exporter.post(event(2)),
        await exporter.post(event(3)),
        await exporter.post("", "/nowhere"),
    )
    assert [200, 503, 200, 200, 404] == [reply.status for reply in (before, ready, old, new, nowhere)]
    assert [None, *["close"] * 4] == [reply.headers.get("Connection") for reply in (before, ready, old, new, nowhere)]
    assert "draining" == ready.json()["status"]
    assert 200 == (await exporter.request("GET", "/healthz")).status
    os.kill(exporter.pid, signal.SIGTERM)
    assert 130 == await exporter.wait()
    del exporter.env["EXPORTER_SHUTDOWN_DELAY"]
    await exporter.restart()
    assert 3 == await value(exporter)


async def test_the_listener_closes_when_proxies_had_their_time(exporter_process: StartExporter) -> None:
    """The end comes after the delay and not before, and without one at once; both times the exit code is 0."""
    for delay_seconds in (0.0, 0.7):
        exporter = await exporter_process({"EXPORTER_SHUTDOWN_DELAY": f"{delay_seconds}s"})
        started = time.monotonic()
        assert 0 == await exporter.terminate()
        assert time.monotonic() - started >= delay_seconds
        (line,) = exporter.events("stopping; a second signal ends the process at once")
        assert delay_seconds == line["delay_seconds"]
