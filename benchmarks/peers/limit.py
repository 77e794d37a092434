"""The limit: reads the body and does nothing. Usage: limit.py PORT."""

import sys

import uvloop
from aiohttp import web

requests = 0


async def stats(request: web.Request) -> web.Response:
    """Read and answer."""
    global requests  # noqa: PLW0603 -- the one thing that it does
    await request.read()
    requests += 1
    return web.Response(body=b'{"status":"ok"}', content_type="application/json")


async def metrics(request: web.Request) -> web.Response:
    """Tell how many requests there were."""
    del request
    return web.Response(text=f'capgo_requests_total{{of="all"}} {requests}\n')


if __name__ == "__main__":
    app = web.Application(client_max_size=1 << 25)
    app.router.add_post("/stats", stats)
    app.router.add_get("/metrics", metrics)
    uvloop.install()
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
