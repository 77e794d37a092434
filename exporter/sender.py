"""Sending: lines go to InfluxDB in requests, until each line is stored or refused for good."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final, Protocol

from exporter.influx import Answer, Verdict
from exporter.journal.codec import compress
from exporter.pace import Backoff, Pace
from exporter.refusals import Report, sort_out

REQUEST_BUDGET: Final = 200
_OVERLOADED: Final = frozenset({"timeout", "server_error"})
_LEAST_WHEN_OVERLOADED: Final = 1000


class Writer(Protocol):
    """What delivery needs of InfluxDB."""

    async def write(self, body: bytes) -> Answer:
        """Send lines, gzip-compressed into one member, and judge the answer; raises nothing."""


class GaveUpError(Exception):
    """The last attempt while draining failed."""


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

    async def send(self, lines: list[str], report: Report) -> None:
        """Send lines, in requests of a size that the server takes, until each is stored or refused for good.

        Raises:
            GaveUpError: if a request has to be sent again, while draining.
        """
        start = 0
        while start < len(lines):
            part = lines[start : start + self._pace.points]
            answer = await self._attempt(part)
            if answer.verdict is Verdict.RETRY:
                if answer.reason in _OVERLOADED:
                    self._pace.shrink(len(part), _LEAST_WHEN_OVERLOADED)
            elif answer.verdict is Verdict.TOO_LARGE and len(part) > 1:
                self._pace.shrink(len(part))
            else:
                if answer.verdict is Verdict.STORED:
                    self._pace.grow(len(part))
                await self._settle(part, answer, report)
                start += len(part)

    async def _settle(self, part: list[str], answer: Answer, report: Report) -> None:
        """Take an answer about lines, and send again what it leaves open, until nothing is.

        Refused lines are found by their numbers or by halving, with a bounded number of requests; what is not resolved
        by then becomes dead letters as a block.
        """
        parts = sort_out(part, answer, report)
        error = answer.error
        requests = 1
        while parts and requests < REQUEST_BUDGET:
            part = parts.pop()
            while (answer := await self._attempt(part)).verdict is Verdict.RETRY:
                pass
            requests += 1
            error = answer.error or error
            parts += sort_out(part, answer, report)
        if parts:
            block = [line for part in reversed(parts) for line in part]
            report.reject("refused", f"{error} (not all tried one by one)", block)

    async def _attempt(self, lines: list[str]) -> Answer:
        """Send one request when the server may be asked; after a failure that may pass, wait before returning."""
        body = await asyncio.get_running_loop().run_in_executor(self._thread, compress, lines)
        while (seconds := self._pace.wait_seconds()) and not self._draining.is_set():
            await pause(seconds, self._draining)
        answer = await self._writer.write(body)
        self._on_answer(answer)
        if answer.verdict is not Verdict.RETRY:
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
