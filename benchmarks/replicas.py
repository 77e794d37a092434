"""Exporters behind nginx that are stopped or killed one after the other, under load: what is lost, what counts twice.

`python -m benchmarks.replicas --signal SIGKILL --rounds 4`; needs Debian's nginx and openssl.
"""

import argparse
import asyncio
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.support.kills import by_series
from tests.support.replicas import at_work, cluster, reporters


async def measure(number: signal.Signals, rounds: int, devices: int, seed: int) -> str:
    """Send the signal to each exporter in each round, and tell what became of the events."""
    luck = random.Random(seed)  # noqa: S311 -- a run that can be repeated
    with tempfile.TemporaryDirectory() as directory:
        async with (
            cluster(Path(directory), {"EXPORTER_SCRAPE_INTERVAL": "1s"}) as replicas,
            reporters(replicas.proxy, devices, seed) as fleet,
        ):
            started = time.monotonic()
            async with at_work(fleet):
                for exporter in replicas.exporters * rounds:
                    await asyncio.sleep(luck.uniform(0.2, 0.6))  # the moment is what varies
                    os.kill(exporter.pid, number)
                    await exporter.wait()
                    await exporter.restart(same_port=True)
            seconds = time.monotonic() - started
            statuses = sum((device.statuses for device in fleet), Counter[int]())
            expected = by_series([event for device in fleet for event in device.device.acknowledged])
            counted = await replicas.counted()
    events = sum(expected.values())
    lost = sum(max(value - counted.get(key, 0), 0) for key, value in expected.items())
    doubled = sum(max(value - expected.get(key, 0), 0) for key, value in counted.items())
    ended = len(replicas.exporters) * rounds
    return (
        f"{number.name}: {ended} exporters ended in {seconds:.0f} s, {statuses.total()} POSTs ({dict(statuses)}), "
        f"{events} events: {lost} lost, {doubled} counted twice"
    )


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--signal", choices=["SIGTERM", "SIGKILL"], default="SIGTERM")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--devices", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(asyncio.run(measure(signal.Signals[options.signal], options.rounds, options.devices, options.seed)))


if __name__ == "__main__":
    main()
