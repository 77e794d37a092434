"""Every derived figure: by hand for each rule, and against a plain model for whole fleets, however events arrive."""

import asyncio
import itertools
import random as randomness
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import fleet, reference
from tests.support.inprocess import ManualClock, Running, running

# A Friday, 08:00 UTC.
BEGAN_MS: Final = 1_800_000_000_000
HOUR: Final = 3600.0
DAY: Final = 86_400.0

# --- by hand ----------------------------------------------------------------------------------------------------------

_DEFAULTS: Final = {
    "app_id": "app",
    "platform": "ios",
    "version": "1.0.0",
    "environment": "prod",
    "channel": "unknown",
}

Post = tuple[float, list[dict[str, Any]] | dict[str, Any]]
"""When it arrives, in seconds, and a batch or a single event."""

Expected = dict[str, dict[str, float]]
"""By the name without `capgo_`: the samples that are not 0, by those labels that are not the defaults."""


@dataclass(frozen=True)
class Case:
    """A rule by example.

    Attributes:
        name: the rule.
        posts: what arrives.
        expected: all that the named metrics show.
        read_after: how many seconds after the last POST they are read.
    """

    name: str
    posts: list[Post]
    expected: Expected
    read_after: float = 60.0


def event(action: str, at: float | None = None, **fields: Any) -> dict[str, Any]:
    """Make an event of the default device; `at` is its own time in seconds since the beginning."""
    made: dict[str, Any] = {
        "app_id": "app",
        "platform": "ios",
        "device_id": "d1",
        "version_name": "1.0.0",
        "action": action,
    }
    if at is not None:
        made["timestamp"] = BEGAN_MS + round(at * 1000)
    return {**made, **fields}


def batch(*steps: tuple[str, float], at: float = 100.0, **fields: Any) -> Post:
    """Make a batch of actions with their own times."""
    return at, [event(action, moment, **fields) for action, moment in steps]


def singles(*steps: tuple[str, float], **fields: Any) -> list[Post]:
    """Make POSTs of one event without a time each."""
    return [(moment, event(action, **fields)) for action, moment in steps]


def sets(count: int, **fields: Any) -> list[Post]:
    """Make POSTs of one `set` each, without times."""
    return singles(*(("set", float(second)) for second in range(count)), **fields)


def of(action: str, device: str, version: str = "1.0.0", **fields: Any) -> dict[str, Any]:
    """Make an event of a device and a version, without a time."""
    return event(action, device_id=device, version_name=version, **fields)


def lasted(action: str, at: float, duration_ms: str, **fields: Any) -> dict[str, Any]:
    """Make an event that says how long something took."""
    return event(action, at, metadata={"duration_ms": duration_ms}, **fields)


def prefixed(prefix: str, expected: Mapping[str, float]) -> dict[str, float]:
    """Put the same labels before others."""
    return {f"{prefix}{labels}": value for labels, value in expected.items()}


COMPLETED: Final = {"outcome=completed reached=complete": 1.0}
FAILED_AT_0: Final = {"outcome=failed reached=0": 1.0}
ONE_INSTALL: Final = {"": 1.0}

INSTALLS: Final = [
    Case(
        "a set is an install",
        [batch(("set", 1))],
        {
            "installs_total": ONE_INSTALL,
            "uninstalls_total": {},
            "channel_updates_total": {"outcome=installed": 1},
            "update_failures_total": {},
        },
    ),
    Case(
        "what a set replaces is uninstalled, whatever file its name ends in",
        [(0, event("set", 0, old_version_name="0.9.0:assets/main.js"))],
        {"installs_total": ONE_INSTALL, "uninstalls_total": {"version=0.9.0": 1}},
    ),
    Case(
        "an old version that is not known, or the same, is not uninstalled",
        [(n, event("set", n, old_version_name=old)) for n, old in enumerate(("", "unknown", "1.0.0", "1.0.0:x", " "))],
        {"installs_total": {"": 5}, "uninstalls_total": {}},
    ),
    Case(
        "builtin is a known version",
        [(0, event("set", 0, old_version_name="builtin"))],
        {"uninstalls_total": {"version=builtin": 1}},
    ),
    Case(
        "electron sets at each launch, and installs once",
        sets(3, platform="electron", old_version_name="0.9.0"),
        {
            "installs_total": {"platform=electron": 1},
            "uninstalls_total": {"platform=electron version=0.9.0": 1},
            "channel_updates_total": {"outcome=installed platform=electron": 1},
            "exporter_derived_skipped_total": {"reason=repeated_set": 2},
        },
    ),
    Case(
        "early electron says android, and is known by its plugin",
        sets(2, platform="android", plugin_version="0.0.1"),
        {"installs_total": {"platform=android": 1}},
    ),
    Case(
        "electron without a device is counted each time",
        sets(2, platform="electron", device_id=""),
        {"installs_total": {"platform=electron": 2}, "exporter_derived_skipped_total": {}},
    ),
    Case(
        "another device, version or app is another install of electron's",
        [
            *sets(1, platform="electron"),
            *sets(1, platform="electron", device_id="d2"),
            *sets(1, platform="electron", version_name="2.0.0"),
            *sets(1, platform="electron", app_id="app2"),
        ],
        {
            "installs_total": {
                "platform=electron": 2,
                "platform=electron version=2.0.0": 1,
                "app_id=app2 platform=electron": 1,
            }
        },
    ),
    Case("a phone's sets are installs each", sets(2), {"installs_total": {"": 2}}),
    Case(
        "development builds and emulators stand apart",
        [(0, [event("set", 0), event("set", 1, is_prod=False), event("set", 2, is_emulator=True)])],
        {"installs_total": {"": 1, "environment=dev": 1, "environment=emulator": 1}},
    ),
    Case(
        "the channel in use wins over the default",
        [
            (0, event("set", 0, channel=" beta ", defaultChannel="production")),
            (1, event("set", 1, channel="", defaultChannel="production")),
        ],
        {"channel_updates_total": {"channel=beta outcome=installed": 1, "channel=production outcome=installed": 1}},
    ),
    Case("an event sent again has no effect", [batch(("set", 0)), batch(("set", 0))], {"installs_total": ONE_INSTALL}),
]

