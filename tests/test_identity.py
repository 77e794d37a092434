"""The identity of an event: equal for a re-sent one, different for any other."""

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from exporter.events import Event, decode
from exporter.identity import identity
from tests.support.jsonvalues import any_text

EVENT: dict[str, Any] = {
    "app_id": "com.example.shop",
    "device_id": "0b1f6c1e-2d3a-4c5b-8e7f-2a2a2a2a2a2a",
    "timestamp": 1795140000000,
    "action": "set",
    "version_name": "2.1.0",
    "metadata": {"duration_ms": "12", "source": "app"},
}


def identity_of(event: dict[str, Any]) -> int | None:
    """Give the identity of an event as it arrives."""
    (decoded,) = decode(json.dumps(event).encode()).events
    assert isinstance(decoded, Event)
    return identity(decoded)


def test_the_form_is_fixed() -> None:
    """The values are part of the journal: a change would make every remembered event unknown, and count it again."""
    key = (
        b"16:com.example.shop36:0b1f6c1e-2d3a-4c5b-8e7f-2a2a2a2a2a2a1795140000000:3:set5:2.1.0"
        b'{"duration_ms":"12","source":"app"}'
    )
    assert xxh3_64_intdigest(key) == identity_of(EVENT)
    assert 226183426126201917 == identity_of(EVENT)
    assert xxh3_64_intdigest(b"1:a0:-1:3:set0:") == identity_of({"app_id": "a", "action": "set", "timestamp": -1})


@pytest.mark.parametrize(
    "change",
    [
        {"app_id": "com.example.other"},
        {"device_id": "another"},
        {"device_id": None},
        {"timestamp": 1795140000001},
        {"timestamp": -1795140000000},
        {"action": "get"},
        {"version_name": "2.1.0:assets/main.js"},
        {"version_name": None},
        {"metadata": {"duration_ms": "13", "source": "app"}},
        {"metadata": {"duration_ms": "12"}},
        {"metadata": None},
    ],
)
def test_every_defining_field_counts(change: dict[str, Any]) -> None:
    """Another app, device, time, action, version or metadata make another event."""
    assert identity_of(EVENT) != identity_of({**EVENT, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"device_id": EVENT["device_id"].upper()},
        {"metadata": {"source": "app", "duration_ms": "12"}},
        {"metadata": {"duration_ms": 12, "source": "app"}},
        {"timestamp": "1795140000000"},
        {"timestamp": 1795140000000.0},
        {"platform": "ios"},
        {"custom_id": "somebody"},
        {"is_prod": False},
        {"nonce": "unknown key"},
    ],
)
def test_what_a_re_sent_event_may_change_does_not_count(change: dict[str, Any]) -> None:
    """The case of the device id, the order of the keys and all other fields leave the identity as it is."""
    assert identity_of(EVENT) == identity_of({**EVENT, **change})


@pytest.mark.parametrize("timestamp", [None, "", "yesterday", True, [], "inf"])
def test_without_a_readable_time_there_is_no_identity(timestamp: object) -> None:
    """Clients that send no time never re-send; two equal events of theirs are two events."""
    assert None is identity_of({**EVENT, "timestamp": timestamp})


TEXTS = st.text(st.sampled_from("0123456789:ab\x00é"), max_size=6)
FIELDS = st.tuples(TEXTS.filter(bool), TEXTS, st.integers(0, 999), TEXTS.filter(bool), TEXTS)


@given(FIELDS, FIELDS)
def test_no_two_events_run_together(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    """A text cannot pose as the border between two fields."""
    assume(one != other)
    names = ("app_id", "device_id", "timestamp", "action", "version_name")
    assert identity_of(dict(zip(names, one, strict=True))) != identity_of(dict(zip(names, other, strict=True)))


@given(any_text(), st.dictionaries(any_text(), any_text()), st.integers(), st.randoms(use_true_random=False))
def test_any_text_has_an_identity(text: str, metadata: dict[str, str], timestamp: int, random: Any) -> None:
    """It is an unsigned 64-bit number, and the same for metadata in any order."""
    items = list(metadata.items())
    random.shuffle(items)
    event = {"app_id": text or "a", "action": "set", "version_name": text, "timestamp": timestamp}
    found = identity_of({**event, "metadata": metadata})
    assert found == identity_of({**event, "metadata": dict(items)})
    assert found is not None
    assert 0 <= found < 1 << 64
