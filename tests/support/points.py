"""Reading one line of line protocol back into a point, as InfluxDB does."""

import re
from collections.abc import Iterator

from tests.support.influxdb import Point
from tests.support.lineprotocol import read_records

# Source: https://docs.influxdata.com/influxdb/v2/reference/syntax/line-protocol/#special-characters
_TAG = re.compile(r"(?P<key>(?:\\.|[^\\,=])+)=(?P<value>(?:\\.|[^\\,])*)(?:,|\Z)", re.DOTALL)
_FIELD = re.compile(r"(?P<key>(?:\\.|[^\\,=])+)=(?P<value>\"(?:[^\"\\]|\\.)*\"|[^\",]+)(?:,|\Z)", re.DOTALL)
_TAG_ESCAPE = re.compile(r"\\([,= ])")
_TEXT_ESCAPE = re.compile(r"\\([\"\\])")


def read_point(line: str) -> Point:
    """Return the point of a line; a field's Python type is that of its InfluxDB type.

    Raises:
        ValueError: The text is not exactly one whole line.
    """
    records = read_records(line)
    if len(records) != 1 or records[0].time is None or records[0].text != line:
        message = f"not one whole line: {line!r}"
        raise ValueError(message)
    (record,) = records
    _, _, tags = record.series.partition(",")
    assert record.time is not None
    return Point(
        record.time,
        {key: _TAG_ESCAPE.sub(r"\1", value) for key, value in _pairs(_TAG, tags)},
        {key: _field(value) for key, value in _pairs(_FIELD, record.fields)},
    )


def _pairs(pair: re.Pattern[str], text: str) -> Iterator[tuple[str, str]]:
    position = 0
    while position < len(text):
        match = pair.match(text, position)
        if match is None:
            message = f"no key=value at {text[position:]!r}"
            raise ValueError(message)
        yield match["key"], match["value"]
        position = match.end()


def _field(value: str) -> str | int | float | bool:
    if value.startswith('"'):
        return _TEXT_ESCAPE.sub(r"\1", value[1:-1])
    if value.endswith("i"):
        return int(value[:-1])
    return value == "true" if value in {"true", "false"} else float(value)
