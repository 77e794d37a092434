"""A server that stands for InfluxDB, in the process of a benchmark: what it does with a write is for others to say."""

from abc import ABC, abstractmethod

from aiohttp import web


class Receiver(ABC):
    """Takes writes to `/api/v2/write` as they come, compressed."""

    def __init__(self) -> None:
        """Listen to nobody yet."""
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/api/v2/write", self.write)
        self._runner = web.AppRunner(app, auto_decompress=False, access_log=None, shutdown_timeout=0.1)

    async def start(self) -> str:
        """Listen, and give the URL."""
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def stop(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    @abstractmethod
    async def write(self, request: web.Request) -> web.Response:
        """Answer a write."""
