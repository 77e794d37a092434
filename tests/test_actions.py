"""The catalogue of actions is the contract's list, to the letter."""

from exporter.actions import BY_NAME, CATALOGUE, KEY_ACTIONS, PLATFORMS, Kind

DOCUMENTED = """
    delete reset set get set_fail update_fail download_fail windows_path_fail canonical_path_fail directory_path_fail
    unzip_fail low_mem_fail download_10 download_20 download_30 download_40 download_50 download_60 download_70
    download_80 download_90 download_complete decrypt_fail app_moved_to_foreground app_moved_to_background
"""

KNOWN = {
    Kind.PROGRESS: """
        download_0 download_10 download_20 download_30 download_40 download_50 download_60 download_70 download_80
        download_90 download_complete download_zip_start download_zip_complete download_manifest_start
        download_manifest_complete
    """,
    Kind.LIFECYCLE: """
        get set set_next reset delete uninstall ping app_moved_to_foreground app_moved_to_background
    """,
    Kind.UPDATE_FAILURE: """
        update_fail set_fail download_fail finish_download_fail unzip_fail decrypt_fail checksum_fail checksum_required
        low_mem_fail insufficient_disk_space windows_path_fail canonical_path_fail directory_path_fail
        manifest_path_fail download_manifest_file_fail download_manifest_checksum_fail download_manifest_brotli_fail
    """,
    Kind.APP_HEALTH: """
        app_crash app_crash_native app_anr app_killed_low_memory app_killed_excessive_resource_usage
        app_initialization_failure app_memory_warning app_launch_start app_launch_ready app_launch_timeout
        webview_javascript_error webview_unhandled_rejection webview_resource_error webview_security_policy_violation
        webview_unclean_restart webview_render_process_gone webview_content_process_terminated
        webview_dom_content_loaded webview_page_loaded os_version_changed native_app_version_changed
    """,
    Kind.REFUSAL: """
        noNew needPlanUpgrade missingBundle disablePlatformIos disablePlatformAndroid disablePlatformElectron
        disableAutoUpdate disableAutoUpdateToMajor disableAutoUpdateToMinor disableAutoUpdateToPatch
        disableAutoUpdateMetadata disableAutoUpdateUnderNative disableDevBuild disableProdBuild disableEmulator
        disableDevice cannotUpdateViaPrivateChannel channelMisconfigured cannotGetBundle NoChannelOrOverride setChannel
        getChannel rateLimited rate_limit_reached keyMismatch InvalidIp customIdBlocked blocked_by_server_url
        backend_refusal
    """,
}


def test_the_catalogue_holds_all_known_actions_by_kind() -> None:
    """Every kind holds the contract's names and no other."""
    expected = {kind: set(names.split()) for kind, names in KNOWN.items()}
    assert expected == {kind: {action.name for action in CATALOGUE if action.kind is kind} for kind in Kind}


def test_the_catalogue_names_91_actions_once_each() -> None:
    """No name stands in it twice."""
    assert (91, 91) == (len(CATALOGUE), len(BY_NAME))


def test_the_documented_actions_are_those_of_the_public_page() -> None:
    """The 25 names of Capgo's "Statistics API" page, and no other, count as documented."""
    assert sorted(DOCUMENTED.split()) == sorted(action.name for action in CATALOGUE if action.documented)


def test_every_action_has_a_meaning_and_a_platform() -> None:
    """The meaning is one sentence; the platforms are values of the label."""
    assert [] == [action.name for action in CATALOGUE if not action.meaning.endswith(".")]
    assert [] == [action.name for action in CATALOGUE if not action.platforms or not action.platforms <= set(PLATFORMS)]


def test_the_key_actions_are_known() -> None:
    """The actions that are born together at 0 are those of the design."""
    assert ("set", "set_fail", "update_fail", "download_fail", "download_complete") == KEY_ACTIONS
    assert set() == set(KEY_ACTIONS) - set(BY_NAME)
