"""Which `download_fail` are the false ones of old plugins."""

import pytest

from exporter.legacy import is_legacy_download_fail


@pytest.mark.parametrize(
    ("platform", "plugin_version", "expected"),
    [
        # 6.x before 6.14.25 and 7.x before 7.17.0, and everything older.
        ("android", "4.0.0", True),
        ("ios", "4.61.2", True),
        ("android", "5.7.2", True),
        ("android", "5.49.9", True),
        ("android", "5.51.0", True),
        ("android", "6.0.0", True),
        ("android", "6.14.24", True),
        ("ios", "6.14.24-beta.1", True),
        ("android", "7.0.0", True),
        ("android", "7.16.99", True),
        ("ANDROID", "7.1.0", True),
        ("web", "7.1.0", True),
        (None, "7.1.0", True),
        # The fixed ones.
        ("android", "6.14.25", False),
        ("android", "6.15.0", False),
        ("android", "6.50.1", False),
        ("android", "7.17.0", False),
        ("ios", "7.50.0", False),
        ("android", "8.0.0", False),
        ("ios", "8.51.14", False),
        ("android", "10.1.0", False),
        # The backport 5.50.x is good.
        ("android", "5.50.0", False),
        ("ios", "5.50.12", False),
        # Electron is good whatever it says, also when it says that it is android.
        ("electron", "0.0.1", False),
        ("Electron", "0.0.6", False),
        ("electron", "7.1.0", False),
        ("android", "0.0.1", False),
        # What cannot be read is good: no real failure may be lost.
        ("android", "unknown", False),
        ("android", "", False),
        ("android", None, False),
        ("android", "6", False),
        ("android", "6.14", False),
        ("android", "v6.14.24", False),
        ("android", "9999999.0.0", False),
        ("android", "٦.١٤.٢٤", False),
    ],
)
def test_is_legacy_download_fail(platform: str | None, plugin_version: str | None, expected: object) -> None:
    """Each generation of each plugin is judged as the contract says."""
    assert expected is is_legacy_download_fail(platform, plugin_version)
