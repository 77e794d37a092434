"""The labels of an event: normalised, and capped so that no sender can grow the number of series without bound.

A value never moves between series: past its cap, later events of a new value are counted as `other`. The same capped
values are InfluxDB's tags; the raw text then goes into a field.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from exporter.actions import BY_NAME, PLATFORMS
from exporter.caps import CappedValues
from exporter.events import UNKNOWN, Event
from exporter.lineprotocol import clean

OTHER: Final = "other"
_FREE_VERSIONS: Final = frozenset({"builtin", UNKNOWN, OTHER})
_FREE_CHANNELS: Final = frozenset({UNKNOWN, OTHER})
_FREE_APPS: Final = frozenset({UNKNOWN, OTHER})
_MAX_LABEL_LENGTH: Final = 128
_NEW_VERSIONS_AN_HOUR: Final = 20
_NEW_APPS_AN_HOUR: Final = 5


class Labels(NamedTuple):
    """The labels of a series, in the order in which they are shown."""

    app_id: str
    platform: str
    action: str
    version: str
    environment: str


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an event is counted.

    Attributes:
        labels: the labels of its series.
        raw: pairs of field name and text for what the labels do not say: the file of a composite version, values past a
            cap.
    """

    labels: Labels
    raw: tuple[tuple[str, str], ...]


