"""Derived figures as they are used: killed under load, again and again, and seen by a real Prometheus.

What is expected is worked out from what was sent, by a plain count that knows what each story comes to.
"""

import asyncio
import contextlib
import json
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from exporter.settings import Settings
from tests.conftest import StartExporter, StartPrometheus
from tests.support.derived import derived_lines, values
from tests.support.exporter import SCRAPE_HEADERS, ExporterProcess
from tests.support.ports import wait_for
from tests.support.prometheus import Prometheus

APP = "com.example.kill"
VERSIONS = ("1.0.0", "1.1.0", "2.0.0")
CLIENTS = 5
DEVICES_A_CLIENT = 12
ROUNDS = 5
SECONDS_A_STORY = 60
# For the interpreter to run first: nobody wants to wait ten seconds for stragglers here.
SHORT_GRACE = "import exporter.derived.episode as episode; episode.GRACE_MS = 2000"
DEFAULTS = Settings()
NO_ANSWER = (aiohttp.ClientError, TimeoutError)
TIMEOUT = aiohttp.ClientTimeout(total=5)

Batches = list[list[dict[str, Any]]]


class Truth:
    """What the page must show in the end.

    Attributes:
        figures: counters and the parts of histograms, by their lines.
        seen: devices, by the gauges and labels under which they are counted.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.figures: Counter[str] = Counter()
        self.seen: dict[str, set[str]] = {}

    def count(self, name: str, labels: Mapping[str, str], value: int = 1) -> None:
        """Add to a figure of the app."""
        text = ",".join(f'{label}="{each}"' for label, each in {"app_id": APP, **labels}.items())
        self.figures[f"capgo_{name}{{{text}}}"] += value

    def observe(self, name: str, labels: Mapping[str, str], bounds: Sequence[float], duration_ms: int) -> None:
        """Add a duration to a histogram."""
        for bound in bounds:
            self.count(f"{name}_bucket", {**labels, "le": str(bound)}, int(duration_ms <= bound * 1000))
        self.count(f"{name}_bucket", {**labels, "le": "+Inf"})
        self.count(f"{name}_count", labels)
        self.count(f"{name}_sum", labels, duration_ms)

    def see(self, device: str, name: str, **labels: str) -> None:
        """Note a device in all windows that are as long as a week, so that midnight does no harm."""
        for window in ("7d", "30d"):
            text = ",".join(f'{label}="{each}"' for label, each in {"app_id": APP, **labels, "window": window}.items())
            self.seen.setdefault(f"capgo_{name}{{{text}}}", set()).add(device)

    def lines(self) -> dict[str, float]:
        """Give everything that is not 0, as the page has it."""
        counted = {
            name: value / 1000 if "_sum{" in name else float(value) for name, value in self.figures.items() if value
        }
        return counted | {name: float(len(devices)) for name, devices in self.seen.items()}


def track(version: str, platform: str = "ios") -> dict[str, str]:
    """Give the labels of a version in production."""
    return {"platform": platform, "version": version, "environment": "prod"}


class Client:
    """Some devices whose queues survive everything; each story is told in batches, one after another."""

    def __init__(self, number: int, seed: int, truth: Truth, began_ms: int) -> None:
        """Give the client its own luck and devices."""
        self._number = number
        self._luck = random.Random(f"{seed}/{number}")  # noqa: S311 -- a test that can be repeated
        self._truth = truth
        self._began_ms = began_ms
        self._told: Counter[tuple[str, str]] = Counter()
        self._electron: set[tuple[str, str]] = set()
        self.acknowledged: Batches = []

    def story(self) -> Batches | None:
        """Make up what happens to a device, and note what that comes to; None once it would be in the future."""
        device = f"device-{self._number}-{self._luck.randrange(DEVICES_A_CLIENT)}"
        version = self._luck.choice(VERSIONS)
        past = self._told[device, version] * SECONDS_A_STORY
        self._told[device, version] += 1
        if past > 3000:
            return None
        # Stories of one device and version are a minute apart by its clock, which is within the last hour.
        at_ms = self._began_ms - 3_300_000 + past * 1000 + self._luck.randrange(1000)
        tell = self._luck.choice(
            (self._download, self._failure, self._rollback, self._late, self._launch, self._desktop)
        )
        return tell(device, version, at_ms)

    def _event(self, device: str, version: str, at_ms: int, action: str, **fields: Any) -> dict[str, Any]:
        made = {
            "app_id": APP,
            "platform": "ios",
            "device_id": device,
            "version_name": version,
            "action": action,
            "timestamp": at_ms,
            "channel": "beta",
            **fields,
        }
        self._truth.see(device, "devices", platform=made["platform"])
        self._truth.see(device, "version_devices", version=version)
        return made

    def _attempt(self, version: str, outcome: str, reached: str) -> None:
        self._truth.count("download_attempts_total", {**track(version), "outcome": outcome, "reached": reached})

    def _channel(self, outcome: str, platform: str = "ios") -> None:
        labels = {"platform": platform, "channel": "beta", "environment": "prod"}
        self._truth.count("channel_updates_total", {**labels, "outcome": outcome})

    def _download(self, device: str, version: str, at_ms: int) -> Batches:
        lasts_ms = self._luck.randrange(100, 8000)
        self._attempt(version, "completed", "complete")
        bounds = DEFAULTS.download_buckets
        self._truth.observe("download_duration_seconds", {"platform": "ios", "version": version}, bounds, lasts_ms)
        self._truth.observe("download_kind_duration_seconds", {"platform": "ios", "kind": "zip"}, bounds, lasts_ms)
        steps = [(0, "download_zip_start"), (1, "download_10"), (50, "download_50"), (lasts_ms, "download_complete")]
        first, second, *rest = [self._event(device, version, at_ms + offset, action) for offset, action in steps]
        return [[first, second], rest]

    def _failure(self, device: str, version: str, at_ms: int) -> Batches:
        self._attempt(version, "failed", "10")
        self._truth.count("update_failures_total", {**track(version), "reason": "checksum_fail"})
        self._truth.see(device, "version_affected_devices", version=version)
        self._channel("failed")
        steps = [(0, "download_zip_start"), (1, "download_10"), (20, "download_fail"), (21, "checksum_fail")]
        first, second, *rest = [self._event(device, version, at_ms + offset, action) for offset, action in steps]
        return [[first, second], rest]

    def _rollback(self, device: str, version: str, at_ms: int) -> Batches:
        self._truth.count("installs_total", track(version))
        self._truth.count("uninstalls_total", track("0.9.0"))
        self._channel("installed")
        self._truth.count("update_failures_total", {**track(version), "reason": "update_fail"})
        self._truth.see(device, "version_affected_devices", version=version)
        self._channel("failed")
        return [
            [self._event(device, version, at_ms, "set", old_version_name="0.9.0")],
            [self._event(device, version, at_ms + 30, "update_fail")],
        ]

    def _late(self, device: str, version: str, at_ms: int) -> Batches:
        self._truth.count("late_events_total", {**track(version), "kind": "update_failure"})
        self._truth.see(device, "version_affected_devices", version=version)
        return [[self._event(device, version, at_ms - 7_200_000, "unzip_fail")]]

    def _launch(self, device: str, version: str, at_ms: int) -> Batches:
        lasts_ms = self._luck.randrange(100, 8000)
        bounds = DEFAULTS.launch_buckets
        self._truth.observe("launch_duration_seconds", {"platform": "ios", "version": version}, bounds, lasts_ms)
        metadata = {"duration_ms": str(lasts_ms)}
        return [[self._event(device, version, at_ms, "app_launch_ready", metadata=metadata)]]

    def _desktop(self, device: str, version: str, at_ms: int) -> Batches:
        if (device, version) not in self._electron:
            self._electron.add((device, version))
            self._truth.count("installs_total", track(version, "electron"))
            self._channel("installed", "electron")
        return [[self._event(device, version, at_ms, "set", platform="electron")]]

    async def report(self, url: str, stop: asyncio.Event) -> None:
        """Tell stories to their ends until told to stop; each batch is sent until it is acknowledged."""
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
            while not stop.is_set():
                for batch in self.story() or []:
                    while not await self._post(session, url, batch):  # noqa: ASYNC110 -- it polls a server
                        await asyncio.sleep(0.01)
                    self.acknowledged.append(batch)
                await asyncio.sleep(0.01)

    async def _post(self, session: aiohttp.ClientSession, url: str, batch: list[dict[str, Any]]) -> bool:
        with contextlib.suppress(*NO_ANSWER):
            async with session.post(f"{url}/stats", data=json.dumps(batch)) as response:
                return response.status == 200 and (await response.json())["status"] == "ok"
        return False


class Reader:
    """Someone who scrapes all the time; no counter and no part of a histogram may ever fall or go."""

    def __init__(self, headers: dict[str, str]) -> None:
        """Set the headers by which the exporter tells scrapers from people."""
        self._headers = headers
        self._last: dict[str, float] = {}
        self.pages = 0
        self.taken_back: list[tuple[str, float, float | None]] = []

    async def read(self, url: str, stop: asyncio.Event) -> None:
        """Scrape every 10 ms, over all restarts."""
        async with aiohttp.ClientSession(timeout=TIMEOUT, headers=self._headers) as session:
            while not stop.is_set():
                with contextlib.suppress(*NO_ANSWER):
                    async with session.get(f"{url}/metrics") as response:
                        self._compare(growing(await response.text()))
                await asyncio.sleep(0.01)

    def _compare(self, page: dict[str, float]) -> None:
        self.pages += 1
        for name, value in self._last.items():
            now = page.get(name)
            if now is None or now < value:
                self.taken_back.append((name, value, now))
        self._last = page


def growing(page: str) -> dict[str, float]:
    """Give the derived counters, and the parts of histograms, which only grow."""
    return {
        name: value
        for name, value in derived_lines(page).items()
        if name.partition("{")[0].endswith(("_total", "_bucket", "_count", "_sum"))
    }


def compared(page: str, truth: Truth) -> dict[str, float]:
    """Give what of a page the truth tells about: all that grows but is not 0, and the devices it knows of."""
    lines = derived_lines(page)
    devices = {name: lines.get(name, 0.0) for name in truth.seen}
    return {name: value for name, value in growing(page).items() if value} | devices


@contextlib.asynccontextmanager
async def at_work(url: str, clients: Sequence[Client], readers: Sequence[Reader]) -> AsyncIterator[None]:
    """Let everyone work; at the end every batch is acknowledged."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for worker in (*(client.report for client in clients), *(reader.read for reader in readers)):
            tasks.create_task(worker(url, stop))
        yield
        stop.set()


