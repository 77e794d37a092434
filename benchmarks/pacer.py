"""POSTs at a fixed rate, whatever the answers do: the latency counts from the moment when a request should have left.

A client that waits for each answer before it sends the next request hides the server's pauses, because it sends nothing
while the server stands still. It uses a core of its own: `select` with microseconds, no event loop.

Usage: python -m benchmarks.pacer HOST PORT [--rate 1000] [--seconds 10] [--batch 1]; prints one line of JSON.
"""

import argparse
import gc
import json
import select
import socket
import sys
import time
from collections import deque
from typing import Final

from benchmarks.loads import LOADS, PLACEHOLDER, bodies

_READ_BYTES: Final = 1 << 16
_GIVE_UP_SECONDS: Final = 60.0
_END_OF_HEAD: Final = b"\r\n\r\n"


class Line:
    """A connection, and the request on it."""

    def __init__(self, address: tuple[str, int]) -> None:
        """Connect."""
        self.socket = socket.create_connection(address, timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self._answer = b""

    def fileno(self) -> int:
        """Give what `select` waits for."""
        return self.socket.fileno()

    def send(self, request: bytes, due: float) -> None:
        """Send a request that should have left at a moment."""
        self.due = due
        self._answer = b""
        self.socket.sendall(request)

    def read(self) -> int:
        """Read what came; gives the status once the answer is complete, else 0, and -1 if there will be none."""
        received = self.socket.recv(_READ_BYTES)
        self._answer += received
        head, end, body = self._answer.partition(_END_OF_HEAD)
        if not received:
            return -1
        if not end:
            return 0
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        return int(head.split(b" ", 2)[1]) if len(body) >= length else 0


class Requests:
    """Requests, each of a device of its own."""

    def __init__(self, host: str, load: str, batch: int, first: int) -> None:
        """Prepare the bodies."""
        self._pieces = []
        for body in bodies(load, batch):
            head = (
                f"POST /stats HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            self._pieces.append((head + body).split(PLACEHOLDER))
        self._number = first

    def next(self) -> bytes:
        """Give the next one."""
        self._number += 1
        return f"{self._number:012d}".join(self._pieces[self._number % len(self._pieces)]).encode()


def pace(
    address: tuple[str, int], requests: Requests, rate: float, seconds: float, connections: int
) -> dict[str, float]:
    """Send, and give the latencies in milliseconds."""
    idle = deque(Line(address) for _ in range(connections))
    busy: set[Line] = set()
    count = int(rate * seconds)
    latencies: list[float] = []
    failed = sent = 0
    begin = time.perf_counter() + 0.1
    while len(latencies) + failed < count:
        now = time.perf_counter()
        if now > begin + seconds + _GIVE_UP_SECONDS:
            break
        while idle and sent < count and begin + sent / rate <= now:
            line = idle.popleft()
            line.send(requests.next(), begin + sent / rate)
            busy.add(line)
            sent += 1
        wait = begin + sent / rate - time.perf_counter() if idle and sent < count else 1.0
        readable, _, _ = select.select(busy, (), (), max(wait, 0))
        for line in readable:
            status = line.read()
            if status:
                busy.discard(line)
                # One that the server closed cannot be used again.
                idle.append(line if status > 0 else Line(address))
                if status == 200:  # noqa: PLR2004 -- HTTP's OK
                    latencies.append(time.perf_counter() - line.due)
                else:
                    failed += 1
    for line in (*idle, *busy):
        line.socket.close()
    return {"sent": sent, "failed": count - len(latencies), **percentiles(latencies)}


def percentiles(latencies: list[float]) -> dict[str, float]:
    """Give percentiles of latencies in seconds, in milliseconds."""
    ordered = sorted(latencies) or [0.0]
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
    found = {name: ordered[min(int(share * len(ordered)), len(ordered) - 1)] * 1000 for name, share in shares.items()}
    return {**found, "max": ordered[-1] * 1000}


def main() -> None:
    """Read the options, send, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--rate", type=float, default=1000, help="POSTs a second")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--batch", type=int, default=1, help="events a POST")
    parser.add_argument("--load", choices=LOADS, default="queue")
    parser.add_argument("--connections", type=int, default=64, help="kept alive; more requests than these wait")
    parser.add_argument("--first", type=int, default=0, help="number of the first device")
    options = parser.parse_args()
    gc.disable()  # its pauses would count as the server's
    requests = Requests(options.host, options.load, options.batch, options.first)
    found = pace((options.host, options.port), requests, options.rate, options.seconds, options.connections)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
