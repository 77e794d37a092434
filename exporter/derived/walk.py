"""Reading one device's entries as attempts and failures, whatever the order in which they came.

A pure function of the entries sorted by time. What it settles it remembers in a few words, so that a straggler is
known as such later.
"""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from exporter.derived.tracks import Code

MAX_DURATION_MS: Final = 2 * 3600 * 1000
"""A longer download is not taken for one (Capgo's delivery latency has the same bound)."""

SAME_FAILURE_MS: Final = 30_000
_AFTER_COMPLETION_MS: Final = 10_000
_UNPACKING_MS: Final = 120_000
"""A slow phone may take so long from having a bundle's files to having unpacked and checked them."""

_RESTART_AFTER_FAILURE_MS: Final = 2_000

REASONS: Final = (
    *("checksum_required", "download_manifest_checksum_fail", "download_manifest_brotli_fail"),
    *("download_manifest_file_fail", "manifest_path_fail", "checksum_fail", "decrypt_fail", "unzip_fail"),
    *("canonical_path_fail", "windows_path_fail", "directory_path_fail", "insufficient_disk_space", "low_mem_fail"),
    *("", "finish_download_fail", "download_fail", "update_fail", "set_fail"),
)
"""Failures' actions, the most specific first; the empty text stands for those that nobody knows yet."""

_RANKS: Final = {reason: rank for rank, reason in enumerate(REASONS)}
_MANIFEST_FAILURES: Final = ("download_manifest_", "manifest_path_fail")
_STARTS: Final = frozenset({Code.ZIP_START, Code.MANIFEST_START, Code.STEP_0})
_FILES_COMPLETE: Final = frozenset({Code.MANIFEST_COMPLETE, Code.ZIP_COMPLETE})


class Entry(msgspec.Struct, frozen=True, order=True, gc=False, array_like=True):
    """One progress event or failure; sorted by time, then as listed in `Code`.

    Attributes:
        time_ms: the device's time if it is believed, else the arrival.
        code: what it is.
        delay_ms: how long after that time it arrived.
        is_timed: whether it is the device's time.
        detail: of a failure its action, of a completion its own `duration_ms`.
        channel: of a failure its channel.
    """

    time_ms: int
    code: int
    delay_ms: int = 0
    is_timed: bool = False
    detail: str = ""
    channel: str = ""

    @property
    def arrival_ms(self) -> int:
        """When it arrived, in milliseconds since 1970."""
        return self.time_ms + self.delay_ms


class Failure(NamedTuple):
    """One failed update."""

    reason: str
    channel: str


class Attempt(NamedTuple):
    """One attempt to download a bundle.

    Attributes:
        outcome: `completed`, `failed` or `stalled`.
        reached: the highest step, `0` to `90` or `complete`.
        kind: `zip` or `manifest`; empty if nothing tells.
        duration_ms: how long it took; None if it was not completed or its start is not known.
    """

    outcome: str
    reached: str
    kind: str
    duration_ms: float | None


class Memory(msgspec.Struct, array_like=True):
    """What is remembered of the entries that are settled.

    Attributes:
        end: the last end of the last attempt.
        anchors: of each phase's last failure its first entry.
    """

    end: Entry | None = None
    anchors: dict[int, Entry] = msgspec.field(default_factory=dict)

    def takes(self, entry: Entry) -> bool:
        """Tell whether an entry says nothing new, because it belongs to what is settled; it is remembered then."""
        if entry.code >= Code.DOWNLOAD_FAILURE:
            anchor = self.anchors.get(entry.code)
            if anchor is None or not _is_same_failure(anchor, entry):
                return False
        if entry.code == Code.ACTIVATION_FAILURE:
            return True
        if self.end is None or not (_belongs(self.end, entry) or _is_unpacking(self.end, entry)):
            return False
        if entry.code >= Code.MANIFEST_COMPLETE:
            self.end = entry
        return True


@dataclass(slots=True)
class Settled:
    """What became of some entries.

    Attributes:
        attempts: those that ended.
        failures: each once.
        repeats: how many entries were failures that are counted already.
        tail: entries of an attempt that has not ended.
    """

    attempts: list[Attempt] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    repeats: int = 0
    tail: list[Entry] = field(default_factory=list)