@pytest.fixture
def short_grace(tmp_path: Path) -> dict[str, str]:
    """The environment of an exporter that does not wait long for stragglers."""
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "sitecustomize.py").write_text(SHORT_GRACE)
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path / "short"), str(Path(__file__).parents[1])])}


def shows(exporter: ExporterProcess, truth: Truth) -> Callable[[], Any]:
    """Return a condition: the page shows what is true."""

    async def condition() -> bool:
        wanted, found = truth.lines(), compared(await exporter.metrics(), truth)
        missing = {name: (value, found.get(name)) for name, value in wanted.items() if found.get(name) != value}
        assert ({}, set()) == (missing, found.keys() - wanted.keys())
        return True

    return condition


async def test_every_figure_is_exact_over_kills_at_random_moments(
    exporter_process: StartExporter, short_grace: dict[str, str]
) -> None:
    """Kills under load: each figure is what was sent, none ever falls, and a second sending changes nothing."""
    seed = int(os.environ.get("KILL_SEED", random.SystemRandom().randrange(10**6)))
    print(f"KILL_SEED={seed}")  # noqa: T201 -- pytest shows it with a failure
    luck = random.Random(seed)  # noqa: S311 -- a test that can be repeated
    exporter = await exporter_process({**short_grace, "EXPORTER_SCRAPE_INTERVAL": "0.2s"})
    truth = Truth()
    clients = [Client(number, seed, truth, int(time.time() * 1000)) for number in range(CLIENTS)]
    readers = [Reader(SCRAPE_HEADERS), Reader({})]
    async with at_work(exporter.url, clients, readers):
        for number in range(ROUNDS):
            # The moment of the kill is what varies; in every second round what is due is counted before it.
            await asyncio.sleep(luck.uniform(0.1, 1.0) + number % 2 * 1.2)
            await exporter.kill9()
            await exporter.restart(same_port=True)
    await wait_for(shows(exporter, truth), "all that was sent")
    assert [[], []] == [reader.taken_back for reader in readers]
    assert min(reader.pages for reader in readers) > ROUNDS
    text = await exporter.metrics()
    assert {(version,) for version in VERSIONS} == set(
        values(text, "version_first_seen_timestamp_seconds", "version", app_id=APP)
    )
    ranks = {(str(rank), version) for rank, version in enumerate(reversed(VERSIONS), 1)}
    assert ranks <= {
        key[1:]
        for key in values(text, "version_rank_info", "order", "rank", "version", app_id=APP)
        if key[0] == "semver"
    }

    page = derived_lines(text)
    for batch in batches(clients):
        assert 200 == (await exporter.post(batch)).status
    assert page == derived_lines(await exporter.metrics())
    await exporter.restart()
    assert page == derived_lines(await exporter.metrics())
    for batch in batches(clients):
        assert 200 == (await exporter.post(batch)).status
    assert page == derived_lines(await exporter.metrics())


