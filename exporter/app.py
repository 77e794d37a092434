"""The wiring: every part is made, joined and taken down here, and nowhere else."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import structlog
from aiohttp import web
from pydantic import SecretStr

from exporter.births import Births
from exporter.clock import Clock
from exporter.commit import Committer
from exporter.counters import Cell, Counters
from exporter.dedupe import DedupeWindow
from exporter.delivery import Delivery
from exporter.drain import Drain
from exporter.expiry import Expiry
from exporter.influx import InfluxWriter
from exporter.intake import Intake, Rules
from exporter.journal.lock import DirectoryLock
from exporter.journal.opening import open_journal
from exporter.journal.reader import JournalReader
from exporter.journal.records import Birth, Restored
from exporter.journal.store import Journal
from exporter.labels import LabelPolicy, Labels
from exporter.operations import HealthHandler, MetricsHandler
from exporter.overflow import OverflowLog
from exporter.points import PointEncoder
from exporter.privacy import IdPolicy, load_hash_key
from exporter.settings import Settings
from exporter.state_metrics import StateCollector
from exporter.stats import StatsHandler
from exporter.tasks import Tasks
from exporter.telemetry import Telemetry
from exporter.web import observe, operations_routes, stats_routes

_COMMITTER: Final = "committer"
_DELIVERY: Final = "delivery"
_EXPIRY: Final = "expiry"

log = structlog.get_logger()


@dataclass(slots=True)
class Exporter:
    """A running exporter, as the servers need it.

    Attributes:
        public: serves the stats path, and everything else if there is no second listener.
        private: serves everything else on the second listener, if there is one.
        drain: begins when the exporter stops; `/readyz` tells.
    """

    public: web.Application
    private: web.Application | None
    drain: Drain


class _State:
    """What is restored from the journal and changes with every commit."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.telemetry = Telemetry()
        opened = open_journal(settings.data_dir)
        if opened.set_aside is not None:
            path, reason = opened.set_aside
            self.telemetry.journal_set_aside.set(1)
            log.error(
                "the journal could not be used and was set aside; counters start at 0",
                reason=reason,
                set_aside=str(path),
            )
        overflow = OverflowLog(self.telemetry, clock.monotonic)
        self.labels = LabelPolicy(
            max_apps=settings.max_apps,
            max_versions_per_app=settings.max_versions_per_app,
            max_unknown_actions=settings.max_unknown_actions,
            reserved_apps=settings.allowed_apps,
            monotonic=clock.monotonic,
            on_overflow=overflow,
        )
        self.counters = Counters(settings.max_series, overflow)
        self.dedupe = DedupeWindow(settings.dedupe_events)
        self._restore(opened.restored)
        self.journal = Journal(
            opened.path,
            opened.connection,
            opened.restored.totals,
            max_bytes=settings.journal_max_bytes if settings.journal_full == "drop-oldest" else None,
            max_event_ids=settings.dedupe_events,
        )
        self.committer = Committer(self.journal, self.counters, self.dedupe, self.telemetry, clock)
        self.telemetry.registry.register(
            StateCollector(
                lambda: self.journal.totals,
                lambda: len(self.counters),
                lambda: self.counters.expired_events,
                lambda: (len(self.dedupe), self._window_seconds(clock)),
            )
        )

    def _restore(self, restored: Restored) -> None:
        cells = []
        for row in restored.series:
            cell = Cell(row.series_id, Labels(*row[1:6]), row.last_ms)
            cell.value = row.value
            cell.birth = Birth(row.birth)
            cells.append(cell)
            self.labels.restore(cell.labels)
        self.counters.restore(cells, restored.totals.expired_events)
        for now_ms, event_ids in restored.event_ids:
            self.dedupe.add(event_ids, now_ms)

    def _window_seconds(self, clock: Clock) -> float:
        since_ms = self.dedupe.since_ms()
        return 0.0 if since_ms is None else max(0.0, (clock.wall_ms() - since_ms) / 1000)


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
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with DirectoryLock(settings.data_dir):
        hash_key = load_hash_key(settings.data_dir, _secret(settings.hash_key))
        state = _State(settings, clock)
        intake = _make_intake(settings, state, hash_key, clock)
        tasks = Tasks()
        tasks.start(_COMMITTER, state.committer.run())
        try:
            expiry = Expiry(
                state.counters,
                state.labels,
                state.committer,
                ttl_seconds=settings.series_ttl,
                clock=clock,
            )
            tasks.start(_EXPIRY, expiry.run())
            async with _delivering(settings, state, tasks) as delivery:
                yield _make_web(settings, state, intake, tasks, delivery, clock)
            await tasks.finish(_EXPIRY, 0)
        finally:
            state.committer.stop()
            await tasks.finish(_COMMITTER)
            state.committer.close()


def _make_intake(settings: Settings, state: _State, hash_key: bytes, clock: Clock) -> Intake:
    rules = Rules(
        allowed_apps=settings.allowed_apps,
        unknown_actions=settings.unknown_actions,
        legacy_download_fail=settings.legacy_download_fail,
        reject_when_full=settings.journal_max_bytes if settings.journal_full == "reject" else None,
    )
    points = PointEncoder(
        device_ids=IdPolicy(settings.device_id, hash_key),
        custom_ids=IdPolicy(settings.custom_id, hash_key),
        max_event_age_seconds=settings.max_event_age,
        clock=clock,
        telemetry=state.telemetry,
    )
    return Intake(
        rules=rules,
        labels=state.labels,
        counters=state.counters,
        dedupe=state.dedupe,
        points=points,
        committer=state.committer,
        telemetry=state.telemetry,
        clock=clock,
        max_series=settings.max_series,
    )


@contextlib.asynccontextmanager
async def _delivering(settings: Settings, state: _State, tasks: Tasks) -> AsyncIterator[Delivery | None]:
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
    delivery = Delivery(JournalReader(state.journal.path), writer, state.committer, state.telemetry)
    tasks.start(_DELIVERY, delivery.run())
    try:
        yield delivery
    finally:
        delivery.drain()
        await tasks.finish(_DELIVERY, settings.shutdown_timeout)
        delivery.close()
        await writer.close()


def _make_web(
    settings: Settings, state: _State, intake: Intake, tasks: Tasks, delivery: Delivery | None, clock: Clock
) -> Exporter:
    births = Births(state.counters, state.committer, settings.scrape_interval, state.telemetry, clock)
    metrics = MetricsHandler(state.telemetry.registry, state.counters, births, _secret(settings.metrics_token))
    stats = StatsHandler(
        intake, state.telemetry, max_body_bytes=settings.max_body_bytes, token=_secret(settings.ingest_token)
    )
    drain = Drain()
    middleware = observe(state.telemetry, clock, drain)
    public = web.Application(client_max_size=settings.max_body_bytes, middlewares=[middleware])
    private = None if settings.metrics_listen is None else web.Application(middlewares=[middleware])
    health = HealthHandler(
        ended_tasks=tasks.ended,
        is_open=lambda: intake.is_open,
        is_draining=lambda: drain.begun,
        influx=lambda: "not configured" if delivery is None else delivery.failure or "ok",
        stats_path=settings.stats_path,
    )
    public.add_routes(stats_routes(settings.stats_path, stats, has_token=settings.ingest_token is not None))
    (private if private is not None else public).add_routes(operations_routes(metrics, health))
    return Exporter(public, private, drain)


def _secret(value: SecretStr | None) -> str | None:
    return None if value is None else value.get_secret_value()
