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
    """Requests failed again and again.

    Attributes:
        others_go: whether others were taken meanwhile.
    """

    def __init__(self, *, others_go: bool) -> None:
        """Keep whether others were taken."""
        super().__init__()
        self.others_go = others_go


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

    async def send(self, lines: Lines, report: Report, *, most: int, patience: int = PATIENCE) -> None:
        """Send lines, in requests of a size that the server takes, until each is stored or refused for good.

        Args:
            lines: what to send.
            report: told what became of them.
            most: so many go into one request at most.
            patience: how often a request is sent before the others are.

        Raises:
            GaveUpError: if a request has to be sent again, while draining.
            StuckError: if requests failed; the others are settled, but what the report says is then of no use.
        """
        start = failures = 0
        answers: int | None = None  # how often the server had answered before the first failure
        is_stuck = False
        while start < len(lines):
            part = lines.part(start, start + min(self._pace.points, most))
            answers_before = self._pace.answers
            answer = await self._attempt(part)
            if answer.verdict is Verdict.RETRY:
                answers = answers_before if answers is None else answers
                if answer.reason in _OVERLOADED:
                    self._pace.shrink(len(part), _LEAST_WHEN_OVERLOADED)
                failures += 1
                if failures < patience:
                    continue
                is_stuck, patience = True, 1
            elif answer.verdict is Verdict.TOO_LARGE and len(part) > 1:
                self._pace.shrink(len(part))
                continue
            else:
                if answer.verdict is Verdict.STORED:
                    self._pace.grow(len(part))
                if not await self._settle(part, answer, report):
                    is_stuck, patience = True, 1
            start += len(part)
            failures = 0
        if is_stuck:
            raise StuckError(others_go=answers is None or self._pace.answers > answers)

    async def _settle(self, part: Lines, answer: Answer, report: Report) -> bool:
        """Take an answer about lines, and send again what it leaves open, until nothing is.

        Refused lines are found by their numbers or by halving, with a bounded number of requests; what is not resolved
        by then becomes dead letters as a block.

        Returns:
            Whether everything is settled; not if a request failed again and again.
        """
        parts = sort_out(part, answer, report)
        error = answer.error
        requests = 1
        failures = 0
        while parts and requests < REQUEST_BUDGET:
            answer = await self._attempt(parts[-1])
            if answer.verdict is Verdict.RETRY:
                failures += 1
                if failures >= PATIENCE:
                    return False
                continue
            part = parts.pop()
            failures = 0
            requests += 1
            error = answer.error or error
            parts += sort_out(part, answer, report)
        if parts:
            block = [line for part in reversed(parts) for line in part.lines()]
            report.reject("refused", f"{error} (not all tried one by one)", block)
        return True

    async def _attempt(self, lines: Lines) -> Answer:
        """Send one request when the server may be asked; after a failure that may pass, wait before returning."""
        body = await asyncio.get_running_loop().run_in_executor(self._thread, lines.pack)
        while (seconds := self._pace.wait_seconds()) and not self._draining.is_set():
            await pause(seconds, self._draining)
        answer = await self._writer.write(body)
        self._on_answer(answer)
        if answer.verdict is not Verdict.RETRY:
            self._pace.answers += 1
            self._backoff.succeeded()
            return answer
        if self._draining.is_set():
            raise GaveUpError(answer.error)
        self._pace.hold(answer.retry_after_seconds)
        await pause(self._backoff.failed(), self._draining)
        return answer


async def pause(seconds: float, unless: asyncio.Event) -> None:
    """Wait, but not longer than until the event is set."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(unless.wait(), seconds)
