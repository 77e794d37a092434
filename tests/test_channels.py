"""Channels: which one an event belongs to, how many have series of their own, and what each of them went through."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import pytest

from exporter.labels import LabelPolicy
from tests.support.exporter import parse_samples
from tests.support.inprocess import ManualClock, Running, running

DEFAULTS: Final = {"app_id": "app", "platform": "ios", "environment": "prod", "channel": "unknown"}
MAX_LENGTH: Final = 128

Event = dict[str, Any]


# --- places -----------------------------------------------------------------------------------------------------------


class Policy(LabelPolicy):
    """A policy with a clock and a cap of the test's own.

    Attributes:
        time: its clock.
        overflow: what got no series of its own.
    """

    def __init__(self, cap: int) -> None:
        """Set the cap on versions, which is that on channels."""
        self.time = ManualClock()
        self.overflow: list[tuple[str, str]] = []
        super().__init__(
            max_apps=10,
            max_versions_per_app=cap,
            max_unknown_actions=1,
            reserved_apps=(),
            is_marked=lambda _app_id, _version: False,
            monotonic=self.time.clock.monotonic,
            on_overflow=lambda label, value: self.overflow.append((label, value)),
        )

    def channels(self, names: Iterable[str], app_id: str = "app") -> list[str]:
        """Give the label of each channel."""
        return [self.place_channel(app_id, name) for name in names]


def numbered(start: int, stop: int) -> list[str]:
    """Give names of channels, the last one left out."""
    return [f"channel-{number}" for number in range(start, stop)]


@pytest.mark.parametrize(
    ("channel", "expected"),
    [
        ("production", "production"),
        ("Production", "Production"),
        (" beta\n", "beta"),
        ("be\x00ta", "be ta"),
        ("a\\b", "a/b"),
        ("a:b", "a:b"),
        ("builtin", "builtin"),
        ("other", "other"),
        ("unknown", "unknown"),
        ("  ", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
        ("x" * MAX_LENGTH, "x" * MAX_LENGTH),
        ("x" * (MAX_LENGTH + 1), "other"),
    ],
)
def test_channel(channel: str | None, expected: str) -> None:
    """A channel is normalised like any label; no channel is `unknown`, one that is too long is `other`."""
    assert expected == Policy(10).place_channel("app", channel)


def test_channels_are_capped_as_versions_are() -> None:
    """Four fifths of the cap are taken freely, then twenty an hour; what has a place keeps it, and the rest is told."""
    policy = Policy(200)
    assert [*numbered(0, 180), "other"] == policy.channels(numbered(0, 181))
    assert [("channel", "channel-180")] == policy.overflow
    policy.time.advance(3600)
    assert [*numbered(180, 200), "other", "channel-0"] == policy.channels([*numbered(180, 201), "channel-0"])
    assert [("channel", "channel-180"), ("channel", "channel-200")] == policy.overflow


def test_each_app_has_a_cap_for_channels_of_its_own() -> None:
    """Neither the channels of another app nor an app's own versions take a channel's place."""
    policy = Policy(1)
    assert "1.0.0" == policy.place_version("app", "1.0.0")
    assert ["beta", "other"] == policy.channels(["beta", "gamma"])
    assert ["gamma", "other"] == policy.channels(["gamma", "beta"], "another")
    assert ["other", "1.0.0"] == [policy.place_version("app", name) for name in ("2.0.0", "1.0.0")]
    assert 0 == policy.crowding("another")


def test_what_stands_for_no_channel_takes_no_place() -> None:
    """Nobody is kept out by `unknown` and `other`."""
    policy = Policy(1)
    policy.restore_channel("app", "unknown")
    policy.restore_channel("app", "other")
    assert ["unknown", "other", "beta"] == policy.channels(["unknown", "other", "beta"])
    assert [] == policy.overflow


def test_a_place_is_kept_and_given_back() -> None:
    """A channel that the journal holds has its place though the cap is lower now, until its series are gone."""
    policy = Policy(1)
    for name in ("beta", "gamma"):
        policy.restore_channel("app", name)
    assert ["beta", "gamma", "other"] == policy.channels(["beta", "gamma", "delta"])
    policy.release_channels([("app", "beta"), ("app", "gamma")])
    assert ["delta", "other"] == policy.channels(["delta", "beta"])
    policy.release(apps=["app"], versions=[], actions=[])
    assert ["beta", "other"] == policy.channels(["beta", "delta"])


# --- through the server -----------------------------------------------------------------------------------------------


def event(action: str, **fields: Any) -> Event:
    """Make an event of the default app and version; each is of a device of its own unless it says which."""
    return {"app_id": "app", "platform": "ios", "version_name": "1.0.0", "action": action, **fields}


async def post(exporter: Running, *events: Event) -> None:
    """Post events alone, so that each is one of its own, and see that they are answered."""
    for each in events:
        assert 200 == (await exporter.post(each)).status


async def settle(exporter: Running, clock: ManualClock) -> None:
    """Let so much time pass that failures are counted, and count them."""
    clock.advance(60)
    derivation = exporter.exporter.derivation
    assert derivation is not None
    await derivation.settle()


async def updates(exporter: Running) -> dict[str, float]:
    """Give the updates by channel: those that are not 0, by those labels that are not the defaults."""
    found = {}
    for sample in parse_samples(await exporter.metrics()):
        if sample.name == "capgo_channel_updates_total" and sample.value:
            labels = {name: value for name, value in sample.labels.items() if DEFAULTS.get(name) != value}
            found[" ".join(f"{name}={value}" for name, value in sorted(labels.items()))] = sample.value
    return found


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({"channel": "beta", "defaultChannel": "production"}, "channel=beta ", id="the channel wins"),
        pytest.param({"channel": "beta"}, "channel=beta ", id="a channel alone"),
        pytest.param({"defaultChannel": "production"}, "channel=production ", id="the default alone"),
        pytest.param({"channel": "", "defaultChannel": "production"}, "channel=production ", id="an empty channel"),
        pytest.param({"channel": None, "defaultChannel": "production"}, "channel=production ", id="no channel"),
        pytest.param({"channel": " beta\t"}, "channel=beta ", id="normalised"),
        pytest.param({"channel": "", "defaultChannel": ""}, "", id="both empty"),
        pytest.param({}, "", id="neither"),
        pytest.param({"channel": " "}, "", id="nothing but blanks"),
    ],
)
async def test_channel_of_an_update(fields: Event, expected: str) -> None:
    """The channel in use wins over the default; without either it is unknown; installs and failures agree."""
    clock = ManualClock()
    async with running(clock=clock.clock) as exporter:
        await post(exporter, event("set", **fields), event("download_fail", **fields))
        await post(exporter, event("update_fail", device_id="d", **fields))
        await settle(exporter, clock)
        assert {f"{expected}outcome=installed": 1.0, f"{expected}outcome=failed": 2.0} == await updates(exporter)


async def test_each_channel_has_updates_of_its_own() -> None:
    """Installs and failures are told apart by app, platform, channel and environment, over all versions."""
    clock = ManualClock()
    async with running(clock=clock.clock) as exporter:
        for channel, installed, failed in (("production", 3, 1), ("beta", 1, 2)):
            for number in range(installed):
                await post(exporter, event("set", channel=channel, version_name=f"1.0.{number}"))
            for number in range(failed):
                device = f"{channel}-{number}"
                await post(exporter, event("unzip_fail", channel=channel, device_id=device))
                await post(exporter, event("download_fail", channel=channel, device_id=device))
        await post(exporter, event("set", channel="beta", is_prod=False), event("set", channel="beta", platform="web"))
        await post(exporter, event("set", channel="beta", app_id="another"), event("get", channel="gamma"))
        await settle(exporter, clock)
        assert {
            "channel=production outcome=installed": 3.0,
            "channel=production outcome=failed": 1.0,
            "channel=beta outcome=installed": 1.0,
            "channel=beta outcome=failed": 2.0,
            "channel=beta environment=dev outcome=installed": 1.0,
            "channel=beta outcome=installed platform=web": 1.0,
            "app_id=another channel=beta outcome=installed": 1.0,
        } == await updates(exporter)


async def test_channels_past_the_cap_are_others() -> None:
    """Each update of a channel without a place is counted as one of `other`, and its overflow, too."""
    clock = ManualClock()
    async with running({"max_versions_per_app": 2}, clock.clock) as exporter:
        await post(exporter, *(event("set", channel=name) for name in ("a", "b", "c", "c", "a")))
        await post(exporter, event("download_fail", device_id="d", channel="d"))
        await settle(exporter, clock)
        assert {
            "channel=a outcome=installed": 2.0,
            "channel=b outcome=installed": 1.0,
            "channel=other outcome=installed": 2.0,
            "channel=other outcome=failed": 1.0,
        } == await updates(exporter)
        assert 3.0 == await exporter.sample("capgo_exporter_label_overflow_total", label="channel")
        assert 0.0 == await exporter.sample("capgo_exporter_label_overflow_total", label="version")


async def test_a_channel_keeps_its_place_through_a_restart(tmp_path: Path) -> None:
    """After a restart updates go on where they stood, and no place is free that was not free before."""
    clock = ManualClock()
    settings = {"data_dir": tmp_path, "max_versions_per_app": 2}
    for sets in (1.0, 2.0, 3.0):
        async with running(settings, clock.clock) as exporter:
            await post(exporter, *(event("set", channel=name) for name in ("a", "b", "c")))
            assert {
                "channel=a outcome=installed": sets,
                "channel=b outcome=installed": sets,
                "channel=other outcome=installed": sets,
            } == await updates(exporter)
    async with running({**settings, "max_versions_per_app": 1}, clock.clock) as exporter:
        await post(exporter, event("set", channel="c"), event("set", channel="b"))
        assert {
            "channel=a outcome=installed": 3.0,
            "channel=b outcome=installed": 4.0,
            "channel=other outcome=installed": 4.0,
        } == await updates(exporter)


async def test_a_failure_has_its_channel_also_after_a_restart(tmp_path: Path) -> None:
    """A failure that is counted only after a restart is one of the channel that it was reported for."""
    clock = ManualClock()
    async with running({"data_dir": tmp_path}, clock.clock) as exporter:
        await post(exporter, event("checksum_fail", device_id="d", channel="beta"))
        await post(exporter, event("download_fail", device_id="d", channel="production"))
        assert {} == await updates(exporter)
    async with running({"data_dir": tmp_path}, clock.clock) as exporter:
        await settle(exporter, clock)
        assert {"channel=beta outcome=failed": 1.0} == await updates(exporter)
