"""What is stored of ids that may point to a person."""

import hashlib
import hmac
import json
import os
import stat
import time
from pathlib import Path
from typing import Any, Literal

import pytest

from exporter.privacy import IdPolicy, load_hash_key, read_hash_key, stored_ids
from tests.support.inprocess import running

EVENT = {
    "app_id": "com.example.shop",
    "action": "set",
    "platform": "ios",
    "device_id": "A3E1C0DE-0000-4000-8000-3B3B3B3B3B3B",
    "custom_id": " somebody@example.com ",
}
DEVICE = "a3e1c0de-0000-4000-8000-3b3b3b3b3b3b"
PERSON = "somebody@example.com"


def digest(key: str, text: str) -> str:
    """Give the first 128 bits of the HMAC-SHA256, in hex."""
    return hmac.new(key.encode(), text.encode(), hashlib.sha256).digest()[:16].hex()


@pytest.mark.parametrize(("rule", "expected"), [("keep", "ü"), ("hash", digest("key", "ü")), ("drop", "")])
def test_the_rule_decides(rule: Literal["keep", "hash", "drop"], expected: str) -> None:
    """An id is kept, replaced by its keyed hash, or dropped."""
    assert expected == IdPolicy(rule, b"key").apply("ü")


@pytest.mark.parametrize("rule", ["keep", "hash", "drop"])
def test_no_id_stays_none(rule: Literal["keep", "hash", "drop"]) -> None:
    """The hash of nothing would look like a person."""
    assert "" == IdPolicy(rule, b"key").apply("")


def test_another_key_gives_another_hash() -> None:
    """Two installations cannot join their data by the hash."""
    assert IdPolicy("hash", b"one").apply("id") != IdPolicy("hash", b"two").apply("id")


def test_a_configured_key_wins_and_is_not_written(tmp_path: Path) -> None:
    """A key from the settings is used as it is."""
    assert b"secret" == load_hash_key(tmp_path, "secret")
    assert [] == list(tmp_path.iterdir())


def test_a_key_is_made_once(tmp_path: Path) -> None:
    """Without a configured key one is kept in the data directory, for its owner alone, and nothing else is left."""
    key = load_hash_key(tmp_path, None)
    assert key == load_hash_key(tmp_path, None)
    assert 64 == len(key)
    assert [tmp_path / "hash.key"] == list(tmp_path.iterdir())
    assert 0o600 == stat.S_IMODE((tmp_path / "hash.key").stat().st_mode)


def test_two_installations_make_two_keys(tmp_path: Path) -> None:
    """A generated key is random."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert load_hash_key(tmp_path / "one", None) != load_hash_key(tmp_path / "two", None)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"device_id": DEVICE, "custom_id": digest("key", PERSON)}),
        ({"custom_id": "keep"}, {"device_id": DEVICE, "custom_id": PERSON}),
        ({"custom_id": "drop"}, {"device_id": DEVICE}),
        ({"device_id": "hash"}, {"device_id": digest("key", DEVICE), "custom_id": digest("key", PERSON)}),
        ({"device_id": "drop", "custom_id": "drop"}, {}),
    ],
)
async def test_points_hold_what_the_settings_allow(settings: dict[str, Any], expected: dict[str, str]) -> None:
    """By default the random install id is kept and the custom id hashed; case and blanks make no other person."""
    async with running({"hash_key": "key", **settings}) as exporter:
        await exporter.post(EVENT)
        (point,) = exporter.points()
        assert expected == {name: point.fields[name] for name in ("device_id", "custom_id") if name in point.fields}


@pytest.mark.parametrize("rule", ["keep", "drop"])
async def test_texts_of_errors_are_kept_or_dropped(rule: str) -> None:
    """`drop` takes them, and nothing else, out of points; what an event is recognised by stays the same."""
    texts = {"message": "m", "source": "s", "href": "h", "stack": "t"}
    event = {**EVENT, "timestamp": time.time_ns() // 1_000_000, "message": "m", "metadata": {**texts, "line": "7"}}
    async with running({"error_text": rule, "hash_key": "key"}) as exporter:
        await exporter.post(event)
        await exporter.post({**event, "metadata": {**texts, "line": "7", "stack": "another"}})
        await exporter.post(event)
        await exporter.post({**EVENT, "metadata": texts})
        points = exporter.points()
    kept = texts if rule == "keep" else {}
    found = [json.loads(str(point.fields.get("metadata", "{}"))) for point in points]
    assert [{**kept, "line": "7"}, {**kept, "line": "7"} | ({"stack": "another"} if kept else {}), kept] == found
    assert (["m", "m", None] if kept else [None] * 3) == [point.fields.get("message") for point in points]


def test_every_form_of_an_id_is_known(tmp_path: Path) -> None:
    """In lower case, as it was given, and hashed, if there is a key; none is made to look for it."""
    assert None is read_hash_key(tmp_path, None)
    assert [] == list(tmp_path.iterdir())
    assert (DEVICE, DEVICE.upper()) == stored_ids(DEVICE.upper(), None)
    assert (DEVICE, digest("key", DEVICE)) == stored_ids(DEVICE, read_hash_key(tmp_path, "key"))
    assert load_hash_key(tmp_path, None) == read_hash_key(tmp_path, None)


async def test_a_hash_outlives_a_restart(tmp_path: Path) -> None:
    """The generated key is used again, so that a person stays one person."""
    for _ in range(2):
        async with running({"data_dir": tmp_path}) as exporter:
            await exporter.post(EVENT)
    async with running({"data_dir": tmp_path}) as exporter:
        one, two = exporter.points()
    assert one.fields["custom_id"] == two.fields["custom_id"]


async def test_nobody_else_can_look_into_a_directory_that_was_made(tmp_path: Path) -> None:
    """Whatever the umask is; one that was there keeps what its owner gave it."""
    before = os.umask(0)
    try:
        (tmp_path / "theirs").mkdir(mode=0o750)
        for name, mode in (("ours", 0o700), ("theirs", 0o750)):
            async with running({"data_dir": tmp_path / name}):
                assert mode == stat.S_IMODE((tmp_path / name).stat().st_mode)
    finally:
        os.umask(before)


async def test_no_address_is_stored(capfd: pytest.CaptureFixture[str]) -> None:
    """Neither points nor logs nor metrics hold the address of a sender, also when a proxy names it."""
    async with running({"ingest_token": "t"}) as exporter:
        for token in ("t", "wrong"):
            await exporter.post(
                EVENT, {"X-Forwarded-For": "203.0.113.7", "Forwarded": "for=203.0.113.7"}, f"/stats/{token}"
            )
        texts = ["\n".join(exporter.lines()), await exporter.metrics(), *capfd.readouterr()]
    assert [] == [text for text in texts if "203.0.113.7" in text or "127.0.0.1" in text]
