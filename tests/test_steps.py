"""Steps of long work on the event loop."""

from types import SimpleNamespace

import pytest

import exporter.steps
from exporter.steps import Steps


class Loop:
    """An event loop whose time passes as the test says."""

    def __init__(self, pause_seconds: float) -> None:
        """Set how long the others take in a pause."""
        self.now = 0.0
        self.pauses: list[float] = []
        self.resumed: list[float] = []
        self._pause_seconds = pause_seconds

    async def sleep(self, seconds: float) -> None:
        """Let the others have their turn."""
        self.pauses.append(self.now)
        self.now += max(seconds, self._pause_seconds)
        self.resumed.append(self.now)


async def work(loop: Loop, monkeypatch: pytest.MonkeyPatch, parts: int) -> float:
    """Do so many parts of 0.1 ms each; gives the time that it took."""
    monkeypatch.setattr(exporter.steps, "asyncio", SimpleNamespace(sleep=loop.sleep))
    monkeypatch.setattr(exporter.steps, "time", SimpleNamespace(perf_counter=lambda: loop.now))
    steps = Steps()
    for _ in range(parts):
        loop.now += 0.0001
        await steps.pause()
    return loop.now


async def test_steps_are_short_while_the_loop_is_calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others wait for half a millisecond, and one part more at most; then they have two, and other threads too."""
    loop = Loop(0.0)
    await work(loop, monkeypatch, 1000)
    steps = zip([0.0, *loop.resumed], [*loop.pauses, loop.now], strict=True)
    assert max(later - sooner for sooner, later in steps) < 0.00061
    assert 0.00199 < min(later - sooner for sooner, later in zip(loop.pauses, loop.resumed, strict=True))


@pytest.mark.parametrize("pause_seconds", [0.0, 0.001, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("parts", [1000, 30_000])
async def test_the_whole_takes_five_times_its_work_at_most(
    monkeypatch: pytest.MonkeyPatch, pause_seconds: float, parts: int
) -> None:
    """However long the others take; but for the first pause, before which that is not known."""
    loop = Loop(pause_seconds)
    assert await work(loop, monkeypatch, parts) <= 5.001 * parts * 0.0001 + max(pause_seconds, 0.002)