FAILURES: Final = [
    Case(
        "three reports of one failure: the most specific wins, and one attempt failed",
        [batch(("download_fail", 0), ("checksum_fail", 1), ("finish_download_fail", 2))],
        {
            "update_failures_total": {"reason=checksum_fail": 1},
            "channel_updates_total": {"outcome=failed": 1},
            "download_attempts_total": FAILED_AT_0,
            "exporter_derived_skipped_total": {"reason=same_failure": 2},
        },
    ),
    Case(
        "half a minute later it is the same failure",
        [batch(("unzip_fail", 0), ("unzip_fail", 30))],
        {"update_failures_total": {"reason=unzip_fail": 1}, "download_attempts_total": FAILED_AT_0},
    ),
    Case(
        "a millisecond more, and it is another",
        [batch(("unzip_fail", 0), ("unzip_fail", 30.001))],
        {
            "update_failures_total": {"reason=unzip_fail": 2},
            "download_attempts_total": {"outcome=failed reached=0": 2},
            "exporter_derived_skipped_total": {},
        },
    ),
    Case(
        "half a minute counts from the first report of a failure, an attempt's from its last",
        [batch(("unzip_fail", 0), ("unzip_fail", 20), ("unzip_fail", 40))],
        {"update_failures_total": {"reason=unzip_fail": 2}, "download_attempts_total": FAILED_AT_0},
    ),
    Case(
        "to download and to activate fail apart",
        [batch(("download_fail", 0), ("update_fail", 1))],
        {
            "update_failures_total": {"reason=download_fail": 1, "reason=update_fail": 1},
            "channel_updates_total": {"outcome=failed": 2},
            "download_attempts_total": FAILED_AT_0,
        },
    ),
    Case(
        "one roll-back is one failure, and no download",
        [batch(("set_fail", 0), ("update_fail", 1))],
        {"update_failures_total": {"reason=update_fail": 1}, "download_attempts_total": {}},
    ),
    Case(
        "electron that says it is android rolls back, too; the real android only did not find the bundle",
        [
            (0, event("set_fail", 0, platform="android", plugin_version="0.0.1")),
            (1, event("set_fail", 1, platform="android", plugin_version="8.1.0", device_id="d2")),
            (2, event("set_fail", 2, platform="electron", plugin_version="0.0.1", device_id="d3")),
        ],
        {
            "update_failures_total": {
                "platform=android reason=update_fail": 1,
                "platform=android reason=set_fail": 1,
                "platform=electron reason=set_fail": 1,
            }
        },
    ),
    Case(
        "an unknown failure says more than finish_download_fail, and less than low_mem_fail",
        [
            batch(("new_fail", 0), ("finish_download_fail", 1)),
            batch(("new_fail", 0), ("low_mem_fail", 1), device_id="d2"),
        ],
        {"update_failures_total": {"reason=new_fail": 1, "reason=low_mem_fail": 1}},
    ),
    Case(
        "an old plugin's download_fail may mean nothing",
        [(0, event("download_fail", 0, plugin_version="6.14.24"))],
        {
            "update_failures_total": {},
            "download_attempts_total": {},
            "channel_updates_total": {},
            "device_day_outcomes": {},
            "version_affected_devices": {},
            "exporter_derived_skipped_total": {"reason=legacy_download_fail": 1},
        },
    ),
    Case(
        "a failure is that of the version, whatever file it names",
        [(0, [event("manifest_path_fail", 0, version_name="1.0.0:a.js"), event("download_fail", 1)])],
        {"update_failures_total": {"reason=manifest_path_fail": 1}, "download_attempts_total": FAILED_AT_0},
    ),
    Case(
        "each device and version fails for itself",
        [
            (
                0,
                [
                    event("unzip_fail", 0),
                    event("unzip_fail", 0, device_id="d2"),
                    event("unzip_fail", 0, version_name="2"),
                ],
            )
        ],
        {"update_failures_total": {"reason=unzip_fail": 2, "reason=unzip_fail version=2": 1}},
    ),
    Case(
        "without a device each failure counts at once and alone, and no progress",
        [batch(("download_50", 0), ("unzip_fail", 1), ("download_fail", 2), device_id="")],
        {
            "update_failures_total": {"reason=unzip_fail": 1, "reason=download_fail": 1},
            "download_attempts_total": {},
            "downloads_in_flight": {},
            "exporter_derived_skipped_total": {"reason=no_device": 1},
        },
        read_after=0,
    ),
    Case(
        "a failure waits ten seconds for a more specific one",
        singles(("unzip_fail", 0)),
        {"update_failures_total": {}, "download_attempts_total": {}, "downloads_in_flight": {}},
        read_after=9.999,
    ),
    Case(
        "after ten seconds it counts",
        singles(("unzip_fail", 0)),
        {"update_failures_total": {"reason=unzip_fail": 1}, "download_attempts_total": FAILED_AT_0},
        read_after=10,
    ),
    Case(
        "what comes later of a failure that is counted is ignored",
        singles(("download_fail", 0), ("download_fail", 25)),
        {
            "update_failures_total": {"reason=download_fail": 1},
            "download_attempts_total": FAILED_AT_0,
            "exporter_derived_skipped_total": {"reason=same_failure": 1},
        },
    ),
    Case(
        "the channel is that of the report that wins",
        [(0, [event("download_fail", 0, channel="a"), event("unzip_fail", 1, channel="b")])],
        {"channel_updates_total": {"channel=b outcome=failed": 1}},
    ),
]

