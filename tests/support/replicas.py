"""Three exporters behind a real nginx, and the phones that post to them."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.support.exporter import CounterKey, ExporterProcess
from tests.support.kills import NO_ANSWER, Device, nonzero_counters
from tests.support.ports import free_port
from tests.support.proxies import Caddy, Certificate, Nginx, Phone, Proxy

REPLICAS: Final = 3
SHARDS: Final = 256
_PAUSE_SECONDS: Final = 0.01


@dataclass(frozen=True)
class Cluster:
    """Exporters and the proxy in front of them."""

    exporters: list[ExporterProcess]
    proxy: Proxy

    async def counted(self) -> dict[CounterKey, int]:
        """Add up what the exporters counted, by series."""
        total: Counter[CounterKey] = Counter()
        for exporter in self.exporters:
            total.update(await nonzero_counters(exporter))
        return dict(total)


@contextlib.asynccontextmanager
async def cluster(directory: Path, env: Mapping[str, str], kind: type[Nginx | Caddy] = Nginx) -> AsyncIterator[Cluster]:
    """Start the exporters, on ports that they keep over restarts, and the proxy.

    Args:
        directory: An empty one for all of them.
        env: Settings of each exporter.
        kind: The proxy.
    """
    async with AsyncExitStack() as stack:
        exporters = [
            ExporterProcess(directory / f"exporter-{number}", env, listen=f"127.0.0.1:{free_port()}")
            for number in range(1, REPLICAS + 1)
        ]
        for exporter in exporters:
            stack.push_async_callback(exporter.stop)
        await asyncio.gather(*(exporter.start() for exporter in exporters))
        home = directory / "proxy"
        home.mkdir()
        urls = [exporter.url.removeprefix("http://") for exporter in exporters]
        yield Cluster(exporters, await stack.enter_async_context(kind(home, urls, Certificate(directory))))


@dataclass
class Reporter:
    """A device that posts through the proxy as the plugin does: what is not taken is sent again.

    Attributes:
        device: makes the events.
        phone: sends them.
        path: the path in its `statsUrl`.
        statuses: how often each status came; 0 stands for no answer.
    """

    device: Device
    phone: Phone
    path: str
    statuses: Counter[int] = field(default_factory=Counter)

    async def report(self, stop: asyncio.Event) -> None:
        """Send batches until told to stop, each as often as it takes."""
        while not stop.is_set():
            batch = self.device.batch()
            while not await self.post(batch):  # noqa: ASYNC110 -- it polls a server
                await asyncio.sleep(_PAUSE_SECONDS)
            self.device.acknowledged += batch

    async def post(self, batch: list[dict[str, Any]]) -> bool:
        """Send a batch once, and tell whether it was taken."""
        status = 0
        with contextlib.suppress(*NO_ANSWER):
            status = (await self.phone.post(self.device.encode(batch).encode(), self.path)).status
        self.statuses[status] += 1
        return status == 200


@contextlib.asynccontextmanager
async def reporters(proxy: Proxy, count: int, seed: int) -> AsyncIterator[list[Reporter]]:
    """Make devices with an address each; every other one has a shard in its URL.

    Args:
        proxy: Where they post to.
        count: How many there are.
        seed: Of their luck.
    """
    luck = random.Random(seed)  # noqa: S311 -- a test that can be repeated
    async with AsyncExitStack() as stack:
        yield [
            Reporter(
                Device(number, seed),
                await stack.enter_async_context(proxy.phone(address(number))),
                f"/stats?shard={luck.randrange(SHARDS)}" if number % 2 else "/stats",
            )
            for number in range(count)
        ]


@contextlib.asynccontextmanager
async def at_work(devices: Iterable[Reporter]) -> AsyncIterator[None]:
    """Let devices report; at the end every batch is acknowledged."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for device in devices:
            tasks.create_task(device.report(stop))
        yield
        stop.set()


def address(number: int) -> str:
    """Give the address of a phone."""
    return f"127.1.{number // 250}.{number % 250 + 1}"