def batches(clients: Sequence[Client], size: int = 500) -> Iterator[list[dict[str, Any]]]:
    """Cut all events that were sent into batches."""
    events = [event for client in clients for batch in client.acknowledged for event in batch]
    for start in range(0, len(events), size):
        yield events[start : start + size]


# --- births -----------------------------------------------------------------------------------------------------------

NEW_VERSIONS = 6
COUNTERS = ("capgo_installs_total", "capgo_update_failures_total", "capgo_channel_updates_total")
DURATION = "capgo_download_duration_seconds"


def first_events(version: str, now_ms: int) -> Batches:
    """Give the first events of a version; those of every second one begin with a rollback."""
    base = {"app_id": APP, "platform": "ios", "version_name": version, "channel": version}
    rollback = [{**base, "device_id": "b", "action": "update_fail", "timestamp": now_ms}]
    download = [
        {**base, "device_id": "a", "action": "download_zip_start", "timestamp": now_ms - 3000},
        {**base, "device_id": "a", "action": "download_complete", "timestamp": now_ms},
        {**base, "device_id": "a", "action": "set", "timestamp": now_ms + 1},
        {**base, "device_id": "c", "action": "set", "timestamp": now_ms + 1},
    ]
    return [rollback, download] if int(version) % 2 else [download, rollback]