DOWNLOADS: Final = [
    Case(
        "a download as iOS reports it",
        [
            batch(
                ("download_0", 0),
                ("download_70", 5),
                ("download_80", 9),
                ("download_90", 10),
                ("download_complete", 12),
            )
        ],
        {
            "download_attempts_total": COMPLETED,
            "download_duration_seconds_count": {"": 1},
            "download_duration_seconds_sum": {"": 12_000},
            "download_kind_duration_seconds_count": {},
            "downloads_in_flight": {},
        },
    ),
    Case(
        "a zip, from the last start to download_complete",
        [batch(("download_zip_start", 0), ("download_0", 1), ("download_zip_complete", 5), ("download_complete", 6))],
        {
            "download_attempts_total": COMPLETED,
            "download_duration_seconds_sum": {"": 5000},
            "download_kind_duration_seconds_sum": {"kind=zip": 5000},
        },
    ),
    Case(
        "a zip that a slow phone unpacks for half a minute is one attempt, and took until it had come",
        [
            batch(("download_zip_start", 0), ("download_0", 1), ("download_zip_complete", 5)),
            batch(("download_90", 30), ("download_complete", 35)),
        ],
        {
            "download_attempts_total": COMPLETED,
            "download_duration_seconds_sum": {"": 4000},
            "download_kind_duration_seconds_sum": {"kind=zip": 4000},
        },
    ),
    Case(
        "a manifest, which may end without download_complete",
        [batch(("download_manifest_start", 0), ("download_50", 3), ("download_manifest_complete", 7))],
        {
            "download_attempts_total": COMPLETED,
            "download_kind_duration_seconds_sum": {"kind=manifest": 7000},
        },
    ),
    Case(
        "a manifest that gives way to a zip is a zip",
        [batch(("download_manifest_start", 0), ("download_zip_start", 2), ("download_complete", 8))],
        {"download_kind_duration_seconds_sum": {"kind=zip": 6000}},
    ),
    Case(
        "a resumed download is one attempt, and its duration is that of the last start",
        [batch(("download_0", 0), ("download_30", 5), ("download_0", 60), ("download_complete", 100))],
        {"download_attempts_total": COMPLETED, "download_duration_seconds_sum": {"": 40_000}},
    ),
    Case(
        "a failed attempt reached its highest step",
        [batch(("download_0", 0), ("download_50", 2), ("download_40", 3), ("unzip_fail", 4))],
        {"download_attempts_total": {"outcome=failed reached=50": 1}, "download_duration_seconds_count": {}},
    ),
    Case(
        "a start within two seconds of a failure is the same attempt",
        [batch(("download_0", 0), ("download_fail", 10), ("download_0", 12), ("download_complete", 15))],
        {
            "download_attempts_total": COMPLETED,
            "download_duration_seconds_sum": {"": 3000},
            "update_failures_total": {"reason=download_fail": 1},
        },
    ),
    Case(
        "a start after that is another attempt",
        [batch(("download_0", 0), ("download_fail", 10), ("download_0", 12.001), ("download_complete", 15))],
        {
            "download_attempts_total": {**COMPLETED, **FAILED_AT_0},
            "download_duration_seconds_sum": {"": 2999},
        },
    ),
    Case(
        "a step within ten seconds of the end is a straggler",
        [batch(("download_complete", 10), ("download_90", 20))],
        {"download_attempts_total": COMPLETED, "downloads_in_flight": {}},
    ),
    Case(
        "a step after that is under way",
        [batch(("download_complete", 10), ("download_90", 20.001))],
        {"download_attempts_total": COMPLETED, "downloads_in_flight": {"": 1}},
    ),
    Case(
        "a download that is complete, and then fails its checksum, failed",
        [batch(("download_0", 0), ("download_90", 8), ("download_complete", 9), ("checksum_fail", 17))],
        {"download_attempts_total": {"outcome=failed reached=90": 1}, "download_duration_seconds_count": {}},
    ),
    Case(
        "a failure a while after the end is an attempt of its own",
        [batch(("download_complete", 9), ("unzip_fail", 19.001))],
        {"download_attempts_total": {**COMPLETED, **FAILED_AT_0}},
    ),
    Case(
        "an attempt without an end is under way for two hours",
        singles(("download_0", 0), ("download_40", 60)),
        {"download_attempts_total": {}, "downloads_in_flight": {"": 1}},
        read_after=2 * HOUR - 0.001,
    ),
    Case(
        "after two hours it has stalled",
        singles(("download_0", 0), ("download_40", 60)),
        {"download_attempts_total": {"outcome=stalled reached=40": 1}, "downloads_in_flight": {}},
        read_after=2 * HOUR,
    ),
    Case(
        "what comes after that begins another attempt",
        singles(("download_0", 0), ("download_complete", 2 * HOUR)),
        {
            "download_attempts_total": {**COMPLETED, "outcome=stalled reached=0": 1},
            "download_duration_seconds_count": {},
        },
    ),
    Case(
        "the end may say how long the download took",
        [(30, [event("download_0", 0), lasted("download_complete", 20, "1234")])],
        {"download_duration_seconds_sum": {"": 1234}},
    ),
    Case(
        "a duration that is none is measured",
        [
            (30, [event("download_0", 0, device_id=device), lasted("download_complete", 20, text, device_id=device)])
            for device, text in (("d1", "-1"), ("d2", "nan"), ("d3", "inf"), ("d4", "soon"))
        ],
        {"download_duration_seconds_sum": {"": 80_000}, "download_duration_seconds_count": {"": 4}},
    ),
    Case(
        "two hours are a duration, a millisecond more is none",
        [
            (30, lasted("download_complete", 20, "7200000")),
            (30, lasted("download_complete", 20, "7200001", device_id="d2")),
        ],
        {
            "download_attempts_total": {"outcome=completed reached=complete": 2},
            "download_duration_seconds_sum": {"": 7_200_000},
            "exporter_derived_skipped_total": {"reason=duration_out_of_range": 1},
        },
    ),
    Case(
        "download_10 is the start where no earlier one is known",
        [
            batch(("download_10", 4), ("download_complete", 9)),
            batch(("download_0", 1), ("download_10", 4), ("download_complete", 9), device_id="d2"),
        ],
        {"download_duration_seconds_sum": {"": 5000 + 8000}},
    ),
    Case(
        "an end alone is an attempt without a duration",
        [batch(("download_complete", 9))],
        {"download_attempts_total": COMPLETED, "download_duration_seconds_count": {}},
    ),
    Case(
        "development builds are counted, and not measured",
        [batch(("download_zip_start", 0), ("download_complete", 9), is_prod=False)],
        {
            "download_attempts_total": prefixed("environment=dev ", COMPLETED),
            "download_duration_seconds_count": {},
            "download_kind_duration_seconds_count": {},
        },
    ),
    Case(
        "steps stand in the order of their times, and of a download where those are equal",
        [batch(("download_complete", 9), ("download_50", 4), ("download_10", 2), ("download_zip_start", 2))],
        {"download_attempts_total": COMPLETED, "download_duration_seconds_sum": {"": 7000}, "downloads_in_flight": {}},
    ),
    Case(
        "where one of two has no time of its own, they are as far apart as they arrived",
        [(0, event("download_0")), (20, event("download_complete", 80))],
        {"download_attempts_total": COMPLETED, "download_duration_seconds_sum": {"": 20_000}},
    ),
    Case(
        "a clock that is wrong is not believed",
        [(0, event("download_0", 1000 * DAY)), (30, event("download_complete", 1000 * DAY + 5))],
        {"download_attempts_total": COMPLETED, "download_duration_seconds_sum": {"": 30_000}},
    ),
    Case(
        "times of the device's own count, not those of arrival",
        [(100, event("download_0", 0)), (200, event("download_complete", 7))],
        {"download_duration_seconds_sum": {"": 7000}},
    ),
    Case(
        "a roll-back ends no download",
        singles(("download_0", 0), ("download_50", 1), ("update_fail", 2)),
        {
            "update_failures_total": {"reason=update_fail": 1},
            "download_attempts_total": {},
            "downloads_in_flight": {"": 1},
        },
    ),
    Case(
        "a roll-back keeps no download from stalling",
        singles(("download_0", 0), ("download_50", 1), ("update_fail", 60)),
        {"download_attempts_total": {"outcome=stalled reached=50": 1}, "downloads_in_flight": {}},
        read_after=2 * HOUR - 59,
    ),
    Case(
        "an attempt that goes on after another one is counted when it ends",
        [
            batch(("download_0", 0), ("download_complete", 10), ("download_0", 50), at=60),
            batch(("download_complete", 130), at=140),
        ],
        {
            "download_attempts_total": {"outcome=completed reached=complete": 2},
            "download_duration_seconds_sum": {"": 90_000},
            "downloads_in_flight": {},
        },
    ),
    Case(
        "downloads under way are counted by device",
        [
            (
                0,
                [
                    event("download_0", 0),
                    event("download_0", 0, device_id="d2"),
                    event("download_0", 0, device_id="d3", platform="android"),
                ],
            )
        ],
        {"downloads_in_flight": {"": 2, "platform=android": 1}},
    ),
]

