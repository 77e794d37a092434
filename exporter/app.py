"""The wiring: every part is made, joined and taken down here, and nowhere else."""

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import structlog
from aiohttp import web
from pydantic import SecretStr

from exporter.births import Births
from exporter.bodies import BodyReader
from exporter.chores import ChoreError, Chores
from exporter.clock import Clock
from exporter.connections import Connections
from exporter.control import controlled
from exporter.delivery import Delivery
from exporter.derived.derivation import Derivation
from exporter.derived.marks import line as mark_line
from exporter.drain import Drain
from exporter.expiry import Expiry
from exporter.exposition import Page
from exporter.group import Write
from exporter.influx import InfluxWriter
from exporter.intake import Intake
from exporter.journal.derived_records import MarkRow
from exporter.journal.lock import DirectoryLock
from exporter.live import Live, make_rules
from exporter.malformed import HttpLog
from exporter.operations import HealthHandler, MetricsHandler
from exporter.points import DiscreetEncoder, PointEncoder
from exporter.privacy import IdPolicy, load_hash_key
from exporter.releases_hook import ReleasesHandler
from exporter.settings import Settings
from exporter.shares import FairShare
from exporter.state import State
from exporter.stats import StatsHandler
from exporter.tasks import Tasks
from exporter.telemetry import Telemetry
from exporter.web import observe, operations_routes, releases_routes, stats_routes

_COMMITTER: Final = "committer"
_DELIVERY: Final = "delivery"
_DERIVATION: Final = "derivation"
_EXPIRY: Final = "expiry"

log = structlog.get_logger()


@dataclass(slots=True)
class Exporter:
    """A running exporter, as the servers need it.

    Attributes:
        public: serves the stats path, and everything else if there is no second listener.
        private: serves everything else on the second listener, if there is one.
        connections: those of each, in the same order.
        http_log: where the servers log.
        drain: begins when the exporter stops; `/readyz` tells.
        derivation: works out derived figures; None if they are switched off.
        is_alive: tells whether all background tasks go on; where a thread hangs, the answer does not come.
        apply: lets other settings hold from now on, of those that can change while it runs.
        telemetry: what it tells of itself.
    """

    public: web.Application
    private: web.Application | None
    connections: tuple[Connections, Connections]
    http_log: logging.Logger
    drain: Drain
    derivation: Derivation | None
    is_alive: Callable[[], Awaitable[bool]]
    apply: Callable[[Settings], None]
    telemetry: Telemetry


@contextlib.asynccontextmanager
async def create_exporter(settings: Settings, clock: Clock | None = None) -> AsyncIterator[Exporter]:
    """Make an exporter, run it, and take it down in order.

    On the way out one last delivery is tried within the shutdown time-out, everything staged is stored, and the journal
    is closed.

    Args:
        settings: what to make.
        clock: our own time; the system's by default.

    Raises:
        LockedError: if another process uses the data directory.
        UnusableError: if the journal cannot be opened.
        OSError: if the data directory cannot be made or written.
    """
    clock = clock or Clock()
    # The journal holds what devices sent, which is nobody else's business.
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with DirectoryLock(settings.data_dir):
        hash_key = load_hash_key(settings.data_dir, _secret(settings.hash_key))
        state = State(settings, clock)
        derivation = make_derivation(settings, state, clock)
        intake = make_intake(settings, state, derivation, hash_key, clock)
        tasks = Tasks()
        tasks.start(_COMMITTER, state.committer.run())
        try:
            await state.remove_stale()
            on_release = (lambda: None) if derivation is None else derivation.forget_channels
            expiry = Expiry(state, ttl_seconds=settings.series_ttl, clock=clock, on_release=on_release)
            async with _running(tasks, _EXPIRY, expiry.run()), contextlib.AsyncExitStack() as stack:
                if derivation is not None:
                    await stack.enter_async_context(_running(tasks, _DERIVATION, derivation.run()))
                delivery = await stack.enter_async_context(_delivering(settings, state, tasks))
                await stack.enter_async_context(_controlled(settings, state, delivery))
                yield _make_web(settings, state, intake, tasks, delivery, clock)
        finally:
            state.committer.stop()
            await tasks.finish(_COMMITTER)
            state.committer.close()


