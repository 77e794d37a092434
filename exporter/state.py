"""What is restored from the journal and changes with every commit."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec
import structlog

from exporter.access import AllowList
from exporter.caps import SeriesRoom
from exporter.clock import Clock
from exporter.commit import Committer
from exporter.configuration import SettingsError
from exporter.counters import EVENTS, Cell, Counters
from exporter.dedupe import DedupeWindow
from exporter.derived import families
from exporter.derived.devices import Devices
from exporter.derived.episodes import Episodes
from exporter.derived.figures import Figures, version_of
from exporter.derived.releases import Releases
from exporter.derived.state import DerivedState
from exporter.group import NotStoredError, Write
from exporter.journal.derived_records import RestoredDerived
from exporter.journal.opening import Opened, consumed, open_journal
from exporter.journal.records import Birth, Restored, SeriesRow
from exporter.journal.store import Journal
from exporter.labels import LabelPolicy, Labels
from exporter.overflow import OverflowLog
from exporter.repair import report_repair
from exporter.series import Family, Lifecycle, Series
from exporter.settings import Settings
from exporter.state_metrics import StateCollector
from exporter.telemetry import Telemetry

_FAMILIES: Final = {family.name: family for family in families.FAMILIES}
_AnySeries = TypeVar("_AnySeries", Cell, Series)
_read_labels: Final = msgspec.json.Decoder(list[str]).decode

log = structlog.get_logger()


class State:
    """The parts that hold what the journal holds, and the committer that keeps both alike.

    Attributes:
        derived: the state of the derived figures; None if they are switched off.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        """Open the journal and take over what it holds.

        Raises:
            UnusableError: if the journal cannot be opened.
        """
        self.telemetry = Telemetry(clock.monotonic)
        self.telemetry.delivery_configured.set(settings.influx_url is not None)
        self._clock = clock
        opened = self._open(settings)
        overflow = OverflowLog(self.telemetry)
        listed = AllowList(settings.allowed_apps).exact
        self.labels = LabelPolicy(
            max_apps=settings.max_apps,
            max_versions_per_app=settings.max_versions_per_app,
            max_unknown_actions=settings.max_unknown_actions,
            reserved_apps=listed,
            is_marked=self._is_marked,
            monotonic=clock.monotonic,
            on_overflow=overflow,
        )
        self.lifecycle = Lifecycle()
        rooms = [SeriesRoom(settings.max_series, listed, self._is_marked) for _ in range(2)]
        self.counters = Counters(self.lifecycle, rooms[0], overflow)
        bounds = {
            families.DOWNLOAD_DURATION: settings.download_buckets,
            families.DOWNLOAD_KIND_DURATION: settings.download_buckets,
            families.LAUNCH_DURATION: settings.launch_buckets,
            families.WEBVIEW_LOAD_DURATION: settings.launch_buckets,
        }
        self.figures = Figures(self.lifecycle, bounds, rooms[1], overflow)
        try:
            self.dedupe = DedupeWindow(settings.dedupe_events)
        except OSError as error:
            msg = f"EXPORTER_DEDUPE_EVENTS: {settings.dedupe_events:,} are too many here: {error.strerror}"
            raise SettingsError([msg]) from error
        self.derived = self._make_derived(settings) if settings.derived == "on" else None
        self.journal = Journal(
            opened.path,
            opened.connection,
            opened.restored.totals,
            max_bytes=settings.journal_max_bytes if settings.journal_full == "drop-oldest" else None,
            max_event_ids=settings.dedupe_events,
        )
        self._stale = self._restore(opened.restored)
        self.committer = Committer(
            journal=self.journal,
            lifecycle=self.lifecycle,
            counters=self.counters,
            figures=self.figures,
            dedupe=self.dedupe,
            derived=self.derived,
            telemetry=self.telemetry,
            clock=clock,
        )
        self.telemetry.registry.register(
            StateCollector(
                totals=lambda: self.journal.totals,
                series=lambda: (len(self.counters), len(self.figures)),
                expired_events=lambda: self.counters.expired_events,
                dedupe=lambda: (len(self.dedupe), self._window_seconds()),
            )
        )
        if self.derived is not None:
            self.telemetry.registry.register(self.derived)

    async def remove_stale(self) -> None:
        """Remove restored series whose buckets are set otherwise now."""
        if not self._stale:
            return
        try:
            await self.committer.write(Write(expired=self._stale))
        except NotStoredError as error:
            log.warning("series with old buckets are removed at the next start", error=str(error))

    def _open(self, settings: Settings) -> Opened:
        opened = open_journal(settings.data_dir)
        if opened.salvaged is not None:
            report_repair(self.telemetry, opened.salvaged)
        if opened.restored.is_recounted:
            log.warning("totals of the journal were damaged, and are counted anew; the disk may be failing")
        if opened.set_aside is not None:
            path, reason = opened.set_aside
            self.telemetry.journal_set_aside.set(1)
            log.error(
                "the journal could not be used and was set aside; counters start at 0",
                reason=reason,
                set_aside=str(path),
            )
        return opened

    def _make_derived(self, settings: Settings) -> DerivedState:
        devices = Devices(settings.max_sketches, lambda: self.telemetry.skip("no_sketch", 1))
        return DerivedState(devices, Releases(self._installs), self.telemetry, self._clock)

    def _is_marked(self, app_id: str, version: str) -> bool:
        return self.derived is not None and self.derived.marks.has(app_id, version)

    def _installs(self) -> Mapping[str, Mapping[str, int]]:
        """Give the stored production installs by app and version."""
        installs: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for series in self.figures.of(families.INSTALLS):
            app_id, _, version, environment = series.labels
            if environment == "prod":
                installs[app_id][version] += series.value
        return installs

    def _restore(self, restored: Restored) -> list[Series]:
        """Take over what the journal holds; gives the series that have to go."""
        cells: list[Cell] = []
        figures: list[Series] = []
        share = self.counters.texts.share
        times: dict[int, int] = {}
        if self.derived is not None:  # first, as marked releases have room of their own
            self._restore_derived(self.derived, restored.derived)
        for row in consumed(restored.series):
            last_ms = times.setdefault(row.last_ms, row.last_ms)
            self.lifecycle.reserve(row.series_id)
            labels = share(_read_labels(row.labels))
            if row.family == EVENTS.name:
                cells.append(_fill(Cell(Labels._make(labels), last_ms), row))
                self.labels.restore(cells[-1].labels)
            elif self.derived is not None and row.family in _FAMILIES:
                family = _FAMILIES[row.family]
                figures.append(_fill(Series(family, tuple(labels), last_ms), row))
        self.counters.restore(cells, restored.totals.expired_events)
        stale = self.figures.restore(figures)
        for series in self.figures:
            self._restore_places(series.family, series.labels)
        for now_ms, event_ids in restored.event_ids:
            self.dedupe.add(event_ids, now_ms)
        if self.derived is not None:
            self._forget_versions(self.derived, restored.derived)
            self._restore_flights(self.derived.episodes)
        return stale

    def _restore_places(self, family: Family, labels: tuple[str, ...]) -> None:
        named = dict(zip(family.labels, labels, strict=False))
        if "version" in named:
            self.labels.restore_version(named["app_id"], named["version"])
        if "channel" in named:
            self.labels.restore_channel(named["app_id"], named["channel"])

    def _restore_derived(self, derived: DerivedState, restored: RestoredDerived) -> None:
        try:
            derived.restore(restored)
        except ValueError as error:
            log.error(  # noqa: TRY400 -- the message says it all
                "what is known of devices is damaged and starts anew; counters are not", error=str(error)
            )
            self.telemetry.derived_resets.inc()
            self.journal.forget_derived()
            derived.restore(RestoredDerived())

    def _forget_versions(self, derived: DerivedState, restored: RestoredDerived) -> None:
        """Forget what is left of versions if an exporter was killed that had just removed the last of their series."""
        alive = {(cell.labels.app_id, cell.labels.version) for cell in self.counters.all()}
        alive |= {(series.labels[0], version_of(series.family, series.labels)) for series in self.figures}
        derived.forget({(row.app_id, row.version) for row in restored.releases} - alive, ())

    def _restore_flights(self, episodes: Episodes) -> None:
        """Count the downloads that are under way anew, as some may be forgotten, or have ended unseen."""
        for series in self.figures.of(families.DOWNLOADS_IN_FLIGHT):
            series.change(0)
        for episode in episodes:
            if episode.is_open:
                labels = episode.track.labels
                series = self.figures.find(families.DOWNLOADS_IN_FLIGHT, labels, self._clock.wall_ms())
                series.change(series.value + 1)

    def _window_seconds(self) -> float:
        since_ms = self.dedupe.since_ms()
        return 0.0 if since_ms is None else max(0.0, (self._clock.wall_ms() - since_ms) / 1000)


def _fill(series: _AnySeries, row: SeriesRow) -> _AnySeries:
    series.series_id = row.series_id
    series.value = row.value
    series.birth = Birth(row.birth)
    return series