LATE: Final = [
    Case(
        "what is told an hour later is in time",
        [(HOUR, event("set", 0))],
        {"late_events_total": {}, "installs_total": ONE_INSTALL},
    ),
    Case(
        "a millisecond more, and it is late: it goes nowhere but to the devices",
        [batch(("set", -0.001), ("unzip_fail", -0.001), ("download_50", -1), ("app_crash", -1), at=HOUR)],
        {
            "late_events_total": {
                "kind=lifecycle": 1,
                "kind=update_failure": 1,
                "kind=progress": 1,
                "kind=app_health": 1,
            },
            "installs_total": {},
            "update_failures_total": {},
            "channel_updates_total": {},
            "download_attempts_total": {},
            "downloads_in_flight": {},
            "version_first_seen_timestamp_seconds": {},
            "devices": {"window=1d": 1, "window=7d": 1, "window=30d": 1},
            "version_affected_devices": {"window=1d": 1, "window=7d": 1, "window=30d": 1},
            "device_day_outcomes": {
                "outcome=success window=1d": 1,
                "outcome=success window=7d": 1,
                "outcome=success window=30d": 1,
            },
        },
    ),
    Case(
        "late events are of a kind, or other",
        [batch(("noNew", 0), ("new_action", 0), at=2 * HOUR, version_name=None)],
        {"late_events_total": {"kind=refusal version=unknown": 1, "kind=other version=unknown": 1}},
    ),
    Case(
        "a clock years behind is late and not believed",
        [batch(("set", -700 * DAY))],
        {"late_events_total": {"kind=lifecycle": 1}, "devices": {"window=1d": 1, "window=7d": 1, "window=30d": 1}},
    ),
]

