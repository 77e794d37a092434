"""What derived figures know of an event before they look at it: what its action means, and whose history it is."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from exporter.actions import BY_NAME, Kind
from exporter.derived.families import LAUNCH_DURATION, WEBVIEW_LOAD_DURATION
from exporter.labels import OTHER, Labels
from exporter.series import Family

if TYPE_CHECKING:
    from exporter.derived.episode import Episode

NO_DAY: Final = -1

ISSUES: Final = frozenset(
    {
        *("app_crash", "app_crash_native", "app_anr", "app_killed_low_memory", "app_killed_excessive_resource_usage"),
        *("app_initialization_failure", "app_memory_warning", "app_launch_timeout", "webview_javascript_error"),
        *("webview_unhandled_rejection", "webview_resource_error", "webview_security_policy_violation"),
        *("webview_unclean_restart", "webview_render_process_gone", "webview_content_process_terminated"),
    }
)
"""The 15 app-health failures; a device that has one, or a failed update, is affected."""

_RUNNING: Final = frozenset({"set", "update_fail", "app_moved_to_foreground", "app_moved_to_background", "ping"})


class Code:
    """The entries of an episode, in the order in which they stand when their times are equal.

    Plain numbers: to name a member of an enumeration, and to compare with it, takes five times as long.
    """

    ZIP_START: Final = 0
    MANIFEST_START: Final = 1
    STEP_0: Final = 2
    STEP_90: Final = 11
    MANIFEST_COMPLETE: Final = 12
    ZIP_COMPLETE: Final = 13
    COMPLETE: Final = 14
    DOWNLOAD_FAILURE: Final = 15
    ACTIVATION_FAILURE: Final = 16


_CODES: Final = {
    "download_zip_start": Code.ZIP_START,
    "download_manifest_start": Code.MANIFEST_START,
    **{f"download_{step * 10}": Code.STEP_0 + step for step in range(10)},
    "download_manifest_complete": Code.MANIFEST_COMPLETE,
    "download_zip_complete": Code.ZIP_COMPLETE,
    "download_complete": Code.COMPLETE,
    "update_fail": Code.ACTIVATION_FAILURE,
    "set_fail": Code.ACTIVATION_FAILURE,
}


class Sight:
    """What a device is seen for, as bits of a mask.

    `RUNNING`: its version runs on it; `RELEASED`: its version is out.
    """

    SEEN: Final = 1
    AFFECTED: Final = 2
    SUCCEEDED: Final = 4
    FAILED: Final = 8
    RUNNING: Final = 16
    RELEASED: Final = 32


@dataclass(frozen=True, slots=True)
class Role:
    """What an action means to the derived figures.

    Attributes:
        kind: the value of the label `kind` of late events.
        code: the entry that it is in an episode, None if it is none.
        is_failure: whether it reports a failed update.
        is_install: whether it is a `set`.
        duration: the family that takes its `duration_ms`.
        sights: what its device is seen for.
        is_plain: nothing of the above, but that its device is seen.
    """

    kind: str
    code: int | None
    is_failure: bool
    is_install: bool
    duration: Family | None
    sights: int
    is_plain: bool


def role_of(action: str, sent: str) -> Role:
    """Tell what an action means.

    Args:
        action: the label, which is `other` past the cap of unknown actions.
        sent: the action as it was sent.
    """
    known = BY_NAME.get(action)
    is_failure = (known is not None and known.kind is Kind.UPDATE_FAILURE) or sent.endswith("_fail")
    is_install = action == "set"
    code = _CODES.get(action, Code.DOWNLOAD_FAILURE if is_failure else None)
    duration = {"app_launch_ready": LAUNCH_DURATION, "webview_page_loaded": WEBVIEW_LOAD_DURATION}.get(action)
    sights = Sight.SEEN | Sight.RELEASED
    if is_failure or action in ISSUES:
        sights |= Sight.AFFECTED
    if is_failure:
        sights |= Sight.FAILED
    if is_install:
        sights |= Sight.SUCCEEDED
    if action in _RUNNING or (known is not None and known.kind is Kind.APP_HEALTH):
        sights |= Sight.RUNNING
    return Role(
        kind=OTHER if known is None else known.kind,
        code=code,
        is_failure=is_failure,
        is_install=is_install,
        duration=duration,
        sights=sights,
        is_plain=code is None and not is_install and duration is None,
    )


LEGACY_DOWNLOAD_FAIL: Final = Role(
    kind=Kind.UPDATE_FAILURE,
    code=None,
    is_failure=False,
    is_install=False,
    duration=None,
    sights=Sight.SEEN | Sight.RELEASED,
    is_plain=True,
)
"""Of a `download_fail` that may mean that there was no update: the device is seen, no more."""


class Track:
    """One app, platform, version and environment: whose events belong together.

    Attributes:
        labels: app, platform, version and environment.
        is_prod: whether the environment is production.
        episodes: what is going on with each device, by its hash.
        seen_day: the day of which it is remembered which devices were seen, in days since 1970; `NO_DAY` if of none.
        seen_hash: by which they are remembered, 63 bits.
    """

    __slots__ = ("episodes", "is_prod", "labels", "seen_day", "seen_hash")

    def __init__(self, labels: tuple[str, str, str, str]) -> None:
        """Make a track without a history."""
        self.labels = labels
        self.is_prod = labels[3] == "prod"
        self.episodes: dict[int, Episode] = {}
        self.seen_day = NO_DAY
        self.seen_hash = 0


def track_labels(labels: Labels) -> tuple[str, str, str, str]:
    """Give a series' labels without the action."""
    return (labels.app_id, labels.platform, labels.version, labels.environment)
