"""A flood: attackers send what they invent by the million, while a good fleet reports and a scraper scrapes.

The attackers invent versions, apps, actions, devices, downloads that never end, failures, channels, platforms,
metadata, times and long texts: first one kind after the other, then all mixed. A new release of the good fleet's app
comes out in the middle. Prints a table over time, and judges in the end: are the good fleet's counters exact, has its
new release a label of its own, was every event counted and delivered once, did all bounds hold, were the caps told of
once, and are memory and page as large in the last third as in the middle one?

By default the good fleet's apps are in the allow-list, which leaves attackers those apps' names and `unknown`. With
`--open` there is no list: a flood may then make new releases `other`, and the rest must hold.

Usage: python -m benchmarks.flood [--events 10_000_000] [--minutes 12] [--open].
"""

import argparse
import asyncio
import itertools
import json
import os
import re
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web
from isal import igzip

from benchmarks.receiver import Receiver
from exporter.actions import BY_NAME
from exporter.derived.episodes import MAX_EPISODES
from tests.support.exporter import ExporterProcess, influx_settings
from tests.support.ports import wait_for

BATCH: Final = 500
ATTACKERS: Final = 4
GOOD_BATCH: Final = 50
GOOD_EVERY: Final = 0.25
SCRAPE_SECONDS: Final = 10.0
ROWS: Final = 36
"""Lines of the table, at most; each is as many events."""

GOOD: Final = "com.example.good"
VICTIM: Final = "com.example.victim"
RELEASES: Final = ("1.0.0", "1.1.0")
NEW_RELEASE: Final = "2.0.0"
GOOD_STEPS: Final = ("download_0", "download_50", "download_complete", "set", "app_moved_to_foreground", "update_fail")
KNOWN_ACTIONS: Final = tuple(BY_NAME)
STEPS: Final = ("download_0", "download_10", "download_20", "download_30", "download_40", "download_50", "download_60")
FAILURES: Final = ("update_fail", "set_fail", "unzip_fail", "checksum_fail", "download_fail")
PLATFORMS: Final = ("android", "ios", "electron", "web", "windows")

MAX_SERIES: Final = 200_000
MAX_SKETCHES: Final = 5_000
DEDUPE_EVENTS: Final = 1_000_000
FEW_SERIES: Final = len(BY_NAME) * 30
"""So many series of `other` labels may stand past the bound."""

FLAT: Final = 1.15
"""How much more than in the middle third the last one may have."""

_SERIES_OF_LINE: Final = re.compile(rb"(?:[^ \\]|\\.)*")


# --- what attackers send ----------------------------------------------------------------------------------------------