LAUNCHES: Final = [
    Case(
        "launches and page loads take as long as devices say",
        [
            (
                0,
                [
                    lasted("app_launch_ready", 0, "1200"),
                    lasted("app_launch_ready", 1, "0"),
                    lasted("webview_page_loaded", 2, "400", version_name="2.0.0"),
                ],
            )
        ],
        {
            "launch_duration_seconds_count": {"": 2},
            "launch_duration_seconds_sum": {"": 1200},
            "webview_load_duration_seconds_sum": {"version=2.0.0": 400},
        },
    ),
    Case(
        "nothing takes longer than two hours",
        [(0, [lasted("app_launch_ready", 0, "7200000"), lasted("app_launch_ready", 1, "7200001")])],
        {
            "launch_duration_seconds_sum": {"": 7_200_000},
            "exporter_derived_skipped_total": {"reason=duration_out_of_range": 1},
        },
    ),
    Case(
        "a launch without a duration, or of a development build, is not measured",
        [
            (
                0,
                [
                    event("app_launch_ready", 0),
                    lasted("app_launch_ready", 1, "-1"),
                    lasted("app_launch_ready", 2, "100", is_prod=False),
                    lasted("app_launch_timeout", 3, "100"),
                    lasted("webview_dom_content_loaded", 4, "100"),
                ],
            )
        ],
        {"launch_duration_seconds_count": {}, "webview_load_duration_seconds_count": {}},
    ),
]

YESTERDAY: Final = -10 * HOUR
WEEK_AND_MONTH: Final = {"window=7d": 1.0, "window=30d": 1.0}
ALL_WINDOWS: Final = {"window=1d": 1.0, **WEEK_AND_MONTH}

