"""The journal's records of derived state: plain data that knows neither SQLite nor the event loop."""

from dataclasses import dataclass, field
from typing import NamedTuple


class SketchRow(NamedTuple):
    """One day's sketch of distinct devices.

    `sketch` is its serialised form as of the last snapshot, None before the first; sightings since then stand in
    the log. `day` is the number of days since 1970.
    """

    sketch_id: int
    app_id: str
    kind: str
    name: str
    day: int
    sketch: bytes | None


class ReleaseRow(NamedTuple):
    """A version of an app as it was reached by devices: `devices` holds the hashes of the first ones, 8 bytes each."""

    app_id: str
    version: str
    first_seen_ms: int
    devices: bytes


class MarkRow(NamedTuple):
    """A release that somebody marked; texts that were not given are empty, the percentage is then None."""

    app_id: str
    version: str
    channel: str
    marked_ms: int
    rollout_percentage: float | None
    note: str


@dataclass(slots=True)
class DerivedChanges:
    """What a transaction changes in the derived state.

    Attributes:
        episodes: the states of changed episodes, for a row of their log.
        episodes_until: rows of the episodes' log below this transaction number are no longer needed.
        installed: pairs of device and version to remember.
        new_sketches: sketches to insert.
        snapshots: pairs of serialised sketch and id; they make the log of sightings up to now unneeded.
        dropped_sketches: ids of sketches to delete.
        sightings: devices seen, for a row of their log: for each sketch its id, a count and so many hashes.
        releases: versions whose state changed.
        forgotten_releases: pairs of app and version to delete.
        marks: releases that were marked.
        forgotten_marks: triples of app, version and channel to delete.
    """

    episodes: bytes | None = None
    episodes_until: int = 0
    installed: list[int] = field(default_factory=list)
    new_sketches: list[SketchRow] = field(default_factory=list)
    snapshots: list[tuple[bytes, int]] = field(default_factory=list)
    dropped_sketches: list[int] = field(default_factory=list)
    sightings: bytes | None = None
    releases: list[ReleaseRow] = field(default_factory=list)
    forgotten_releases: list[tuple[str, str]] = field(default_factory=list)
    marks: list[MarkRow] = field(default_factory=list)
    forgotten_marks: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RestoredDerived:
    """What the journal held of derived state.

    Attributes:
        episodes: pairs of transaction number and blob, oldest first.
        installed: pairs of device and version, oldest first.
        sketches: all sketches.
        sightings: blobs, oldest first.
        releases: all versions' states.
        marks: all marked releases.
        damage: why nothing of it could be read; empty if it could.
    """

    episodes: list[tuple[int, bytes]] = field(default_factory=list)
    installed: list[int] = field(default_factory=list)
    sketches: list[SketchRow] = field(default_factory=list)
    sightings: list[bytes] = field(default_factory=list)
    releases: list[ReleaseRow] = field(default_factory=list)
    marks: list[MarkRow] = field(default_factory=list)
    damage: str = ""
