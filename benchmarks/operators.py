"""Kills the exporter while operators' commands run, under load, with InfluxDB away now and then.

Events come all the time; a hundredth of them are of a device that is forgotten again and again. In the end each
acknowledged event must be in the counters once; in InfluxDB each of the others once, and none of that device.

Ends with 1 if not; needs `influxd`. Usage: python -m benchmarks.operators [--rounds 20] [--seed 1]
"""

import argparse
import asyncio
import functools
import itertools
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.support.commands import Operator
from tests.support.exporter import ExporterProcess, influx_settings
from tests.support.influxdb import InfluxDB16
from tests.support.ports import wait_for
from tests.support.v2proxy import V2Proxy

FORGOTTEN: Final = "forgotten"
FORGET: Final = ("forget", FORGOTTEN)
COMMANDS: Final = (FORGET, FORGET, ("journal", "vacuum"), ("dead-letters", "retry", "--all"))
TOKEN: Final = "token"  # noqa: S105 -- of this program's own
AWAY_SHARE: Final = 0.5
KILLED_SHARE: Final = 0.8


class Rounds:
    """The rounds.

    Attributes:
        acknowledged: the devices of all events that were answered with 200.
        outcomes: how often each command ended with each exit code.
    """

    def __init__(self, exporter: ExporterProcess, proxy: V2Proxy, operator: Operator, seed: int) -> None:
        """Take what is to be killed and who types."""
        self._exporter = exporter
        self._proxy = proxy
        self._operator = operator
        self._luck = random.Random(seed)  # noqa: S311 -- a run that can be repeated
        self._numbers = itertools.count(1)
        self._began_ms = time.time_ns() // 1_000_000
        self.acknowledged: list[str] = []
        self.outcomes: Counter[tuple[str, int | None]] = Counter()

    async def run(self, rounds: int) -> None:
        """Type a command and kill the exporter meanwhile, again and again."""
        for _ in range(rounds):
            done = asyncio.Event()
            loads = [asyncio.create_task(self._load(done)) for _ in range(2)]
            is_away = self._luck.random() < AWAY_SHARE
            if is_away:
                await self._proxy.stop()
            command = self._luck.choice(COMMANDS)
            typed = asyncio.create_task(self._operator.run_process(*command))
            await asyncio.sleep(self._luck.uniform(0.6, 2.0))  # It takes half a second to start.
            if self._luck.random() < KILLED_SHARE:
                await self._exporter.kill9()
            self.outcomes[" ".join(command), (await typed).code] += 1
            if not self._exporter.running:
                await self._exporter.start()
            if is_away:
                await self._proxy.start()
            done.set()
            await asyncio.gather(*loads)

    async def _load(self, done: asyncio.Event) -> None:
        while not done.is_set():
            batch = [self._event(number) for number in itertools.islice(self._numbers, 30)]
            await wait_for(functools.partial(self._post, batch), "a batch to be taken")
            self.acknowledged += [event["device_id"] for event in batch]
            await asyncio.sleep(0.02)

    def _event(self, number: int) -> dict[str, Any]:
        return {
            "app_id": "com.example.app",
            "device_id": f"device-{number}" if number % 100 else FORGOTTEN,
            "action": "set",
            "platform": "android",
            "version_name": "1.2.3",
            "timestamp": self._began_ms - 3 * number,
        }

    async def _post(self, batch: list[dict[str, Any]]) -> bool:
        try:
            return (await self._exporter.post(batch)).status == 200  # noqa: PLR2004 -- OK
        except (aiohttp.ClientError, TimeoutError, AssertionError):
            return False

    async def settle(self) -> None:
        """Forget once more, and wait until InfluxDB has everything."""
        await wait_for(self._is_forgotten, "the device to be forgotten", 120)
        await wait_for(self._is_empty, "the journal to be empty")

    async def _is_forgotten(self) -> bool:
        return (await self._operator.run_process(*FORGET)).code == 0

    async def _is_empty(self) -> bool:
        status = await self._operator.run_process("journal", "status", "--json")
        return int(json.loads(status.stdout)["totals"]["points"]) == 0


async def main(rounds: int, seed: int) -> int:
    """Run, compare and print; gives the exit code."""
    with tempfile.TemporaryDirectory(prefix="operators-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        async with InfluxDB16(directory / "influxdb") as influxdb, V2Proxy(influxdb.url, token=TOKEN) as proxy:
            influx = influx_settings(proxy.url, token=TOKEN, org="org", bucket=influxdb.database)
            async with ExporterProcess(directory / "exporter", influx) as exporter:
                settings = {name: value for name, value in exporter.env.items() if name.startswith("EXPORTER_")}
                operator = Operator(directory, settings)
                run = Rounds(exporter, proxy, operator, seed)
                await run.run(rounds)
                await run.settle()
                counted = sum((await exporter.counters()).values())
                points = Counter(str(point.fields["device_id"]) for point in await influxdb.points("capgo_stats"))
                verified = await operator.run_process("journal", "verify")
    expected = Counter(device for device in run.acknowledged if device != FORGOTTEN)
    lost, doubled = (expected - points).total(), (points - expected).total()
    print(f"{len(run.acknowledged)} events, {counted} counted; points lost {lost}, too many {doubled}")
    print(f"{verified.stdout.strip()}; exit codes: {dict(run.outcomes)}")
    return int(bool(lost or doubled or verified.code or counted != len(run.acknowledged)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    sys.exit(asyncio.run(main(arguments.rounds, arguments.seed)))
