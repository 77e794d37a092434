"""Blobs: what is stored comes back as it was, and damage is found."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.journal.codec import compress, decompress, pack, unpack

LINES = ['capgo_event,app_id=a device_id="1" 1', 'capgo_event,app_id=b device_id="é\\"" 2']


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="\n", codec="utf-8"), min_size=1), min_size=1))
def test_lines_come_back(lines: list[str]) -> None:
    """What is compressed is what is decompressed."""
    assert lines == decompress(compress(lines))


def test_a_blob_that_is_cut_off_is_damaged() -> None:
    """However many bytes of the end are missing, even those of the checksum alone, that is an error."""
    blob = compress(LINES)
    for length in range(len(blob)):
        with pytest.raises(ValueError, match="damaged"):
            unpack(blob[:length])


@pytest.mark.parametrize("more", [b"\0", b"text", pack(b"another member")])
def test_a_blob_with_something_behind_it_is_damaged(more: bytes) -> None:
    """Nothing is stored behind a member, not even another one."""
    with pytest.raises(ValueError, match="damaged: something follows"):
        unpack(compress(LINES) + more)


def test_a_flipped_bit_never_changes_lines() -> None:
    """Of each bit it is true that flipping it is an error, or changes nothing but the member's own head."""
    blob = compress(LINES)
    found = 0
    for place in range(len(blob) * 8):
        damaged = bytearray(blob)
        damaged[place // 8] ^= 1 << place % 8
        try:
            assert LINES == decompress(bytes(damaged))
        except ValueError:
            found += 1
    assert found >= (len(blob) - 10) * 8, "all but those of a head of ten bytes are found"
