"""A real Alertmanager with a configuration of its own, and somebody to tell."""

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import web

from tests.support.ports import free_port
from tests.support.process import Server, ServerProcess, http_ok
from tests.support.webserver import WebServer

Labels = Mapping[str, str]

_TIMEOUT: Final = aiohttp.ClientTimeout(total=30)
_WAITS: Final = ("group_wait", "group_interval")


class Receivers(WebServer):
    """Keeps the messages that Alertmanager sends, each by the name of its receiver.

    Attributes:
        messages: the receivers' names and what they were sent, in order.
    """

    def __init__(self) -> None:
        """Take a port; nothing listens before `start`."""
        super().__init__()
        self.messages: list[tuple[str, dict[str, Any]]] = []

    def build(self, app: web.Application) -> None:
        """Take what is posted to any receiver."""
        app.router.add_post("/{receiver}", self._receive)

    async def _receive(self, request: web.Request) -> web.Response:
        self.messages.append((request.match_info["receiver"], await request.json()))
        return web.Response()

    def told(self, receiver: str) -> list[str]:
        """Give the names of the alerts that a receiver was told to be firing."""
        return sorted(
            alert["labels"]["alertname"]
            for name, message in self.messages
            for alert in message["alerts"]
            if name == receiver and alert["status"] == "firing"
        )


def connected(config: Mapping[str, Any], url: str, *, wait: str | None = None) -> dict[str, Any]:
    """Point the receivers of a configuration at a server; everything else stays.

    Args:
        config: of Alertmanager.
        url: of `Receivers`.
        wait: replaces all waits for more alerts of a group, which are too long for a test.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    for receiver in changed["receivers"]:
        receiver["webhook_configs"] = [{"url": f"{url}/{receiver['name']}"}]
    if wait is not None:
        for route in (changed["route"], *changed["route"]["routes"]):
            route.update(dict.fromkeys(_WAITS, wait))
    return changed


class Alertmanager(Server):
    """Debian's `prometheus-alertmanager`, alone: no cluster."""

    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        """Write the configuration; nothing runs before `start`."""
        directory.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        config_path = directory / "alertmanager.yml"
        # JSON is YAML.
        config_path.write_text(json.dumps(config, indent=1))
        argv = [
            "prometheus-alertmanager",
            f"--config.file={config_path}",
            f"--storage.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--cluster.listen-address=",
            "--log.level=warn",
        ]
        self.process = ServerProcess(argv, directory, ready=http_ok(f"{self.url}/-/ready"))

    async def fire(self, alerts: Iterable[Labels]) -> None:
        """Tell it about alerts, as Prometheus does."""
        body = [{"labels": dict(labels), "annotations": {"summary": "It is so."}} for labels in alerts]
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as session,
            session.post(f"{self.url}/api/v2/alerts", json=body) as response,
        ):
            assert 200 == response.status, await response.text()

    async def states(self) -> dict[str, str]:
        """Give the states of all alerts, by name: "active" or "suppressed"."""
        return {alert["labels"]["alertname"]: alert["status"]["state"] for alert in await self._alerts()}

    async def state_of(self, labels: Labels) -> str:
        """Give the state of the alert with exactly these labels."""
        (state,) = [alert["status"]["state"] for alert in await self._alerts() if alert["labels"] == labels]
        return str(state)

    async def _alerts(self) -> list[dict[str, Any]]:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as session,
            session.get(f"{self.url}/api/v2/alerts") as response,
        ):
            found: list[dict[str, Any]] = await response.json()
            return found
