"""A thread that does one thing after another for the event loop.

An executor does that too, but each hand-over takes three times the CPU time: two futures, a condition, two locks and a
further turn of the event loop, which for a transaction of a few events is a good part of it.
"""

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

_Result = TypeVar("_Result")
_Outcome = TypeVar("_Outcome")
_Jobs = SimpleQueue[Callable[[], None] | None]


class Worker:
    """One thread, from its first job until `finish`; it does not keep the process from ending."""

    def __init__(self, name: str) -> None:
        """Name the thread, which the first job starts."""
        self.name = name
        self._jobs: _Jobs = SimpleQueue()
        self._thread = threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True)

    def run(self, function: Callable[..., _Result], *args: object) -> asyncio.Future[_Result]:
        """Have a function called after those before it; gives the future of its result, or of what it raises.

        It is called also if nobody waits for that any more.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Result] = loop.create_future()

        def job() -> None:
            try:
                result = function(*args)
            except BaseException as error:  # noqa: BLE001 -- whoever waits decides what it means
                tell = functools.partial(_tell, future, future.set_exception, error)
            else:
                tell = functools.partial(_tell, future, future.set_result, result)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(tell)

        if self._thread.ident is None:
            self._thread.start()
        self._jobs.put(job)
        return future

    def finish(self) -> None:
        """Wait until everything is done, and end the thread."""
        if self._thread.ident is not None:
            self._jobs.put(None)
            self._thread.join()


def _work(jobs: _Jobs) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # its function may hold much; the next one may be long in coming


def _tell(future: asyncio.Future[_Result], put: Callable[[_Outcome], None], outcome: _Outcome) -> None:
    if not future.done():  # it was not cancelled
        put(outcome)
