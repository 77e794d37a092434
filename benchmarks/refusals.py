"""What a refusal costs: requests a second that are answered 503, beside those that are answered 200.

One exporter has a full journal and refuses, the other takes everything; wrk sends the same bodies of 200 events to both
by turns. Prints requests a second, CPU time for each, and by how much each exporter's memory grew.

Needs Linux and `wrk`. Usage: python -m benchmarks.refusals [--seconds 5].
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from benchmarks.machine import cpu_seconds
from tests.support.exporter import ExporterProcess

EVENTS: Final = 200
ROUNDS: Final = 3
SCRIPT: Final = """
local body = io.open("BODY"):read("*a")
local count = 0
request = function()
  count = count + 1
  return wrk.format("POST", "/stats", {["Content-Type"] = "application/json"}, (body:gsub("NUMBER", count)))
end
"""


def batch(name: str) -> str:
    """Make the body of a batch, a template for wrk."""
    event = {
        "app_id": "com.example.refusals",
        "device_id": f"{name}-NUMBER",
        "platform": "ios",
        "action": "get",
        "version_name": "1.0.0",
        "version_os": "17",
    }
    return json.dumps([{**event, "timestamp": 1_795_140_000_000 + number} for number in range(EVENTS)])


def memory_bytes(pid: int) -> int:
    """Read a process's resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def load(url: str, seconds: int, directory: Path, run: str) -> float:
    """Send with wrk; gives requests a second."""
    (directory / "body").write_text(batch(run))
    (directory / "load.lua").write_text(SCRIPT.replace("BODY", str(directory / "body")))
    command = ["wrk", "-t1", "-c16", f"-d{seconds}s", "-s", str(directory / "load.lua"), url]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rate = re.search(r"Requests/sec:\s+(\S+)", output)
    return float(rate[1]) if rate else 0.0


async def measure(seconds: int, directory: Path) -> None:
    """Run and print."""
    full = {"EXPORTER_JOURNAL_FULL": "reject", "EXPORTER_JOURNAL_MAX_BYTES": "64KiB"}
    async with (
        ExporterProcess(directory / "refuses", full) as refuses,
        ExporterProcess(directory / "takes") as takes,
    ):
        number = 0
        while (await refuses.post(batch(f"fill-{number}"))).status == 200:  # noqa: PLR2004 -- HTTP's OK
            number += 1
        print("| answer | requests/s | CPU µs a request | memory grew by MiB |\n|---|---|---|---|")
        for turn in range(ROUNDS):
            for answer, exporter in ((503, refuses), (200, takes)):
                cpu, memory = cpu_seconds(exporter.pid), memory_bytes(exporter.pid)
                rate = await asyncio.to_thread(load, exporter.url, seconds, directory, f"{turn}-{answer}")
                spent = (cpu_seconds(exporter.pid) - cpu) / (rate * seconds) * 1e6
                grown = (memory_bytes(exporter.pid) - memory) / 2**20
                print(f"| {answer} | {rate:,.0f} | {spent:,.0f} | {grown:.1f} |", flush=True)


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5, help="length of a round")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="refusals-") as directory:
        asyncio.run(measure(arguments.seconds, Path(directory)))


if __name__ == "__main__":
    main()
