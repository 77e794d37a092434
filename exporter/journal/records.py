"""What goes into the journal and what comes out of it: plain data that knows neither SQLite nor the event loop."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from exporter.journal.derived_records import DerivedChanges, RestoredDerived


class Birth(IntEnum):
    """How much of a series Prometheus may see; each step is committed before it is shown."""

    HIDDEN = 0
    ZERO = 1
    FULL = 2


class SeriesRow(NamedTuple):
    """A series as it is stored.

    `labels` is a JSON array of its label values, `birth` a value of `Birth`, `last_ms` milliseconds since 1970.
    """

    series_id: int
    family: str
    labels: str
    value: int
    birth: int
    last_ms: int


ValueRow = tuple[int, int, int]
"""A new value of a stored series, when its last event arrived in milliseconds since 1970, and its id."""


class BirthRow(NamedTuple):
    """How much of a stored series may be shown from now on."""

    birth: int
    series_id: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Lines that InfluxDB refuses for good.

    Attributes:
        reason: a word for the metric, such as `refused` or `too_large`.
        error: what InfluxDB said.
        lines: the lines of line protocol.
    """

    reason: str
    error: str
    lines: list[str]


@dataclass(slots=True)
class Retry:
    """Dead letters that wait for InfluxDB again.

    Attributes:
        letters: their ids; those that are not there, and damaged ones, are passed over.
        points: how many points wait again, once it is stored.
    """

    letters: list[int]
    points: int = 0


@dataclass(slots=True)
class Discard:
    """Dead letters that are deleted.

    Attributes:
        letters: their ids; those that are not there are passed over.
        points: how many points are gone, once it is stored.
    """

    letters: list[int]
    points: int = 0


@dataclass(slots=True)
class Forget:
    """A device whose points are deleted.

    Attributes:
        ids: its ids, as they stand in lines.
        groups: numbers of groups that may hold some; those that are not there are passed over.
        letters: ids of dead letters that may hold some; the same.
        points: how many waiting points are gone, once it is stored.
        dead_letter_points: the same of dead letters.
    """

    ids: tuple[str, ...]
    groups: list[int] = field(default_factory=list)
    letters: list[int] = field(default_factory=list)
    points: int = 0
    dead_letter_points: int = 0


Edit = Retry | Discard | Forget


@dataclass(slots=True)
class Transaction:
    """Everything that is stored together or not at all.

    Attributes:
        number: rises by one with each transaction; the journal keeps the last one.
        now_ms: when it was put together, in milliseconds since 1970.
        new_series: series to insert.
        values: new values of stored series.
        births: how much of stored series may be shown.
        expired_series: ids of series to delete.
        expired_events: the sum of their values, added to the journal's total.
        event_ids: identities to remember, oldest first.
        lines: points for InfluxDB.
        delivered: numbers of groups that InfluxDB has.
        dead_letters: lines that InfluxDB refuses.
        derived: changes of the derived state; None if there are none.
        edits: what an operator changes.
    """

    number: int
    now_ms: int
    new_series: list[SeriesRow] = field(default_factory=list)
    values: list[ValueRow] = field(default_factory=list)
    births: list[BirthRow] = field(default_factory=list)
    expired_series: list[int] = field(default_factory=list)
    expired_events: int = 0
    event_ids: list[int] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    delivered: list[int] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    derived: DerivedChanges | None = None
    edits: list[Edit] = field(default_factory=list)


@dataclass(slots=True)
class Totals:
    """The journal's totals, as of a transaction.

    Attributes:
        last_transaction: the number of the last one stored.
        expired_events: events whose series are gone.
        points: points that wait for InfluxDB.
        bytes: their compressed size, with the rows' overhead.
        event_ids: identities remembered.
        dead_letter_points: points that InfluxDB refused and that are kept.
        dead_letter_bytes: their compressed size.
        oldest_point_ms: when the oldest waiting group was stored, in milliseconds since 1970; None if none waits.
    """

    last_transaction: int = 0
    expired_events: int = 0
    points: int = 0
    bytes: int = 0
    event_ids: int = 0
    dead_letter_points: int = 0
    dead_letter_bytes: int = 0
    oldest_point_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """What a transaction did.

    Attributes:
        totals: the journal's totals after it.
        gone: numbers of the groups that left the journal.
        rewritten: numbers of the groups that hold less by an operator's edits.
        delivered_points: points that left the journal because InfluxDB has them, dead letters included.
        dropped: numbers of the groups dropped because the journal was full, and their points.
        dropped_dead_letter_points: points dropped because there were too many dead letters.
    """

    totals: Totals
    gone: list[int] = field(default_factory=list)
    rewritten: list[int] = field(default_factory=list)
    delivered_points: int = 0
    dropped: dict[int, int] = field(default_factory=dict)
    dropped_dead_letter_points: int = 0


class PointsRow(NamedTuple):
    """One group's points as they are stored: `lines` is one gzip member."""

    number: int
    points: int
    lines: bytes


@dataclass(frozen=True, slots=True)
class Restored:
    """What the journal held when it was opened.

    Attributes:
        totals: its totals.
        series: all series.
        event_ids: pairs of the time of remembering, in milliseconds since 1970, and identities, oldest first.
        derived: the derived state.
        is_recounted: whether the totals were noted otherwise, and are counted anew.
    """

    totals: Totals
    series: list[SeriesRow]
    event_ids: list[tuple[int, list[int]]]
    derived: RestoredDerived
    is_recounted: bool = False
