"""Free ports, and waiting for a condition with a deadline."""

import asyncio
import inspect
import itertools
import random
import socket
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar, overload

import aiohttp

T = TypeVar("T")

POLL_INTERVAL_SECONDS = 0.01

PATIENCE_SECONDS = 60.0
"""How long what has to come may take: far longer than it does, also on a busy machine whose disk stalls."""

# Below the range from which Linux takes the source ports of outgoing connections (32768 and up): a server that is
# stopped and started again on its port never finds that a connection of a load test has taken it.
_FIRST_PORT, _LAST_PORT = 15_000, 32_000

_candidates = itertools.count(random.randrange(_LAST_PORT - _FIRST_PORT))  # noqa: S311 -- no secret

# What "not yet" looks like while something starts or stops. TimeoutError is an OSError.
_NOT_YET = (AssertionError, OSError, aiohttp.ClientError)


def free_port() -> int:
    """Return a TCP port that is free on 127.0.0.1 and that this process has not handed out before."""
    for candidate in itertools.islice(_candidates, _LAST_PORT - _FIRST_PORT):
        port = _FIRST_PORT + candidate % (_LAST_PORT - _FIRST_PORT)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    message = f"no free port between {_FIRST_PORT} and {_LAST_PORT}"
    raise OSError(message)


@overload
async def wait_for(condition: Callable[[], Awaitable[T]], message: str = ..., timeout_seconds: float = ...) -> T: ...
@overload
async def wait_for(condition: Callable[[], T], message: str = ..., timeout_seconds: float = ...) -> T: ...
async def wait_for(
    condition: Callable[[], T | Awaitable[T]], message: str = "the condition", timeout_seconds: float = PATIENCE_SECONDS
) -> T:
    """Poll a condition until it returns something true, and return that.

    The condition may be a plain function or a coroutine function. An `AssertionError`, `OSError` or
    `aiohttp.ClientError` it raises means "not yet".

    Args:
        condition: What to poll; what it returned or raised last stands in the failure.
        message: What is awaited, as it reads after "waited 60 s for".
        timeout_seconds: The deadline.

    Raises:
        AssertionError: The deadline passed.
    """
    deadline = time.monotonic() + timeout_seconds
    last: object = "never polled"
    while True:
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + max(deadline - time.monotonic(), 0.001)):
                outcome = condition()
                value: T = await outcome if inspect.isawaitable(outcome) else outcome
        except _NOT_YET as error:
            last = error
        else:
            if value:
                return value
            last = value
        if time.monotonic() >= deadline:
            _give_up(timeout_seconds, message, last)
        await asyncio.sleep(POLL_INTERVAL_SECONDS)


def wait_for_sync(
    condition: Callable[[], T], message: str = "the condition", timeout_seconds: float = PATIENCE_SECONDS
) -> T:
    """Poll a plain condition as `wait_for` does, from code that has no event loop.

    Raises:
        AssertionError: The deadline passed.
    """
    deadline = time.monotonic() + timeout_seconds
    last: object
    while True:
        try:
            value = condition()
        except _NOT_YET as error:
            last = error
        else:
            if value:
                return value
            last = value
        if time.monotonic() >= deadline:
            _give_up(timeout_seconds, message, last)
        time.sleep(POLL_INTERVAL_SECONDS)


def _give_up(timeout_seconds: float, message: str, last: object) -> NoReturn:
    text = f"waited {timeout_seconds:g} s for {message}; last state: {last!r}"
    raise AssertionError(text)