DEVICES: Final = [
    Case(
        "a device is one, however it writes its id; one without an id is none",
        [(0, [of("ping", "d1"), of("ping", "D1"), of("get", "d1"), of("ping", "")])],
        {"devices": ALL_WINDOWS, "version_devices": ALL_WINDOWS},
    ),
    Case(
        "only production counts",
        [(0, [of("set", "d1", is_prod=False), of("unzip_fail", "d2", is_emulator=True)])],
        {"devices": {}, "version_devices": {}, "version_affected_devices": {}, "device_day_outcomes": {}},
    ),
    Case(
        "an event belongs to the day on which it happened",
        [(0, [event("ping", YESTERDAY)])],
        {"devices": WEEK_AND_MONTH, "version_devices": WEEK_AND_MONTH, "version_adoption_ratio": {}},
    ),
    Case(
        "at midnight UTC a day begins",
        [(0, [event("ping", 0)])],
        {"devices": WEEK_AND_MONTH},
        read_after=16 * HOUR,
    ),
    Case(
        "until then it is today",
        [(0, [event("ping", 0)])],
        {"devices": ALL_WINDOWS},
        read_after=16 * HOUR - 0.001,
    ),
    Case(
        "a week is today and six days before",
        [(0, [event("ping", 0)])],
        {"devices": WEEK_AND_MONTH},
        read_after=16 * HOUR + 6 * DAY - 0.001,
    ),
    Case(
        "no longer",
        [(0, [event("ping", 0)])],
        {"devices": {"window=30d": 1}},
        read_after=16 * HOUR + 6 * DAY,
    ),
    Case(
        "a device with a failure or an issue is affected, others are not",
        [
            (
                0,
                [
                    *(of("ping", f"d{number}") for number in range(4)),
                    *(of(action, "d1") for action in ("app_crash", "app_anr", "app_crash")),
                    of("unzip_fail", "d2"),
                    *(of(action, "d3") for action in ("app_launch_ready", "os_version_changed", "noNew")),
                ],
            )
        ],
        {
            "version_devices": {"window=1d": 4, "window=7d": 4, "window=30d": 4},
            "version_affected_devices": {"window=1d": 2, "window=7d": 2, "window=30d": 2},
            "version_issue_free_ratio": {"window=1d": 0.5, "window=7d": 0.5, "window=30d": 0.5},
        },
    ),
    Case(
        "a device's day is a success if there was a set, else a failure if there was one",
        [
            (
                0,
                [
                    *(event(action, 0, device_id="d1") for action in ("unzip_fail", "set", "update_fail")),
                    event("unzip_fail", 0, device_id="d2"),
                    event("app_crash", 0, device_id="d3"),
                    event("unzip_fail", YESTERDAY, device_id="d1"),
                ],
            )
        ],
        {
            "device_day_outcomes": {
                **{f"outcome=success window={window}": 1 for window in ("1d", "7d", "30d")},
                "outcome=failure window=1d": 1,
                "outcome=failure window=7d": 2,
                "outcome=failure window=30d": 2,
            }
        },
    ),
    Case(
        "adoption is a version's share of today's devices, over all platforms",
        [
            (
                0,
                [
                    of("ping", "d1"),
                    of("ping", "d2", platform="android"),
                    of("ping", "d3", "2.0.0"),
                    of("ping", "d4", "builtin"),
                    of("ping", "d1", "2.0.0"),
                ],
            )
        ],
        {"version_adoption_ratio": {"": 0.5, "version=2.0.0": 0.5, "version=builtin": 0.25}},
    ),
]


def ranks(order: str, *versions: str) -> dict[str, float]:
    """Give the ranks of versions, newest first."""
    return {
        f"order={order} rank={rank}" + ("" if version == "1.0.0" else f" version={version}"): 1
        for rank, version in enumerate(versions, 1)
    }


RELEASES: Final = [
    Case(
        "a version is first seen when its first production event arrives",
        [
            (0, event("ping", 0, is_prod=False)),
            (1, event("get", 0)),
            (2, event("ping", 1)),
            (3, [event("ping", 2, version_name=version) for version in ("builtin", "", "unknown")]),
        ],
        {"version_first_seen_timestamp_seconds": {"": BEGAN_MS + 1000}, "version_rank_info": {}},
    ),
    Case(
        "versions in real use are ranked by semantic version and by age; one developer's is not",
        [
            (second, [of("set", device, version) for device in devices])
            for second, (version, devices) in enumerate(
                {
                    "1.9.0": "ab",
                    "1.10.0": "ab",
                    "1.0.0": "ab",
                    "1.10.0-rc.2": "ab",
                    "999.0.0": "c",
                    "builtin": "ab",
                }.items()
            )
        ],
        {
            "version_rank_info": {
                **ranks("semver", "1.10.0", "1.10.0-rc.2", "1.9.0", "1.0.0"),
                **ranks("first_seen", "1.10.0-rc.2", "1.0.0", "1.10.0", "1.9.0"),
            }
        },
    ),
    Case(
        "twenty devices are real use, whatever the share of installs; without installs nineteen are not",
        [
            (0, [of("set", f"d{number}", "1.0.0") for number in range(20)]),
            (1, [of("ping", f"d{number}", "2.0.0") for number in range(20)]),
            (2, [of("ping", f"d{number}", "3.0.0") for number in range(19)]),
            (3, [of("get", f"d{number}", "4.0.0") for number in range(30)]),
        ],
        {"version_rank_info": {**ranks("semver", "2.0.0", "1.0.0"), **ranks("first_seen", "2.0.0", "1.0.0")}},
    ),
    Case(
        "five versions are ranked",
        [(n, [of("set", device, f"1.{n}.0") for device in "ab"]) for n in range(6)],
        {
            "version_rank_info": {
                **ranks("semver", "1.5.0", "1.4.0", "1.3.0", "1.2.0", "1.1.0"),
                **ranks("first_seen", "1.5.0", "1.4.0", "1.3.0", "1.2.0", "1.1.0"),
            }
        },
    ),
]