class Attack:
    """Makes hostile events; each is different from every other one."""

    def __init__(self, *, is_open: bool) -> None:
        """Start with the first number."""
        self._numbers = itertools.count(1)
        self._combinations = itertools.count(1)
        # With an allow-list only these names get anywhere; invented ones are tried too.
        self._apps = [VICTIM, "unknown"] if not is_open else [VICTIM, *(f"com.evil.a{number}" for number in range(40))]
        self.kinds: dict[str, Callable[[int, int], str]] = {
            "series": self._series,
            "versions": self._version,
            "apps": lambda n, _: _event(f"com.evil.x{n}", "set", "1.0.0"),
            "actions": lambda n, _: _event(VICTIM, f"new_{n}{'_fail' * (n % 2)}", "1.0.0"),
            "devices": lambda n, _: _event(self._app(n), "app_moved_to_foreground", f"1.{n % 50}.0", n),
            "downloads": lambda n, _: _event(self._app(n), "download_10", f"1.{n % 50}.0", n),
            "steps": self._step,
            "failures": lambda n, _: _event(self._app(n), FAILURES[n % len(FAILURES)], f"1.{n % 50}.0", n),
            "channels": lambda n, _: _event(VICTIM, "set", "1.0.0", n, f'"channel":"c{n}","old_version_name":"o{n}"'),
            "durations": self._duration,
            "metadata": lambda n, _: _event(VICTIM, "get", "1.0.0", n, f'"metadata":{{{_many_keys(n)}}}'),
            "times": self._time,
            "texts": self._text,
        }

    def body(self, kind: str) -> bytes:
        """Make a batch of one kind."""
        make = self.kinds[kind]
        now_ms = time.time_ns() // 1_000_000
        return f"[{','.join([make(number, now_ms) for number in itertools.islice(self._numbers, BATCH)])}]".encode()

    def _app(self, number: int) -> str:
        return self._apps[number % len(self._apps)]

    def _version(self, number: int, now_ms: int) -> str:
        return _event(self._app(number // 100), "set", f"9.{number}.0", extra=f'"timestamp":{now_ms}')

    def _series(self, device: int, now_ms: int) -> str:
        """One label after the other takes all its values: as many series as there can be."""
        number, action = divmod(next(self._combinations), len(KNOWN_ACTIONS))
        number, platform = divmod(number, len(PLATFORMS))
        number, environment = divmod(number, 3)
        number, version = divmod(number, 100)
        extra = f'"is_prod":{_bool(environment == 0)},"is_emulator":{_bool(environment == 1)},"timestamp":{now_ms}'
        app = self._app(number)
        return _event(app, KNOWN_ACTIONS[action], f"1.{version}.0", device, extra, PLATFORMS[platform])

    def _step(self, number: int, now_ms: int) -> str:
        """Many steps of a device's download, each with as much to remember as there can be."""
        extra = f'"timestamp":{now_ms + number % 1000},"metadata":{{"duration_ms":"{number}.25"}}'
        return _event(self._app(number // 64), STEPS[number % len(STEPS)], "1.0.0", number // 64, extra)

    def _duration(self, number: int, _: int) -> str:
        action = ("app_launch_ready", "webview_page_loaded")[number % 2]
        extra = f'"metadata":{{"duration_ms":"{number % 100_000}"}}'
        app, version = self._app(number // 2), f"1.{number // 100 % 50}.0"
        return _event(app, action, version, number, extra, PLATFORMS[number % 5])

    def _time(self, number: int, now_ms: int) -> str:
        """From long ago to far ahead, and the days that still have sketches."""
        days = number % 30 if number % 2 else (number % 7919 - 3900) * 10
        return _event(
            self._app(number), "get", f"1.{number % 50}.0", number, f'"timestamp":{now_ms - days * 86_400_000}'
        )

    def _text(self, number: int, _: int) -> str:
        long = f"{number}" + " x" * 400
        channel = " " * (number % 1000) + "production"
        return _event(self._app(number), "set", long, number, f'"channel":"{channel}","custom_id":"{long}"')


def _event(app_id: str, action: str, version: str, device: int = 0, extra: str = "", platform: str = "ios") -> str:
    return (
        f'{{"app_id":"{app_id}","action":"{action}","version_name":"{version}","platform":"{platform}",'
        f'"device_id":"{device:032x}","plugin_version":"8.51.14"{"," * bool(extra)}{extra}}}'
    )


def _many_keys(number: int) -> str:
    return ",".join([f'"k{number}_{key}":"v"' for key in range(20)])


def _bool(value: bool) -> str:  # noqa: FBT001 -- a JSON text
    return "true" if value else "false"


# --- who watches ------------------------------------------------------------------------------------------------------


class Influx(Receiver):
    """Takes every point, and counts them and their series.

    Attributes:
        points: lines that came.
        series: measurement and tags of the lines, each once.
    """

    def __init__(self) -> None:
        """Know nothing yet."""
        super().__init__()
        self.points = 0
        self.series: set[bytes] = set()

    async def write(self, request: web.Request) -> web.Response:
        """Answer a write, and note its points."""
        body = await request.read()
        await asyncio.to_thread(self._take, body)
        return web.Response(status=204)

    def _take(self, body: bytes) -> None:
        lines = igzip.decompress(body).splitlines()
        self.points += len(lines)
        self.series.update({_SERIES_OF_LINE.match(line)[0] for line in lines})  # type: ignore[index]


@dataclass
class Row:
    """What was seen in a part of the flood."""

    events: int = 0
    seconds: float = 0.0
    rss_mib: float = 0.0
    files: int = 0
    disk_mib: float = 0.0
    page_mib: float = 0.0
    scrape_s: float = 0.0
    values: dict[str, float] = field(default_factory=dict)
    good_ms: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        """Write it as a line of the table."""
        values = self.values
        good = sorted(self.good_ms) or [0.0]
        return (
            f"{self.events / 1e6:8.2f} {self.events / max(self.seconds, 1e-9):9.0f} {self.rss_mib:8.0f}"
            f" {values['capgo_exporter_series']:7.0f} {values['capgo_exporter_derived_series']:8.0f}"
            f" {self.page_mib:8.1f} {self.scrape_s:8.2f} {self.disk_mib:8.0f}"
            f" {values['capgo_exporter_journal_points']:8.0f} {values['capgo_exporter_sketches']:8.0f}"
            f" {values['capgo_exporter_episodes']:8.0f} {values['capgo_exporter_dedupe_events']:8.0f} {self.files:5}"
            f"  {statistics.median(good):6.1f}/{good[int(len(good) * 0.99)]:.0f}/{good[-1]:.0f}"
        )


HEADER: Final = (
    "millions  events/s  RSS MiB     raw  derived page MiB scrape s disk MiB  waiting sketches episodes remember files"
    "  good POST p50/p99/max ms"
)


class Flood:
    """One run."""

    def __init__(self, exporter: ExporterProcess, events: int, *, is_open: bool) -> None:
        """Set how much is sent."""
        self.rows: list[Row] = []
        self.answered = 0
        self.refused = 0
        self.good: Counter[tuple[str, str]] = Counter()
        self._exporter = exporter
        self._events = events
        self._attack = Attack(is_open=is_open)
        self._sent = 0
        self._row = Row()
        self._page = b""
        self._started = time.monotonic()
        self._done = False

    async def run(self, seconds: float) -> None:
        """Send everything, or as much as the time allows."""
        self._started = time.monotonic()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await self._scrape(session)
            watching = [asyncio.create_task(work) for work in (self._scrapes(session), self._watch(session))]
            fleet = asyncio.create_task(self._fleet(session))
            async with asyncio.TaskGroup() as attackers:
                for _ in range(ATTACKERS):
                    attackers.create_task(self._attacker(session, self._started + seconds))
            self._done = True
            await asyncio.gather(fleet, *watching)

    async def _attacker(self, session: aiohttp.ClientSession, end: float) -> None:
        kinds = list(self._attack.kinds)
        while self._sent < self._events and time.monotonic() < end:
            # The first third belongs to one kind after the other.
            phase = self._sent * 3 * len(kinds) // self._events
            kind = kinds[phase] if phase < len(kinds) else kinds[self._sent // BATCH % len(kinds)]
            self._sent += BATCH
            await self._post(session, self._attack.body(kind), BATCH)

    async def _post(self, session: aiohttp.ClientSession, body: bytes, events: int) -> None:
        headers = {"Content-Type": "application/json"}
        async with session.post(f"{self._exporter.url}/stats", data=body, headers=headers) as response:
            await response.read()
        if response.status == web.HTTPOk.status_code:
            self.answered += events
        else:
            self.refused += events

    async def _fleet(self, session: aiohttp.ClientSession) -> None:
        number = 0
        while not self._done:
            is_out = self._sent * 2 > self._events
            batch = []
            for _ in range(GOOD_BATCH):
                number += 1
                step = GOOD_STEPS[number % len(GOOD_STEPS)]
                version = NEW_RELEASE if is_out and number % 3 == 0 else RELEASES[number // 7 % 2]
                self.good[step, version] += 1
                device = f"good-{number // len(GOOD_STEPS) % 500:04}"
                # Each time is another one, so that each event is.
                stamp = time.time_ns() // 1_000_000 - number % 60_000
                batch.append(
                    {"app_id": GOOD, "action": step, "version_name": version, "platform": "android"}
                    | {"device_id": device, "timestamp": stamp, "metadata": {"n": str(number)}}
                )
            body = json.dumps(batch).encode()
            started = time.monotonic()
            await self._post(session, body, GOOD_BATCH)
            self._row.good_ms.append((time.monotonic() - started) * 1000)
            await asyncio.sleep(GOOD_EVERY)

    async def _scrapes(self, session: aiohttp.ClientSession) -> None:
        while not self._done:
            await asyncio.sleep(SCRAPE_SECONDS)
            await self._scrape(session)

    async def _scrape(self, session: aiohttp.ClientSession) -> None:
        headers = {"X-Prometheus-Scrape-Timeout-Seconds": "10"}
        started = time.monotonic()
        async with session.get(f"{self._exporter.url}/metrics", headers=headers) as response:
            self._page = await response.read()
        self._row.scrape_s = max(self._row.scrape_s, time.monotonic() - started)

    async def _watch(self, session: aiohttp.ClientSession) -> None:
        print(HEADER, flush=True)
        seen, at = 0, time.monotonic()
        while not self._done:
            while self._sent < seen + self._events // ROWS and not self._done:  # noqa: ASYNC110 -- a table, not a service
                await asyncio.sleep(0.2)
            await self._scrape(session)
            row, self._row = self._row, Row()
            row.events, row.seconds = self._sent, time.monotonic() - at
            row.rss_mib, row.files = _usage(Path(f"/proc/{self._exporter.pid}"))
            row.disk_mib = sum(path.stat().st_size for path in self._exporter.data_dir.iterdir()) / 2**20
            row.page_mib = len(self._page) / 2**20
            row.values = own_values(self._page)
            line = str(Row(**{**vars(row), "events": self._sent - seen}))
            print(f"{self._sent / 1e6:8.2f}{line[8:]}", flush=True)
            seen, at = self._sent, time.monotonic()
            self.rows.append(row)


def own_values(page: bytes) -> dict[str, float]:
    """Give what a page says about the exporter itself."""
    lines = (line.rpartition(b" ") for line in page.splitlines() if line.startswith((b"capgo_exporter_", b"process_")))
    return {name.decode(): float(value) for name, _, value in lines}


def events_by_labels(page: bytes) -> dict[tuple[str, str, str], int]:
    """Give the event counter of a page by app, action and version."""
    wanted = re.compile(
        rb'^capgo_stats_events_total\{app_id="([^"]*)",platform="[^"]*",action="([^"]*)",version="([^"]*)",'
        rb'environment="[^"]*"\} (\d+)$',
        re.MULTILINE,
    )
    counters: Counter[tuple[str, str, str]] = Counter()
    for app_id, action, version, value in wanted.findall(page):
        counters[app_id.decode(), action.decode(), version.decode()] += int(value)
    return counters


def _usage(process: Path) -> tuple[float, int]:
    """Give the resident memory of a process, in MiB, and how many files it has open."""
    pages = int((process / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(list((process / "fd").iterdir()))


# --- the verdict ------------------------------------------------------------------------------------------------------


class Verdict:
    """Says of each claim whether it held."""

    def __init__(self) -> None:
        """Nothing is wrong yet."""
        self.is_good = True

    def check(self, claim: str, *, holds: bool) -> None:
        """Note a claim."""
        self.is_good = self.is_good and holds
        print(f"{'ok  ' if holds else 'FAIL'} {claim}", flush=True)


async def judge(flood: Flood, exporter: ExporterProcess, influx: Influx, *, is_open: bool) -> bool:
    """Check what must hold in the end."""
    page = (await exporter.request("GET", "/metrics")).body
    values = own_values(page)
    counters = events_by_labels(page)
    verdict = Verdict()
    good = {key: counters.get((GOOD, *key), 0) for key in flood.good}
    established = {key: count for key, count in flood.good.items() if key[1] != NEW_RELEASE}
    verdict.check(
        f"good fleet, established releases: {sum(established.values())} events, counters exact",
        holds=established == {key: good[key] for key in established},
    )
    new = {key: count for key, count in flood.good.items() if key[1] == NEW_RELEASE}
    has_label = new == {key: good[key] for key in new}
    claim = f"good fleet, new release {NEW_RELEASE}: {sum(new.values())} events under its own label"
    if is_open and not has_label:
        print(f"--   {claim}: no; without an allow-list a flood can do that")
    else:
        verdict.check(claim, holds=has_label)
    _judge_sums(flood, values, sum(counters.values()), influx, verdict)
    _judge_bounds(flood.rows, values, influx, verdict)
    _judge_logs(exporter, verdict)
    print_figures(values)
    return verdict.is_good & is_flat(flood.rows, verdict)


def _judge_sums(flood: Flood, values: dict[str, float], counted: int, influx: Influx, verdict: Verdict) -> None:
    outcome = "capgo_exporter_events_total{{outcome={}}}".format
    by_outcome = {
        name: sum(count for key, count in values.items() if key.startswith(outcome(f'"{name}"')[:-1]))
        for name in ("accepted", "duplicate", "filtered", "rejected")
    }
    verdict.check(f"every POST answered 200: {flood.answered} events, {flood.refused} not", holds=flood.refused == 0)
    verdict.check(
        f"outcomes add up to what was answered: {by_outcome}", holds=sum(by_outcome.values()) == flood.answered
    )
    accepted, expired = by_outcome["accepted"], values["capgo_exporter_expired_events_total"]
    verdict.check(
        f"accepted {accepted:.0f} = counters {counted} + expired {expired:.0f} = points {influx.points}",
        holds=accepted == counted + expired == influx.points,
    )


def _judge_bounds(rows: Iterable[Row], values: dict[str, float], influx: Influx, verdict: Verdict) -> None:
    for name, bound in (
        ("capgo_exporter_series", MAX_SERIES + FEW_SERIES),
        ("capgo_exporter_derived_series", MAX_SERIES + FEW_SERIES),
        ("capgo_exporter_sketches", MAX_SKETCHES),
        ("capgo_exporter_episodes", MAX_EPISODES),
        ("capgo_exporter_dedupe_events", DEDUPE_EVENTS * 2.5),
    ):
        most = max(row.values[name] for row in rows)
        verdict.check(f"{name}: at most {most:.0f}, bound {bound:.0f}", holds=most <= bound)
    verdict.check(
        f"series in InfluxDB: {len(influx.series)}, no more than counters have",
        holds=len(influx.series) <= values["capgo_exporter_series"],
    )


def _judge_logs(exporter: ExporterProcess, verdict: Verdict) -> None:
    names = Counter((line.get("level"), line.get("event"), line.get("reason")) for line in exporter.logs())
    for (level, name, reason), count in names.items():
        print(f"     log: {count} x {level}: {name} {reason or ''}")
    noisy = [name for (level, *name), count in names.items() if level != "info" and count > 1]
    verdict.check(f"each warning logged once: {len(exporter.logs())} lines in all", holds=not noisy)


def print_figures(values: dict[str, float]) -> None:
    """Print what was counted as out of bounds."""
    for name, value in values.items():
        if value and name.startswith(
            ("capgo_exporter_label_overflow_total", "capgo_exporter_derived_skipped_total", "capgo_exporter_clock")
        ):
            print(f"     {name} {value:.0f}")


def is_flat(rows: list[Row], verdict: Verdict) -> bool:
    """Compare the last third with the middle one."""
    third = len(rows) // 3
    if not third:
        return True
    figures: dict[str, Callable[[Row], float]] = {
        "RSS": lambda row: row.rss_mib,
        "open files": lambda row: row.files,
        "page": lambda row: row.page_mib,
        "disk": lambda row: row.disk_mib,
        "time per event": lambda row: row.seconds,
    }
    for name, of in figures.items():
        middle, last = (
            statistics.median(of(row) for row in part) for part in (rows[third : 2 * third], rows[2 * third : -1])
        )
        claim = f"{name}: middle third {middle:.2f}, last third {last:.2f}, ratio {last / max(middle, 1e-9):.2f}"
        verdict.check(f"{claim} (at most {FLAT})", holds=last <= middle * FLAT)
    return verdict.is_good


async def main(events: int, minutes: float, *, is_open: bool) -> int:
    """Run, and judge; the exit code."""
    influx = Influx()
    url = await influx.start()
    with tempfile.TemporaryDirectory() as directory:
        settings = {
            **influx_settings(url, token="any", org="any", bucket="any"),  # noqa: S106 -- no secret
            "EXPORTER_SCRAPE_INTERVAL": "15s",
            "EXPORTER_MAX_SERIES": str(MAX_SERIES),
            "EXPORTER_MAX_SKETCHES": str(MAX_SKETCHES),
            "EXPORTER_DEDUPE_EVENTS": str(DEDUPE_EVENTS),
        }
        if not is_open:
            settings["EXPORTER_ALLOWED_APPS"] = f"{GOOD},{VICTIM}"
        async with ExporterProcess(Path(directory), settings) as exporter:
            flood = Flood(exporter, events, is_open=is_open)
            await flood.run(minutes * 60)
            await _until_delivered(exporter)
            is_good = await judge(flood, exporter, influx, is_open=is_open)
            code = await exporter.terminate(60)
    await influx.stop()
    return 0 if is_good and code == 0 else 1


async def _until_delivered(exporter: ExporterProcess) -> None:
    async def delivered() -> bool:
        values = own_values((await exporter.request("GET", "/metrics")).body)
        return values["capgo_exporter_journal_points"] == 0

    await wait_for(delivered, "the last points to be delivered", 300)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--open", action="store_true", help="without an allow-list")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the exporter is stopped, too
    sys.exit(asyncio.run(main(options.events, options.minutes, is_open=options.open)))
