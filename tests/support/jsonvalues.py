"""Hypothesis strategies for what may stand in a body."""

import json
from typing import Any

from hypothesis import strategies as st

FIELD_NAMES = (
    "app_id",
    "action",
    "platform",
    "device_id",
    "version_name",
    "old_version_name",
    "version_build",
    "version_code",
    "version_os",
    "plugin_version",
    "custom_id",
    "is_prod",
    "is_emulator",
    "defaultChannel",
    "channel",
    "key_id",
    "install_source",
    "timestamp",
    "metadata",
    "bundle_id",
    "message",
)

# What is special to JSON, to line protocol, to labels or to a terminal, so that it comes up often.
_SPECIAL = st.sampled_from(
    [*"\\\",= :;#{}[]'\x00\t\n\r\x1b\x7f\x85\u00a0\u2028\u2029\ud800\udfff\ufeff\uffff", "é", "😀"]
)
_CHARACTERS = _SPECIAL | st.characters(exclude_categories=())


def any_text(*, min_size: int = 0, max_size: int = 30) -> st.SearchStrategy[str]:
    """Any text that a JSON document can hold: control characters and lone surrogates too."""
    # Two halves that meet become one character when they are read.
    return st.text(_CHARACTERS, min_size=min_size, max_size=max_size).map(lambda text: json.loads(json.dumps(text)))


def scalars() -> st.SearchStrategy[Any]:
    """Any JSON value but objects and arrays."""
    return st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | any_text()


def json_values() -> st.SearchStrategy[Any]:
    """Any JSON value; objects often have the keys of an event."""
    keys = st.sampled_from(FIELD_NAMES) | any_text()
    return st.recursive(
        scalars(),
        lambda values: st.lists(values, max_size=5) | st.dictionaries(keys, values, max_size=8),
        max_leaves=20,
    )