def walk(entries: list[Entry], memory: Memory) -> Settled:
    """Settle what has ended, and remember it.

    Args:
        entries: in any order.
        memory: what was settled before; changed.
    """
    settled = Settled()
    ended: list[list[Entry]] = []
    last: list[Entry] = []  # of the attempts that ended, what still may change how
    failures: dict[int, list[Entry]] = {}
    attempt: list[Entry] = []
    for entry in sorted(entries):
        code = entry.code
        if code >= Code.DOWNLOAD_FAILURE:
            _note_failure(entry, memory, failures, settled)
            if code == Code.ACTIVATION_FAILURE:
                continue
        is_end = code >= Code.MANIFEST_COMPLETE
        if not attempt and memory.end is not None:
            belongs = _belongs(memory.end, entry)
            if belongs or _is_unpacking(memory.end, entry):
                if not belongs:
                    last = []  # it may have been settled by now
                last.append(entry)
                if is_end:
                    memory.end = entry
                continue
        attempt.append(entry)
        if is_end:
            memory.end = entry
            ended.append(attempt)
            last, attempt = attempt, []
    settled.attempts = [_read(each) for each in ended]
    settled.failures += [_worst(each) for each in failures.values()]
    settled.tail = attempt
    return settled


def stalled(entries: list[Entry]) -> Attempt:
    """Give the attempt of entries that nothing ended."""
    return Attempt("stalled", _reached(entries), _kind(entries), None)


def gap(first: Entry, second: Entry) -> int:
    """Give the milliseconds between two entries: by the device's clock if both have its time, else by ours."""
    between_ms = second.time_ms - first.time_ms
    if first.is_timed and second.is_timed:
        return between_ms
    return between_ms + second.delay_ms - first.delay_ms


def _note_failure(entry: Entry, memory: Memory, failures: dict[int, list[Entry]], settled: Settled) -> None:
    anchor = memory.anchors.get(entry.code)
    if anchor is not None and _is_same_failure(anchor, entry):
        settled.repeats += 1
        if entry.code in failures:
            failures[entry.code].append(entry)
        return
    if entry.code in failures:
        settled.failures.append(_worst(failures[entry.code]))
    memory.anchors[entry.code] = entry
    failures[entry.code] = [entry]


def _is_same_failure(anchor: Entry, entry: Entry) -> bool:
    return abs(gap(anchor, entry)) <= SAME_FAILURE_MS


def _belongs(end: Entry, entry: Entry) -> bool:
    """Tell whether an entry still belongs to the attempt that ended."""
    limit = _AFTER_COMPLETION_MS
    if end.code == Code.DOWNLOAD_FAILURE:
        if entry.code in _STARTS:
            limit = _RESTART_AFTER_FAILURE_MS
        elif entry.code == Code.DOWNLOAD_FAILURE:
            limit = SAME_FAILURE_MS
    return gap(end, entry) <= limit


def _is_unpacking(end: Entry, entry: Entry) -> bool:
    """Tell whether an entry says that files which had come are unpacked: nothing new, but no other attempt either."""
    is_progress = Code.STEP_0 < entry.code < Code.DOWNLOAD_FAILURE
    return end.code in _FILES_COMPLETE and is_progress and gap(end, entry) <= _UNPACKING_MS


def _worst(entries: list[Entry]) -> Failure:
    """Give the most specific of one failure's reasons."""
    entry = min(entries, key=lambda each: (_RANKS.get(each.detail, _RANKS[""]), each.detail))
    return Failure(entry.detail, entry.channel)


def _read(entries: list[Entry]) -> Attempt:
    """Read an attempt that ended, of entries in order; its last end tells how."""
    ends = [entry for entry in entries if entry.code >= Code.MANIFEST_COMPLETE]
    if ends[-1].code == Code.DOWNLOAD_FAILURE:
        return Attempt("failed", _reached(entries), _kind(entries), None)
    end = next((entry for entry in reversed(ends) if entry.code == Code.COMPLETE), ends[-1])
    return Attempt("completed", "complete", _kind(entries), _duration_ms(entries, end))


def _reached(entries: list[Entry]) -> str:
    steps = [entry.code - Code.STEP_0 for entry in entries if Code.STEP_0 <= entry.code <= Code.STEP_90]
    return str(max(steps, default=0) * 10)


def _kind(entries: list[Entry]) -> str:
    codes = {entry.code for entry in entries}
    if Code.ZIP_START in codes or Code.ZIP_COMPLETE in codes:
        return "zip"
    is_manifest = (
        Code.MANIFEST_START in codes
        or Code.MANIFEST_COMPLETE in codes
        or any(entry.detail.startswith(_MANIFEST_FAILURES) for entry in entries if entry.detail)
    )
    return "manifest" if is_manifest else ""


def _duration_ms(entries: list[Entry], end: Entry) -> float | None:
    if end.detail:
        return float(end.detail)
    before = entries[: entries.index(end)]
    starts = [entry for entry in before if entry.code in _STARTS] or [
        entry for entry in before if entry.code == Code.STEP_0 + 1
    ]
    return gap(starts[-1], end) if starts else None
