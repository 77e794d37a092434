"""Releases: when a version was first seen in production, and which versions of an app are the newest ones.

A version is ranked only once it is established: so many devices run it, or it has its share of the app's installs. A
developer's `999.0.0`, or a version that somebody invented, is not the newest release.
"""

import bisect
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from semver import Version

from exporter.journal.derived_records import ReleaseRow
from exporter.labels import LabelPolicy

ESTABLISHED_DEVICES: Final = 20
"""A version that so many devices run is established; of more devices nothing is kept."""

ESTABLISHED_PERCENT: Final = 1
"""A version with this share of its app's installs is established, if `SHARED_DEVICES` run it."""

SHARED_DEVICES: Final = 2
"""Devices that must run a version besides its share of the installs.

In an app of at most 100 installs a single one is 1 %: without this bound every build on a developer's own phone would
be a release there. And one device can make as many installs as it likes, in any app.
"""

RANKS: Final = 5
"""Versions of an app that have a rank, in each order."""

_HASH_BYTES: Final = 8
_MAX_PARSED_LENGTH: Final = 128  # that of a label: Python refuses to read numbers of more than 4,300 digits
_NO_VERSION: Final = Version(0)

_Position = tuple[Version, int, str]


@dataclass(slots=True, eq=False)
class Release:
    """A version of an app.

    Attributes:
        app_id: the app.
        version: the version, as its label says.
        first_seen_ms: when its first event arrived.
        devices: hashes of the first devices that were seen to run it.
        shown_first_seen: whether the journal has it.
        shown_devices: how many of the devices the journal has.
    """

    app_id: str
    version: str
    first_seen_ms: int
    devices: set[int] = field(default_factory=set)
    shown_first_seen: bool = False
    shown_devices: int = 0


@dataclass(slots=True, eq=False)
class _Orders:
    """The releases of one app that the journal has, oldest first; both lists keep their order while they grow."""

    by_semver: list[tuple[_Position, Release]] = field(default_factory=list)
    by_first_seen: list[tuple[int, bool, Version, str, Release]] = field(default_factory=list)

    def add(self, release: Release) -> None:
        # No two releases of an app have the same text, so that comparisons never come to the release itself.
        parsed = parse(release.version)
        first_seen = (release.first_seen_ms, parsed is not None, parsed or _NO_VERSION, release.version, release)
        bisect.insort(self.by_first_seen, first_seen)
        if parsed is not None:
            bisect.insort(self.by_semver, ((parsed, release.first_seen_ms, release.version), release))

    def discard(self, release: Release) -> None:
        self.by_first_seen = [entry for entry in self.by_first_seen if entry[-1] is not release]
        self.by_semver = [entry for entry in self.by_semver if entry[-1] is not release]


