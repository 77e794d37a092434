"""Live: a fleet that posts to a real URL in real time, and obeys what it is answered."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Final

import aiohttp
import msgspec

from exporter.journal.derived_records import MarkRow
from exporter.simulate.fleet import Fleet
from exporter.simulate.outbox import Delivery, Reply
from exporter.simulate.releases import marks
from exporter.simulate.replies import read_reply

_TICK_SECONDS: Final = 0.05
_PROGRESS_SECONDS: Final = 0.25
_LAST_ANSWERS_SECONDS: Final = 2.0
_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True, repr=False)
class Target:
    """Where the fleet posts, and how; its URLs may hold tokens, so it has no text.

    Attributes:
        url: what the plugins have as `statsUrl`.
        timeout_seconds: how long a device waits for an answer.
        connections: how many POSTs are under way at once; the fleet's time stands still while there are so many.
        releases_url: where releases are marked; None: nowhere.
        releases_token: that is needed for that.
    """

    url: str
    timeout_seconds: float = 20.0
    connections: int = 100
    releases_url: str | None = None
    releases_token: str = ""


@dataclass(slots=True)
class Sent:
    """What came of the fleet's POSTs.

    Attributes:
        posts: how many were sent.
        events: how many events were in them, repeats included.
        repeats: POSTs with events that had been sent before.
        answers: POSTs by the status of the answer; `refused`, `timeout` or `network` if there was none.
        marks: marked releases, by the same.
    """

    posts: int = 0
    events: int = 0
    repeats: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    marks: Counter[str] = field(default_factory=Counter)


class Live:
    """A fleet under way.

    Attributes:
        fleet: with the truth.
        sent: what came of its POSTs.
    """

    def __init__(self, fleet: Fleet, target: Target, now_ms: Callable[[], int]) -> None:
        """Set where the fleet posts; nothing is sent before `run`.

        Args:
            fleet: that has not yet begun.
            target: where it posts.
            now_ms: the time that passes for it, in milliseconds since 1970.
        """
        self.fleet = fleet
        self.sent = Sent()
        self._target = target
        self._now_ms = now_ms
        self._marks = marks(fleet.scenario, fleet.start_ms)
        self._under_way: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event, progress: Callable[[], None] = lambda: None) -> None:
        """Let the fleet live until it is stopped; then answers that are under way are waited for.

        Args:
            stop: ends it.
            progress: is called some times a second.
        """
        shown_at = 0.0
        async with self._session() as session, asyncio.TaskGroup() as group:
            while not stop.is_set():
                now_ms = self._now_ms()
                self._mark_releases(session, group, now_ms)
                for delivery in self.fleet.deliveries(now_ms):
                    self._start(group, self._post(session, delivery))
                    await self._wait_for_room(stop)
                    if stop.is_set():
                        break
                if time.monotonic() - shown_at >= _PROGRESS_SECONDS:
                    shown_at = time.monotonic()
                    progress()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), _TICK_SECONDS)
            await self._finish()
        progress()

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._target.timeout_seconds),
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    def _start(self, group: asyncio.TaskGroup, work: Coroutine[None, None, None]) -> None:
        task = group.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _wait_for_room(self, stop: asyncio.Event) -> None:
        """Wait until there are not too many POSTs under way; the fleet's time stands still meanwhile."""
        while len(self._under_way) >= self._target.connections and not stop.is_set():
            await asyncio.wait(self._under_way, timeout=_TICK_SECONDS, return_when=asyncio.FIRST_COMPLETED)

    async def _finish(self) -> None:
        """Wait for answers that are under way, but not for long."""
        if self._under_way:
            _, late = await asyncio.wait(self._under_way, timeout=_LAST_ANSWERS_SECONDS)
            for task in late:
                task.cancel()

    async def _post(self, session: aiohttp.ClientSession, delivery: Delivery) -> None:
        """Post, and let the device know what came of it."""
        sent = self.sent
        sent.posts += 1
        sent.events += len(delivery.reports)
        sent.repeats += delivery.is_repeat
        reply = Reply(None)
        try:
            reply, name = await self._ask(session, self._target.url, delivery.headers, delivery.encode())
            sent.answers[name] += 1
        finally:
            self.fleet.answer(delivery, reply)

    async def _ask(
        self, session: aiohttp.ClientSession, url: str, headers: dict[str, str], body: bytes
    ) -> tuple[Reply, str]:
        """Post, and give the answer and its name in the summary."""
        try:
            async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                answer = await response.read()
                return read_reply(response.status, response.headers, answer, self._now_ms()), str(response.status)
        except TimeoutError:
            return Reply(None, timed_out=True), "timeout"
        except aiohttp.ClientConnectorError:
            return Reply(None, was_sent=False), "refused"
        except (aiohttp.ClientError, OSError):
            return Reply(None), "network"

    def _mark_releases(self, session: aiohttp.ClientSession, group: asyncio.TaskGroup, now_ms: int) -> None:
        while self._marks and self._marks[0].marked_ms <= now_ms:
            mark = self._marks.pop(0)
            if self._target.releases_url is not None:
                self._start(group, self._mark(session, self._target.releases_url, mark))

    async def _mark(self, session: aiohttp.ClientSession, url: str, mark: MarkRow) -> None:
        """Mark a release, as a release pipeline does."""
        body = {
            "app_id": mark.app_id,
            "version": mark.version,
            "channel": mark.channel,
            "rollout_percentage": mark.rollout_percentage,
        }
        headers = {"Authorization": f"Bearer {self._target.releases_token}", "Content-Type": "application/json"}
        _, name = await self._ask(session, url, headers, _encoder.encode(body))
        self.sent.marks[name] += 1
