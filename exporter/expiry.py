"""Expiry: series that have been silent for long are removed, and silent versions make room in a crowded app."""

import asyncio
from typing import Final

import structlog

from exporter.actions import BY_NAME, KEY_ACTIONS
from exporter.clock import Clock
from exporter.commit import Committer
from exporter.counters import Cell, Counters
from exporter.group import NotStoredError, Write
from exporter.labels import LabelPolicy

SWEEP_SECONDS: Final = 60.0
PROTECTED_MS: Final = 24 * 3600 * 1000
"""Only versions silent for 24 hours may make room for others."""

_Family = tuple[str, str, str, str]

log = structlog.get_logger()


class Expiry:
    """Removes silent series; their values go to `capgo_exporter_expired_events_total`, in the same transaction."""

    def __init__(
        self,
        counters: Counters,
        labels: LabelPolicy,
        committer: Committer,
        *,
        ttl_seconds: float,
        clock: Clock,
    ) -> None:
        """Set the time after which a silent series is removed.

        Args:
            counters: the series.
            labels: whose places are given back.
            committer: stores the removal.
            ttl_seconds: the longest silence.
            clock: our own time.
        """
        self._counters = counters
        self._labels = labels
        self._committer = committer
        self._ttl_ms = int(ttl_seconds * 1000)
        self._clock = clock

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
        cells = list(self._counters)
        silent = [*self._past_ttl(cells, now_ms), *self._in_the_way(cells, now_ms)]
        if not silent:
            return 0
        before = len(self._counters)
        await self._committer.write(Write(expired=list(dict.fromkeys(silent))))
        self._release(silent)
        removed = before - len(self._counters)
        log.info("silent series removed", series=removed)
        return removed

    def _past_ttl(self, cells: list[Cell], now_ms: int) -> list[Cell]:
        """Find cells past the TTL; those of the key actions live as long as any of their family."""
        last: dict[_Family, int] = {}
        for cell in cells:
            family = _family(cell)
            last[family] = max(cell.last_ms, last.get(family, 0))
        oldest = now_ms - self._ttl_ms
        return [
            cell
            for cell in cells
            if (last[_family(cell)] if cell.labels.action in KEY_ACTIONS else cell.last_ms) < oldest
        ]

    def _in_the_way(self, cells: list[Cell], now_ms: int) -> list[Cell]:
        """Find the cells of the longest silent versions of crowded apps."""
        crowded = {app_id for app_id in {cell.labels.app_id for cell in cells} if self._labels.crowding(app_id)}
        if not crowded:
            return []
        last: dict[tuple[str, str], int] = {}
        for cell in cells:
            version = (cell.labels.app_id, cell.labels.version)
            if version[0] in crowded and not self._labels.is_free_version(version[1]):
                last[version] = max(cell.last_ms, last.get(version, 0))
        leaving: set[tuple[str, str]] = set()
        for app_id in crowded:
            silent = sorted(
                (when, version)
                for version, when in last.items()
                if version[0] == app_id and when < now_ms - PROTECTED_MS
            )
            leaving.update(version for _, version in silent[: self._labels.crowding(app_id)])
        return [cell for cell in cells if (cell.labels.app_id, cell.labels.version) in leaving]

    def _release(self, gone: list[Cell]) -> None:
        """Give back the places of labels that no series has any more."""
        apps = {cell.labels.app_id for cell in gone}
        versions = {(cell.labels.app_id, cell.labels.version) for cell in gone}
        actions = {cell.labels.action for cell in gone if cell.labels.action not in BY_NAME}
        for labels in self._counters.labels():
            apps.discard(labels.app_id)
            versions.discard((labels.app_id, labels.version))
            actions.discard(labels.action)
        self._labels.release(apps=apps, versions=versions, actions=actions)


def _family(cell: Cell) -> _Family:
    labels = cell.labels
    return (labels.app_id, labels.platform, labels.version, labels.environment)