CASES: Final = [*INSTALLS, *FAILURES, *DOWNLOADS, *LATE, *LAUNCHES, *DEVICES, *RELEASES]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def shown(figures: reference.Figures, names: Iterable[str]) -> Expected:
    """Give the named figures as a case expects them."""
    return {
        name: {
            " ".join(sorted(f"{label}={text}" for label, text in labels if text != _DEFAULTS.get(label))): value
            for labels, value in figures.get(f"capgo_{name}", {}).items()
        }
        for name in names
    }


@each_case
def test_the_model_knows_each_rule(case: Case) -> None:
    """The model that whole fleets are judged by gives what a person worked out."""
    arrivals = [
        (one, BEGAN_MS + round(at * 1000))
        for at, body in case.posts
        for one in (body if isinstance(body, list) else [body])
    ]
    now_ms = BEGAN_MS + round((case.posts[-1][0] + case.read_after) * 1000)
    assert case.expected == shown(reference.figures(arrivals, now_ms), case.expected)


@each_case
async def test_the_exporter_knows_each_rule(case: Case) -> None:
    """The exporter shows what a person worked out."""
    clock = ManualClock(BEGAN_MS * 1_000_000)
    async with running(clock=clock.clock) as exporter:
        for at, body in case.posts:
            await advance(clock, exporter, round(at * 1000))
            assert 200 == (await exporter.post(body)).status
        await advance(clock, exporter, round((case.posts[-1][0] + case.read_after) * 1000))
        found = reference.read_figures(await exporter.metrics())
    assert case.expected == shown(found, case.expected)


@pytest.mark.parametrize("seconds", [20, 1000, 9000])
async def test_what_is_counted_is_not_counted_again_after_a_restart(tmp_path: Path, seconds: int) -> None:
    """Whether a failure is settled, or settled so long ago that its stragglers are forgotten, it was one failure."""
    clock = ManualClock(BEGAN_MS * 1_000_000)
    expected = {"update_failures_total": {"reason=unzip_fail": 1.0}, "download_attempts_total": FAILED_AT_0}
    async with running({"data_dir": tmp_path}, clock.clock) as exporter:
        await exporter.post(event("unzip_fail"))
    for passed in (1, 2):
        async with running({"data_dir": tmp_path}, clock.clock) as exporter:
            await advance(clock, exporter, passed * seconds * 1000)
            assert expected == shown(reference.read_figures(await exporter.metrics()), expected)


async def advance(clock: ManualClock, exporter: Running, at_ms: int) -> None:
    """Let time pass until a moment, in milliseconds since the beginning, and count what is due by then."""
    passed_ns = BEGAN_MS * 1_000_000 + at_ms * 1_000_000 - clock.wall_ns
    assert passed_ns >= 0, "the past is no place to go to"
    clock.wall_ns += passed_ns
    clock.seconds += passed_ns / 1_000_000_000
    derivation = exporter.exporter.derivation
    assert derivation is not None
    await derivation.settle()


# --- whole fleets -----------------------------------------------------------------------------------------------------

WAYS: Final = ("one by one", "batches", "shuffled", "sent again", "restarts")
COMPARED: Final = (
    *("capgo_stats_events_total", "capgo_late_events_total", "capgo_installs_total", "capgo_uninstalls_total"),
    *("capgo_update_failures_total", "capgo_channel_updates_total", "capgo_download_attempts_total"),
    *("capgo_downloads_in_flight", "capgo_devices", "capgo_device_day_outcomes", "capgo_version_devices"),
    *("capgo_version_affected_devices", "capgo_version_issue_free_ratio", "capgo_version_adoption_ratio"),
    *("capgo_version_first_seen_timestamp_seconds", "capgo_version_rank_info"),
    *(
        f"capgo_{name}_duration_seconds_{part}"
        for name in ("download", "download_kind", "launch", "webview_load")
        for part in ("bucket", "count", "sum")
    ),
)
# The first event of a version may arrive some seconds earlier or later.
_BY_ARRIVAL: Final = ("capgo_version_first_seen_timestamp_seconds", "capgo_version_rank_info")

SETTINGS = settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow])
FLEETS: Final = fleet.fleets(BEGAN_MS)
RANDOMS: Final = st.randoms(use_true_random=False)


def arrange(way: str, sessions: Sequence[fleet.Session], random: randomness.Random) -> list[fleet.Post]:
    """Give the POSTs in which a fleet's events arrive."""
    if way == "one by one":
        return list(fleet.posts_one_by_one(sessions))
    arranged = list(fleet.posts(sessions, random, shuffled=way in {"shuffled", "sent again", "restarts"}))
    return list(fleet.sent_again(arranged, random)) if way in {"sent again", "restarts"} else arranged


