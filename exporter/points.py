"""Points: the line of InfluxDB that one event becomes."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from exporter.clock import MAX_AHEAD_MS, ArrivalTimes, Clock, fits_int64
from exporter.events import Event
from exporter.lineprotocol import MAX_TEXT_BYTES, clean, format_float, metadata_json, quote, truncate
from exporter.privacy import IdPolicy
from exporter.telemetry import Telemetry

_NS_PER_MS: Final = 1_000_000
_LONG_LINE: Final = MAX_TEXT_BYTES // 4  # characters: no text in a shorter line has too many bytes
_json = msgspec.json.Encoder()

Raw = tuple[tuple[str, str], ...]
"""Pairs of field name and text for what the tags do not say."""

_Profile = tuple[str | int | None, ...]

_ERROR_TEXTS: Final = frozenset({"message", "source", "href", "stack"})
"""Metadata keys under which the plugin sends the texts of errors, which may hold anything."""


class _Texts(NamedTuple):
    """What the lines of one device have in common: fields in alphabetical order, as they stand in the line.

    Attributes:
        first: up to `device_id`.
        middle: from `install_source` to `message`.
        last: from `plugin_version` to `version_os`.
        whole: all of them; what a line has if its event says nothing else.
    """

    first: str
    middle: str
    last: str
    whole: str


_Details = tuple[str, str, str]
"""Fields that differ from event to event of one device: `duration_ms`, `metadata`, `old_version`; else empty texts.

No NamedTuple: making one takes as long as writing two of the fields.
"""

_NO_DETAILS: Final = ("", "", "")


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
        self._arrivals = ArrivalTimes(clock)
        self._telemetry = telemetry
        self._profile: _Profile = ()
        self._texts = _Texts("", "", "", "")

    def encode(
        self,
        events: Sequence[Event],
        prefixes: Iterable[str],
        ids: Sequence[int | None],
        raw: Mapping[int, Raw],
        now_ms: int,
    ) -> list[str]:
        """Write the lines of events.

        Args:
            events: the events.
            prefixes: for each, measurement and tags of its series.
            ids: for each, its identity, or None if it has none.
            raw: by an event's index, what the tags do not say of it.
            now_ms: when they arrived, in milliseconds since 1970.
        """
        times, wrong = self._times(events, ids, now_ms)
        unusual = raw.keys() | wrong
        lines = []
        first, middle, last, whole = self._texts
        for index, (event, prefix, time) in enumerate(zip(events, prefixes, _decimals(times), strict=True)):
            # A batch comes from one device, so most of a line is written once for all its events.
            profile = (
                event.device_id,
                event.channel,
                event.default_channel,
                event.custom_id,
                event.bundle_id,
                event.install_source,
                event.key_id,
                event.message,
                event.plugin_version,
                event.version_build,
                event.version_code,
                event.version_os,
            )
            if profile != self._profile:
                first, middle, last, whole = self._texts = self._common(event, _escape)
                self._profile = profile
            details = _NO_DETAILS
            fields = whole
            if event.metadata or event.old_version_name:
                duration, metadata, old_version = details = self._details(event)
                fields = f"{first}{duration}{middle}{metadata}{old_version}{last}"
            line = f"{prefix}{fields} {time}"
            if index in unusual or len(line) > _LONG_LINE:
                more = _fields(self._texts, details, raw.get(index, ()), wrong.get(index))
                line = f"{prefix}{more} {time}"
                if len(line) > _LONG_LINE:
                    short = self._shortened(event, details, raw.get(index, ()), wrong.get(index))
                    line = f"{prefix}{short} {time}"
            lines.append(line)
        return lines

    def _times(
        self, events: Iterable[Event], ids: Iterable[int | None], now_ms: int
    ) -> tuple[list[int], dict[int, int]]:
        """Give the times of points in nanoseconds, and by index the device's time in milliseconds where it is wrong."""
        times: list[int] = []
        wrong: dict[int, int] = {}
        for event, event_id in zip(events, ids, strict=True):
            timestamp_ms = event.timestamp
            if timestamp_ms is None or event_id is None:
                times.append(self._arrivals.next_ns())
            elif now_ms - self._max_age_ms <= timestamp_ms <= now_ms + MAX_AHEAD_MS:
                times.append(timestamp_ms * _NS_PER_MS + event_id % _NS_PER_MS)
            else:
                direction = "future" if timestamp_ms > now_ms else "past"
                self._telemetry.clock_corrected[direction].inc()
                wrong[len(times)] = timestamp_ms
                times.append(self._arrivals.next_ns())
        return times, wrong

    def _shortened(self, event: Event, details: _Details, raw: Raw, wrong_ms: int | None) -> str:
        """Write all fields, with texts that are too long cut."""
        shorten = _Shortener()
        texts = self._common(event, lambda text: shorten(_escape(text)))
        short_raw = tuple((name, shorten(text)) for name, text in raw)
        old_version = _field("old_version", event.old_version_name, lambda text: shorten(_escape(text)))
        if shorten.cut:
            self._telemetry.fields_truncated.inc(shorten.cut)
        duration, metadata, _ = details
        return _fields(texts, (duration, metadata, old_version), short_raw, wrong_ms)

    def _common(self, event: Event, write: Callable[[str], str]) -> _Texts:
        """Write what a device's lines have in common; an empty field is left out.

        Args:
            event: one of the device's events.
            write: gives the form in which a text that is not empty stands between the quotes.
        """

        def field(name: str, value: str | int | None) -> str:
            return _field(name, value, write)

        device_id = self._device_ids.apply((event.device_id or "").lower())
        custom_id = self._custom_ids.apply((event.custom_id or "").strip())
        before = field("bundle_id", event.bundle_id) + field("channel", event.channel or event.default_channel)
        first = f"{before},count=1i{field('custom_id', custom_id)}{field('device_id', device_id)}".removeprefix(",")
        middle = (
            field("install_source", event.install_source)
            + field("key_id", event.key_id)
            + field("message", event.message)
        )
        last = (
            field("plugin_version", event.plugin_version)
            + field("version_build", event.version_build)
            + field("version_code", event.version_code)
            + field("version_os", event.version_os)
        )
        return _Texts(first, middle, last, first + middle + last)

    def _details(self, event: Event) -> _Details:
        """Write what differs from event to event."""
        old_version = _field("old_version", event.old_version_name, _escape) if event.old_version_name else ""
        if not event.metadata:
            return "", "", old_version
        text, is_cut = metadata_json(event.metadata)
        if is_cut:
            self._telemetry.fields_truncated.inc()
        duration = duration_ms(event.metadata)
        duration_field = "" if duration is None else f",duration_ms={format_float(duration)}"
        return duration_field, f',metadata="{_escape(text)}"', old_version


