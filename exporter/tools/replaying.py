"""Where replayed events and points go: to a running exporter, into a data directory, or straight into InfluxDB."""

import asyncio
import contextlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urljoin

import aiohttp
from aiohttp import web

from exporter.app import create_exporter
from exporter.journal.letters import list_letters
from exporter.journal.lock import LockedError
from exporter.journal.opening import FILE_NAME, UnusableError
from exporter.privacy import read_hash_key
from exporter.progress import Show
from exporter.settings import Settings
from exporter.tools.inspection import status
from exporter.tools.keeper import Keeper, open_keeper
from exporter.tools.problems import DataError, RemoteError, UsageError
from exporter.tools.source import Batch

_FOR_EVER_SECONDS: Final = 100 * 365 * 86_400.0
_MANY: Final = 10_000
_REQUEST_SECONDS: Final = 120.0
_PAUSE_SECONDS: Final = 0.2
_LATER: Final = frozenset({408, 429, 500, 502, 503, 504})


class Target(Protocol):
    """Takes batches; on return one is stored. Raises RemoteError or DataError if it cannot be."""

    async def take(self, batch: Batch) -> Counter[str]:
        """Take a batch, and tell how many were accepted, by `accepted` or why not."""


class Posting:
    """An exporter that is posted to."""

    def __init__(self, session: aiohttp.ClientSession, url: str, patience_seconds: float) -> None:
        """Set where to.

        Args:
            session: for the requests.
            url: the stats URL.
            patience_seconds: so long an exporter that takes nothing is waited for.
        """
        self._session = session
        self._url = url
        self._patience_seconds = patience_seconds

    async def take(self, batch: Batch) -> Counter[str]:
        """Post events; those that are sent twice are counted once, if they have a timestamp."""
        if batch.kind != "events":
            msg = "points cannot be posted: name the exporter's data directory with --data-dir, or use --influx"
            raise UsageError(msg)
        body = f"[{','.join(batch.items)}]".encode()
        deadline = time.monotonic() + self._patience_seconds
        while True:
            problem, wait_seconds = "", 1.0
            try:
                async with self._session.post(
                    self._url, data=body, headers={"Content-Type": "application/json"}, allow_redirects=False
                ) as response:
                    text = await response.text(errors="replace")
                    if response.status == 200:  # noqa: PLR2004 -- OK
                        return _results(text)
                    problem = f"status {response.status}: {' '.join(text.split())[:200]}"
                    if response.status not in _LATER:
                        raise RemoteError(problem)
                    wait_seconds = _seconds(response.headers.get("Retry-After", ""))
            except (aiohttp.ClientError, TimeoutError) as error:
                problem = str(error) or "no answer in time"
            if time.monotonic() + wait_seconds > deadline:
                raise RemoteError(problem)
            await asyncio.sleep(wait_seconds)


def _seconds(retry_after: str) -> float:
    return float(retry_after) if retry_after.isdigit() else 1.0


def _results(text: str) -> Counter[str]:
    try:
        results = json.loads(text)["results"]
        return Counter("accepted" if each["status"] == "ok" else str(each["error"]) for each in results)
    except (ValueError, KeyError, TypeError) as error:
        msg = "the answer is none of an exporter's: is it the stats URL?"
        raise RemoteError(msg) from error


class Keeping:
    """A journal that points are put into; counters stay as they are."""

    def __init__(self, keeper: Keeper) -> None:
        """Take whoever may change it."""
        self._keeper = keeper

    async def take(self, batch: Batch) -> Counter[str]:
        """Let points wait for InfluxDB."""
        await self._keeper.add(batch.items)
        return Counter(accepted=len(batch.items))