def assert_same(expected: reference.Figures, found: reference.Figures, without: Sequence[str] = ()) -> None:
    """See that all figures are the same, or tell what is missing and what is too much."""
    wanted, shown_lines = (
        {
            f"{name}{dict(sorted(labels))} {value}"
            for name, values in figures.items()
            if name in COMPARED and name not in without
            for labels, value in values.items()
        }
        for figures in (expected, found)
    )
    assert ([], []) == (sorted(wanted - shown_lines), sorted(shown_lines - wanted)), "missing, and too much"


def arrivals_of(posts: Sequence[fleet.Post]) -> list[tuple[fleet.Event, int]]:
    """Give each event with our clock when it arrived."""
    return [(one, BEGAN_MS + post.at_ms) for post in posts for one in post.events]


@pytest.mark.parametrize("way", WAYS)
@settings(SETTINGS, max_examples=40)
@given(FLEETS, RANDOMS)
def test_the_model_does_not_mind_the_way(
    way: str, sessions: Sequence[fleet.Session], random: randomness.Random
) -> None:
    """What a fleet did is the same however its events arrive, so the model must say the same."""
    posts = arrange(way, sessions, random)
    now_ms = BEGAN_MS + max(sessions[-1].sent[-1].at_ms, posts[-1].at_ms) + random.choice([10_000, 7_300_000])
    expected = reference.figures(arrivals_of(list(fleet.posts_one_by_one(sessions))), now_ms)
    found = reference.figures(arrivals_of(posts), now_ms)
    assert_same(expected, found, _BY_ARRIVAL)


@pytest.mark.parametrize("way", WAYS)
@SETTINGS
@given(FLEETS, RANDOMS)
def test_the_exporter_is_right_whichever_way(
    way: str, sessions: Sequence[fleet.Session], random: randomness.Random
) -> None:
    """For any fleet, the exporter shows what the model works out from the whole list, at any time."""
    asyncio.run(Play(arrange(way, sessions, random), random, restarts=way == "restarts").run())


class Play:
    """A fleet's events, posted to an exporter that is compared with the model now and then."""

    def __init__(self, posts: Sequence[fleet.Post], random: randomness.Random, *, restarts: bool) -> None:
        """Take what is to be posted."""
        self._posts = posts
        self._random = random
        self._restarts = restarts
        self._clock = ManualClock(BEGAN_MS * 1_000_000)
        self._arrivals: list[tuple[fleet.Event, int]] = []

    async def run(self) -> None:
        """Post everything, and compare."""
        with tempfile.TemporaryDirectory(prefix="exporter-", ignore_cleanup_errors=True) as directory:
            directories = (Path(directory) / str(number) for number in itertools.count())
            data_dir = next(directories)
            done = 0
            while done < len(self._posts):
                stop = self._random.randint(done + 1, len(self._posts)) if self._restarts else len(self._posts)
                async with AsyncExitStack() as stack:
                    exporter = await stack.enter_async_context(running({"data_dir": data_dir}, self._clock.clock))
                    await self._post(exporter, self._posts[done:stop], is_last=stop == len(self._posts))
                    if self._random.random() < 0.5:
                        # As a process that is killed leaves it: everything committed, nothing closed.
                        data_dir = _copied(data_dir, next(directories))
                done = stop

    async def _post(self, exporter: Running, posts: Sequence[fleet.Post], *, is_last: bool) -> None:
        for post, following in itertools.zip_longest(posts, posts[1:]):
            if BEGAN_MS * 1_000_000 + post.at_ms * 1_000_000 > self._clock.wall_ns:
                await advance(self._clock, exporter, post.at_ms)
            body = post.events if len(post.events) > 1 or "timestamp" in post.events[0] else post.events[0]
            assert 200 == (await exporter.post(body)).status
            self._arrivals += arrivals_of([post])
            if following is not None and following.session > post.session and self._random.random() < 0.3:
                await self._compare(exporter, post.at_ms + self._random.choice([0, 20_000]))
        if is_last:
            await self._compare(exporter, posts[-1].at_ms)
            for seconds in (20, 7300, self._random.choice([20_000, 100_000, 700_000])):
                await self._compare(exporter, posts[-1].at_ms + seconds * 1000)

    async def _compare(self, exporter: Running, at_ms: int) -> None:
        await advance(self._clock, exporter, at_ms)
        page = await exporter.metrics()
        expected = reference.figures(self._arrivals, BEGAN_MS + at_ms, reference.read_bounds(page))
        assert_same(expected, reference.read_figures(page))


def _copied(data_dir: Path, to: Path) -> Path:
    """Copy the files of an exporter that runs, and leaves them alone at the moment."""
    shutil.copytree(data_dir, to, ignore=shutil.ignore_patterns("*.sock"))
    return to