class LabelPolicy:
    """Turns events into labels."""

    def __init__(  # noqa: PLR0913 -- all are settings
        self,
        *,
        max_apps: int,
        max_versions_per_app: int,
        max_unknown_actions: int,
        reserved_apps: Iterable[str],
        is_marked: Callable[[str, str], bool],
        monotonic: Callable[[], float],
        on_overflow: Callable[[str, str], None],
    ) -> None:
        """Set the caps.

        Args:
            max_apps: apps with labels of their own, besides the reserved ones.
            max_versions_per_app: versions of one app with labels of their own.
            max_unknown_actions: actions unknown to the catalogue with labels of their own.
            reserved_apps: apps that always have labels of their own.
            is_marked: tells whether a version of an app was marked as a release; it then has a label of its own.
            monotonic: seconds, for the rates.
            on_overflow: called with the label's name and the value for each event counted as `other`.
        """
        self._max_versions = max_versions_per_app
        self._reserved_apps = frozenset(reserved_apps)
        self._is_marked = is_marked
        self._monotonic = monotonic
        self._on_overflow = on_overflow
        self._apps = CappedValues(max_apps, _NEW_APPS_AN_HOUR, monotonic)
        self._versions: dict[str, CappedValues] = {}
        self._channels: dict[str, CappedValues] = {}
        self._unknown_actions = CappedValues(max_unknown_actions, None, monotonic)

    def place(self, event: Event) -> Placement:
        """Find the labels of an event."""
        raw: list[tuple[str, str]] = []
        version_text, file = split_version(event.version_name or "")
        app_id = self._cap("app_id", event.app_id, self._admit_app, raw)
        action = self._cap("action", event.action, self._admit_action, raw)
        version = UNKNOWN
        if version_text:
            version = self._cap("version", version_text, lambda value: self._admit_version(app_id, value), raw)
        if file:
            raw.append(("file", file))
        platform = (event.platform or "").lower()
        return Placement(
            Labels(app_id, platform if platform in PLATFORMS else OTHER, action, version, environment(event)),
            tuple(raw),
        )

    def place_version(self, app_id: str, version_name: str | None) -> str:
        """Find the label of another version that an event of an app names, such as the one that was replaced."""
        text, _ = split_version(version_name or "")
        return self._cap("version", text, lambda value: self._admit_version(app_id, value), []) if text else UNKNOWN

    def place_channel(self, app_id: str, channel: str | None) -> str:
        """Find the label of an event's channel."""
        return (
            self._cap("channel", channel, lambda value: self._admit_channel(app_id, value), []) if channel else UNKNOWN
        )

    def restore(self, labels: Labels) -> None:
        """Take the places of a series that the journal holds."""
        if labels.app_id not in _FREE_APPS and labels.app_id not in self._reserved_apps:
            self._apps.add(labels.app_id)
        if labels.action not in BY_NAME and labels.action != OTHER:
            self._unknown_actions.add(labels.action)
        self.restore_version(labels.app_id, labels.version)

    def restore_version(self, app_id: str, version: str) -> None:
        """Take the place of a version."""
        if version not in _FREE_VERSIONS:
            self._versions_of(app_id).add(version)

    def restore_channel(self, app_id: str, channel: str) -> None:
        """Take the place of a channel."""
        if channel not in _FREE_CHANNELS:
            self._channels_of(app_id).add(channel)

    def release_channels(self, channels: Iterable[tuple[str, str]]) -> None:
        """Give back the places of channels that no series has any more; a channel comes with its app."""
        for app_id, channel in channels:
            self._channels_of(app_id).discard(channel)

    def release(self, *, apps: Iterable[str], versions: Iterable[tuple[str, str]], actions: Iterable[str]) -> None:
        """Give back the places of values that no series has any more; a version comes with its app."""
        for app_id, version in versions:
            self._versions_of(app_id).discard(version)
        for app_id in apps:
            self._apps.discard(app_id)
            self._versions.pop(app_id, None)
            self._channels.pop(app_id, None)
        for action in actions:
            self._unknown_actions.discard(action)

    @staticmethod
    def is_free_version(version: str) -> bool:
        """Tell whether a version takes no place under the cap."""
        return version in _FREE_VERSIONS

    def crowding(self, app_id: str) -> int:
        """Tell how many versions of an app should make room, so that new ones are taken freely again."""
        versions = self._versions.get(app_id)
        return 0 if versions is None else versions.crowding

    def _cap(self, name: str, text: str, admit: Callable[[str], bool], raw: list[tuple[str, str]]) -> str:
        value = normalise(text)
        label = value or UNKNOWN
        if len(label) > _MAX_LABEL_LENGTH or not admit(label):
            self._on_overflow(name, label[:_MAX_LABEL_LENGTH])
            label = OTHER
        if label != text:
            raw.append((f"{name}_raw", text))
        return label

    def _admit_app(self, value: str) -> bool:
        return value in _FREE_APPS or value in self._reserved_apps or self._apps.admit(value)

    def _admit_action(self, value: str) -> bool:
        return value in BY_NAME or value == OTHER or self._unknown_actions.admit(value)

    def _admit_version(self, app_id: str, value: str) -> bool:
        if value in _FREE_VERSIONS or self._versions_of(app_id).admit(value):
            return True
        if not self._is_marked(app_id, value):
            return False
        self._versions_of(app_id).add(value)
        return True

    def _admit_channel(self, app_id: str, value: str) -> bool:
        return value in _FREE_CHANNELS or self._channels_of(app_id).admit(value)

    def _channels_of(self, app_id: str) -> CappedValues:
        channels = self._channels.get(app_id)
        if channels is None:
            channels = self._channels[app_id] = CappedValues(self._max_versions, _NEW_VERSIONS_AN_HOUR, self._monotonic)
        return channels

    def _versions_of(self, app_id: str) -> CappedValues:
        versions = self._versions.get(app_id)
        if versions is None:
            versions = self._versions[app_id] = CappedValues(self._max_versions, _NEW_VERSIONS_AN_HOUR, self._monotonic)
        return versions


def normalise(text: str) -> str:
    """Make a text fit for a label and a tag: control characters become spaces, backslashes slashes, ends are trimmed.

    A backslash before a comma, a space or the end of a tag has no unambiguous form in line protocol.
    """
    return clean(text).replace("\\", "/").strip()


def split_version(version_name: str) -> tuple[str, str]:
    """Split a composite `1.2.3:assets/main.js` into the version and the file; a colon in front splits nothing."""
    version, colon, file = version_name.partition(":")
    return (version, file) if colon and version else (version_name, "")


def environment(event: Event) -> str:
    """Give the label `environment`: `emulator`, `dev` or `prod`; early clients do not say, and are taken as `prod`."""
    if event.is_emulator:
        return "emulator"
    return "dev" if event.is_prod is False else "prod"