@contextlib.asynccontextmanager
async def posting(url: str, token: str | None, patience_seconds: float) -> AsyncIterator[Target]:
    """Post to an exporter, with a bearer token if it asks for one."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    timeout = aiohttp.ClientTimeout(total=_REQUEST_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
        yield Posting(session, url, patience_seconds)


@contextlib.asynccontextmanager
async def into_directory(settings: Settings, kind: str, patience_seconds: float) -> AsyncIterator[Target]:
    """Put events or points into a data directory; events only while no exporter uses it.

    An InfluxDB that is set gets what it takes meanwhile; the rest waits in the journal.

    Raises:
        DataError: if the directory cannot be used.
    """
    if kind == "points":
        async with open_keeper(settings.data_dir) as keeper:
            yield Keeping(keeper)
        return
    async with _exporter(settings) as url, posting(url, None, patience_seconds) as target:
        yield target


@contextlib.asynccontextmanager
async def _exporter(settings: Settings) -> AsyncIterator[str]:
    """Run an exporter in this process, on a port of this machine that the system picks; gives its stats URL."""
    none = ("ingest_token", "metrics_listen", "max_client_events_per_second", "max_app_events_per_second")
    settings = settings.model_copy(update=dict.fromkeys(none))
    try:
        async with create_exporter(settings) as exporter:
            runner = web.AppRunner(exporter.public, access_log=None, auto_decompress=False, handle_signals=False)
            await runner.setup()
            try:
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                yield f"http://127.0.0.1:{runner.addresses[0][1]}{settings.stats_path}"
            finally:
                await runner.cleanup()
    except LockedError as error:
        msg = f"{settings.data_dir}: in use by an exporter; post to it with --url, such as http://localhost:9746/stats"
        raise DataError(msg) from error
    except UnusableError as error:
        raise DataError(str(error)) from error


class Passage:
    """A journal of its own, from which everything goes straight into InfluxDB, and that is gone afterwards."""

    def __init__(self, path: Path, url: str, target: Target) -> None:
        """Take the journal, its exporter's URL, and what fills it."""
        self._path = path
        self._url = url
        self._target = target

    async def take(self, batch: Batch) -> Counter[str]:
        """Take events or points."""
        return await self._target.take(batch)

    async def finish(self, show: Show, patience_seconds: float) -> None:
        """Wait until InfluxDB has everything.

        Raises:
            RemoteError: if it takes nothing for so long, or refused some.
        """
        left, since = -1, time.monotonic()
        while points := status(self._path).totals.points:
            if points != left:
                left, since = points, time.monotonic()
            if time.monotonic() - since > patience_seconds:
                raise RemoteError(await self._why(points))
            show(None, f"{points} points to send")
            await asyncio.sleep(_PAUSE_SECONDS)
        refused = status(self._path).totals.dead_letter_points
        if refused:
            msg = f"InfluxDB refused {refused} points: {list_letters(self._path)[0].error}"
            raise RemoteError(msg)

    async def _why(self, points: int) -> str:
        async with (
            aiohttp.ClientSession() as session,
            session.get(urljoin(self._url, "/readyz")) as response,
        ):
            return f"{points} points are not in InfluxDB: {(await response.json())['influxdb']}"


@contextlib.asynccontextmanager
async def into_influxdb(settings: Settings, kind: str, patience_seconds: float) -> AsyncIterator[Passage]:
    """Put events or points straight into InfluxDB; nothing is counted, and no data directory changes.

    Events get their own time, however old they are, and ids are hashed with the data directory's key.

    Raises:
        UsageError: if no InfluxDB is set.
        DataError: if ids are to be hashed, and there is no key.
    """
    if settings.influx_url is None:
        msg = "EXPORTER_INFLUX_URL: not set; set it, or name InfluxDB with --influx-url"
        raise UsageError(msg)
    configured = None if settings.hash_key is None else settings.hash_key.get_secret_value()
    key = read_hash_key(settings.data_dir, configured)
    if key is None and kind == "events" and "hash" in {settings.device_id, settings.custom_id}:
        msg = (
            f"{settings.data_dir}: holds no hash.key, without which ids cannot be hashed as the exporter hashes them: "
            "name the data directory with --data-dir, or set EXPORTER_HASH_KEY"
        )
        raise DataError(msg)
    with tempfile.TemporaryDirectory(prefix="capgo-replay-", ignore_cleanup_errors=True) as name:
        passage = settings.model_copy(
            update={
                "data_dir": Path(name),
                "hash_key": None,
                "journal_full": "reject",
                "max_event_age": _FOR_EVER_SECONDS,
                "max_versions_per_app": _MANY,
                "max_apps": _MANY,
                "derived": "off",
                "releases_token": None,
            }
        )
        if key is not None:
            (Path(name) / "hash.key").write_bytes(key)
        async with _exporter(passage) as url, contextlib.AsyncExitStack() as stack:
            if kind == "points":
                keeper = await stack.enter_async_context(open_keeper(passage.data_dir))
                target: Target = Keeping(keeper)
            else:
                target = await stack.enter_async_context(posting(url, None, patience_seconds))
            yield Passage(Path(name) / FILE_NAME, url, target)
