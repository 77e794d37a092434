"""Expiry: series that have been silent for long are removed, and silent versions make room in a crowded app."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

import structlog

from exporter.actions import KEY_ACTIONS
from exporter.clock import Clock
from exporter.counters import EVENTS
from exporter.derived.families import CHANNEL_UPDATES
from exporter.group import NotStoredError, Write
from exporter.series import MetricType, Series
from exporter.state import State
from exporter.steps import Steps

SWEEP_SECONDS: Final = 60.0
PROTECTED_MS: Final = 24 * 3600 * 1000
"""Only versions silent for 24 hours may make room for others."""

_CHUNK: Final = 100  # some 200 µs of work
_VERSION: Final = 2  # so many texts name a version: the app's and its own
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
        silent = await self._silent()
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

    async def _silent(self) -> list[Series]:
        """Find what has to go, and let events have their turn meanwhile: half a million series take a second."""
        steps = Steps()
        series: list[Series] = []
        last: dict[_Kin, int] = {}
        seen: list[int] = []
        for block in self._state.lifecycle.all():
            series += block.series
            await steps.pause()
        for chunk in _chunks(series):
            for each in chunk:
                seen.append(each.last_ms)
                for kin in _kin(each):
                    last[kin] = max(each.last_ms, last.get(kin, 0))
            await steps.pause()
        now_ms = self._clock.wall_ms()
        oldest = now_ms - self._ttl_ms
        leaving = self._in_the_way(last, now_ms)
        silent: list[Series] = []
        for chunk in _chunks(series):
            silent += [
                each
                for each in chunk
                if (each.last_ms < oldest and ((group := _lives_with(each)) is None or last[group] < oldest))
                or (leaving and _version(each) in leaving)
            ]
            await steps.pause()
        if not silent:
            return []
        # Whatever an event reached meanwhile stays until the next sweep, and so do its kin.
        alive = {
            kin for each, last_ms in zip(series, seen, strict=True) if each.last_ms != last_ms for kin in _kin(each)
        }
        return [
            each
            for each in silent
            if alive.isdisjoint(_kin(each))
            # What a gauge counts is still to end, as after a leap of our clock.
            and (each.family.type is not MetricType.GAUGE or not each.value)
        ]

    def _in_the_way(self, last: dict[_Kin, int], now_ms: int) -> set[_Kin | None]:
        """Find the longest silent versions of crowded apps."""
        labels = self._state.labels
        crowded = {kin[0]: crowding for kin in last if len(kin) == _VERSION and (crowding := labels.crowding(kin[0]))}
        leaving: set[_Kin | None] = set()
        for app_id, crowding in crowded.items():
            silent = sorted(
                (when, kin)
                for kin, when in last.items()
                if len(kin) == _VERSION
                and kin[0] == app_id
                and when < now_ms - PROTECTED_MS
                and not labels.is_free_version(kin[1])
            )
            leaving.update(kin for _, kin in silent[:crowding])
        return leaving

    def _release(self, gone: list[Series]) -> None:
        """Give back the places of labels that no series has any more."""
        state = self._state
        apps = {each.labels[0] for each in gone}
        versions = {version for each in gone if (version := _version(each)) is not None}
        actions = {each.labels[2] for each in gone if each.family is EVENTS}
        channels = {(each.labels[0], each.labels[2]) for each in gone if each.family is CHANNEL_UPDATES}
        left: list[Series] = [*state.counters.all(), *state.figures.all()]
        apps -= {each.labels[0] for each in left}
        versions -= {version for each in left if (version := _version(each)) is not None}
        actions -= {each.labels[2] for each in left if each.family is EVENTS}
        channels -= {(each.labels[0], each.labels[2]) for each in left if each.family is CHANNEL_UPDATES}
        state.labels.release_channels(channels)  # those of an app that goes, too, go before it
        state.labels.release(apps=apps, versions=versions, actions=actions)
        if state.derived is not None:
            state.derived.forget(versions, apps)
        self._on_release()


def _chunks(series: list[Series]) -> Iterator[list[Series]]:
    for start in range(0, len(series), _CHUNK):
        yield series[start : start + _CHUNK]


def _version(series: Series) -> _Version | None:
    """Give app and version of a series, None if it is of no version."""
    if series.family is EVENTS:
        return series.labels[0], series.labels[3]
    return (series.labels[0], series.labels[2]) if "version" in series.family.labels else None


def _kin(series: Series) -> list[_Kin]:
    """Name the groups of series that a series keeps alive."""
    version = _version(series)
    if version is None:
        return [_itself(series)]
    return [version, _siblings(series) if series.family is EVENTS else _itself(series)]


def _lives_with(series: Series) -> _Kin | None:
    """Name the group whose last event decides about a series; None if it is the series itself."""
    if series.family is EVENTS:
        return _siblings(series) if series.labels[2] in KEY_ACTIONS else None
    return _version(series) or _itself(series)


def _siblings(series: Series) -> _Kin:
    app_id, platform, _, version, environment = series.labels
    return (app_id, platform, version, environment)


def _itself(series: Series) -> _Kin:
    """Name a derived series; all of a histogram, or of a channel, have one name."""
    return (series.family.name, *series.labels[:3])
