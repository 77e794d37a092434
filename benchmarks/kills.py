"""Kills the exporter at random moments, hundreds of times, under load and with scrapes every 10 ms.

Devices post batches of 1 to 200 events and send again whatever is not acknowledged, to a real InfluxDB 1.6. SIGKILL and
SIGTERM take turns at random, every other block of rounds runs on a slow disk, and InfluxDB is killed now and then too.
In the end each event must be in the counters once and in InfluxDB once, nothing shown may ever have been taken back,
and a second sending of everything must change nothing.

Ends with 1 if anything is lost or doubled; needs `influxd`. Usage: python -m benchmarks.kills [--rounds 200] [--seed 1]
"""

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Final

from tests.support.exporter import ExporterProcess, influx_settings
from tests.support.influxdb import InfluxDB16
from tests.support.kills import Load, batches, by_series, nonzero_counters, points, sample, slow_disk
from tests.support.ports import wait_for
from tests.support.v2proxy import V2Proxy

BLOCK: Final = 10
TERM_SHARE: Final = 0.25
INFLUXDB_SHARE: Final = 0.1


class Kills:
    """The rounds.

    Attributes:
        kills: how often each was ended, by the signal's name.
    """

    def __init__(self, exporter: ExporterProcess, influxdb: InfluxDB16, environments: list[str], seed: int) -> None:
        """Take what is to be killed, and the `PYTHONPATH` of each block of rounds."""
        self._exporter = exporter
        self._influxdb = influxdb
        self._environments = environments
        self._luck = random.Random(seed)  # noqa: S311 -- a run that can be repeated
        self.kills: Counter[str] = Counter()

    async def run(self, rounds: int) -> None:
        """Kill at random moments."""
        for number in range(rounds):
            await asyncio.sleep(self._luck.uniform(0.05, 1.0))
            if self._luck.random() < INFLUXDB_SHARE:
                await self._influxdb.process.kill9()
                self.kills["InfluxDB"] += 1
            sent = signal.SIGTERM if self._luck.random() < TERM_SHARE else signal.SIGKILL
            os.kill(self._exporter.pid, sent)
            if sent is signal.SIGTERM and self._luck.random() < 0.5:  # noqa: PLR2004 -- a coin; killed while it drains
                await asyncio.sleep(self._luck.uniform(0, 0.3))
                if self._exporter.running:
                    os.kill(self._exporter.pid, signal.SIGKILL)
                    self.kills["SIGKILL while draining"] += 1
            await self._exporter.wait(30)
            self.kills[sent.name] += 1
            self._exporter.env["PYTHONPATH"] = self._environments[number // BLOCK % len(self._environments)]
            await self._exporter.restart(same_port=True)
            if not self._influxdb.process.running:
                await self._influxdb.start()
            if (number + 1) % (2 * BLOCK) == 0:
                print(f"{number + 1} rounds", flush=True)


async def measure(rounds: int, seed: int, directory: Path) -> int:
    """Run, compare and print; gives the number of wrong figures."""
    influxdb = InfluxDB16(directory / "influxdb")
    async with influxdb, V2Proxy(influxdb.url, token="t") as proxy:  # noqa: S106 -- a token of the run's own
        settings = influx_settings(proxy.url, token="t", org="o", bucket=influxdb.database)  # noqa: S106 -- the same
        settings |= {"EXPORTER_SCRAPE_INTERVAL": "0.2s", "EXPORTER_DEDUPE_EVENTS": "10000000"}
        async with ExporterProcess(directory / "exporter", settings) as exporter:
            environments = [exporter.env["PYTHONPATH"], slow_disk(directory / "slow")["PYTHONPATH"]]
            kills = Kills(exporter, influxdb, environments, seed)
            load = Load(seed)
            began = time.monotonic()
            async with load.at_work(exporter.url):
                await kills.run(rounds)
            seconds = time.monotonic() - began
            print(f"{rounds} rounds in {seconds:.0f} s, ended: {dict(kills.kills)}")
            return await compare(load, exporter, influxdb)


async def compare(load: Load, exporter: ExporterProcess, influxdb: InfluxDB16) -> int:
    """Set what was sent against what is there, before and after everything is sent once more."""

    async def journal_is_empty() -> bool:
        return await sample(exporter, "capgo_exporter_journal_points") == 0

    events = load.events()
    expected, expected_points = by_series(events), len(points(events))
    wrong = 0
    for when in ("after the kills", "after everything was sent once more"):
        counted = await nonzero_counters(exporter)
        lost = sum(max(0, value - counted.get(key, 0)) for key, value in expected.items())
        doubled = sum(max(0, value - expected.get(key, 0)) for key, value in counted.items())
        await wait_for(journal_is_empty, "the journal to be empty", 300)
        stored = await influxdb.count("capgo_stats", "count")
        print(
            f"{when}: {len(events)} events, counters: {lost} lost, {doubled} doubled; "
            f"InfluxDB: {expected_points} points expected, {stored} there"
        )
        wrong += lost + doubled + abs(expected_points - stored)
        for batch in batches(events):
            if (await exporter.post(batch)).status != 200:  # noqa: PLR2004 -- HTTP's OK
                wrong += 1
    for name, reader in zip(("Prometheus", "person"), load.readers, strict=True):
        print(f"{name}: {reader.pages} pages read, {len(reader.taken_back)} values taken back")
        wrong += len(reader.taken_back)
    set_aside = list(exporter.data_dir.glob("*set-aside*"))
    print(f"journals set aside: {len(set_aside)}")
    return wrong + len(set_aside)


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="how often the exporter is ended")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of every chance")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="kills-") as directory:
        wrong = asyncio.run(measure(arguments.rounds, arguments.seed, Path(directory)))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