@contextlib.asynccontextmanager
async def _running(tasks: Tasks, name: str, work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run a background task that may be cancelled at any moment."""
    tasks.start(name, work)
    try:
        yield
    finally:
        await tasks.finish(name, 0)


def make_derivation(settings: Settings, state: State, clock: Clock) -> Derivation | None:
    """Make what works figures out; None if that is switched off."""
    if state.derived is None:
        return None
    return Derivation(
        state=state.derived,
        figures=state.figures,
        labels=state.labels,
        committer=state.committer,
        clock=clock,
        max_event_age_seconds=settings.max_event_age,
    )


def make_intake(
    settings: Settings, state: State, derivation: Derivation | None, hash_key: bytes, clock: Clock
) -> Intake:
    """Make the way of events into groups."""
    encoder = PointEncoder if settings.error_text == "keep" else DiscreetEncoder
    points = encoder(
        device_ids=IdPolicy(settings.device_id, hash_key),
        custom_ids=IdPolicy(settings.custom_id, hash_key),
        max_event_age_seconds=settings.max_event_age,
        clock=clock,
        telemetry=state.telemetry,
    )
    return Intake(
        rules=make_rules(settings),
        labels=state.labels,
        counters=state.counters,
        dedupe=state.dedupe,
        points=points,
        derivation=derivation,
        committer=state.committer,
        telemetry=state.telemetry,
        clock=clock,
        max_series=settings.max_series,
    )


@contextlib.asynccontextmanager
async def _delivering(settings: Settings, state: State, tasks: Tasks) -> AsyncIterator[Delivery | None]:
    if settings.influx_url is None:
        log.info("no InfluxDB is configured; points wait in the journal, the oldest are dropped when it is full")
        yield None
        return
    writer = InfluxWriter(
        url=settings.influx_url,
        org=settings.influx_org,
        token=_secret(settings.influx_token) or "",
        bucket=settings.influx_bucket,
        timeout_seconds=settings.influx_timeout,
    )
    delivery = Delivery(state.journal.reader(), writer, state.committer, state.telemetry)
    tasks.start(_DELIVERY, delivery.run())
    try:
        yield delivery
    finally:
        delivery.drain()
        await tasks.finish(_DELIVERY, settings.shutdown_timeout)
        delivery.close()
        await writer.close()


def _controlled(
    settings: Settings, state: State, delivery: Delivery | None
) -> contextlib.AbstractAsyncContextManager[None]:
    """Let operators' commands change the journal."""

    async def settle() -> None:
        if delivery is not None:
            await delivery.settle()

    async def vacuum() -> None:
        if not await state.committer.repairs.vacuum():
            raise ChoreError(state.committer.repairs.error)

    chores = Chores(
        state.journal.path,
        state.journal.reader(),
        last_transaction=lambda: state.journal.totals.last_transaction,
        write=state.committer.write,
        settle=settle,
    )
    return controlled(settings.data_dir, chores, vacuum)


def _make_web(
    settings: Settings,
    state: State,
    intake: Intake,
    tasks: Tasks,
    delivery: Delivery | None,
    clock: Clock,
) -> Exporter:
    births = Births(state.lifecycle, state.committer, settings.scrape_interval, state.telemetry, clock)
    page = Page(state.telemetry.registry, state.counters, state.figures)
    bodies = BodyReader(settings.max_body_bytes)
    live = Live(intake, FairShare(clock.monotonic, state.telemetry))
    live.apply(settings)
    stats = StatsHandler(intake, state.telemetry, bodies, live.ingest, live.fair)
    drain = Drain()
    connections = (
        Connections(settings.max_connections, state.telemetry, clock),
        Connections(settings.max_connections, state.telemetry, clock),
    )
    state.telemetry.connections.labels("idle").set_function(lambda: sum(each.idle for each in connections))
    state.telemetry.connections.labels("busy").set_function(lambda: sum(each.busy for each in connections))
    middlewares = [observe(state.telemetry, clock, drain, each) for each in connections]
    public = web.Application(client_max_size=settings.max_body_bytes, middlewares=middlewares[:1])
    private = None if settings.metrics_listen is None else web.Application(middlewares=middlewares[1:])
    metrics = MetricsHandler(page, births, live.metrics, connections[0 if private is None else 1])
    health = HealthHandler(
        ended_tasks=tasks.ended,
        is_open=lambda: intake.is_open,
        is_draining=lambda: drain.begun,
        influx=lambda: _influx_state(delivery, tasks),
        stats_path=settings.stats_path,
    )
    public.add_routes(stats_routes(settings.stats_path, stats, has_token=settings.ingest_token is not None))
    operations = private if private is not None else public
    operations.add_routes(operations_routes(metrics, health))
    if settings.releases_token is not None:

        async def store(mark: MarkRow) -> None:
            await state.committer.write(Write(marks=[mark], lines=[mark_line(mark)]))

        operations.add_routes(releases_routes(ReleasesHandler(store, clock.wall_ms, live.releases)))

    async def is_alive() -> bool:
        await state.committer.answer()
        if delivery is not None:
            await delivery.answer()
        return not tasks.ended()

    http_log = HttpLog(state.telemetry)
    return Exporter(
        public, private, connections, http_log, drain, intake.derivation, is_alive, live.apply, state.telemetry
    )


def _influx_state(delivery: Delivery | None, tasks: Tasks) -> str:
    """Say how delivery is: what its last answer was says nothing once it has ended."""
    if delivery is None:
        return "not configured"
    if _DELIVERY in tasks.ended():
        return "delivery has ended; restart the exporter"
    return delivery.failure or "ok"


def _secret(value: SecretStr | None) -> str | None:
    return None if value is None else value.get_secret_value()
