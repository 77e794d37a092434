"""Old plugins' false `download_fail`: sent when there was no update at all."""

import re
from functools import lru_cache
from typing import Final

_VERSION = re.compile(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})", re.ASCII)
_FIXED_IN_6: Final = (6, 14, 25)
_FIXED_IN_7: Final = (7, 17, 0)
_GOOD_BACKPORT: Final = (5, 50)
_ELECTRON: Final = (0, 0)


@lru_cache(maxsize=1024)
def is_legacy_download_fail(platform: str | None, plugin_version: str | None) -> bool:
    """Tell whether a `download_fail` of this plugin may mean that there was no update.

    That is so before 6.14.25 and, of 7.x, before 7.17.0; not in the backport 5.50.x, nor on electron, whose plugin has
    versions of its own, 0.0.x, and said that it was android before 0.0.5. A version that cannot be read is taken as
    good, so that no real failure is lost.
    """
    match = _VERSION.match(plugin_version or "")
    if match is None or (platform or "").lower() == "electron":
        return False
    version = (int(match[1]), int(match[2]), int(match[3]))
    if version[:2] in {_GOOD_BACKPORT, _ELECTRON}:
        return False
    return version < _FIXED_IN_6 or (7, 0, 0) <= version < _FIXED_IN_7
