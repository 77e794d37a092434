"""Lines on their way to InfluxDB: whole groups in one member, taken apart where that is needed."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.lines import Lines

TEXTS = st.text(alphabet=st.characters(exclude_characters="\n", exclude_categories=["Cs"]), min_size=1, max_size=20)
GROUPS = st.lists(st.lists(TEXTS, min_size=1, max_size=4), min_size=1, max_size=4)


def lines_of(groups: list[list[str]]) -> Lines:
    """Put groups together as delivery does."""
    return Lines(["\n".join(group).encode() for group in groups], sum(map(len, groups)))


@given(groups=GROUPS)
def test_groups_become_one_member(groups: list[list[str]]) -> None:
    """A request is a single gzip member with every line of every group, in order."""
    lines = lines_of(groups)
    flat = [line for group in groups for line in group]
    packed = lines.pack()
    member = zlib.decompressobj(31)
    assert "\n".join(flat) == member.decompress(packed).decode()
    assert (True, b"") == (member.eof, member.unused_data)
    assert (len(flat), flat) == (len(lines), lines.lines())


@given(groups=GROUPS, start=st.integers(0, 8), size=st.integers(1, 8))
def test_a_part_is_what_a_slice_is(groups: list[list[str]], start: int, size: int) -> None:
    """Lines are taken apart across the borders of groups; all of them together stay as they are."""
    flat = [line for group in groups for line in group]
    part = lines_of(groups).part(start, start + size)
    assert (flat[start : start + size], len(flat[start : start + size])) == (part.lines(), len(part))
    if len(part):
        assert "\n".join(flat[start : start + size]) == gzip.decompress(part.pack()).decode()


@pytest.mark.parametrize(("start", "stop", "is_same"), [(0, 3, True), (0, 9, True), (1, 3, False), (0, 2, False)])
def test_the_whole_is_not_copied(start: int, stop: int, *, is_same: bool) -> None:
    """Who asks for everything gets the very same object."""
    lines = lines_of([["a", "b"], ["c"]])
    assert is_same is (lines.part(start, stop) is lines)