class DiscreetEncoder(PointEncoder):
    """Leaves the texts of errors out; a class of its own, so that keeping them costs nothing."""

    def _common(self, event: Event, write: Callable[[str], str]) -> _Texts:
        return super()._common(msgspec.structs.replace(event, message=None), write)

    def _details(self, event: Event) -> _Details:
        kept = {key: text for key, text in (event.metadata or {}).items() if key not in _ERROR_TEXTS}
        return super()._details(msgspec.structs.replace(event, metadata=kept))


class _Shortener:
    """Cuts texts to the bounds of a field.

    Attributes:
        cut: how many were too long.
    """

    def __init__(self) -> None:
        """Start with none."""
        self.cut = 0

    def __call__(self, text: str) -> str:
        """Cut a text."""
        short = truncate(text)
        if short == text:
            return text
        self.cut += 1
        return _without_half_escape(short)


def _escape(text: str) -> str:
    return quote(clean(text))


def _field(name: str, value: str | int | None, write: Callable[[str], str]) -> str:
    """Write a string field with the comma before it; an empty one is left out.

    Args:
        name: its name.
        value: what it says.
        write: gives the form in which a text that is not empty stands between the quotes.
    """
    if not value and value != 0:
        return ""
    return f',{name}="{write(value) if isinstance(value, str) else value}"'


def _decimals(numbers: list[int]) -> list[str]:
    """Write numbers, in a third of the time that `str` takes."""
    return _json.encode(numbers).decode()[1:-1].split(",")


def _fields(texts: _Texts, details: _Details, raw: Raw, wrong_ms: int | None) -> str:
    """Write all fields in alphabetical order."""
    named = {name: f'{name}="{_escape(text)}"' for name, text in raw}
    before = "".join(f"{named[name]}," for name in ("action_raw", "app_id_raw") if name in named)
    file, version_raw = (f",{named[name]}" if name in named else "" for name in ("file", "version_raw"))
    device_time = f",device_time_ms={wrong_ms}i" if wrong_ms is not None and fits_int64(wrong_ms) else ""
    duration, metadata, old_version = details
    return (
        f"{before}{texts.first}{device_time}{duration}{file}{texts.middle}{metadata}{old_version}{texts.last}"
        f"{version_raw}"
    )


def duration_ms(metadata: dict[str, str]) -> float | None:
    """Read `duration_ms` of the metadata: a finite number of milliseconds, not negative, else None."""
    text = metadata.get("duration_ms")
    if text is None:
        return None
    try:
        duration = float(text)
    except ValueError:
        return None
    return duration if math.isfinite(duration) and duration >= 0 else None


def _without_half_escape(text: str) -> str:
    """Take off a backslash that lost the character it escapes."""
    backslashes = len(text) - len(text.rstrip("\\"))
    return text[:-1] if backslashes % 2 else text
