"""Outboxes: how each generation of plugins sends events, and what it does when they are not taken."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from exporter.simulate.clients import MAX_QUEUE, Profile
from exporter.simulate.reports import Report
from exporter.simulate.timeline import Timeline
from exporter.simulate.truth import Truth

FLUSH_MS: Final = 1000
_MAX_BLOCKED_SECONDS: Final = 86_400
_TRY_LATER: Final = 408
_TOO_MANY: Final = 429
_SERVER_ERROR: Final = 500
_json = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Reply:
    """What a device gets for a POST.

    Attributes:
        status: of the answer; None: there was none.
        retry_after_seconds: how long it is asked to wait.
        has_body: whether the answer holds something; iOS takes an empty one for a failure.
        was_sent: whether a server may have taken the request although there was no answer.
        timed_out: whether there was no answer because waiting for it took too long.
    """

    status: int | None
    retry_after_seconds: float = 0.0
    has_body: bool = True
    was_sent: bool = True
    timed_out: bool = False


OK: Final = Reply(200)


@dataclass(slots=True, eq=False)
class Delivery:
    """One POST of a device.

    Attributes:
        at_ms: when, in milliseconds since 1970.
        body: one event, or a list of events.
        headers: of the request.
        outbox: where it comes from.
        reports: the events.
        is_repeat: whether some of them were sent before.
        loses_reply: whether the network will lose the reply.
        may_repeat: whether it is sent once more after a time-out.
    """

    at_ms: int
    body: dict[str, Any] | list[dict[str, Any]]
    headers: dict[str, str]
    outbox: "Outbox"
    reports: list[Report] = field(repr=False)
    is_repeat: bool = False
    loses_reply: bool = False
    may_repeat: bool = False

    def encode(self) -> bytes:
        """Give the body as JSON."""
        return _json.encode(self.body)


class Outbox:
    """What one device has to send.

    Attributes:
        is_online: whether the device has a network.
        on_rate_limit: is told of the first reply 429 since the app started.
        lost: how many events of the device are gone for good.
    """

    def __init__(
        self,
        profile: Profile,
        timeline: Timeline,
        truth: Truth,
        post: Callable[[Delivery], None],
        loses_reply: Callable[[], bool],
    ) -> None:
        """Start empty.

        Args:
            profile: of the device.
            timeline: the time.
            truth: what is told of what becomes of events.
            post: sends.
            loses_reply: decides whether the network loses a reply.
        """
        self.is_online = True
        self.lost = 0
        self.on_rate_limit: Callable[[], None] = lambda: None
        self._profile = profile
        self._generation = profile.generation
        self._is_ios = profile.platform == "ios"
        self._headers = profile.headers
        self._timeline = timeline
        self._truth = truth
        self._post = post
        self._loses_reply = loses_reply
        self._queue: list[Report] = []
        self._is_running = False
        self._has_flush = False
        self._is_silent = False
        self._sent_again = False
        self._limit_told = False
        self._blocked_until_ms = 0

    @property
    def waiting(self) -> int:
        """Count the events that wait and that no server has taken yet."""
        return sum(report.arrived_ms is None for report in self._queue)

    @property
    def may_update(self) -> bool:
        """Whether the device can ask for updates: it has a network, and no reply 429 forbids it now."""
        return self.is_online and self._timeline.now_ms >= self._blocked_until_ms

    def launch(self) -> None:
        """The app starts anew: what was not stored on the device is gone."""
        if not self._generation.persists:
            self._lose(self._queue)
            self._queue = []
        self._is_silent = self._limit_told = False
        self.resume()

    def resume(self) -> None:
        """The app comes to the foreground."""
        self._is_running = True
        self._plan_flush()

    def suspend(self) -> None:
        """The app was closed, or stopped in the background: nothing is sent before it comes back."""
        self._is_running = False

    def put(self, report: Report) -> None:
        """Send an event as the plugin does."""
        if self._generation.batches and not self._is_silent:
            self._truth.said += 1
            self._queue.append(report)
            self._plan_flush()
        else:
            self.put_alone(report, may_repeat=self._profile.repeats_on_timeout, is_possible=not self._is_silent)

    def put_alone(self, report: Report, *, may_repeat: bool = False, is_possible: bool = True) -> None:
        """Send an event at once, on its own, and only once.

        Args:
            report: the event.
            may_repeat: whether it is sent once more after a time-out.
            is_possible: whether the plugin would send anything now.
        """
        self._truth.said += 1
        if self.is_online and is_possible:
            now_ms = self._timeline.now_ms
            self._post(Delivery(now_ms, report.body, self._headers, self, [report], may_repeat=may_repeat))
        else:
            self._lose([report])

    def answer(self, delivery: Delivery, reply: Reply) -> None:
        """Take the reply to a delivery, which decides about its events."""
        status = reply.status
        is_taken = status is not None and 200 <= status < 300  # noqa: PLR2004 -- HTTP's classes of statuses
        if is_taken:
            for report in delivery.reports:
                self._truth.take(report, delivery.at_ms)
        if is_taken and not delivery.loses_reply and (reply.has_body or not self._is_ios):
            return
        if status is None and reply.was_sent:
            self._truth.doubt(delivery.reports)
        if reply.timed_out and delivery.may_repeat:
            self._post(replace(delivery, at_ms=self._timeline.now_ms, is_repeat=True, may_repeat=False))
            return
        if status == _TOO_MANY:
            self._limit(reply.retry_after_seconds)
        is_passing = is_taken or status in {None, _TRY_LATER, _TOO_MANY} or status >= _SERVER_ERROR
        if isinstance(delivery.body, list) and self._generation.resends and is_passing:
            self._sent_again = True
            self._queue = [*delivery.reports, *self._queue]
            self._plan_flush()
        else:
            self._lose(delivery.reports)

    def _limit(self, retry_after_seconds: float) -> None:
        """Obey 429, as far as the plugin knows it."""
        profile = self._profile
        if profile.obeys_limits:
            wait_ms = int(min(retry_after_seconds, _MAX_BLOCKED_SECONDS) * 1000)
            self._blocked_until_ms = self._timeline.now_ms + wait_ms
        self._is_silent = profile.falls_silent
        if (profile.obeys_limits or profile.falls_silent) and not self._limit_told:
            self._limit_told = True
            self.on_rate_limit()

    def _plan_flush(self) -> None:
        self._cap()
        if self._queue and self._is_running and not self._has_flush:
            self._has_flush = True
            wait_ms = max(FLUSH_MS, self._blocked_until_ms - self._timeline.now_ms)
            self._timeline.after(wait_ms, self._flush)

    def _flush(self) -> None:
        self._has_flush = False
        if not self._is_running or not self._queue:
            return
        if self._timeline.now_ms < self._blocked_until_ms:
            self._plan_flush()
            return
        if not self.is_online or self._is_silent:
            if not self._generation.resends:
                self._lose(self._queue)
                self._queue = []
            return
        reports, self._queue = self._queue, []
        self._post(
            Delivery(
                self._timeline.now_ms,
                [report.body for report in reports],
                self._headers,
                self,
                reports,
                is_repeat=self._sent_again,
                loses_reply=self._loses_reply(),
            )
        )
        self._sent_again = False

    def _cap(self) -> None:
        """Drop the oldest of too many events."""
        if self._generation.persists and len(self._queue) > MAX_QUEUE:
            excess = len(self._queue) - MAX_QUEUE
            self._lose(self._queue[:excess])
            del self._queue[:excess]

    def _lose(self, reports: list[Report]) -> None:
        """Note that events are not sent again; a server may have taken them nevertheless."""
        count = sum(report.arrived_ms is None for report in reports)
        self.lost += count
        self._truth.lost += count
