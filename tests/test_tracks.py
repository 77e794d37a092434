"""What each action means to the derived figures."""

from typing import Final

import pytest

from exporter.actions import BY_NAME, Kind
from exporter.derived.families import LAUNCH_DURATION, WEBVIEW_LOAD_DURATION
from exporter.derived.tracks import ISSUES, NO_DAY, Code, Role, Sight, Track, role_of, track_labels
from exporter.labels import OTHER, Labels

SEEN: Final = Sight.SEEN | Sight.RELEASED
RUNNING: Final = SEEN | Sight.RUNNING
AFFECTED: Final = RUNNING | Sight.AFFECTED
FAILED: Final = SEEN | Sight.AFFECTED | Sight.FAILED
DOWNLOAD: Final = int(Code.DOWNLOAD_FAILURE)

PROGRESS: Final = (
    *("download_zip_start", "download_manifest_start", *(f"download_{step}" for step in range(0, 100, 10))),
    *("download_manifest_complete", "download_zip_complete", "download_complete"),
)
"""In the order in which they stand when their times are equal."""

DOWNLOAD_FAILURES: Final = (
    *("download_fail", "finish_download_fail", "unzip_fail", "decrypt_fail", "checksum_fail", "checksum_required"),
    *("low_mem_fail", "insufficient_disk_space", "windows_path_fail", "canonical_path_fail", "directory_path_fail"),
    *("manifest_path_fail", "download_manifest_file_fail", "download_manifest_checksum_fail"),
    "download_manifest_brotli_fail",
)
FIFTEEN_ISSUES: Final = (
    *("app_crash", "app_crash_native", "app_anr", "app_killed_low_memory", "app_killed_excessive_resource_usage"),
    *("app_initialization_failure", "app_memory_warning", "app_launch_timeout", "webview_javascript_error"),
    *("webview_unhandled_rejection", "webview_resource_error", "webview_security_policy_violation"),
    *("webview_unclean_restart", "webview_render_process_gone", "webview_content_process_terminated"),
)
OTHER_HEALTH: Final = (
    *("app_launch_start", "webview_dom_content_loaded", "os_version_changed", "native_app_version_changed"),
)
REFUSALS: Final = [name for name, action in BY_NAME.items() if action.kind is Kind.REFUSAL]


def plain(kind: str, sights: int) -> Role:
    """Give the role of an action by which a device is seen, and nothing else."""
    return Role(kind, None, is_failure=False, is_install=False, duration=None, sights=sights, is_plain=True)


def failing(kind: str, code: int, sights: int = FAILED) -> Role:
    """Give the role of a failed update."""
    return Role(kind, code, is_failure=True, is_install=False, duration=None, sights=sights, is_plain=False)


def stepping(code: int) -> Role:
    """Give the role of a step of a download."""
    return Role("progress", code, is_failure=False, is_install=False, duration=None, sights=SEEN, is_plain=False)


ROLES: Final = {
    **{name: stepping(code) for code, name in enumerate(PROGRESS)},
    **{name: failing("update_failure", DOWNLOAD) for name in DOWNLOAD_FAILURES},
    "update_fail": failing("update_failure", int(Code.ACTIVATION_FAILURE), FAILED | Sight.RUNNING),
    "set_fail": failing("update_failure", int(Code.ACTIVATION_FAILURE)),
    "set": Role(
        "lifecycle",
        None,
        is_failure=False,
        is_install=True,
        duration=None,
        sights=RUNNING | Sight.SUCCEEDED,
        is_plain=False,
    ),
    **{name: plain("lifecycle", RUNNING) for name in ("app_moved_to_foreground", "app_moved_to_background", "ping")},
    **{name: plain("lifecycle", SEEN) for name in ("get", "set_next", "reset", "delete", "uninstall")},
    **{name: plain("app_health", AFFECTED) for name in FIFTEEN_ISSUES},
    **{name: plain("app_health", RUNNING) for name in OTHER_HEALTH},
    **{
        name: Role(
            "app_health",
            None,
            is_failure=False,
            is_install=False,
            duration=family,
            sights=RUNNING,
            is_plain=False,
        )
        for name, family in (("app_launch_ready", LAUNCH_DURATION), ("webview_page_loaded", WEBVIEW_LOAD_DURATION))
    },
    **{name: plain("refusal", SEEN) for name in REFUSALS},
}
"""Written down for each of the 91 actions."""


def test_the_table_names_each_action_of_the_catalogue() -> None:
    """An action that comes new to the catalogue has to be thought about here."""
    assert sorted(BY_NAME) == sorted(ROLES)
    assert 91 == len(ROLES)


@pytest.mark.parametrize("action", BY_NAME)
def test_role(action: str) -> None:
    """Each action of the catalogue means what the table says."""
    assert ROLES[action] == role_of(action, action)


@pytest.mark.parametrize("action", [name for name, action in BY_NAME.items() if action.kind is Kind.UPDATE_FAILURE])
def test_each_update_failure_is_a_failure(action: str) -> None:
    """Each action that the catalogue calls an update failure is counted as one, in one of the two phases."""
    role = role_of(action, action)
    assert (True, True) == (role.is_failure, role.code in {Code.DOWNLOAD_FAILURE, Code.ACTIVATION_FAILURE})


def test_the_issues_are_the_fifteen() -> None:
    """The app-health failures are the fifteen that Capgo observes."""
    assert set(FIFTEEN_ISSUES) == ISSUES
    assert 15 == len(ISSUES)


@pytest.mark.parametrize(
    ("action", "sent", "expected"),
    [
        pytest.param("new_fail", "new_fail", failing(OTHER, DOWNLOAD), id="an unknown failure"),
        pytest.param(OTHER, "newer_fail", failing(OTHER, DOWNLOAD), id="an unknown failure past the cap"),
        pytest.param("_fail", "_fail", failing(OTHER, DOWNLOAD), id="nothing but the ending"),
        pytest.param("new_action", "new_action", plain(OTHER, SEEN), id="an unknown action"),
        pytest.param(OTHER, "newer_action", plain(OTHER, SEEN), id="an unknown action past the cap"),
        pytest.param(OTHER, OTHER, plain(OTHER, SEEN), id="an action named like what is past the cap"),
        pytest.param("new_FAIL", "new_FAIL", plain(OTHER, SEEN), id="an ending in capitals"),
        pytest.param("fail", "fail", plain(OTHER, SEEN), id="no underscore"),
        pytest.param("new_failed", "new_failed", plain(OTHER, SEEN), id="another ending"),
        pytest.param("download_100", "download_100", plain(OTHER, SEEN), id="a step that nobody knows"),
    ],
)
def test_role_of_an_unknown_action(action: str, sent: str, expected: Role) -> None:
    """What the catalogue does not know is a failure if its name as it was sent ends in `_fail`, else just an event."""
    assert expected == role_of(action, sent)


@pytest.mark.parametrize(("environment", "is_prod"), [("prod", True), ("dev", False), ("emulator", False)])
def test_track(environment: str, *, is_prod: bool) -> None:
    """A track is named by all labels but the action, and knows whether it is production."""
    labels = track_labels(Labels("app", "ios", "set", "1.0.0", environment))
    track = Track(labels)
    assert ("app", "ios", "1.0.0", environment) == track.labels
    assert (is_prod, {}, NO_DAY) == (track.is_prod, track.episodes, track.seen_day)
