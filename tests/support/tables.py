"""Reading tables out of Markdown documents, so that a test can compare them with the code."""

import itertools
import re
from collections.abc import Iterable
from pathlib import Path

_CELL_BORDER = re.compile(r"(?<!\\)\|")
_HEADING = re.compile(r"#{1,6} +(.*?) *#*")


def table_rows(path: Path, heading: str) -> list[list[str]]:
    """Return the cells of the first table under a heading, without its head.

    Args:
        path: A Markdown document.
        heading: The heading's text, without the `#` in front.

    Raises:
        LookupError: The document has no such heading, or no table before the next heading.
    """
    lines = iter(path.read_text(encoding="utf-8").splitlines())
    if not any(_heading(line) == heading for line in lines):
        message = f"{path.name} has no heading {heading!r}"
        raise LookupError(message)
    section = itertools.takewhile(lambda line: _heading(line) is None, _outside_code(lines))
    table = itertools.dropwhile(lambda line: not line.startswith("|"), section)
    rows = [_cells(line) for line in itertools.takewhile(lambda line: line.startswith("|"), table)]
    if not rows:
        message = f"{path.name} has no table under {heading!r}"
        raise LookupError(message)
    return rows[2:]


def _heading(line: str) -> str | None:
    match = _HEADING.fullmatch(line)
    return None if match is None else match[1]


def _outside_code(lines: Iterable[str]) -> Iterable[str]:
    """Leave out code blocks, in which `#` begins a comment."""
    in_code = False
    for line in lines:
        if line.startswith("```"):
            in_code = not in_code
        elif not in_code:
            yield line


def _cells(line: str) -> list[str]:
    return [cell.strip().replace(r"\|", "|") for cell in _CELL_BORDER.split(line.strip())[1:-1]]
