"""The reverse proxies of `deploy/`, run from the very files that are committed there."""

import io
import json
import os
import signal
import socket
import ssl
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from tests.support.exporter import Reply
from tests.support.ports import free_port
from tests.support.process import Server, ServerProcess, minimal_environment

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
HOST: Final = "stats.example.com"
EXPORTERS: Final = ("exporter-1:9746", "exporter-2:9746", "exporter-3:9746")
_TIMEOUT: Final = aiohttp.ClientTimeout(total=60)
# What Debian's /etc/nginx/nginx.conf has around conf.d, as far as it matters here.
_NGINX_MAIN: Final = """
{user}
worker_processes 2;
pid {directory}/nginx.pid;
error_log {directory}/main-error.log info;
daemon off;
events {{ worker_connections 768; }}
http {{
    access_log {directory}/main-access.log;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/capgo-stats.conf;
}}
"""


class Certificate:
    """A certificate for `HOST` that nobody but the test's clients trusts."""

    def __init__(self, directory: Path) -> None:
        """Make it with Debian's `openssl`."""
        self.path = directory / "fullchain.pem"
        self.key_path = directory / "key.pem"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", f"/CN={HOST}"),
                *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
                *("-addext", f"subjectAltName=DNS:{HOST}"),
                *("-keyout", self.key_path, "-out", self.path),
            ],
            check=True,
            capture_output=True,
        )

    def trusted(self) -> ssl.SSLContext:
        """Give what a client needs that trusts it."""
        return ssl.create_default_context(cafile=str(self.path))


class Phone:
    """A client of the proxy with an address of its own."""

    def __init__(self, proxy: "Proxy", address: str = "127.0.0.1") -> None:
        """Set the address, which is in 127.0.0.0/8."""
        connector = aiohttp.TCPConnector(
            resolver=_Loopback(), ssl=proxy.certificate.trusted(), local_addr=(address, 0), limit=0
        )
        self._session = aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT)
        self._url = proxy.url

    async def request(self, method: str, path: str, **options: Any) -> Reply:
        """Send a request with aiohttp's options and return the whole answer; redirects are not followed."""
        async with self._session.request(method, self._url + path, allow_redirects=False, **options) as response:
            return Reply(response.status, dict(response.headers), await response.read())

    async def post(self, body: Any, path: str = "/stats", headers: Mapping[str, str] | None = None) -> Reply:
        """Post a body; anything but bytes is sent as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.request(
            "POST", path, data=io.BytesIO(data), headers={"Content-Type": "application/json", **(headers or {})}
        )

    async def __aenter__(self) -> Self:
        """Give the client."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close its connections."""
        await self._session.close()


class Proxy(Server):
    """A proxy that listens with TLS and passes requests on to exporters.

    Attributes:
        certificate: its certificate.
        url: where it listens, by `HOST`.
        answers_while_noticing: what it may answer, beside 200, until it knows that an exporter is away.
    """

    answers_while_noticing: frozenset[int] = frozenset()

    def __init__(self, directory: Path, argv: Sequence[str | Path], certificate: Certificate) -> None:
        """Set the command.

        Args:
            directory: Where its files are.
            argv: The command.
            certificate: Its certificate.
        """
        self.directory = directory
        self.certificate = certificate
        self.port = free_port()
        self.url = f"https://{HOST}:{self.port}"
        env = minimal_environment(HOME=str(directory))
        self.process = ServerProcess(argv, directory, ready=self._listens, env=env)

    def phone(self, address: str = "127.0.0.1") -> Phone:
        """Make a client."""
        return Phone(self, address)

    def access_log(self) -> list[dict[str, Any]]:
        """Return what the access log says."""
        return [json.loads(line) for line in (self.directory / "access.log").read_text().splitlines()]

    def written(self) -> dict[str, str]:
        """Return all that the proxy wrote, by file: logs, whatever they are, and its output."""
        files = [path for path in self.directory.rglob("*") if path.is_file()]
        kept = {path for path in files if path.suffix not in {".pem", ".conf", ".json"} and path.name != "Caddyfile"}
        return {path.name: path.read_text(errors="replace") for path in kept}

    def _listens(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=2):
            return True


