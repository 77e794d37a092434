"""What the benchmarks send: bodies of one device each, the same for every server that is measured.

A body is a template in which `PLACEHOLDER` stands for the end of the device id, so that each request is of a device of
its own and every event distinct. `docs/performance.md` says why the loads are as they are.
"""

import json
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any, Final

PLACEHOLDER: Final = "@" * 12
"""The last part of a device id, twelve digits: the number of the request."""

SOME_DEVICE: Final = "#" * 12
"""Stands there instead where devices come again: the number of one of so many."""

APPS: Final = ("com.example.app", "com.example.shop", "com.example.news")
PLATFORMS: Final = ("android", "ios")
VERSIONS: Final = 20
KINDS: Final = len(APPS) * len(PLATFORMS) * VERSIONS
"""Kinds of devices: app, platform and the version that they are on."""

_HOUR_MS: Final = 3_600_000
_YOUNGEST_MS: Final = _HOUR_MS // 12
_OLDEST_MS: Final = _HOUR_MS * 5 // 6
_OS: Final = ("13", "14", "15", "17.5")
_USE: Final = (
    "app_launch_start",
    "webview_dom_content_loaded",
    "webview_page_loaded",
    "app_launch_ready",
    "app_moved_to_foreground",
    "get",
    "noNew",
    "app_moved_to_background",
)
_UPDATE: Final = (
    "download_zip_start",
    *(f"download_{step}" for step in range(10, 100, 10)),
    "download_zip_complete",
    "download_complete",
    "set_next",
    "set",
    "delete",
)
USUAL_ACTIONS: Final = (*_USE, *_UPDATE)
"""Those of the load `queue`."""

_TIMED: Final = {"webview_dom_content_loaded": 310, "webview_page_loaded": 400, "app_launch_ready": 900}
_ALL_STEPS: Final = (
    *("get", "set", "download_complete", "download_fail"),
    *(f"download_{step}" for step in range(10, 100, 10)),
)
_MIX: Final = (
    *("get", "set", "set_fail", "update_fail", "delete", "reset", "ping", "download_complete", "download_fail"),
    *("download_manifest_start", "download_manifest_complete", "download_zip_start", "download_zip_complete"),
    *("app_moved_to_background", "app_moved_to_foreground", "uninstall", "noNew", "backend_refusal", "unzip_fail"),
    *("checksum_fail", *(f"download_{step}" for step in range(10, 100, 10)), "needPlanUpgrade"),
)
USES_AN_UPDATE: Final = 23
"""Uses of the app for each update: with it, 199 events."""

Event = dict[str, Any]
What = tuple[str, int]
"""An action, and how many versions after the device's first one."""


def _queue() -> Iterator[What]:
    """A device's life: uses of the app, and now and then an update to the next version."""
    for version in count():
        for use in range(USES_AN_UPDATE):
            yield from ((action, version) for action in _USE)
            if use == USES_AN_UPDATE // 2:
                yield from ((action, version + 1) for action in _UPDATE)


def _updates() -> Iterator[What]:
    """Nothing but updates, one after the other, each failing too."""
    for version in count():
        yield from ((action, version) for action in _ALL_STEPS)


def _mixed() -> Iterator[What]:
    """Any action of any version: what the peers were measured with first."""
    for number in count():
        yield _MIX[number * 7 % len(_MIX)], number * 13 % VERSIONS


LOADS: Final[dict[str, Callable[[], Iterator[What]]]] = {"queue": _queue, "mixed": _mixed, "updates": _updates}


def bodies(load: str, batch: int, *, kinds: int = KINDS, now_ms: int | None = None) -> list[str]:
    """Make bodies of so many events, one for each kind of device.

    The events of a body lie within the last hour, so that none comes late: late ones are less work for the exporter.

    Args:
        load: a name of `LOADS`.
        batch: events in a body; one is sent as an object, more as an array.
        kinds: how many kinds of devices; from `KINDS` on they repeat, with other versions.
        now_ms: the present, in milliseconds since 1970.
    """
    now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    found = []
    for kind in range(kinds):
        # Each kind begins elsewhere in its life, so that bodies of one event too hold every action in its share.
        happened = islice(LOADS[load](), kind * 7 % 200, None)
        step_ms = max((_OLDEST_MS - _YOUNGEST_MS) // batch, 1)
        first_ms = now_ms - _YOUNGEST_MS - step_ms * batch
        events = [_event(kind, *next(happened), first_ms + step_ms * index) for index in range(batch)]
        text = json.dumps(events[0] if batch == 1 else events, separators=(",", ":"))
        found.append(text)
    return found


def _event(kind: int, action: str, version: int, timestamp: int) -> Event:
    own, platform, app = kind // (len(APPS) * len(PLATFORMS)), kind // len(APPS) % len(PLATFORMS), kind % len(APPS)
    event: Event = {
        "platform": PLATFORMS[platform],
        "device_id": f"{kind:08x}-0000-4000-8000-{PLACEHOLDER}",
        "app_id": APPS[app],
        "custom_id": "",
        "version_build": "1.2.0",
        "version_code": "120",
        "version_os": _OS[kind % len(_OS)],
        "version_name": version_name(own + version),
        "old_version_name": version_name(own + version - 1) if action in {"set", "set_next"} else "",
        "plugin_version": "8.51.14",
        "is_emulator": False,
        "is_prod": True,
        "install_source": "google_play",
        "defaultChannel": "production",
        "action": action,
        "timestamp": timestamp,
    }
    if action in _TIMED:
        event["metadata"] = {"duration_ms": str(_TIMED[action] + timestamp % 100)}
    elif action == "app_launch_start":
        event["metadata"] = {"launch_started_at": str(timestamp)}
    return event


def returning(batch: int) -> list[str]:
    """Make bodies of the usual load whose devices come again; a number in their metadata keeps them distinct."""
    found = []
    for text in bodies("queue", batch):
        events = json.loads(text)
        for event in events:
            event["device_id"] = event["device_id"].replace(PLACEHOLDER, SOME_DEVICE)
            event["metadata"] = {**event.get("metadata", {}), "n": PLACEHOLDER}
        found.append(json.dumps(events, separators=(",", ":")))
    return found


def version_name(number: int) -> str:
    """Give the name of a version."""
    number %= VERSIONS
    return f"1.{number // 10}.{number % 10}"
