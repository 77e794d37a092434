"""After an outage: many devices deliver at once what they could not deliver before, through the real exporter."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Final

from benchmarks.alarms.promtool import Verdict, judge
from benchmarks.alarms.recorded import START_MS, Recording, record
from benchmarks.alarms.rules import Group
from benchmarks.alarms.series import History
from exporter.settings import Settings
from exporter.simulate.clients import MOBILE, Profile, plugin_body
from exporter.simulate.device import make_profile
from exporter.simulate.fleet import Fleet
from exporter.simulate.outbox import OK, Delivery, Reply
from exporter.simulate.scenario import HOUR_MS, Release, Scenario
from exporter.simulate.virtual import VirtualClock, virtual_exporter

STEP_SECONDS: Final = 15
_STEP_MS: Final = STEP_SECONDS * 1000
_BEGINS_MS: Final = START_MS + 10 * HOUR_MS
_FAILURES: Final = ("download_fail", "update_fail", "app_crash", "webview_javascript_error")


@dataclass(frozen=True, slots=True)
class Outage:
    """What came of it.

    Attributes:
        history: what Prometheus scraped.
        verdict: which alerts fired.
        late: events that the exporter counted as late.
        failures: failed updates that it counted as today's.
    """

    history: History
    verdict: Verdict
    late: int
    failures: int


async def failures_at_once(
    devices: int, groups: Sequence[Group], *, age_hours: float, seed: int = 1, over_seconds: int = 60
) -> Outage:
    """Let devices deliver failures of some hours ago within a minute, beside a fleet that lives as usual.

    Args:
        devices: each delivers a failed download, a roll-back, a crash and a page's error, in one batch.
        groups: the rules; see `rules.needed`.
        age_hours: how old the failures are.
        seed: of all chance.
        over_seconds: the time within which all devices deliver.
    """
    usual = Scenario(seed=seed, devices=100, base_version="2.0.0", releases=(Release("2.1.0", 0.0),))
    fleet = Fleet(usual, _BEGINS_MS)
    wave = _wave(usual, devices, age_hours, over_seconds)
    with tempfile.TemporaryDirectory(prefix="alarms-") as directory:
        settings = Settings(data_dir=Path(directory), scrape_interval=float(STEP_SECONDS))
        async with virtual_exporter(settings, VirtualClock(_BEGINS_MS)) as exporter:
            recording = Recording(exporter, STEP_SECONDS)
            while recording.now_ms <= _BEGINS_MS + HOUR_MS:
                deliveries: list[Delivery] = []
                for delivery in fleet.deliveries(recording.now_ms):
                    fleet.answer(delivery, OK)
                    deliveries.append(delivery)
                while wave and wave[-1].at_ms < recording.now_ms:
                    deliveries.append(wave.pop())
                await recording.take(sorted(deliveries, key=lambda each: each.at_ms))
            return _judge(recording.history(), groups)


async def exporter_down(
    devices: int, groups: Sequence[Group], *, seed: int = 1, down_hours: float = 2.0, around_hours: float = 2.0
) -> Outage:
    """Let the exporter be down for some hours in the middle of a rollout; devices send their queues afterwards.

    Args:
        devices: of the fleet.
        groups: the rules; see `rules.needed`.
        seed: of all chance.
        down_hours: how long it is down.
        around_hours: how long it is up before, and afterwards; the release comes halfway.
    """
    begin_ms = _BEGINS_MS + int(around_hours * HOUR_MS)
    end_ms = begin_ms + int(down_hours * HOUR_MS)
    rollout = ((0.0, 0.05), (1.0, 0.5), (4.0, 1.0))
    release = Release("2.1.0", around_hours / 2, rollout)
    scenario = Scenario(seed=seed, devices=devices, base_version="2.0.0", releases=(release,))

    def reply(at_ms: int) -> Reply:
        return Reply(None) if begin_ms <= at_ms < end_ms else OK

    hours = around_hours + down_hours + around_hours
    history, _ = await record(scenario, days=hours / 24, step_seconds=STEP_SECONDS, start_ms=_BEGINS_MS, reply=reply)
    return _judge(history, groups)


def _judge(history: History, groups: Sequence[Group]) -> Outage:
    lean = history.without_label("capgo_download_attempts_total", "reached")
    return Outage(
        history,
        judge(lean, groups),
        late=history.total("capgo_late_events_total"),
        failures=history.total("capgo_update_failures_total"),
    )


def _wave(scenario: Scenario, devices: int, age_hours: float, over_seconds: int) -> list[Delivery]:
    """Make the deliveries, the last one first."""
    chance = Random(f"{scenario.seed}/wave")  # noqa: S311 -- no secret
    outbox = Fleet(replace(scenario, devices=1), _BEGINS_MS).devices[0].outbox
    arrival_ms = _BEGINS_MS + HOUR_MS // 2
    wave = []
    for _ in range(devices):
        profile = _with_time(make_profile(scenario, chance))
        at_ms = arrival_ms + chance.randrange(over_seconds * 1000)
        happened_ms = at_ms - int(age_hours * HOUR_MS)
        body = [
            {**plugin_body(profile, action, "2.1.0", "2.0.0"), "timestamp": happened_ms + 40_000 * number}
            for number, action in enumerate(_FAILURES)
        ]
        wave.append(Delivery(at_ms, body, profile.headers, outbox, []))
    return sorted(wave, key=lambda each: -each.at_ms)


def _with_time(profile: Profile) -> Profile:
    """Give the device the newest plugin, which keeps its events and says when they happened."""
    return replace(
        profile,
        generation=MOBILE[-1][0],
        plugin_version="8.51.14",
        platform="ios" if profile.platform == "electron" else profile.platform,
        is_emulator=False,
        is_prod=True,
        skew_ms=0,
    )
