"""The thread that works for the event loop does everything in order, and tells what came of it."""

import asyncio
import threading

import pytest

from exporter.worker import Worker


async def test_jobs_run_in_order_on_one_thread() -> None:
    """Each gives its result to whoever waits, and all run on the thread of that name."""
    worker = Worker("journal")
    seen: list[tuple[int, str]] = []

    def job(number: int) -> int:
        seen.append((number, threading.current_thread().name))
        return number * 2

    assert [0, 2, 4] == await asyncio.gather(*[worker.run(job, number) for number in range(3)])
    assert [(number, "journal") for number in range(3)] == seen
    worker.finish()


async def test_failure_reaches_whoever_waits() -> None:
    """What a function raises, whatever it is, is raised there, and the thread goes on."""
    worker = Worker("journal")

    def fail(error: BaseException) -> None:
        raise error

    with pytest.raises(OSError, match="disk"):
        await worker.run(fail, OSError("disk"))
    with pytest.raises(GeneratorExit):
        await worker.run(fail, GeneratorExit())
    assert 3 == await worker.run(lambda: 3)
    worker.finish()


async def test_job_of_one_who_left_is_done() -> None:
    """A job whose waiter was cancelled is done nevertheless, and nobody is told."""
    worker = Worker("journal")
    go_on = threading.Event()
    done: list[str] = []
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    worker.run(go_on.wait)
    left = worker.run(done.append, "left")
    left.cancel()
    go_on.set()
    assert await worker.run(lambda: True)
    assert (["left"], []) == (done, faults)
    worker.finish()


async def test_finish_waits_for_what_was_asked_for() -> None:
    """`finish` returns when everything is done and the thread has ended; one that never began has nothing to end."""
    worker = Worker("worker that finishes")
    done: list[int] = []
    for number in range(3):
        worker.run(done.append, number)
    worker.finish()
    assert [0, 1, 2] == done
    assert not [each for each in threading.enumerate() if each.name == "worker that finishes"]
    Worker("never begun").finish()


def test_loop_that_is_gone_does_not_end_the_thread() -> None:
    """A job that outlives its event loop is done, and later ones of another loop are too."""
    worker = Worker("journal")
    go_on = threading.Event()

    async def leave() -> None:
        worker.run(go_on.wait)

    async def ask() -> bool:
        go_on.set()
        return await worker.run(lambda: True)

    asyncio.run(leave())
    assert asyncio.run(ask())
    worker.finish()
