"""The identity of an event, by which a re-sent one is recognised."""

from collections.abc import Iterable

import msgspec
from xxhash import xxh3_64_intdigest

from exporter.events import Event, Rejection

_sorted_json = msgspec.json.Encoder(order="sorted")


def identities(events: Iterable[Event | Rejection]) -> list[int | None]:
    """Give the 64-bit identity of each event, never 0: xxh3-64 over its length-prefixed defining fields.

    They are the app, the device (lower case), the device's own timestamp, the action, the version as sent, and the
    metadata with sorted keys, because clients encode their queue anew for each attempt. The form is part of the
    journal: a change of it would make every remembered event unknown.

    Returns:
        The identities, in order. None stands for an event without a timestamp, as such clients never re-send and equal
        events are different events, and for what is no event.
    """
    found: list[int | None] = []
    app_id = device_id = None
    sender = ""
    for event in events:
        if isinstance(event, Rejection) or event.timestamp is None:
            found.append(None)
            continue
        # A batch comes from one device, so what its events have in common is written once.
        if event.device_id != device_id or event.app_id != app_id:
            app_id, device_id = event.app_id, event.device_id
            device = (device_id or "").lower()
            sender = f"{len(app_id)}:{app_id}{len(device)}:{device}"
        action = event.action
        version = event.version_name or ""
        key = f"{sender}{event.timestamp}:{len(action)}:{action}{len(version)}:{version}".encode()
        if event.metadata:
            key += _sorted_json.encode(event.metadata)
        found.append(xxh3_64_intdigest(key) or 1)
    return found


def identity(event: Event) -> int | None:
    """Give the identity of one event."""
    return identities((event,))[0]
