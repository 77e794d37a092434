"""Reloading: settings are read anew on SIGHUP, and when one of their files has changed, while events are taken.

A process's variables and options cannot change; the `.env` file can, and the files that variables name.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Final

import structlog

from exporter.access import token_texts
from exporter.configuration import SettingsError, Source
from exporter.notify import ServiceManager
from exporter.settings import Settings, variable
from exporter.tasks import Tasks
from exporter.telemetry import Telemetry

LOOK_SECONDS: Final = 1.0
"""Files are looked at so often; a change that is as old is read, for then it is written to its end."""

_TOKENS: Final = frozenset({"ingest_token", "metrics_token", "releases_token"})
_LIVE: Final = _TOKENS | {
    "allowed_apps",
    "unlisted_apps",
    "max_client_events_per_second",
    "max_app_events_per_second",
    "trusted_proxies",
}

_Signature = dict[Path, tuple[int, int, int] | None]

log = structlog.get_logger()


class Reloader:
    """Applies settings that have changed, of those that can change while the exporter runs."""

    def __init__(
        self,
        settings: Settings,
        source: Source,
        apply: Callable[[Settings], None],
        manager: ServiceManager,
        telemetry: Telemetry,
        asked: asyncio.Event,
    ) -> None:
        """Remember what holds now.

        Args:
            settings: those that hold.
            source: where they come from.
            apply: lets others hold.
            manager: is told.
            telemetry: shows whether the files can be used.
            asked: set when somebody wants them read at once.
        """
        self._settings = settings
        self._source = source
        self._apply = apply
        self._manager = manager
        self._telemetry = telemetry
        self._asked = asked
        self._files = self._name_files()
        self._had_dotenv = source.has_dotenv()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Reload when asked to, and when files have changed."""
        tasks = Tasks()
        tasks.start("reload", self._run())
        try:
            yield
        finally:
            await tasks.finish("reload", 0)

    async def _run(self) -> None:
        read = last = _look(self._files)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._asked.wait()
            now = _look(self._files)
            if self._asked.is_set() or now == last != read:
                self.reload(is_asked=self._asked.is_set())
                self._asked.clear()
                read = now
            last = now

    def reload(self, *, is_asked: bool) -> None:
        """Read the settings anew and apply them; if they are wrong, the old ones stay.

        A `.env` file that is gone is wrong unless somebody asked: one that is being replaced may be gone for a moment,
        and limits and the allow-list must not go with it.
        """
        with self._manager.reloading():
            try:
                self._take(self._source.load(needs_dotenv=self._had_dotenv and not is_asked))
            except SettingsError as error:
                log.error("the settings are wrong; the old ones stay", problems=error.problems)  # noqa: TRY400 -- no traceback for a typing error
                self._telemetry.reload_successful.set(0)
            else:
                self._telemetry.reload_successful.set(1)
                self._had_dotenv = self._source.has_dotenv()
            self._files = self._name_files()

    def _take(self, wanted: Settings) -> None:
        changed = [name for name in Settings.model_fields if getattr(wanted, name) != getattr(self._settings, name)]
        live = {name: getattr(wanted, name) for name in changed if self._can_change(name, wanted)}
        settings = self._settings.model_copy(update=live)
        self._apply(settings)
        self._settings = settings
        log.info("the settings were read anew", changed=[variable(name) for name in live])
        late = [variable(name) for name in changed if name not in live]
        if late:
            log.warning("settings were changed that hold from the next start on", settings=late)

    def _can_change(self, name: str, wanted: Settings) -> bool:
        """Tell whether a setting can change now: a token can become another, but not come or go, as its path would."""
        if name in _TOKENS:
            return bool(token_texts(getattr(wanted, name))) == bool(token_texts(getattr(self._settings, name)))
        return name in _LIVE

    def _name_files(self) -> set[Path]:
        certificates = (self._settings.tls_certificate, self._settings.tls_key)
        return self._source.files() | {path for path in certificates if path is not None}


def _look(files: Iterable[Path]) -> _Signature:
    """Tell what changes when a file does."""
    return {path: _signature(path) for path in files}


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: no path at all, with a zero in it
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
