"""The HTTP interface: which handler answers what, and what every answer has in common."""

import functools
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware
from prometheus_client import Counter

from exporter.clock import Clock
from exporter.connections import Connections
from exporter.drain import Drain
from exporter.operations import HealthHandler, MetricsHandler
from exporter.releases_hook import ReleasesHandler
from exporter.stats import StatsHandler, reply_error
from exporter.telemetry import Telemetry

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def stats_routes(path: str, handler: StatsHandler, *, has_token: bool) -> list[web.RouteDef]:
    """Give the routes of the stats path, with and without a last slash: a redirect would turn a POST into a GET."""
    paths = [path, f"{path}/"]
    if has_token:
        paths += [f"{path}/{{token}}", f"{path}/{{token}}/"]
    return [
        route
        for each in paths
        for route in (web.get(each, handler.get, name=None, allow_head=True), web.post(each, handler.post))
    ]


def operations_routes(metrics: MetricsHandler, health: HealthHandler) -> list[web.RouteDef]:
    """Give the routes for operators."""
    return [
        web.get("/metrics", metrics.get),
        web.get("/healthz", health.healthz),
        web.get("/readyz", health.readyz),
        web.get("/", health.index),
    ]


def releases_routes(handler: ReleasesHandler) -> list[web.RouteDef]:
    """Give the route for release pipelines."""
    return [web.post("/releases", handler.post)]


def observe(telemetry: Telemetry, clock: Clock, drain: Drain, connections: Connections) -> Middleware:
    """Make the middleware that counts and times requests, and gives errors of the framework as JSON."""

    @functools.cache  # to look a counter up costs more than to count
    def replies(name: str, status: int) -> Counter:
        return telemetry.requests.labels(name, str(status))

    @web.middleware
    async def middleware(request: web.Request, handler: _Handler) -> web.StreamResponse:
        drain.enter()
        connections.begin(request.protocol)
        started = clock.monotonic()
        name = _handler_name(request)
        status = 500  # What the framework answers if the handler fails.
        try:
            response = await handler(request)
            status = response.status
        except web.HTTPException as error:
            status = error.status
            refusal = reply_error(status, error.reason.lower().replace(" ", "_"), error.reason)
            if "Allow" in error.headers:
                refusal.headers["Allow"] = error.headers["Allow"]
            return _last_if(drain, refusal)
        else:
            return _last_if(drain, response)
        finally:
            connections.end(request.protocol)
            drain.leave()
            replies(name, status).inc()
            telemetry.request_duration.labels(name).observe(clock.monotonic() - started)

    return middleware


def _last_if(drain: Drain, response: web.StreamResponse) -> web.StreamResponse:
    """Let a reply end its connection if the exporter is stopping."""
    if drain.begun:
        response.force_close()
    return response


def _handler_name(request: web.Request) -> str:
    owner = getattr(request.match_info.handler, "__self__", None)
    if isinstance(owner, StatsHandler):
        return "stats"
    if isinstance(owner, MetricsHandler):
        return "metrics"
    if isinstance(owner, ReleasesHandler):
        return "releases"
    return request.match_info.handler.__name__ if isinstance(owner, HealthHandler) else "none"
