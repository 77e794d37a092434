"""The fleet: many devices on one timeline, and what they post."""

from collections import deque
from collections.abc import Iterator
from random import Random

from exporter.simulate.device import Device, make_profile
from exporter.simulate.outbox import OK, Delivery, Outbox, Reply
from exporter.simulate.scenario import Scenario
from exporter.simulate.sessions import Life
from exporter.simulate.timeline import Timeline
from exporter.simulate.truth import Truth
from exporter.simulate.updates import Updater


class Fleet:
    """A fleet, and the time it lives in.

    Attributes:
        scenario: what it lives through.
        start_ms: when it began, in milliseconds since 1970.
        truth: what has really happened.
        devices: all of them.
    """

    def __init__(self, scenario: Scenario, start_ms: int) -> None:
        """Make the devices; nothing has happened yet.

        Args:
            scenario: what they live through.
            start_ms: when that begins, in milliseconds since 1970.
        """
        self.scenario = scenario
        self.start_ms = start_ms
        self.truth = Truth()
        self._timeline = Timeline(start_ms)
        self._ready: deque[Delivery] = deque()
        self.devices = [self._make(number) for number in range(scenario.devices)]

    @property
    def now_ms(self) -> int:
        """The fleet's present, in milliseconds since 1970."""
        return self._timeline.now_ms

    def deliveries(self, until_ms: int) -> Iterator[Delivery]:
        """Let time pass until a moment, and give what is posted before it, in order; each should be answered.

        It can be called again for what comes later. An answer counts from the fleet's present on, so it may also be
        given between two calls.
        """
        timeline = self._timeline
        while True:
            while self._ready:
                yield self._ready.popleft()
            following_ms = timeline.next_ms()
            if following_ms is None or following_ms >= until_ms:
                timeline.catch_up(until_ms)
                return
            timeline.advance()

    def answer(self, delivery: Delivery, reply: Reply = OK) -> None:
        """Tell a device what came of its POST; until then, its events count neither as taken nor as lost."""
        delivery.outbox.answer(delivery, reply)

    @property
    def waiting(self) -> int:
        """Count the events that wait to be sent, or sent again, and that no server has taken yet."""
        ready = sum(report.arrived_ms is None for delivery in self._ready for report in delivery.reports)
        return ready + sum(device.outbox.waiting for device in self.devices)

    def _make(self, number: int) -> Device:
        scenario = self.scenario
        chance = Random(f"{scenario.seed}/device {number}")  # noqa: S311 -- no secret
        device = Device(make_profile(scenario, chance), scenario, self._timeline, chance)
        device.outbox = Outbox(
            device.profile,
            self._timeline,
            self.truth,
            self._ready.append,
            lambda: device.happens(scenario.noise.lost_reply),
        )
        device.outbox.on_rate_limit = device.say_rate_limit
        if chance.random() >= scenario.builtin_share:
            device.current = scenario.base_version
        life = Life(device, Updater(device, self.truth, self.start_ms), self.start_ms)
        self._live(life.live())
        return device

    def _live(self, waits: Iterator[int]) -> None:
        """Let a device live: each wait is planned when the one before is over."""

        def go_on() -> None:
            self._timeline.after(next(waits), go_on)

        go_on()
