"""What a group of events changes in the derived state, besides its series."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exporter.derived.episode import Episode
    from exporter.derived.releases import Release
    from exporter.derived.sketches import Sketch


@dataclass(slots=True)
class Staged:
    """What a group of events changes in the derived state, besides its series.

    Attributes:
        episodes: those that changed.
        installed: pairs of device and version to remember.
        sightings: devices seen, by their hashes.
        releases: versions that are new or reached more devices.
        skipped: how many events a figure left out, by reason.
    """

    episodes: dict["Episode", None] = field(default_factory=dict)
    installed: list[int] = field(default_factory=list)
    sightings: dict["Sketch", list[int]] = field(default_factory=dict)
    releases: dict["Release", None] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)

    def skip(self, reason: str, count: int = 1) -> None:
        """Note that a figure left events out."""
        self.skipped[reason] = self.skipped.get(reason, 0) + count
