"""Points: the line of InfluxDB that one event becomes."""

import math
from collections.abc import Callable
from typing import Final, NamedTuple

from exporter.clock import ArrivalTimes, Clock, clock_error, fits_int64
from exporter.events import Event
from exporter.lineprotocol import MAX_TEXT_BYTES, clean, format_float, metadata_json, quote, truncate
from exporter.privacy import IdPolicy
from exporter.telemetry import Telemetry

_NS_PER_MS: Final = 1_000_000
_LONG_LINE: Final = MAX_TEXT_BYTES // 4  # characters: no text in a shorter line has too many bytes
_TEXT_FIELDS: Final = (
    "bundle_id",
    "channel",
    "default_channel",
    "custom_id",
    "device_id",
    "install_source",
    "key_id",
    "message",
    "old_version_name",
    "plugin_version",
    "version_build",
    "version_code",
    "version_os",
)


class PointTime(NamedTuple):
    """When a point happened.

    Attributes:
        ns: its time in nanoseconds since 1970.
        device_time_ms: what a wrong clock said, in milliseconds since 1970, else None.
    """

    ns: int
    device_time_ms: int | None


class Details(NamedTuple):
    """The fields that come from the metadata, as they stand in the line."""

    duration: str
    metadata: str


_NO_DETAILS: Final = Details("", "")


class PointEncoder:
    """Turns events into lines; what is cut or corrected on the way is counted."""

    def __init__(
        self,
        *,
        device_ids: IdPolicy,
        custom_ids: IdPolicy,
        max_event_age_seconds: float,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        """Set the rules.

        Args:
            device_ids: what is stored of device ids.
            custom_ids: what is stored of custom ids.
            max_event_age_seconds: the oldest device time that is believed.
            clock: our own time.
            telemetry: where cuts and corrections are counted.
        """
        self._device_ids = device_ids
        self._custom_ids = custom_ids
        self._max_age_ms = int(max_event_age_seconds * 1000)
        self._clock = clock
        self._arrivals = ArrivalTimes(clock)
        self._telemetry = telemetry

    def encode(
        self, event: Event, prefix: str, raw: tuple[tuple[str, str], ...], event_id: int | None, *, is_plain: bool
    ) -> str:
        """Write the line of an event; the event's texts are changed to the form in which they are stored.

        Args:
            event: the event.
            prefix: measurement and tags of its series.
            raw: pairs of field name and text for what the tags do not say.
            event_id: its identity, or None if it has none.
            is_plain: no text needs escaping.
        """
        if event.device_id:
            event.device_id = self._device_ids.apply(event.device_id.lower())
        if event.custom_id:
            event.custom_id = self._custom_ids.apply(event.custom_id.strip())
        if not is_plain:
            _rewrite_texts(event, lambda text: quote(clean(text)))
        time = self._time(event.timestamp, event_id)
        details = self._details(event.metadata) if event.metadata else _NO_DETAILS
        line = f"{prefix}{_fields(event, raw, time, details)} {time.ns}"
        if len(line) > _LONG_LINE:
            raw = self._shorten(event, raw)
            line = f"{prefix}{_fields(event, raw, time, details)} {time.ns}"
        return line

    def _time(self, timestamp_ms: int | None, event_id: int | None) -> PointTime:
        if timestamp_ms is None or event_id is None:
            return PointTime(self._arrivals.next_ns(), None)
        error = clock_error(timestamp_ms, self._clock.wall_ms(), self._max_age_ms)
        if error is None:
            return PointTime(timestamp_ms * _NS_PER_MS + event_id % _NS_PER_MS, None)
        self._telemetry.clock_corrected[error].inc()
        return PointTime(self._arrivals.next_ns(), timestamp_ms)

    def _shorten(self, event: Event, raw: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        """Cut an event's texts to the bounds of a field, and give the raw texts cut alike."""
        cut = 0

        def shorten(text: str) -> str:
            nonlocal cut
            short = truncate(text)
            if short == text:
                return text
            cut += 1
            return _without_half_escape(short)

        _rewrite_texts(event, shorten)
        short_raw = tuple((name, shorten(text)) for name, text in raw)
        if cut:
            self._telemetry.fields_truncated.inc(cut)
        return short_raw

    def _details(self, metadata: dict[str, str]) -> Details:
        text, is_cut = metadata_json(metadata)
        if is_cut:
            self._telemetry.fields_truncated.inc()
        duration = duration_ms(metadata)
        return Details(
            "" if duration is None else f",duration_ms={format_float(duration)}", f',metadata="{quote(clean(text))}"'
        )


def _fields(  # noqa: C901, PLR0912 -- one branch a field, in the order of the line; a loop costs more time
    event: Event, raw: tuple[tuple[str, str], ...], time: PointTime, details: Details
) -> str:
    """Write the fields in alphabetical order; an empty one is left out."""
    file = action_raw = app_id_raw = version_raw = ""
    for name, text in raw:
        if name == "file":
            file = f',file="{quote(clean(text))}"'
        elif name == "action_raw":
            action_raw = f'action_raw="{quote(clean(text))}",'
        elif name == "app_id_raw":
            app_id_raw = f'app_id_raw="{quote(clean(text))}",'
        else:
            version_raw = f',version_raw="{quote(clean(text))}"'
    parts = [action_raw, app_id_raw]
    if event.bundle_id:
        parts.append(f'bundle_id="{event.bundle_id}",')
    channel = event.channel or event.default_channel
    if channel:
        parts.append(f'channel="{channel}",')
    parts.append("count=1i")
    if event.custom_id:
        parts.append(f',custom_id="{event.custom_id}"')
    if event.device_id:
        parts.append(f',device_id="{event.device_id}"')
    if time.device_time_ms is not None and fits_int64(time.device_time_ms):
        parts.append(f",device_time_ms={time.device_time_ms}i")
    parts.append(details.duration)
    parts.append(file)
    if event.install_source:
        parts.append(f',install_source="{event.install_source}"')
    if event.key_id:
        parts.append(f',key_id="{event.key_id}"')
    if event.message:
        parts.append(f',message="{event.message}"')
    parts.append(details.metadata)
    if event.old_version_name:
        parts.append(f',old_version="{event.old_version_name}"')
    if event.plugin_version:
        parts.append(f',plugin_version="{event.plugin_version}"')
    if event.version_build:
        parts.append(f',version_build="{event.version_build}"')
    if event.version_code or event.version_code == 0:
        parts.append(f',version_code="{event.version_code}"')
    if event.version_os:
        parts.append(f',version_os="{event.version_os}"')
    parts.append(version_raw)
    return "".join(parts)


def duration_ms(metadata: dict[str, str]) -> float | None:
    """Read `duration_ms` of the metadata: a finite number of milliseconds, not negative, else None."""
    try:
        duration = float(metadata.get("duration_ms", ""))
    except ValueError:
        return None
    return duration if math.isfinite(duration) and duration >= 0 else None


def _rewrite_texts(event: Event, rewrite: Callable[[str], str]) -> None:
    for name in _TEXT_FIELDS:
        text = getattr(event, name)
        if text.__class__ is str and text:
            setattr(event, name, rewrite(text))


def _without_half_escape(text: str) -> str:
    """Take off a backslash that lost the character it escapes."""
    backslashes = len(text) - len(text.rstrip("\\"))
    return text[:-1] if backslashes % 2 else text
