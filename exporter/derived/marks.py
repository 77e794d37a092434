"""Marked releases: what somebody told about a release, as metrics and as points for annotations.

A mark belongs to a version of an app on a channel; a later one of the same three replaces it, as when a rollout is
raised.
"""

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from prometheus_client.core import GaugeMetricFamily, Metric

from exporter.journal.derived_records import MarkRow
from exporter.labels import normalise
from exporter.lineprotocol import clean, format_float, quote

MAX_MARKS: Final = 500
"""Marks that are kept in all: past it the oldest goes."""

MAX_MARKS_PER_APP: Final = 50
"""Marks that are kept of one app: past it the app's oldest goes."""

MEASUREMENT: Final = "capgo_releases"

_LABELS: Final = ("app_id", "version", "channel")
_NS_PER_MS: Final = 1_000_000
_FULL_ROLLOUT: Final = 100
# Marks hold normalised texts: no control characters, no backslashes.
_TAG = str.maketrans({",": r"\,", "=": r"\=", " ": r"\ "})

Key = tuple[str, str, str]
"""App, version and channel."""


class MarkChanges(NamedTuple):
    """What one transaction changes.

    Attributes:
        rows: marks to store.
        forgotten: keys of marks to delete.
    """

    rows: list[MarkRow]
    forgotten: list[Key]


class Marks:
    """The marks that the journal has, the one marked last at the end."""

    def __init__(self) -> None:
        """Make an empty store."""
        self._marks: dict[Key, MarkRow] = {}
        self._versions: set[tuple[str, str]] = set()

    def prepare(self, marks: Iterable[MarkRow]) -> MarkChanges:
        """Tell what the next transaction must store so that it holds these marks too; nothing changes yet.

        Of several marks with one key only the last is stored. The transaction must end before the next one is prepared.
        """
        after = dict(self._marks)
        for mark in marks:
            _put(after, mark)
        return MarkChanges(
            rows=[mark for key, mark in after.items() if self._marks.get(key) is not mark],
            forgotten=[key for key in self._marks if key not in after],
        )

    def apply(self, changes: MarkChanges) -> None:
        """Show what was prepared, once it is committed."""
        for key in changes.forgotten:
            self._marks.pop(key, None)
        for mark in changes.rows:
            self._marks.pop(_key(mark), None)
            self._marks[_key(mark)] = mark
        self._note_versions()

    def restore(self, rows: Iterable[MarkRow]) -> None:
        """Take over what the journal holds.

        Raises:
            ValueError: if a row is damaged; nothing is taken over then.
        """
        marks = sorted(rows, key=lambda row: row.marked_ms)
        for mark in marks:
            _check(mark)
        self._marks.update((_key(mark), mark) for mark in marks)
        self._note_versions()

    def has(self, app_id: str, version: str) -> bool:
        """Tell whether a version of an app is marked, on whatever channel."""
        return (app_id, version) in self._versions

    def clear(self) -> None:
        """Forget everything."""
        self._marks.clear()
        self._note_versions()

    def collect(self) -> Iterator[Metric]:
        """Give the families with their present values."""
        timestamp = GaugeMetricFamily(
            "capgo_release_timestamp_seconds", "When this release was last marked by POST /releases.", labels=_LABELS
        )
        rollout = GaugeMetricFamily(
            "capgo_release_rollout_ratio",
            "Share of the devices that this release was last marked to be rolled out to, 0 to 1.",
            labels=_LABELS,
        )
        for key, mark in self._marks.items():
            timestamp.add_metric(key, mark.marked_ms / 1000)
            if mark.rollout_percentage is not None:
                rollout.add_metric(key, mark.rollout_percentage / _FULL_ROLLOUT)
        yield timestamp
        yield rollout

    def _note_versions(self) -> None:
        self._versions = {(app_id, version) for app_id, version, _ in self._marks}


def line(mark: MarkRow) -> str:
    """Write the point of a mark, for annotations: equal to `influxdb_client.Point.to_line_protocol`."""
    tags = (("app_id", mark.app_id), ("channel", mark.channel), ("version", mark.version))
    series = "".join(f",{name}={text.translate(_TAG)}" for name, text in tags if text)
    fields = [f'title="{_text(title(mark))}"']
    if mark.rollout_percentage is not None:
        fields.insert(0, f"rollout_percentage={format_float(mark.rollout_percentage)}")
    if mark.note:
        fields.insert(0, f'note="{_text(mark.note)}"')
    return f"{MEASUREMENT}{series} {','.join(fields)} {mark.marked_ms * _NS_PER_MS}"


def title(mark: MarkRow) -> str:
    """Say what was released, such as `2.3.0 to production at 10 %`."""
    channel = f" to {mark.channel}" if mark.channel else ""
    rollout = "" if mark.rollout_percentage is None else f" at {format_float(mark.rollout_percentage)} %"
    return f"{mark.version}{channel}{rollout}"


def _text(text: str) -> str:
    return quote(clean(text))


def _key(mark: MarkRow) -> Key:
    return mark.app_id, mark.version, mark.channel


def _put(marks: dict[Key, MarkRow], mark: MarkRow) -> None:
    """Put a mark at the end, after making room for it."""
    marks.pop(_key(mark), None)
    of_app = [key for key in marks if key[0] == mark.app_id]
    for key in of_app[: max(0, len(of_app) - MAX_MARKS_PER_APP + 1)]:
        del marks[key]
    for key in list(marks)[: max(0, len(marks) - MAX_MARKS + 1)]:
        del marks[key]
    marks[_key(mark)] = mark


def _check(mark: MarkRow) -> None:
    texts = (mark.app_id, mark.version, mark.channel)
    rollout = mark.rollout_percentage
    if (
        not mark.app_id
        or not mark.version
        or any(normalise(text) != text for text in texts)
        or mark.marked_ms < 0
        or not (rollout is None or 0 <= rollout <= _FULL_ROLLOUT)
    ):
        message = f"a marked release is damaged: {mark._replace(note='')}"
        raise ValueError(message)
