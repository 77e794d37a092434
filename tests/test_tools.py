"""Points and files as the operator's commands read and write them."""

import gzip
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.lineprotocol import clean
from exporter.tools import source
from exporter.tools.points import Point, from_json, parse, render, to_json
from exporter.tools.problems import UsageError
from exporter.tools.source import read_batches
from tests.support.points import read_point

NAMES = st.text("abc_,= é", min_size=1, max_size=8).filter(lambda text: text == text.strip())
TEXTS = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20).map(clean)
VALUES = st.one_of(
    TEXTS, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)
)
POINTS = st.builds(
    Point,
    st.just("capgo_stats"),
    st.dictionaries(NAMES, NAMES, max_size=4),
    st.dictionaries(NAMES, VALUES, min_size=1, max_size=5),
    st.integers(0, 2**62),
)


@given(point=POINTS)
def test_points_survive_each_form(point: Point) -> None:
    """A point written as a line, read, written as JSON and read again is the same point, of the same types."""
    line = render(point)
    assert point == parse(line)
    again = parse(from_json(to_json(line).encode()))
    assert point == again
    assert [type(value) for value in point.fields.values()] == [type(again.fields[name]) for name in point.fields]


def test_lines_are_read_as_influxdb_does() -> None:
    """What the exporter writes is read as the tests' own reader reads it."""
    line = 'capgo_stats,app_id=a\\ b,version=1\\,2 count=1i,duration_ms=1.5,metadata="{\\"a\\":\\"\\\\\\\\\\"}" 17'
    point, expected = parse(line), read_point(line)
    assert (expected.time_ns, expected.tags, expected.fields) == (point.time_ns, point.tags, point.fields)
    assert {"a": True, "b": False, "c": True, "d": -1.5} == parse("m a=t,b=F,c=TRUE,d=-15e-1 1").fields


@pytest.mark.parametrize(
    "text", ["", "m", "m ", "m,a x=1", "m,a=b", 'm x="', "m x=1 noon", "m x=", 'm x="a"b 1', "m x=1 1 2"]
)
def test_what_is_no_line_is_refused(text: str) -> None:
    """With a message, not with an error of another kind."""
    with pytest.raises(ValueError, match=r"."):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        b'{"measurement": "m", "tags": {}, "fields": {}}',
        b'{"measurement": "m", "tags": {}, "fields": {"a": null}}',
        b'{"measurement": "m", "tags": {}, "fields": {"a": "x\\ny"}}',
        b'{"measurement": "m", "tags": {}, "fields": {"a": 1}, "more": 1}',
        b'{"measurement": "m"}',
        b"[]",
        b"\xff",
    ],
)
def test_what_is_no_point_is_refused(text: bytes) -> None:
    """Nothing that would break a line, or be guessed."""
    with pytest.raises(ValueError, match="no point"):
        from_json(text)


@pytest.mark.parametrize("name", ["events", "events.gz"])
def test_files_come_in_batches(name: str, tmp_path: Path) -> None:
    """Of the size asked for, from the line asked for, with the number of the last line; also compressed."""
    text = b'{"a": 1}\n\n{"a": 2}\r\n[{"a": 3}, {"a": 4}]\n{"a": 5}'
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    batches = list(read_batches(str(tmp_path / name), 2, 3))
    assert [(['{"a": 2}', '{"a": 3}', '{"a": 4}'], 4), (['{"a": 5}'], 5)] == [
        (batch.items, batch.last_line) for batch in batches
    ]
    assert {"events"} == {batch.kind for batch in batches}
    assert 1.0 == batches[-1].share


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1}\n{"a": \n', "line 2: "),
        ("m x=1 1\nm x=1 1x\n", "line 2: "),
        ("m x=1 1\n{}\n", "line 2: holds events, and those before points"),
        ('m x="\x01" 1\n', "line 1: no line protocol"),
        ("3\n", "line 1: "),
        ('{"a": 1}\n' + "[" * 100_000, "line 2: is nested too deeply"),
        ('{"a": 1}\n' + '{"a": ' * 100_000, "line 2: is nested too deeply"),
    ],
    ids=range(7),
)
def test_wrong_lines_are_named(text: str, problem: str, tmp_path: Path) -> None:
    """By their number, with what is wrong."""
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(UsageError, match=problem):
        list(read_batches(str(path), 10, 1))


@pytest.mark.parametrize("name", ["x", "x.gz"])
def test_a_line_without_an_end_is_read_to_a_bound(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever somebody takes for a file of events, it does not fill the memory."""
    monkeypatch.setattr(source, "MAX_LINE_BYTES", 1 << 20)
    path = tmp_path / name
    content = b'{"action":"set"}\n' + b"x" * (32 << 20)
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match=f"^{path}: line 2: is longer than 1 MiB$"):
            list(read_batches(str(path), 1, 1))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """One that is not there, and one that is not compressed as its name says."""
    (tmp_path / "x.gz").write_text("no gzip")
    for name in ("none", "x.gz"):
        with pytest.raises(UsageError, match=name):
            list(read_batches(str(tmp_path / name), 10, 1))
