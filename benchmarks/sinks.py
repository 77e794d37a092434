"""Where points go: an nginx that takes everything at once, and a receiver that counts lines.

Usage: python -m benchmarks.sinks PORT runs the receiver; `GET /lines` tells how many lines it got.
"""

import contextlib
import gzip
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from aiohttp import web

from benchmarks.machine import LOAD_CORE, get, process
from tests.support.ports import free_port

_NGINX: Final = """
daemon off; worker_processes 1; master_process off; pid {directory}/nginx.pid; error_log {directory}/nginx.log error;
events {{ worker_connections 256; }}
http {{
  access_log off; client_max_body_size 0; client_body_buffer_size 1m; keepalive_requests 1000000000;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  server {{ listen 127.0.0.1:{port}; location / {{ return 204; }} }}
}}
"""


@contextlib.contextmanager
def nginx(directory: Path) -> Iterator[str]:
    """Run an nginx on the load's core that reads every write, throws it away and answers 204; gives its URL."""
    port = free_port()
    configuration = directory / "nginx.conf"
    configuration.write_text(_NGINX.format(directory=directory, port=port))
    command = [
        shutil.which("nginx") or "/usr/sbin/nginx",
        "-p",
        str(directory),
        "-c",
        str(configuration),
        "-e",
        "stderr",
    ]
    url = f"http://127.0.0.1:{port}"
    with process(command, core=LOAD_CORE, ready=lambda: get(url)):
        yield url


@contextlib.contextmanager
def counter() -> Iterator[str]:
    """Run the receiver that counts lines on the load's core; gives its URL."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.sinks", str(port)]
    url = f"http://127.0.0.1:{port}"
    with process(command, core=LOAD_CORE, ready=lambda: get(f"{url}/lines")):
        yield url


def lines(url: str) -> int:
    """Ask the receiver how many lines it got."""
    return int(get(f"{url}/lines"))


def _receiver() -> web.Application:
    received = 0

    async def write(request: web.Request) -> web.Response:
        nonlocal received
        body = await request.read()
        if body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        received += sum(1 for line in body.split(b"\n") if line)
        return web.Response(status=204)

    async def tell(request: web.Request) -> web.Response:
        del request
        return web.Response(text=str(received))

    app = web.Application(client_max_size=1 << 30)
    app.router.add_get("/lines", tell)
    app.router.add_post("/{path:.*}", write)
    return app


if __name__ == "__main__":
    web.run_app(_receiver(), host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
