"""Reading line protocol on the server's side: one gzip member, records, points."""

import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

# Series and fields end at a space that is neither escaped nor inside quotes. Quotes count in the field part only, and a
# quoted text may hold newlines, so a record is not the same as a line of text.
# Source: https://docs.influxdata.com/influxdb/v2/reference/syntax/line-protocol/
_RECORD = re.compile(
    r"(?P<series>(?:[^\\ \n]|\\.)+)"
    r" +(?P<fields>(?:\"(?:[^\"\\]|\\.)*\"|\\.|[^\"\\ \n])+)"
    r"(?: +(?P<time>-?\d+))? *(?:\n|\Z)",
    re.DOTALL,
)
_GZIP_WINDOW = zlib.MAX_WBITS | 16


class Record(NamedTuple):
    """One record of line protocol; a record that cannot be read has its text as `series`."""

    text: str
    series: str
    fields: str
    time: int | None


class GzipError(ValueError):
    """A body that is not exactly one whole gzip member."""


def gunzip_one_member(body: bytes) -> bytes:
    """Decompress a body that must be exactly one gzip member.

    InfluxDB 3.0 to 3.7 reads the first member only and answers as if it had read all.

    Raises:
        GzipError: The body is no gzip, is cut short, or goes on after the first member.
    """
    decompressor = zlib.decompressobj(_GZIP_WINDOW)
    try:
        data = decompressor.decompress(body)
    except zlib.error as error:
        message = f"the body is not gzip: {error}"
        raise GzipError(message) from error
    if not decompressor.eof:
        message = f"the gzip body of {len(body)} bytes is cut short"
        raise GzipError(message)
    if decompressor.unused_data:
        message = f"{len(decompressor.unused_data)} bytes follow the first gzip member"
        raise GzipError(message)
    return data


def read_records(text: str) -> list[Record]:
    """Split a write's text into its records, blank lines left out."""
    return list(_records(text))


def _records(text: str) -> Iterator[Record]:
    position = 0
    while position < len(text):
        match = _RECORD.match(text, position)
        if match:
            time = match["time"]
            yield Record(match[0].rstrip("\n"), match["series"], match["fields"], int(time) if time else None)
            position = match.end()
            continue
        line, _, _ = text[position:].partition("\n")
        if line.strip():
            yield Record(line, line, "", None)
        position += len(line) + 1
