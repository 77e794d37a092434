"""Reports: the events of a device, and what became of them."""

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from exporter.clock import MAX_AHEAD_MS

LATE_MS: Final = 3_600_000
DAY_MS: Final = 86_400_000
MAX_AGE_MS: Final = 7 * DAY_MS
COMPLETES: Final = ("download_complete", "download_zip_complete", "download_manifest_complete")


class Track(NamedTuple):
    """Whose figures they are."""

    app_id: str
    platform: str
    version: str
    environment: str


@dataclass(slots=True, eq=False)
class Report:
    """One event of a device.

    Attributes:
        body: as it is sent.
        track: whose figures it belongs to.
        channel: the label of its channel.
        is_failure: whether it says that an update failed; false for the false failures of old plugins.
        arrived_ms: when it was first taken by a server; None: not yet, or never.
    """

    body: dict[str, Any]
    track: Track
    channel: str
    is_failure: bool
    arrived_ms: int | None = None

    @property
    def action(self) -> str:
        """What happened."""
        return str(self.body["action"])

    @property
    def reason(self) -> str:
        """Why an update failed; `set_fail` is a roll-back on electron, also where that says it is android."""
        is_disguised = self.action == "set_fail" and self.track.platform != "electron"
        return "update_fail" if is_disguised else self.action

    @property
    def device_id(self) -> str:
        """Whose event it is, in lower case."""
        return str(self.body["device_id"]).lower()

    @property
    def device_ms(self) -> int | None:
        """The device's time, if it says one that is believed on arrival."""
        said_ms: int | None = self.body.get("timestamp")
        if said_ms is None or self.arrived_ms is None:
            return None
        return said_ms if -MAX_AHEAD_MS <= self.arrived_ms - said_ms <= MAX_AGE_MS else None

    @property
    def time_ms(self) -> int:
        """When it happened, as far as a server can know; 0 if none knows."""
        device_ms = self.device_ms
        return (self.arrived_ms or 0) if device_ms is None else device_ms

    @property
    def is_late(self) -> bool:
        """Whether it came more than an hour late."""
        said_ms: int | None = self.body.get("timestamp")
        return said_ms is not None and self.arrived_ms is not None and self.arrived_ms - said_ms > LATE_MS

    @property
    def counts(self) -> bool:
        """Whether it was taken, and in time."""
        return self.arrived_ms is not None and not self.is_late

    @property
    def is_end(self) -> bool:
        """Whether it ends a download."""
        return self.is_failure or self.action in COMPLETES
