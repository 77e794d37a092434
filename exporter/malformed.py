"""Requests that are not HTTP: answered, counted, and told of once.

aiohttp answers them with 400 before the application sees them, and would log each with a traceback and the sender's
address: whoever sends nonsense could fill a disk with it.
"""

import logging
from typing import Any

import structlog
from aiohttp.http_exceptions import HttpProcessingError

from exporter.telemetry import Telemetry

log = structlog.get_logger()


class HttpLog(logging.Logger):
    """Stands where aiohttp's server logs: counts malformed requests, and logs one line an hour of them.

    Whatever else fails is logged as it is, but for the sender's address.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        """Set where to count."""
        super().__init__(__name__)
        self._telemetry = telemetry

    def exception(self, msg: object, *args: object, exc_info: Any = True, **options: Any) -> None:  # noqa: ANN401 -- the standard library's signature
        """Take what aiohttp tells of a request that it could not read, or of a handler that failed."""
        del msg, args, options
        if isinstance(exc_info, HttpProcessingError):
            self._note(exc_info)
        else:
            log.error("a request failed", exc_info=exc_info)

    def debug(self, msg: object, *args: object, exc_info: Any = None, **options: Any) -> None:  # noqa: ANN401 -- the same
        """Take what aiohttp tells of first requests that are not HTTP at all, such as TLS."""
        del msg, args, options
        if isinstance(exc_info, HttpProcessingError):
            self._note(exc_info)

    def _note(self, error: HttpProcessingError) -> None:
        self._telemetry.requests.labels("none", "400").inc()
        # The error's name only: its text holds what was sent.
        self._telemetry.notices.warn(
            "a request is not HTTP; others within the hour are only counted", problem=type(error).__name__
        )
