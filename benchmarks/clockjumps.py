"""The system's clock jumps by hours, back and forth, under load and with kills; nothing may be lost or doubled.

The clock is that of the exporter's process alone: libfaketime reads it from a file which this script changes. Devices
and InfluxDB keep the right time.

Needs `influxd` and Debian's `libfaketime`. Usage: python -m benchmarks.clockjumps [--jumps 30].
"""

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final

from benchmarks.kills import compare
from tests.support.exporter import ExporterProcess, influx_settings
from tests.support.influxdb import InfluxDB16
from tests.support.kills import Load
from tests.support.v2proxy import V2Proxy

LIBRARY: Final = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
MOST_HOURS: Final = 100


async def measure(jumps: int, directory: Path) -> int:
    """Run, compare and print; gives the number of wrong figures."""
    luck = random.Random(jumps)  # noqa: S311 -- a run that can be repeated
    clock = directory / "clock"
    clock.write_text("+0h")
    influxdb = InfluxDB16(directory / "influxdb")
    async with influxdb, V2Proxy(influxdb.url, token="t") as proxy:  # noqa: S106 -- a token of the run's own
        settings = {
            **influx_settings(proxy.url, token="t", org="o", bucket=influxdb.database),  # noqa: S106 -- the same
            "EXPORTER_SCRAPE_INTERVAL": "0.2s",
            # Device times have to be believed whatever the clock says: a point's time is compared in the end.
            "EXPORTER_MAX_EVENT_AGE": "30d",
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        async with ExporterProcess(directory / "exporter", settings) as exporter:
            load = Load(jumps)
            kills = 0
            async with load.at_work(exporter.url):
                for _ in range(jumps):
                    # Never behind the devices: an event from the future gets the time of its arrival.
                    clock.write_text(f"+{luck.randrange(MOST_HOURS)}h")
                    await asyncio.sleep(luck.uniform(0.2, 0.8))
                    if luck.random() < 0.3:  # noqa: PLR2004 -- a share
                        kills += 1
                        os.kill(exporter.pid, signal.SIGKILL)
                        await exporter.wait()
                        await exporter.restart(same_port=True)
            print(f"{jumps} jumps between 0 and {MOST_HOURS} hours ahead, {kills} kills")
            return await compare(load, exporter, influxdb)


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jumps", type=int, default=30, help="how often the clock is set")
    arguments = parser.parse_args()
    if not LIBRARY.exists():
        sys.exit(f"{LIBRARY} is missing: apt-get install libfaketime")
    with tempfile.TemporaryDirectory(prefix="clock-") as directory:
        sys.exit(1 if asyncio.run(measure(arguments.jumps, Path(directory))) else 0)


if __name__ == "__main__":
    main()
