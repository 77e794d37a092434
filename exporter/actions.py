"""The catalogue of actions: every name that Capgo's plugins and update servers send today, and what it means.

Source: the sources of `@capgo/capacitor-updater` up to 8.51 and `@capgo/electron-updater` up to 0.0.6. New plugin
    releases add actions, so a name that is not here is data, not an error; it only counts against a cap of its own.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """What sort of thing an action reports."""

    PROGRESS = "progress"
    LIFECYCLE = "lifecycle"
    UPDATE_FAILURE = "update_failure"
    APP_HEALTH = "app_health"
    REFUSAL = "refusal"


@dataclass(frozen=True, slots=True)
class Action:
    """One action of the contract.

    Attributes:
        name: the wire name, case-sensitive.
        kind: what sort of thing it reports.
        meaning: one sentence for people.
        platforms: the platforms that send it, as far as the clients' sources show.
        documented: whether it is one of the 25 on Capgo's public "Statistics API" page.
    """

    name: str
    kind: Kind
    meaning: str
    platforms: frozenset[str]
    documented: bool


PLATFORMS: Final = ("android", "ios", "electron", "web", "other")
"""Every value of the label `platform`; what is not in it is counted as `other`."""

_DEVICES = frozenset({"android", "ios", "electron"})
_MOBILE = frozenset({"android", "ios"})
_ANDROID = frozenset({"android"})
_IOS = frozenset({"ios"})

_DOCUMENTED = frozenset(
    {
        *("delete", "reset", "set", "get", "set_fail", "update_fail", "download_fail", "windows_path_fail"),
        *("canonical_path_fail", "directory_path_fail", "unzip_fail", "low_mem_fail", "decrypt_fail"),
        *(f"download_{step}" for step in range(10, 100, 10)),
        *("download_complete", "app_moved_to_foreground", "app_moved_to_background"),
    }
)


def _family(kind: Kind, *entries: tuple[str, frozenset[str], str]) -> list[Action]:
    return [Action(name, kind, meaning, platforms, name in _DOCUMENTED) for name, platforms, meaning in entries]


_PROGRESS = _family(
    Kind.PROGRESS,
    ("download_0", _MOBILE, "The download of a bundle began."),
    *((f"download_{step}", _DEVICES, f"{step} % of the bundle is downloaded.") for step in range(10, 100, 10)),
    ("download_complete", _DEVICES, "The download of the bundle finished."),
    ("download_zip_start", _MOBILE, "The download of a bundle as one zip archive began."),
    ("download_zip_complete", _MOBILE, "The download of a bundle as one zip archive finished."),
    ("download_manifest_start", _MOBILE, "The download of a bundle file by file began."),
    ("download_manifest_complete", _MOBILE, "The download of a bundle file by file finished."),
)

_LIFECYCLE = _family(
    Kind.LIFECYCLE,
    ("get", _DEVICES, "The device asked for an update and one was found."),
    ("set", _DEVICES, "The app activated a bundle; whether it works is not known yet."),
    ("set_next", _DEVICES, "A bundle will be activated at the next start or background move."),
    ("reset", _DEVICES, "The app went back to the built-in bundle."),
    ("delete", _DEVICES, "A bundle was deleted on the device."),
    ("uninstall", _MOBILE, "A bundle was replaced and is no longer installed."),
    ("ping", _MOBILE, "The device reported that it is alive."),
    ("app_moved_to_foreground", _DEVICES, "The app came to the foreground."),
    ("app_moved_to_background", _DEVICES, "The app went to the background."),
)

_UPDATE_FAILURES = _family(
    Kind.UPDATE_FAILURE,
    ("update_fail", _MOBILE, "`notifyAppReady` was not called in time: the bundle was rolled back."),
    ("set_fail", _DEVICES, "The bundle to activate was not found; on electron: it was rolled back."),
    ("download_fail", _DEVICES, "The download never finished."),
    ("finish_download_fail", _MOBILE, "The downloaded bundle could not be put in place."),
    ("unzip_fail", _DEVICES, "The bundle could not be unpacked."),
    ("decrypt_fail", _DEVICES, "The bundle could not be decrypted."),
    ("checksum_fail", _DEVICES, "The checksum of the bundle does not match."),
    ("checksum_required", _DEVICES, "The bundle has no checksum although one is required."),
    ("low_mem_fail", _ANDROID, "There was too little memory for the download."),
    ("insufficient_disk_space", _MOBILE, "There was too little disk space for the bundle."),
    ("windows_path_fail", _DEVICES, "The bundle holds a path with backslashes."),
    ("canonical_path_fail", _MOBILE, "The bundle holds a path that leaves its folder."),
    ("directory_path_fail", _MOBILE, "A folder of the bundle could not be created."),
    ("manifest_path_fail", _MOBILE, "The manifest names a path that leaves the bundle's folder."),
    ("download_manifest_file_fail", _MOBILE, "A file of the manifest could not be downloaded."),
    ("download_manifest_checksum_fail", _MOBILE, "The checksum of a file of the manifest does not match."),
    ("download_manifest_brotli_fail", _MOBILE, "A file of the manifest could not be decompressed."),
)

_APP_HEALTH = _family(
    Kind.APP_HEALTH,
    ("app_crash", _MOBILE, "The app crashed; reported at its next launch."),
    ("app_crash_native", _ANDROID, "The app crashed in native code; reported at its next launch."),
    ("app_anr", _ANDROID, "The app did not respond and was closed; reported at its next launch."),
    ("app_killed_low_memory", _MOBILE, "The system ended the app for want of memory."),
    ("app_killed_excessive_resource_usage", _ANDROID, "The system ended the app for its use of resources."),
    ("app_initialization_failure", _ANDROID, "The system could not start the app."),
    ("app_memory_warning", _MOBILE, "The system asked the app to use less memory."),
    ("app_launch_start", _MOBILE, "The app began to start."),
    ("app_launch_ready", _MOBILE, "The app is ready; `duration_ms` says how long it took."),
    ("app_launch_timeout", _MOBILE, "The app was not ready in time."),
    ("webview_javascript_error", _MOBILE, "A JavaScript error was not caught."),
    ("webview_unhandled_rejection", _MOBILE, "A rejected promise was not handled."),
    ("webview_resource_error", _MOBILE, "A resource of the page did not load."),
    ("webview_security_policy_violation", _MOBILE, "The content security policy blocked something."),
    ("webview_unclean_restart", _MOBILE, "The WebView started again without a clean end."),
    ("webview_render_process_gone", _ANDROID, "The WebView's render process ended."),
    ("webview_content_process_terminated", _IOS, "The WebView's content process ended."),
    ("webview_dom_content_loaded", _MOBILE, "The page's document was parsed; `duration_ms` says how long it took."),
    ("webview_page_loaded", _MOBILE, "The page is loaded; `duration_ms` says how long it took."),
    ("os_version_changed", _MOBILE, "The operating system was updated since the last launch."),
    ("native_app_version_changed", _MOBILE, "The native app was updated since the last launch."),
)

_REFUSALS = _family(
    Kind.REFUSAL,
    ("noNew", _DEVICES, "There is no newer bundle."),
    ("needPlanUpgrade", _DEVICES, "The plan of the account does not allow the update."),
    ("missingBundle", _DEVICES, "The bundle of the channel does not exist."),
    ("disablePlatformIos", _DEVICES, "The channel is switched off for iOS."),
    ("disablePlatformAndroid", _DEVICES, "The channel is switched off for Android."),
    ("disablePlatformElectron", _DEVICES, "The channel is switched off for electron."),
    ("disableAutoUpdate", _DEVICES, "The channel does not update by itself."),
    ("disableAutoUpdateToMajor", _DEVICES, "The channel does not update to another major version."),
    ("disableAutoUpdateToMinor", _DEVICES, "The channel does not update to another minor version."),
    ("disableAutoUpdateToPatch", _DEVICES, "The channel does not update to another patch version."),
    ("disableAutoUpdateMetadata", _DEVICES, "The channel's minimum version forbids the update."),
    ("disableAutoUpdateUnderNative", _DEVICES, "The bundle is older than the native app."),
    ("disableDevBuild", _DEVICES, "The channel does not serve development builds."),
    ("disableProdBuild", _DEVICES, "The channel does not serve production builds."),
    ("disableEmulator", _DEVICES, "The channel does not serve emulators."),
    ("disableDevice", _DEVICES, "The channel does not serve real devices."),
    ("cannotUpdateViaPrivateChannel", _DEVICES, "The channel is private."),
    ("channelMisconfigured", _DEVICES, "The channel's settings contradict each other."),
    ("cannotGetBundle", _DEVICES, "The bundle could not be fetched by the update server."),
    ("NoChannelOrOverride", _DEVICES, "There is no default channel and no override for the device."),
    ("setChannel", _DEVICES, "The device chose a channel."),
    ("getChannel", _DEVICES, "The device asked for its channel."),
    ("rateLimited", _DEVICES, "The update server refused a request for its rate."),
    ("rate_limit_reached", _MOBILE, "The plugin was answered 429 and stopped sending."),
    ("keyMismatch", _DEVICES, "The bundle is encrypted for another key than the device's."),
    ("InvalidIp", _DEVICES, "The update server refused the address."),
    ("customIdBlocked", _DEVICES, "The device may not set a custom id."),
    ("blocked_by_server_url", _DEVICES, "The app's server URL forbids live updates."),
    ("backend_refusal", _DEVICES, "The update server refused without saying more."),
)

CATALOGUE: Final[tuple[Action, ...]] = (*_PROGRESS, *_LIFECYCLE, *_UPDATE_FAILURES, *_APP_HEALTH, *_REFUSALS)
"""All known actions, in the order of a device's life."""

BY_NAME: Final[dict[str, Action]] = {action.name: action for action in CATALOGUE}

KEY_ACTIONS: Final = ("set", "set_fail", "update_fail", "download_fail", "download_complete")
"""Born together at 0 for each new app, platform, version and environment, so that alerts see their first event."""
