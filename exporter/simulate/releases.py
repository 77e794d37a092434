"""What a release pipeline marks: each release, and each time when its rollout is raised."""

from exporter.journal.derived_records import MarkRow
from exporter.simulate.scenario import HOUR_MS, Scenario


def marks(scenario: Scenario, start_ms: int) -> list[MarkRow]:
    """Give the marks of a scenario's releases from its beginning on, in order.

    Args:
        scenario: what is released.
        start_ms: when it begins, in milliseconds since 1970.
    """
    found = [
        MarkRow(
            app_id=scenario.app_id,
            version=release.version,
            channel="production",
            marked_ms=start_ms + int((release.start_hours + hours) * HOUR_MS),
            rollout_percentage=round(share * 100, 1),
            note="",
        )
        for release in scenario.releases
        for hours, share in release.rollout
    ]
    return sorted((mark for mark in found if mark.marked_ms >= start_ms), key=lambda mark: mark.marked_ms)
