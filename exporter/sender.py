"""Sending: lines go to InfluxDB in requests, until each line is stored or refused for good."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final, Protocol

from exporter.influx import Answer, Verdict
from exporter.lines import Lines
from exporter.pace import Backoff, Pace
from exporter.refusals import Report, sort_out

REQUEST_BUDGET: Final = 200
PATIENCE: Final = 5
"""So often a request is sent, for some ten seconds, before others have their turn."""

_OVERLOADED: Final = frozenset({"timeout", "server_error"})
_LEAST_WHEN_OVERLOADED: Final = 1000


class Writer(Protocol):
    """What delivery needs of InfluxDB."""

    async def write(self, body: bytes) -> Answer:
        """Send lines, gzip-compressed into one member, and judge the answer; raises nothing."""


class GaveUpError(Exception):
    """The last attempt while draining failed."""


class StuckError(Exception):
    """A request failed again and again.

    Attributes:
        tried: how many of the lines are settled or tried in vain.
        answers: how often the server had answered anybody before the request failed for the first time.
        retry_after_seconds: how long the server asks to wait.
    """

    def __init__(self, *, tried: int, answers: int, retry_after_seconds: float) -> None:
        """Keep what is known of it."""
        super().__init__()
        self.tried = tried
        self.answers = answers
        self.retry_after_seconds = retry_after_seconds


class Sender:
    """Sends one request at a time; several senders share a pace."""

    def __init__(
        self,
        writer: Writer,
        pace: Pace,
        backoff: Backoff,
        *,
        thread: Executor,
        draining: asyncio.Event,
        on_answer: Callable[[Answer], None],
    ) -> None:
        """Take the parts.

        Args:
            writer: InfluxDB.
            pace: what the server can take.
            backoff: this sender's own.
            thread: where lines are compressed.
            draining: set when a failure is to be the last one.
            on_answer: told of each answer.
        """
        self._writer = writer
        self._pace = pace
        self._backoff = backoff
        self._thread = thread
        self._draining = draining
        self._on_answer = on_answer

    async def send(
        self, lines: Lines, report: Report, *, start: int = 0, most: int, aside: Backoff | None = None
    ) -> None:
        """Send lines, in requests of a size that the server takes, until each is stored or refused for good.

        Args:
            lines: what to send.
            report: told what became of them.
            start: the number of the first one that is sent.
            most: so many go into one request at most.
            aside: the backoff of batches that were put aside. Those fail at once, say nothing of what the server can
                take, and wait elsewhere, so that this sender is free for others.

        Raises:
            GaveUpError: if a request has to be sent again, while draining.
            StuckError: if a request failed again and again; what the report says is then of no use.
        """
        failures = answers = 0
        while start < len(lines):
            part = lines.part(start, start + min(self._pace.points, most))
            answers = answers if failures else self._pace.answers
            answer = await self._attempt(part, aside)
            if answer.verdict is Verdict.TOO_LARGE and len(part) > 1:
                self._pace.shrink(len(part))
                continue
            failed: Answer | None = answer
            if answer.verdict is Verdict.RETRY:
                if answer.reason in _OVERLOADED and aside is None:
                    self._pace.shrink(len(part), _LEAST_WHEN_OVERLOADED)
                failures += 1
                if failures < _patience(aside):
                    continue
            else:
                if answer.verdict is Verdict.STORED:
                    self._pace.grow(len(part))
                failed = await self._settle(part, answer, report, aside)
            start += len(part)
            failures = 0
            if failed:
                raise StuckError(tried=start, answers=answers, retry_after_seconds=failed.retry_after_seconds)

    async def _settle(self, part: Lines, answer: Answer, report: Report, aside: Backoff | None) -> Answer | None:
        """Take an answer about lines, and send again what it leaves open, until nothing is.

        Refused lines are found by their numbers or by halving, with a bounded number of requests; what is not resolved
        by then becomes dead letters as a block.

        Returns:
            The answer to a request that failed again and again; None if everything is settled.
        """
        parts = sort_out(part, answer, report)
        error = answer.error
        requests = 1
        failures = 0
        while parts and requests < REQUEST_BUDGET:
            answer = await self._attempt(parts[-1], aside)
            if answer.verdict is Verdict.RETRY:
                failures += 1
                if failures >= _patience(aside):
                    return answer
                continue
            part = parts.pop()
            failures = 0
            requests += 1
            error = answer.error or error
            parts += sort_out(part, answer, report)
        if parts:
            block = [line for part in reversed(parts) for line in part.lines()]
            report.reject("refused", f"{error} (not all tried one by one)", block)
        return None

    async def _attempt(self, lines: Lines, aside: Backoff | None) -> Answer:
        """Send one request when the server may be asked; after a failure that may pass, wait before returning."""
        body = await asyncio.get_running_loop().run_in_executor(self._thread, lines.pack)
        while (seconds := self._pace.wait_seconds()) and not self._draining.is_set():
            await pause(seconds, self._draining)
        answer = await self._writer.write(body)
        self._on_answer(answer)
        if answer.verdict is not Verdict.RETRY:
            self._pace.answers += 1
            (aside or self._backoff).succeeded()
            return answer
        if self._draining.is_set():
            raise GaveUpError(answer.error)
        if aside is None:
            self._pace.hold(answer.retry_after_seconds)
            await pause(self._backoff.failed(), self._draining)
        return answer


def _patience(aside: Backoff | None) -> int:
    """Give how often a request is sent before others have their turn."""
    return PATIENCE if aside is None else 1


async def pause(seconds: float, unless: asyncio.Event) -> None:
    """Wait, but not longer than until the event is set."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(unless.wait(), seconds)
