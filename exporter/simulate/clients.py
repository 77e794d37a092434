"""Clients: the generations of the plugins, what their bodies look like, and how they send them.

Source: the contract's table of transports, and the clients' sources.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

Body = dict[str, Any]


class Shape(Enum):
    """Which fields the events of a generation have."""

    EARLY = "4.x"
    CLASSIC = "5.x to 8.41"
    TIMED = "8.42 and later"
    ELECTRON = "electron"


@dataclass(frozen=True, slots=True)
class Generation:
    """What plugins of some versions have in common.

    Attributes:
        name: as the contract's table has it.
        versions: the plugin's versions, as events say them.
        shape: which fields their events have.
        batches: whether events are gathered for a second and sent as an array, with times; else each goes alone.
        resends: whether a batch that is not taken is sent again each second.
        persists: whether that survives the end of the app; then at most `MAX_QUEUE` events wait.
        reports_health: whether crashes, launches and the WebView are reported.
    """

    name: str
    versions: tuple[str, ...]
    shape: Shape
    batches: bool = False
    resends: bool = False
    persists: bool = False
    reports_health: bool = False


MAX_QUEUE: Final = 200
"""So many events wait on a device, and go into one batch, from 8.51.6 on; the oldest are dropped."""

_SILENT_FROM: Final = (6, 14, 28)
_WITHOUT_VOLLEY: Final = (7,)

MOBILE: Final = (
    (Generation("4.x", ("4.41.0",), Shape.EARLY), 0.02),
    (Generation("5.x to 8.41, with false failures", ("6.8.2", "7.9.0"), Shape.CLASSIC), 0.04),
    (Generation("5.x to 8.41", ("7.20.1", "8.30.2"), Shape.CLASSIC), 0.1),
    (Generation("8.42 to 8.45", ("8.44.0",), Shape.TIMED, batches=True), 0.04),
    (Generation("8.46 to 8.51.4", ("8.49.2", "8.51.4"), Shape.TIMED, batches=True, reports_health=True), 0.12),
    (Generation("8.51.5", ("8.51.5",), Shape.TIMED, batches=True, resends=True, reports_health=True), 0.08),
    (Generation("7.51.13", ("7.51.13",), Shape.TIMED, batches=True, resends=True, persists=True), 0.05),
    (
        Generation(
            *("8.51.6 and later", ("8.51.6", "8.51.14"), Shape.TIMED),
            batches=True,
            resends=True,
            persists=True,
            reports_health=True,
        ),
        0.55,
    ),
)
"""Generations on phones and tablets, with their shares."""

ELECTRON: Final = (
    (Generation("electron 0.0.2 to 0.0.4", ("0.0.1",), Shape.ELECTRON), 0.25),
    (Generation("electron 0.0.5 and 0.0.6", ("0.0.1",), Shape.ELECTRON), 0.75),
)
ELECTRON_AS_ANDROID: Final = ELECTRON[0][0]
"""It says platform `android`."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Who a device is.

    Attributes:
        platform: what it really is: `android`, `ios` or `electron`.
        generation: of its plugin.
        plugin_version: as its events say it.
        app_id: its app.
        device_id: its id, as its events say it.
        custom_id: empty if it has none.
        channel: empty if it has none.
        version_os: of its system.
        is_emulator: whether it is none.
        is_prod: whether its app is a production build.
        skew_ms: what its clock shows more than ours.
        by_manifest: whether it downloads file by file.
        worker_app_id: the app as Android's download worker knows it.
    """

    platform: str
    generation: Generation
    plugin_version: str
    app_id: str
    device_id: str
    custom_id: str
    channel: str
    version_os: str
    is_emulator: bool
    is_prod: bool
    skew_ms: int
    by_manifest: bool
    worker_app_id: str

    @property
    def said_platform(self) -> str:
        """The platform as its events say it."""
        return "android" if self.generation is ELECTRON_AS_ANDROID else self.platform

    @property
    def environment(self) -> str:
        """The label `environment` of its events; the earliest plugins do not say, and pass for production."""
        if self.generation.shape is Shape.EARLY:
            return "prod"
        return "emulator" if self.is_emulator else "prod" if self.is_prod else "dev"

    @property
    def said_channel(self) -> str:
        """The label `channel` of its events."""
        return "unknown" if self.generation.shape is Shape.EARLY or not self.channel else self.channel

    @property
    def falls_silent(self) -> bool:
        """Whether it sends nothing after a reply 429 until its app starts again: from 6.14.28 to 8.51.4."""
        return not self.generation.resends and self._version >= _SILENT_FROM

    @property
    def obeys_limits(self) -> bool:
        """Whether it waits after a reply 429 as long as it is asked to, with updates too: from 8.51.5 on."""
        return self.generation.resends

    @property
    def repeats_on_timeout(self) -> bool:
        """Whether its HTTP library, Volley, posts once more after a time-out: Android up to 6.x."""
        return self.platform == "android" and self._version < _WITHOUT_VOLLEY

    @property
    def _version(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.plugin_version.split("."))

    @property
    def headers(self) -> dict[str, str]:
        """The headers of its POSTs."""
        charset = "; charset=utf-8" if self.platform == "android" else ""
        headers = {"Content-Type": f"application/json{charset}"}
        if self.generation.shape is Shape.TIMED:
            agent = f"CapacitorUpdater/{self.plugin_version} ({self.app_id}) {self.platform}/{self.version_os}"
            headers["User-Agent"] = agent
        return headers


def plugin_body(
    profile: Profile, action: str, version: str, old_version: str, extra: dict[str, str] | None = None
) -> Body:
    """Make an event as the plugin itself sends it, without time and metadata.

    Args:
        profile: of the device.
        action: what happened.
        version: the bundle it is about.
        old_version: the bundle before.
        extra: what electron says besides.
    """
    shape = profile.generation.shape
    body: Body = {
        "platform": profile.said_platform,
        "device_id": profile.device_id,
        "app_id": profile.app_id,
        "custom_id": profile.custom_id,
        "version_build": "2.0.1",
        "version_code": "201",
        "version_os": profile.version_os,
        "version_name": version,
        "old_version_name": old_version,
        "plugin_version": profile.plugin_version,
        "is_emulator": profile.is_emulator,
        "is_prod": profile.is_prod,
        "install_source": "app_store" if profile.platform == "ios" else "google_play",
        "defaultChannel": profile.channel,
        "action": action,
    }
    if profile.platform != "ios":
        body["old_version_name"] = body.pop("old_version_name")
        body["action"] = body.pop("action")
    if shape is Shape.EARLY:
        for name in ("custom_id", "old_version_name", "is_emulator", "is_prod", "install_source", "defaultChannel"):
            del body[name]
    elif shape is not Shape.TIMED:
        del body["install_source"]
    if shape is Shape.ELECTRON:
        del body["custom_id"]
        body["old_version_name"] = body.pop("old_version_name")
        body |= extra or {}
    return body


def worker_body(profile: Profile, action: str, version: str) -> Body:
    """Make an event as Android's download worker sends it, alone and without time."""
    body: Body = {
        "platform": "android",
        "app_id": profile.worker_app_id,
        "plugin_version": profile.plugin_version,
        "install_source": "google_play",
        "version_name": version,
        "old_version_name": "",
        "action": action,
        "device_id": profile.device_id,
        "custom_id": profile.custom_id,
        "version_build": "2.0.1",
        "version_code": "201",
        "version_os": profile.version_os,
        "defaultChannel": profile.channel,
        "is_prod": profile.is_prod,
        "is_emulator": profile.is_emulator,
    }
    if not profile.generation.reports_health:
        del body["install_source"]
    return body
