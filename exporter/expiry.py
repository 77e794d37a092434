"""Expiry: series that have been silent for long are removed, and silent versions make room in a crowded app."""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from exporter.actions import KEY_ACTIONS
from exporter.clock import Clock
from exporter.counters import EVENTS
from exporter.derived.families import CHANNEL_UPDATES
from exporter.group import NotStoredError, Write
from exporter.series import MetricType, Series
from exporter.state import State

SWEEP_SECONDS: Final = 60.0
PROTECTED_MS: Final = 24 * 3600 * 1000
"""Only versions silent for 24 hours may make room for others."""

_Kin = tuple[str, ...]
_Version = tuple[str, str]

log = structlog.get_logger()


class Expiry:
    """Removes silent series; the values of events go to `capgo_exporter_expired_events_total`, in the same transaction.

    The derived series of a version live as long as any series of it.
    """

    def __init__(self, state: State, *, ttl_seconds: float, clock: Clock, on_release: Callable[[], None]) -> None:
        """Set the time after which a silent series is removed.

        Args:
            state: the series, and everything else that goes with them.
            ttl_seconds: the longest silence.
            clock: our own time.
            on_release: called when places of labels were given back, for those who remember labels.
        """
        self._state = state
        self._ttl_ms = int(ttl_seconds * 1000)
        self._clock = clock
        self._on_release = on_release

    async def run(self) -> None:
        """Sweep once a minute, for ever."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                await self.sweep()
            except NotStoredError as error:
                log.warning("silent series stay, because their removal could not be stored", error=str(error))

    async def sweep(self) -> int:
        """Remove what has been silent for too long.

        Returns:
            How many series were removed.

        Raises:
            NotStoredError: if the removal could not be stored; nothing has changed then.
        """
        now_ms = self._clock.wall_ms()
        series = [*self._state.counters, *self._state.figures]
        silent = [*self._past_ttl(series, now_ms), *self._in_the_way(series, now_ms)]
        # What a gauge counts is still to end, as after a leap of our clock.
        silent = [each for each in silent if each.family.type is not MetricType.GAUGE or not each.value]
        if not silent:
            return 0
        before = self._count()
        await self._state.committer.write(Write(expired=list(dict.fromkeys(silent))))
        self._release(silent)
        removed = before - self._count()
        log.info("silent series removed", series=removed)
        return removed

    def _count(self) -> int:
        return len(self._state.counters) + len(self._state.figures)

    def _past_ttl(self, series: list[Series], now_ms: int) -> list[Series]:
        """Find series past the TTL; some live as long as any of their kin."""
        last: dict[_Kin, int] = {}
        for each in series:
            for kin in _kin(each):
                last[kin] = max(each.last_ms, last.get(kin, 0))
        oldest = now_ms - self._ttl_ms
        return [each for each in series if last[_lives_with(each)] < oldest]

    def _in_the_way(self, series: list[Series], now_ms: int) -> list[Series]:
        """Find the series of the longest silent versions of crowded apps."""
        labels = self._state.labels
        crowded = {app_id for app_id in {each.labels[0] for each in series} if labels.crowding(app_id)}
        if not crowded:
            return []
        last: dict[_Version, int] = {}
        for each in series:
            version = _version(each)
            if version is not None and version[0] in crowded and not labels.is_free_version(version[1]):
                last[version] = max(each.last_ms, last.get(version, 0))
        leaving: set[_Version | None] = set()
        for app_id in crowded:
            silent = sorted(
                (when, version)
                for version, when in last.items()
                if version[0] == app_id and when < now_ms - PROTECTED_MS
            )
            leaving.update(version for _, version in silent[: labels.crowding(app_id)])
        return [each for each in series if _version(each) in leaving]

    def _release(self, gone: list[Series]) -> None:
        """Give back the places of labels that no series has any more."""
        state = self._state
        apps = {each.labels[0] for each in gone}
        versions = {version for each in gone if (version := _version(each)) is not None}
        actions = {each.labels[2] for each in gone if each.family is EVENTS}
        channels = {(each.labels[0], each.labels[2]) for each in gone if each.family is CHANNEL_UPDATES}
        for each in (*state.counters.all(), *state.figures.all()):
            apps.discard(each.labels[0])
            versions -= {_version(each)}
            if each.family is EVENTS:
                actions.discard(each.labels[2])
            elif each.family is CHANNEL_UPDATES:
                channels.discard((each.labels[0], each.labels[2]))
        state.labels.release_channels(channels)  # those of an app that goes, too, go before it
        state.labels.release(apps=apps, versions=versions, actions=actions)
        if state.derived is not None:
            state.derived.forget(versions, apps)
        self._on_release()


def _version(series: Series) -> _Version | None:
    """Give app and version of a series, None if it is of no version."""
    if series.family is EVENTS:
        return series.labels[0], series.labels[3]
    return (series.labels[0], series.labels[2]) if "version" in series.family.labels else None


def _kin(series: Series) -> list[_Kin]:
    """Name the groups of series that a series keeps alive, itself first."""
    kin = [_itself(series)]
    version = _version(series)
    if version is not None:
        kin.append(version)
    if series.family is EVENTS:
        kin.append(_siblings(series))
    return kin


def _lives_with(series: Series) -> _Kin:
    """Name the group whose last event decides about a series."""
    if series.family is EVENTS:
        return _siblings(series) if series.labels[2] in KEY_ACTIONS else _itself(series)
    return _version(series) or _itself(series)


def _siblings(series: Series) -> _Kin:
    app_id, platform, _, version, environment = series.labels
    return (app_id, platform, version, environment)


def _itself(series: Series) -> _Kin:
    """Name a series; all of a histogram, or of a channel, have one name."""
    labels = series.labels
    return (series.family.name, *(labels if series.family is EVENTS else labels[:3]))
