"""The servers that are measured, each with InfluxDB on: how they are started and what they say they counted."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.machine import get

PEERS: Final = Path(__file__).parent / "peers"
NODE_MODULES: Final = PEERS / "node_modules"
_COUNTS: Final = re.compile(r"^capgo_(?:stats_)?events_total\{[^}]*\} (\S+)$", re.MULTILINE)
_REQUESTS: Final = re.compile(r"^capgo_requests_total\{[^}]*\} (\S+)$", re.MULTILINE)


class Contender(NamedTuple):
    """A server.

    Attributes:
        name: in options and files.
        title: in tables and plots.
        command: its command; `PORT` and `SINK` stand for what they say.
        puts_off_seconds: for so long it may put work off that belongs to the events.
        delivers: whether it writes points at all.
        options: environment variables.
    """

    name: str
    title: str
    command: tuple[str, ...]
    puts_off_seconds: float = 0.0
    delivers: bool = True
    options: tuple[tuple[str, str], ...] = ()

    def environment(self, port: int, sink: str, directory: Path) -> dict[str, str]:
        """Give the variables with which it runs."""
        if self.command[0] != sys.executable or "exporter" not in self.command:
            return {"NODE_ENV": "production"}
        return {
            "EXPORTER_LISTEN": f"127.0.0.1:{port}",
            "EXPORTER_DATA_DIR": str(directory / "data"),
            "EXPORTER_INFLUX_URL": sink,
            "EXPORTER_LOG_LEVEL": "error",
            **dict(self.options),
        }

    def argv(self, port: int, sink: str) -> list[str]:
        """Give the command for a port and a sink."""
        return [part.replace("PORT", str(port)).replace("SINK", sink) for part in self.command]


EXPORTER: Final = "exporter"
_SERVE: Final = (sys.executable, "-m", "exporter", "serve")
CONTENDERS: Final = {
    contender.name: contender
    for contender in (
        Contender(
            "limit", "limit: reads and answers", (sys.executable, str(PEERS / "limit.py"), "PORT"), delivers=False
        ),
        Contender("naive", "naive aiohttp", (sys.executable, str(PEERS / "naive.py"), "PORT", "SINK")),
        Contender("express", "express", ("node", str(PEERS / "express.js"), "PORT", "influx", "SINK")),
        Contender("fastify", "fastify", ("node", str(PEERS / "fastify.js"), "PORT", "influx", "SINK")),
        # Downloads and failures are settled ten seconds after their end.
        Contender(EXPORTER, "exporter", _SERVE, puts_off_seconds=12.0),
        Contender("underived", "exporter, derived off", _SERVE, options=(("EXPORTER_DERIVED", "off"),)),
    )
}


def install_peers() -> None:
    """Fetch the Node peers' libraries, once, into a directory that git ignores."""
    for command in ("node", "npm"):
        if shutil.which(command) is None:
            sys.exit(f"{command} is not installed; express and fastify need it (or leave them out with --servers)")
    if (NODE_MODULES / "fastify").is_dir():
        return
    install = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--silent", "--omit=dev"]
    if subprocess.run(install, cwd=PEERS, check=False).returncode:
        sys.exit(f"npm could not install what {PEERS / 'package.json'} names")


def counted(url: str, batch: int) -> int:
    """Sum up the events that a server says it counted; the limit counts requests only."""
    page = get(f"{url}/metrics")
    requests = _REQUESTS.findall(page)
    values = _COUNTS.findall(page)
    return round(sum(map(float, requests)) * batch if requests else sum(map(float, values)))