class Releases:
    """All versions of all apps."""

    def __init__(self, installs: Callable[[], Mapping[str, Mapping[str, int]]]) -> None:
        """Make an empty store.

        Args:
            installs: gives the stored production installs by app and version.
        """
        self._installs = installs
        self._releases: dict[tuple[str, str], Release] = {}
        self._orders: dict[str, _Orders] = {}

    def observe(self, app_id: str, version: str, device: int | None, now_ms: int) -> Release | None:
        """Take an event of a production device.

        Args:
            app_id: the app's label.
            version: the version's label.
            device: a hash of the device of at most 64 bits, if the event shows that the version runs on it.
            now_ms: when the event arrived.

        Returns:
            The release, if it is new or has a new device and is to be stored, else None.
        """
        release = self._releases.get((app_id, version))
        if release is None:
            if LabelPolicy.is_free_version(version):
                return None
            release = self._releases[app_id, version] = Release(app_id, version, now_ms)
        elif device is None or len(release.devices) >= ESTABLISHED_DEVICES or device in release.devices:
            return None
        if device is not None:
            release.devices.add(device)
        return release

    @staticmethod
    def row(release: Release) -> ReleaseRow:
        """Give what the journal stores of a release as it is now."""
        devices = array("Q", sorted(release.devices)).tobytes()
        return ReleaseRow(release.app_id, release.version, release.first_seen_ms, devices)

    def mark_stored(self, rows: Iterable[ReleaseRow]) -> None:
        """Show what rows say, once they are committed; rows of releases that are gone are left alone."""
        for row in rows:
            release = self._releases.get((row.app_id, row.version))
            if release is not None:
                self._show(release, len(row.devices) // _HASH_BYTES)

    def forget(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Take out releases by app and version, once their deletion is committed."""
        for pair in pairs:
            release = self._releases.pop(pair, None)
            if release is not None and release.shown_first_seen:
                self._orders[release.app_id].discard(release)

    def restore(self, rows: Iterable[ReleaseRow]) -> None:
        """Take over what the journal holds.

        Raises:
            ValueError: if a row is damaged; nothing is taken over then.
        """
        releases = [_read(row) for row in rows]
        for release in releases:
            self._releases[release.app_id, release.version] = release
            self._show(release, len(release.devices))

    def clear(self) -> None:
        """Forget everything."""
        self._releases.clear()
        self._orders.clear()

    def collect(self) -> Iterator[Metric]:
        """Give the families with their present values."""
        first_seen = GaugeMetricFamily(
            "capgo_version_first_seen_timestamp_seconds",
            "When the first event of a production device with this version arrived.",
            labels=["app_id", "version"],
        )
        ranks = InfoMetricFamily(
            "capgo_version_rank",
            "The newest versions of an app that are established in production (20 devices, or 1 % of its installs), "
            "by semantic version and by when they were first seen; rank 1 is the newest.",
            labels=["app_id", "version", "order", "rank"],
        )
        installs = self._installs()
        for app_id, orders in self._orders.items():
            for first_seen_ms, _, _, version, _ in orders.by_first_seen:
                first_seen.add_metric([app_id, version], first_seen_ms / 1000)
            for order, newest in _newest(orders, installs.get(app_id, {})).items():
                for rank, version in enumerate(newest, start=1):
                    ranks.add_metric([app_id, version, order, str(rank)], {})
        yield first_seen
        yield ranks

    def _show(self, release: Release, devices: int) -> None:
        release.shown_devices = devices
        if not release.shown_first_seen:
            release.shown_first_seen = True
            self._orders.setdefault(release.app_id, _Orders()).add(release)


def _newest(orders: _Orders, installs: Mapping[str, int]) -> dict[str, list[str]]:
    """Give an app's established versions in each order, newest first, as many as have a rank."""
    total = sum(installs.values())

    def newest(releases: Iterable[Release]) -> list[str]:
        versions: list[str] = []
        for release in releases:
            if is_established(release.shown_devices, installs.get(release.version, 0), total):
                versions.append(release.version)
                if len(versions) == RANKS:
                    break
        return versions

    return {
        "semver": newest(release for _, release in reversed(orders.by_semver)),
        "first_seen": newest(release for *_, release in reversed(orders.by_first_seen)),
    }


def is_established(devices: int, installs: int, all_installs: int) -> bool:
    """Tell whether a version counts as a release of its app.

    Args:
        devices: devices that were seen to run it.
        installs: its installs.
        all_installs: those of all versions of the app.
    """
    if devices >= ESTABLISHED_DEVICES:
        return True
    return devices >= SHARED_DEVICES and installs > 0 and installs * 100 >= all_installs * ESTABLISHED_PERCENT


def parse(version: str) -> Version | None:
    """Read a semantic version; a `v` in front and a missing minor or patch number are tolerated, nothing else is."""
    if len(version) > _MAX_PARSED_LENGTH:
        return None
    try:
        return Version.parse(version.removeprefix("v"), optional_minor_and_patch=True)
    except ValueError:
        return None


def _read(row: ReleaseRow) -> Release:
    devices = array("Q")
    if not row.app_id or not row.version or LabelPolicy.is_free_version(row.version) or row.first_seen_ms < 0:
        raise _damaged(row)
    try:
        devices.frombytes(row.devices)
    except ValueError:
        raise _damaged(row) from None
    distinct = set(devices)
    if len(distinct) != len(devices) or len(distinct) > ESTABLISHED_DEVICES:
        raise _damaged(row)
    return Release(row.app_id, row.version, row.first_seen_ms, distinct)


def _damaged(row: ReleaseRow) -> ValueError:
    return ValueError(
        f"a release is damaged: app {row.app_id!r}, version {row.version!r}, first seen {row.first_seen_ms} ms, "
        f"{len(row.devices)} bytes of devices"
    )
