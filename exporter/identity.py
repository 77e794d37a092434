"""The identity of an event, by which a re-sent one is recognised."""

import msgspec
from xxhash import xxh3_64_intdigest

from exporter.events import Event

_sorted_json = msgspec.json.Encoder(order="sorted")


def identity(event: Event) -> int | None:
    """Give the 64-bit identity of an event: xxh3-64 over its length-prefixed defining fields.

    They are the app, the device (lower case), the device's own timestamp, the action, the version as sent, and the
    metadata with sorted keys, because clients encode their queue anew for each attempt. The form is part of the
    journal: a change of it would make every remembered event unknown.

    Returns:
        The identity, or None without a timestamp: such clients never re-send, and equal events are different events.
    """
    if event.timestamp is None:
        return None
    device = (event.device_id or "").lower()
    version = event.version_name or ""
    app_id = event.app_id
    action = event.action
    key = (
        f"{len(app_id)}:{app_id}{len(device)}:{device}{event.timestamp}:{len(action)}:{action}{len(version)}:{version}"
    ).encode()
    if event.metadata:
        key += _sorted_json.encode(event.metadata)
    return xxh3_64_intdigest(key)
