"""Fair shares: how many events a second a client, or an app, may send on average.

Who sends more is asked to come back later, with 503 and `Retry-After`, so that no device loses anything.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Final

from aiohttp import web

from exporter.access import AllowList
from exporter.addresses import FORWARDED, Clients
from exporter.events import Batch, Event
from exporter.telemetry import Telemetry

BURST_SECONDS: Final = 60.0
"""Who was silent for so long may send as many events at once as in that time; a device that comes back has some 200."""

MAX_KEYS: Final = 65_536
"""Clients, or apps, of which it is remembered what they sent; some 13 MiB."""

_LONGEST_WAIT_SECONDS: Final = 60
_CLIENT: Final = "client"
_APP: Final = "app"


class Buckets:
    """A token bucket for each of many names, in a table that is bounded.

    Kept is when a bucket will be full again, which says all: one that is full needs no place. When the table is full,
    whoever was heard of longest ago makes room.
    """

    def __init__(self, rate: int | None, monotonic: Callable[[], float], *, max_keys: int = MAX_KEYS) -> None:
        """Start with every bucket full.

        Args:
            rate: tokens that a bucket gets in a second; None: there is no limit.
            monotonic: seconds that never go back.
            max_keys: size of the table.
        """
        self.rate = rate
        self._monotonic = monotonic
        self._max_keys = max_keys
        # A hash with the process's own secret stands for the name: it takes no room, and it is no address.
        # A plain dict finds its first key more and more slowly, the more were taken out before it.
        self._full_at: OrderedDict[int, float] = OrderedDict()

    def __len__(self) -> int:
        """Count the names that are remembered."""
        return len(self._full_at)

    def wait_seconds(self, name: bytes, taken: int = 0) -> float:
        """Tell how long until a name's bucket holds something; 0 if it does.

        Args:
            name: whose bucket.
            taken: tokens that are no obstacle, as who asks took them before.
        """
        key = hash(name)
        full_at = self._full_at.get(key)
        if full_at is None or self.rate is None:
            return 0.0
        wait = full_at - taken / self.rate - self._monotonic() - BURST_SECONDS
        if wait < 0:
            return 0.0
        self._full_at.move_to_end(key)  # who does not stop is not forgotten
        return max(wait, math.ulp(1.0))

    def take(self, name: bytes, count: int) -> None:
        """Take tokens out of a name's bucket: more than there are, if need be, which it then waits for."""
        if self.rate is None:
            return
        key = hash(name)
        now = self._monotonic()
        full_at = max(now, self._full_at.pop(key, now))
        self._full_at[key] = full_at + count / self.rate
        if len(self._full_at) > self._max_keys:
            self._full_at.popitem(last=False)


class OverShareError(Exception):
    """Somebody sent more than allowed.

    Attributes:
        limit: which limit that is: `client` or `app`.
        message: the message of the reply.
        retry_after_seconds: when to come back.
    """

    def __init__(self, limit: str, wait_seconds: float) -> None:
        """Keep what the reply says."""
        self.limit = limit
        self.message = f"Too many events of this {limit}; send them again later"
        super().__init__(self.message)
        self.retry_after_seconds = min(max(math.ceil(wait_seconds), 1), _LONGEST_WAIT_SECONDS)


class FairShare:
    """The limits of clients and of apps, and what both have sent.

    Attributes:
        per_client: for each client's address.
        per_app: for each app.
        clients: tells them apart.
        allowed: the apps that have a share; the events of others are not stored.
    """

    def __init__(self, monotonic: Callable[[], float], telemetry: Telemetry) -> None:
        """Start without limits.

        Args:
            monotonic: seconds that never go back.
            telemetry: where hints and refused events are told of.
        """
        self.per_client = Buckets(None, monotonic)
        self.per_app = Buckets(None, monotonic)
        self.clients = Clients()
        self.allowed = AllowList()
        self._telemetry = telemetry

    def admit(self, request: web.Request) -> bytes | None:
        """Let a request in, before its body is read, and charge its client with one event.

        Returns:
            The client; None if there is no limit.

        Raises:
            OverShareError: if its client has sent too much.
        """
        if self.per_client.rate is None:
            return None
        client = self.clients.key(request)
        wait = self.per_client.wait_seconds(client)
        if wait:
            self._explain(request)
            raise OverShareError(_CLIENT, wait)
        self.per_client.take(client, 1)
        return client

    def charge(self, client: bytes | None, batch: Batch) -> None:
        """Charge client and apps with the events of a batch.

        Raises:
            OverShareError: if its client, meanwhile, or one of its apps has sent too much; then no app is charged.
        """
        if client is not None:
            if wait := self.per_client.wait_seconds(client, taken=1):  # in `admit`, which others passed, too
                self._telemetry.events["unavailable", ""].inc(batch.size)
                raise OverShareError(_CLIENT, wait)
            self.per_client.take(client, max(batch.size - 1, 0))
        if self.per_app.rate is None:
            return
        counts = Counter(event.app_id for event in batch.events if isinstance(event, Event))
        apps = {app_id.encode(): count for app_id, count in counts.items() if self.allowed.allows(app_id)}
        wait = max(map(self.per_app.wait_seconds, apps), default=0.0)
        if wait:
            self._telemetry.events["unavailable", ""].inc(batch.size)
            raise OverShareError(_APP, wait)
        for app, count in apps.items():
            self.per_app.take(app, count)

    def _explain(self, request: web.Request) -> None:
        """Say what is wrong if the limit seems to meet a proxy in place of its clients."""
        if FORWARDED in request.headers and not self.clients.trusts_peer(request):
            self._telemetry.notices.warn(
                "a limited address sends X-Forwarded-For; if it is your proxy, name it in EXPORTER_TRUSTED_PROXIES"
            )
