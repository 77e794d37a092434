"""The operator's rules: which events are counted, left out, or rejected."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from exporter.access import AllowList
from exporter.actions import BY_NAME
from exporter.events import Event, Rejection
from exporter.legacy import is_legacy_download_fail

NOT_ALLOWED: Final = Rejection("app_not_allowed", "This endpoint takes no events of this app")
_UNKNOWN_ACTION: Final = Rejection("unknown_action", "This endpoint accepts known actions only")
_DOWNLOAD_FAIL: Final = "download_fail"


class Filtered(StrEnum):
    """Why an event is left out, in a word for the metric; its sender is told nothing of it."""

    APP_NOT_ALLOWED = "app_not_allowed"
    LEGACY_DOWNLOAD_FAIL = "legacy_download_fail"


@dataclass(frozen=True, slots=True)
class Rules:
    """Which events are counted.

    Attributes:
        allowed_apps: the apps that may report.
        unlisted_apps: whether events of other apps are left out in silence or rejected.
        unknown_actions: whether actions that the catalogue does not know are accepted or rejected.
        legacy_download_fail: whether the false `download_fail` of old plugins are kept or dropped.
        reject_when_full: past so many bytes in the journal new events are refused; None: never.
    """

    allowed_apps: AllowList
    unlisted_apps: Literal["ignore", "reject"]
    unknown_actions: Literal["accept", "reject"]
    legacy_download_fail: Literal["keep", "drop"]
    reject_when_full: int | None

    def judge(self, event: Event) -> Rejection | Filtered | None:
        """Tell why an event is rejected or left out; None if it is counted."""
        if not self.allowed_apps.allows(event.app_id):
            return NOT_ALLOWED if self.unlisted_apps == "reject" else Filtered.APP_NOT_ALLOWED
        if self.unknown_actions == "reject" and event.action not in BY_NAME:
            return _UNKNOWN_ACTION
        if self.depends_on_plugin(event) and is_legacy_download_fail(event.platform, event.plugin_version):
            return Filtered.LEGACY_DOWNLOAD_FAIL
        return None

    def depends_on_plugin(self, event: Event) -> bool:
        """Tell whether the plugin's version decides, so that the same labels may be judged another way."""
        return self.legacy_download_fail == "drop" and event.action == _DOWNLOAD_FAIL