def true_rises() -> dict[str, float]:
    """Give by how much each series must have risen."""
    truth = Truth()
    for version in map(str, range(NEW_VERSIONS)):
        truth.count("installs_total", track(version), 2)
        truth.count("update_failures_total", {**track(version), "reason": "update_fail"})
        channel = {"platform": "ios", "channel": version, "environment": "prod"}
        truth.count("channel_updates_total", {**channel, "outcome": "installed"}, 2)
        truth.count("channel_updates_total", {**channel, "outcome": "failed"})
        labels = {"platform": "ios", "version": version}
        truth.observe("download_duration_seconds", labels, DEFAULTS.download_buckets, 3000)
    return {name: float(value) for name, value in truth.figures.items() if "_sum{" not in name}


async def rises(server: Prometheus) -> dict[str, float]:
    """Give by how much each series rose from its first sample, which must be 0, to its last; no sample falls."""
    found: dict[str, float] = {}
    for name in (*COUNTERS, f"{DURATION}_bucket", f"{DURATION}_count"):
        for series in await server.raw_samples(name):
            read = {key: value for key, value in series.labels.items() if key not in {"__name__", "instance", "job"}}
            order = ("app_id", "platform", "version", "channel", "environment", "reason", "outcome", "le")
            text = ",".join(f'{key}="{read[key]}"' for key in order if key in read)
            samples = [value for _, value in series.samples]
            assert (0.0, sorted(samples)) == (samples[0], samples), text
            found[f"{name}{{{text}}}"] = series.rise
    return found


async def test_prometheus_sees_every_derived_figure_from_its_first_event(
    exporter_process: StartExporter, prometheus_server: StartPrometheus, short_grace: dict[str, str]
) -> None:
    """Last minus first raw sample is the truth for counters and histograms, also if a rollback is a version's first."""
    exporter = await exporter_process({**short_grace, "EXPORTER_SCRAPE_INTERVAL": "1s"})
    server = await prometheus_server([exporter.url])
    await server.wait_up()
    for version in map(str, range(NEW_VERSIONS)):
        for batch in first_events(version, int(time.time() * 1000)):
            assert 200 == (await exporter.post(batch)).status
            await asyncio.sleep(0.15)  # Births fall into any moment between two scrapes.
    expected = true_rises()

    async def seen() -> bool:
        found = await rises(server)
        wrong = {name: (value, found.get(name)) for name, value in expected.items() if found.get(name) != value}
        assert {} == wrong
        return True

    await wait_for(seen, "every figure to be seen")
    assert {} == {name: value for name, value in (await rises(server)).items() if expected.get(name, 0.0) != value}
