"""Background tasks that must not die in silence."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

log = structlog.get_logger()


class Tasks:
    """Background tasks that run until they are stopped."""

    def __init__(self) -> None:
        """Start with none."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopping: set[str] = set()

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Start a task; if it ends by itself, that is logged, and `ended` names it."""
        task = self._tasks[name] = asyncio.create_task(work, name=name)
        task.add_done_callback(self._report)

    def ended(self) -> list[str]:
        """Name the tasks that ended although they should run."""
        return [name for name, task in self._tasks.items() if task.done() and name not in self._stopping]

    async def finish(self, name: str, timeout_seconds: float | None = None) -> None:
        """Wait until a task that was told to stop has ended; cancel it after the time-out."""
        self._stopping.add(name)
        task = self._tasks[name]
        await asyncio.wait([task], timeout=timeout_seconds)
        task.cancel()
        await asyncio.wait([task])

    def _report(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (task.exception() is not None or task.get_name() not in self._stopping):
            log.critical(
                "a background task ended; restart the exporter", task=task.get_name(), exc_info=task.exception()
            )