class Nginx(Proxy):
    """Debian's `nginx` with `deploy/nginx/capgo-stats.conf`."""

    def __init__(self, directory: Path, exporters: Sequence[str], certificate: Certificate) -> None:
        """Put this machine's names into the file."""
        super().__init__(directory, ["nginx", "-p", directory, "-c", "nginx.conf", "-e", "main-error.log"], certificate)
        text = _with_exporters((DEPLOY / "nginx" / "capgo-stats.conf").read_text(), exporters)
        placeholders = {
            "listen 443 ssl;": f"listen 127.0.0.1:{self.port} ssl;",
            "    listen [::]:443 ssl;\n": "",
            "/etc/ssl/stats.example.com/fullchain.pem;": f"{certificate.path};",
            "/etc/ssl/stats.example.com/key.pem;": f"{certificate.key_path};",
            "/var/log/nginx/capgo-stats.access.log capgo_stats;": f"{directory}/access.log capgo_stats;",
        }
        self._configuration = directory / "capgo-stats.conf"
        self._configuration.write_text(_replaced(text, placeholders))
        user = "user root;" if os.geteuid() == 0 else ""
        (directory / "nginx.conf").write_text(_NGINX_MAIN.format(user=user, directory=directory))

    def take_out(self, exporter: str) -> None:
        """Send nothing to an exporter any more, as an operator would have it: `down`, and a reload."""
        text = self._configuration.read_text()
        self._configuration.write_text(_replaced(text, {f"server {exporter} ": f"server {exporter} down "}))
        self.process.send_signal(signal.SIGHUP)

    def take_back(self, exporter: str) -> None:
        """Send to it again."""
        text = self._configuration.read_text()
        self._configuration.write_text(_replaced(text, {f"server {exporter} down ": f"server {exporter} "}))
        self.process.send_signal(signal.SIGHUP)


class Caddy(Proxy):
    """Debian's `caddy` with `deploy/caddy/Caddyfile`."""

    # Before 2.11.2 a body cannot be sent a second time (https://github.com/caddyserver/caddy/issues/7546).
    answers_while_noticing = frozenset({502})

    def __init__(self, directory: Path, exporters: Sequence[str], certificate: Certificate) -> None:
        """Put this machine's names into the file; nobody administers it, on a port that all would share."""
        argv: list[str | Path] = ["caddy", "run", "--adapter", "caddyfile", "--config", directory / "Caddyfile"]
        super().__init__(directory, argv, certificate)
        site = f"{self.url} {{\n\tbind 127.0.0.1\n\ttls {certificate.path} {certificate.key_path}\n"
        placeholders = {
            "{\n\t# Caddy's own log": "{\n\tadmin off\n\t# Caddy's own log",
            f"\n{HOST} {{\n": f"\n{site}",
            "reverse_proxy " + " ".join(EXPORTERS): "reverse_proxy " + " ".join(exporters),
            "/var/log/caddy/capgo-stats.access.log\n\t\tformat": f"{directory}/access.log\n\t\tformat",
        }
        text = (DEPLOY / "caddy" / "Caddyfile").read_text()
        (directory / "Caddyfile").write_text(_replaced(text, placeholders))


class _Loopback(AbstractResolver):
    """Says that every name is this machine."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Give this machine's address."""
        return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=family, proto=0, flags=0)]

    async def close(self) -> None:
        """Have nothing to close."""


def _replaced(text: str, placeholders: Mapping[str, str]) -> str:
    for placeholder, value in placeholders.items():
        assert placeholder in text, f"the example does not say {placeholder!r} any more"
        text = text.replace(placeholder, value)
    return text


def _with_exporters(text: str, exporters: Sequence[str]) -> str:
    """Put exporters in the place of the three in nginx's file."""
    lines = text.splitlines(keepends=True)
    servers = [line for line in lines if line.startswith("    server exporter-")]
    assert len(EXPORTERS) == len(servers)
    others = "".join(servers[0].replace(EXPORTERS[0], exporter) for exporter in exporters)
    return text.replace("".join(servers), others)
