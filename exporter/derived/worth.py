"""What a sketch is worth, when there is no room for all of them or no figure that needs it."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from exporter.derived.sketches import Sketch, SketchKind

KEPT_VERSIONS: Final = 20
"""Versions of an app whose sketches of a past day are kept: those with the most devices."""
BY_VERSION: Final = frozenset({SketchKind.VERSION, SketchKind.AFFECTED})
"""Kinds of which an app has one for each version."""
PARTNERS: Final = {
    SketchKind.VERSION: SketchKind.AFFECTED,
    SketchKind.AFFECTED: SketchKind.VERSION,
    SketchKind.SUCCEEDED: SketchKind.FAILED,
    SketchKind.FAILED: SketchKind.SUCCEEDED,
}
"""Kinds that are compared with each other: as one without the other gives wrong figures, they are dropped together."""
Worth = tuple[int, bool]


def worth_of(kind: SketchKind, day: int) -> Worth:
    """Tell what a sketch is worth: the later its day the more; on one day, those of versions are worth the least."""
    return (day, kind not in BY_VERSION)


def small_versions(sketches: Iterable[Sketch]) -> list[Sketch]:
    """Find, among a day's sketches of versions, those of the versions past the biggest of their app."""
    by_app = defaultdict(list)
    for sketch in sketches:
        by_app[sketch.app_id].append(sketch)
    small = []
    for of_app in by_app.values():
        versions = [sketch for sketch in of_app if sketch.kind is SketchKind.VERSION]
        versions.sort(key=lambda sketch: (-sketch.devices, sketch.name))
        kept = {sketch.name for sketch in versions[:KEPT_VERSIONS]}
        small += [sketch for sketch in of_app if sketch.name not in kept]
    return small
