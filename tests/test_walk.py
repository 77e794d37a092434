"""Reading entries as attempts and failures: each rule by example, and what holds for any entries at all."""

import itertools
import random as randomness
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.actions import BY_NAME, Kind
from exporter.derived.tracks import Code, role_of
from exporter.derived.walk import REASONS, Attempt, Entry, Failure, Memory, Settled, stalled, walk

BEGAN_MS: Final = 1_800_000_000_000
FLUSHED: Final = 600.0
"""When a batch arrives by default, in seconds."""

Steps = list[Entry]


def ms(seconds: float) -> int:
    """Give the moment so many seconds after the beginning, in milliseconds."""
    return BEGAN_MS + round(seconds * 1000)


def timed(action: str, at: float, *, arrives: float = FLUSHED, duration: str = "", channel: str = "") -> Entry:
    """Make an entry with the device's own time."""
    detail, channel = said(action, duration, channel)
    return Entry(ms(at), code_of(action), ms(arrives) - ms(at), True, detail, channel)  # noqa: FBT003 -- is_timed


def untimed(action: str, at: float, *, duration: str = "", channel: str = "") -> Entry:
    """Make an entry of which only the arrival is known."""
    detail, channel = said(action, duration, channel)
    return Entry(ms(at), code_of(action), 0, False, detail, channel)  # noqa: FBT003 -- is_timed


def said(action: str, duration: str, channel: str) -> tuple[str, str]:
    """Give what an entry says besides its code: a failure its action and channel, a completion its duration."""
    return (action, channel or "unknown") if role_of(action, action).is_failure else (duration, "")


def code_of(action: str) -> int:
    """Give an action's code."""
    code = role_of(action, action).code
    assert code is not None, action
    return code


def batch(*steps: tuple[str, float], arrives: float = FLUSHED) -> Steps:
    """Make entries with their own times that arrive together."""
    return [timed(action, at, arrives=arrives) for action, at in steps]


def singles(*steps: tuple[str, float]) -> Steps:
    """Make entries without times that arrive one by one."""
    return [untimed(action, at) for action, at in steps]


def completed(duration_ms: float | None = None, kind: str = "") -> Attempt:
    """Give a completed attempt."""
    return Attempt("completed", "complete", kind, duration_ms)


def failed(reached: int = 0, kind: str = "") -> Attempt:
    """Give a failed attempt."""
    return Attempt("failed", str(reached), kind, None)


def failure(reason: str, channel: str = "unknown") -> Failure:
    """Give a failure."""
    return Failure(reason, channel)


@dataclass(frozen=True)
class Case:
    """A rule by example.

    Attributes:
        name: the rule.
        entries: in the order in which they happened.
        attempts: those that ended.
        failures: each once.
        repeats: how many entries were failures that are counted already.
        tail: the entries of an attempt that has not ended.
    """

    name: str
    entries: Steps
    attempts: list[Attempt] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    repeats: int = 0
    tail: list[Entry] = field(default_factory=list)


RISING: Final = tuple((f"download_{step}", 1.0 + step / 10) for step in range(10, 100, 10))
"""One step a second, from 2 s to 10 s."""

PLATFORMS: Final = [
    Case(
        "android's zip reports each step",
        batch(
            *(("download_zip_start", 0), ("download_0", 1), *RISING),
            *(("download_zip_complete", 11), ("download_complete", 12)),
        ),
        [completed(11_000, "zip")],
    ),
    Case(
        "android reports steps of the first download only",
        batch(("download_zip_start", 0), ("download_zip_complete", 3), ("download_complete", 4)),
        [completed(4000, "zip")],
    ),
    Case(
        "ios's zip reports 0, 70, 80, 90",
        batch(*((f"download_{step}", float(step)) for step in (0, 70, 80, 90)), ("download_complete", 95)),
        [completed(95_000)],
    ),
    Case(
        "ios's manifest reports steps again and again",
        batch(
            *(("download_manifest_start", 0), ("download_0", 0.5)),
            *((f"download_{step}", step / 10) for step in (10, 20, 30)),
            *((f"download_{step}", step / 10 + 0.1) for step in (10, 20, 20, 30, 40, 50, 60, 70)),
            *(("download_manifest_complete", 8), ("download_complete", 8.5)),
        ),
        [completed(8000, "manifest")],
    ),
    Case(
        "electron reports no start",
        singles(*RISING, ("download_complete", 12)),
        [completed(10_000)],
    ),
    Case("a completion of which nothing else is known", batch(("download_complete", 0)), [completed()]),
    Case(
        "zip wins where an attempt tells of both",
        batch(("download_manifest_start", 0), ("download_zip_start", 1), ("download_manifest_complete", 2)),
        [completed(1000, "zip")],
    ),
    Case(
        "a download that has not ended is the tail",
        batch(("download_0", 0), ("download_10", 1)),
        tail=batch(("download_0", 0), ("download_10", 1)),
    ),
    Case("nothing comes of nothing", []),
]

CLOCKS: Final = [
    Case(
        "a worker's start without a time, with the device's clock five minutes behind: the start is known too late",
        [
            untimed("download_zip_start", 0),
            *batch(("download_10", -299), ("download_50", -297), ("download_complete", -295), arrives=6),
        ],
        [completed(4000, "zip")],
    ),
    Case(
        "a worker's start without a time, with the device's clock five minutes ahead: what arrived when tells",
        [
            untimed("download_zip_start", 0),
            *batch(("download_10", 301), ("download_50", 303), ("download_complete", 305), arrives=6),
        ],
        [completed(6000, "zip")],
    ),
    Case(
        "a worker's failure without a time, with the device's clock five minutes behind",
        [*batch(("download_10", -299), ("download_fail", -298), arrives=3), untimed("finish_download_fail", 2)],
        [failed(10)],
        [failure("finish_download_fail")],
        repeats=1,
    ),
    Case(
        "two entries with times are as far apart as the device's clock says, whenever they arrived",
        [timed("download_0", 0, arrives=100), timed("download_complete", 7, arrives=3000)],
        [completed(7000)],
    ),
    Case(
        "an end that arrived before its start lasted less than nothing",
        [untimed("download_0", 10), timed("download_complete", 310, arrives=5)],
        [completed(-5000)],
    ),
]

DURATIONS: Final = [
    Case(
        "the last start before the end wins",
        batch(("download_zip_start", 0), ("download_0", 5), ("download_10", 6), ("download_complete", 9)),
        [completed(4000, "zip")],
    ),
    Case(
        "a start after the end is no start of it",
        batch(("download_0", 0), ("download_complete", 4), ("download_0", 5)),
        [completed(4000)],
    ),
    Case(
        "download_10 stands in where no start is",
        batch(("download_10", 1), ("download_10", 2), ("download_20", 3), ("download_complete", 9)),
        [completed(7000)],
    ),
    Case("other steps do not", batch(("download_20", 1), ("download_90", 3), ("download_complete", 9)), [completed()]),
    Case(
        "download_complete is the end, whatever other completion comes after it",
        batch(("download_0", 0), ("download_complete", 4), ("download_zip_complete", 6)),
        [completed(4000, "zip")],
    ),
    Case(
        "of two download_complete the last is the end",
        batch(("download_0", 0), ("download_complete", 4), ("download_complete", 6)),
        [completed(6000)],
    ),
    Case(
        "without download_complete the last completion is the end",
        batch(("download_0", 0), ("download_manifest_complete", 4), ("download_zip_complete", 6)),
        [completed(6000, "zip")],
    ),
    Case(
        "what the end itself says wins",
        [timed("download_0", 0), timed("download_complete", 4, duration="1234.5")],
        [completed(1234.5)],
    ),
    Case(
        "what the end says needs no start",
        [timed("download_complete", 4, duration="0.0")],
        [completed(0.0)],
    ),
    Case(
        "what a completion says that is not the end does not count",
        [timed("download_0", 0), timed("download_zip_complete", 3, duration="99.0"), timed("download_complete", 4)],
        [completed(4000, "zip")],
    ),
    Case(
        "a download of more than two hours is left to those who count",
        batch(("download_0", 0), ("download_complete", 7201)),
        [completed(7_201_000)],
    ),
]

ATTEMPTS: Final = [
    Case(
        "a download that was resumed is one attempt, timed from where it went on",
        batch(
            *(("download_zip_start", 0), ("download_0", 1), ("download_50", 2)),
            *(("download_zip_start", 3600), ("download_0", 3601), ("download_90", 3602), ("download_complete", 3603)),
        ),
        [completed(2000, "zip")],
    ),
    Case(
        "a failure ends an attempt at its highest step",
        batch(("download_0", 0), ("download_70", 2), ("download_10", 3), ("download_fail", 4)),
        [failed(70)],
        [failure("download_fail")],
    ),
    Case(
        "a second attempt after a failure, in one late batch",
        batch(
            *(("download_zip_start", 0), ("download_10", 1), ("download_fail", 5)),
            *(("download_zip_start", 60), ("download_10", 61), ("download_zip_complete", 64)),
            ("download_complete", 65),
        ),
        [failed(10, "zip"), completed(5000, "zip")],
        [failure("download_fail")],
    ),
    Case(
        "a second attempt in the second after a failure that is tried again at once",
        batch(("download_0", 0), ("download_fail", 1), ("download_0", 3.001), ("download_complete", 4)),
        [failed(), completed(999)],
        [failure("download_fail")],
    ),
    Case(
        "a second attempt that fails within half a minute is an attempt, but no new failure",
        batch(("download_fail", 0), ("download_0", 5), ("download_90", 6), ("download_fail", 7)),
        [failed(), failed(90)],
        [failure("download_fail")],
        repeats=1,
    ),
    Case(
        "a straggler of a failure raises the step it reached",
        batch(("download_10", 0), ("download_fail", 1), ("download_50", 2), ("download_0", 3)),
        [failed(50)],
        [failure("download_fail")],
    ),
    Case(
        "a completion right after a failure makes the attempt a success",
        batch(("download_0", 0), ("download_fail", 1), ("download_complete", 2)),
        [completed(2000)],
        [failure("download_fail")],
    ),
    Case(
        "a failure right after a completion makes the attempt a failure",
        batch(("download_0", 0), ("download_90", 1), ("download_zip_complete", 2), ("checksum_fail", 3)),
        [failed(90, "zip")],
        [failure("checksum_fail")],
    ),
    Case(
        "after an attempt and its stragglers the next one is followed",
        batch(("download_0", 0), ("download_complete", 1), ("download_90", 2), ("download_0", 20), ("download_10", 21)),
        [completed(1000)],
        tail=batch(("download_0", 20), ("download_10", 21)),
    ),
]

FAILURES: Final = [
    Case(
        "a roll-back ends no download",
        batch(("download_0", 0), ("update_fail", 1), ("download_complete", 2)),
        [completed(2000)],
        [failure("update_fail")],
    ),
    Case(
        "a roll-back beside a download's failure is a failure of its own",
        batch(("update_fail", 0), ("checksum_fail", 0), ("download_fail", 1), ("set_fail", 1)),
        [failed()],
        [failure("checksum_fail"), failure("update_fail")],
        repeats=2,
    ),
    Case(
        "one failure reported for many files",
        batch(*(("download_manifest_file_fail", float(second)) for second in range(25)), ("download_fail", 30)),
        [failed(kind="manifest")],
        [failure("download_manifest_file_fail")],
        repeats=25,
    ),
    Case(
        "half a minute is taken from a failure's first report; the attempt goes on from its last",
        batch(("download_fail", 0), ("download_fail", 20), ("download_fail", 40), ("download_fail", 65)),
        [failed()],
        [failure("download_fail"), failure("download_fail")],
        repeats=2,
    ),
    Case(
        "the channel is that of the reason that wins",
        [timed("download_fail", 0, channel="beta"), timed("unzip_fail", 1, channel="production")],
        [failed()],
        [failure("unzip_fail", "production")],
        repeats=1,
    ),
    Case(
        "of the same reason, the channel is that of the first",
        [timed("unzip_fail", 0, channel="production"), timed("unzip_fail", 1, channel="beta")],
        [failed()],
        [failure("unzip_fail", "production")],
        repeats=1,
    ),
    Case(
        "each failure has its own reason",
        batch(("download_fail", 0), ("unzip_fail", 1), ("decrypt_fail", 40), ("finish_download_fail", 41)),
        [failed(), failed()],
        [failure("unzip_fail"), failure("decrypt_fail")],
        repeats=2,
    ),
]


def bounds(name: str, last: float, before: Steps, after: str, *, within: Settled, beyond: Settled) -> list[Case]:
    """Give what an action means on the last millisecond at which it belongs to others, and on the next one.

    Args:
        name: the rule.
        last: the last moment, in seconds after the beginning.
        before: what the action follows.
        after: the action.
        within: what comes of it within the bound.
        beyond: and beyond; if it is the tail then, it says `LEFT`.
    """
    return [
        Case(
            f"{name}: {word}",
            [*before, timed(after, at)],
            settled.attempts,
            settled.failures,
            settled.repeats,
            [timed(after, at)] if settled.tail is LEFT else [],
        )
        for word, at, settled in (("just so", last, within), ("a millisecond later", last + 0.001, beyond))
    ]


LEFT: Final = singles(("download_0", 0))
FAILED: Final = [failure("download_fail")]
ROLLED_BACK: Final = [failure("update_fail")]

BOUNDS: Final = [
    *bounds(
        "a step belongs to a completion for 10 s",
        10,
        batch(("download_complete", 0)),
        "download_90",
        within=Settled([completed()]),
        beyond=Settled([completed()], [], 0, LEFT),
    ),
    *bounds(
        "a start belongs to a completion for 10 s",
        10,
        batch(("download_complete", 0)),
        "download_0",
        within=Settled([completed()]),
        beyond=Settled([completed()], [], 0, LEFT),
    ),
    *bounds(
        "a failure belongs to a completion for 10 s",
        10,
        batch(("download_complete", 0)),
        "download_fail",
        within=Settled([failed()], FAILED),
        beyond=Settled([completed(), failed()], FAILED),
    ),
    *bounds(
        "a completion belongs to another for 10 s",
        10,
        batch(("download_complete", 0)),
        "download_complete",
        within=Settled([completed()]),
        beyond=Settled([completed(), completed()]),
    ),
    *bounds(
        "unpacking an archive may take 2 minutes",
        120,
        batch(("download_zip_complete", 0)),
        "download_complete",
        within=Settled([completed(kind="zip")]),
        beyond=Settled([completed(kind="zip"), completed()]),
    ),
    *bounds(
        "unpacking may report steps for 2 minutes",
        120,
        batch(("download_manifest_complete", 0)),
        "download_90",
        within=Settled([completed(kind="manifest")]),
        beyond=Settled([completed(kind="manifest")], [], 0, LEFT),
    ),
    *bounds(
        "a start is no part of unpacking",
        10,
        batch(("download_zip_complete", 0)),
        "download_zip_start",
        within=Settled([completed(kind="zip")]),
        beyond=Settled([completed(kind="zip")], [], 0, LEFT),
    ),
    *bounds(
        "a failure is no part of unpacking",
        10,
        batch(("download_zip_complete", 0)),
        "download_fail",
        within=Settled([failed(kind="zip")], FAILED),
        beyond=Settled([completed(kind="zip"), failed()], FAILED),
    ),
    Case(
        "what comes after a long unpacking changes nothing any more",
        batch(
            ("download_zip_start", 0), ("download_zip_complete", 5), ("download_complete", 65), ("download_fail", 70)
        ),
        [completed(5000, kind="zip")],
        FAILED,
    ),
    *bounds(
        "a step belongs to a failure for 10 s",
        10,
        batch(("download_fail", 0)),
        "download_50",
        within=Settled([failed(50)], FAILED),
        beyond=Settled([failed()], FAILED, 0, LEFT),
    ),
    *(
        case
        for start in ("download_0", "download_zip_start", "download_manifest_start")
        for case in bounds(
            f"{start} belongs to a failure for 2 s",
            2,
            batch(("download_fail", 0)),
            start,
            within=Settled([failed(kind=start.split("_")[1] if start != "download_0" else "")], FAILED),
            beyond=Settled([failed()], FAILED, 0, LEFT),
        )
    ),
    *bounds(
        "a download's failure belongs to another for 30 s",
        30,
        batch(("download_fail", 0)),
        "download_fail",
        within=Settled([failed()], FAILED, 1),
        beyond=Settled([failed(), failed()], FAILED * 2),
    ),
    *bounds(
        "a roll-back belongs to another for 30 s",
        30,
        batch(("update_fail", 0)),
        "update_fail",
        within=Settled([], ROLLED_BACK, 1),
        beyond=Settled([], ROLLED_BACK * 2),
    ),
]

CASES: Final = [*PLATFORMS, *CLOCKS, *DURATIONS, *ATTEMPTS, *FAILURES, *BOUNDS]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_rule(case: Case) -> None:
    """Each rule holds in the order of time, and in several others."""
    expected = Settled(case.attempts, case.failures, case.repeats, case.tail)
    entries = case.entries
    for arrived in (entries, entries[::-1], entries[1::2] + entries[::2]):
        assert expected == in_order(walk(arrived, Memory()))


def in_order(settled: Settled) -> Settled:
    """Put failures of different phases, which stand in no order, in one."""
    activations = {"update_fail", "set_fail"}
    return Settled(
        settled.attempts,
        sorted(settled.failures, key=lambda each: each.reason in activations),
        settled.repeats,
        settled.tail,
    )


# --- reasons ----------------------------------------------------------------------------------------------------------

DOWNLOAD_REASONS: Final = (
    *("checksum_required", "download_manifest_checksum_fail", "download_manifest_brotli_fail"),
    *("download_manifest_file_fail", "manifest_path_fail", "checksum_fail", "decrypt_fail", "unzip_fail"),
    *("canonical_path_fail", "windows_path_fail", "directory_path_fail", "insufficient_disk_space", "low_mem_fail"),
    *("a_new_kind_of_fail", "b_new_kind_of_fail", "finish_download_fail", "download_fail"),
)
"""The most specific first; two of them nobody knows."""

PAIRS: Final = [*itertools.combinations(DOWNLOAD_REASONS, 2), ("update_fail", "set_fail")]


def test_each_failure_of_the_catalogue_has_its_place() -> None:
    """Each failure that is known has a place of its own among the reasons, and one place is for all that are not."""
    known = sorted(name for name, action in BY_NAME.items() if action.kind is Kind.UPDATE_FAILURE)
    assert ["", *known] == sorted(REASONS)


@pytest.mark.parametrize(("specific", "general"), PAIRS)
def test_most_specific_reason_wins(specific: str, general: str) -> None:
    """Of two reports of one failure, the more specific is its reason, whichever came first."""
    for actions in ((specific, general), (general, specific)):
        settled = walk(batch(*zip(actions, (0, 1), strict=True)), Memory())
        assert ([failure(specific)], 1) == (settled.failures, settled.repeats)


@pytest.mark.parametrize(
    "actions",
    [
        *itertools.permutations(("download_fail", "finish_download_fail")),
        *itertools.permutations(("checksum_fail", "download_fail")),
        *itertools.permutations(("checksum_fail", "download_fail", "finish_download_fail")),
        *itertools.permutations(("unzip_fail", "a_new_kind_of_fail", "finish_download_fail")),
    ],
    ids=" ".join,
)
def test_a_failure_reported_several_times(actions: tuple[str, ...]) -> None:
    """Two or three reports of one failure are one, in whatever order they come, with times and without."""
    steps = [(action, 5 + index / 10) for index, action in enumerate(actions)]
    reason = min(actions, key=DOWNLOAD_REASONS.index)
    for entries in (batch(("download_10", 4), *steps), singles(("download_10", 4), *steps)):
        assert Settled([failed(10)], [failure(reason)], len(actions) - 1) == walk(entries, Memory())


# --- what is settled already ------------------------------------------------------------------------------------------


def test_stragglers_of_what_is_settled_say_nothing_new() -> None:
    """Later entries that belong to an attempt and a failure that are counted already are neither."""
    memory = Memory()
    walk(batch(("download_0", 0), ("download_fail", 5), ("update_fail", 6)), memory)
    stragglers = batch(("download_10", 3), ("unzip_fail", 4), ("download_20", 14), ("set_fail", 30))
    assert Settled(repeats=2) == walk(stragglers, memory)


def test_a_settled_attempt_is_followed_by_its_last_end() -> None:
    """An end that comes late is the one from which stragglers are told, as if it had come in time."""
    memory = Memory()
    walk(batch(("download_zip_complete", 0)), memory)
    assert Settled() == walk(batch(("download_complete", 8)), memory)
    assert Settled() == walk(batch(("download_90", 18)), memory)
    assert Settled(tail=batch(("download_0", 18.001))) == walk(batch(("download_0", 18.001)), memory)


def test_each_phase_remembers_a_failure_of_its_own() -> None:
    """A roll-back is not taken for a report of a failed download that is settled."""
    memory = Memory()
    walk(batch(("download_fail", 0)), memory)
    assert Settled(failures=ROLLED_BACK) == walk(batch(("update_fail", 1)), memory)
    assert Settled(repeats=1) == walk(batch(("download_fail", 30)), memory)


def test_a_failure_from_long_before_is_another() -> None:
    """What happened more than half a minute before a failure that is settled is a failure of its own."""
    memory = Memory()
    walk(batch(("update_fail", 100)), memory)
    assert Settled(repeats=1) == walk(batch(("update_fail", 70)), memory)
    assert Settled(failures=ROLLED_BACK) == walk(batch(("update_fail", 69.999)), memory)


def test_a_stalled_attempt_has_reached_its_highest_step() -> None:
    """An attempt that nothing ended knows how far it came, and its kind."""
    assert Attempt("stalled", "70", "", None) == stalled(batch(("download_0", 0), ("download_70", 1)))
    assert Attempt("stalled", "0", "zip", None) == stalled(batch(("download_zip_start", 0)))


@pytest.mark.parametrize(
    ("action", "kind"),
    [
        *((action, "zip") for action in ("download_zip_start", "download_zip_complete")),
        *((action, "manifest") for action in ("download_manifest_start", "download_manifest_complete")),
        *((f"download_manifest_{what}_fail", "manifest") for what in ("file", "checksum", "brotli")),
        *(("manifest_path_fail", "manifest"), ("download_fail", ""), ("unzip_fail", ""), ("download_50", "")),
    ],
)
def test_kind(action: str, kind: str) -> None:
    """An attempt's kind is told by any action that only one kind of download has."""
    entries = batch(("download_0", 0), (action, 1), ("download_complete", 2))
    assert kind == walk(entries, Memory()).attempts[-1].kind


# --- any entries at all -----------------------------------------------------------------------------------------------

ACTIONS: Final = (
    *("download_zip_start", "download_manifest_start", *(f"download_{step}" for step in range(0, 100, 10))),
    *("download_zip_complete", "download_manifest_complete", "download_complete", "download_complete"),
    *("download_fail", "finish_download_fail", "checksum_fail", "b_new_kind_of_fail", "update_fail", "set_fail"),
)
SECONDS: Final = st.one_of(
    st.sampled_from([0.0, 0.001, 2.0, 2.001, 10.0, 10.001, 30.0, 30.001, 7200.0, 7200.001]),
    st.integers(0, 90_000).map(lambda moment: moment / 1000),
)
ANYTIME: Final = st.one_of(SECONDS, st.integers(-(1 << 50), 1 << 50).map(float))
DURATIONS_SAID: Final = st.one_of(st.just(""), st.floats(0, allow_infinity=False).map(repr))
CHANNELS: Final = st.sampled_from(["unknown", "production", "beta"])
FRESH: Final = st.builds(
    timed, st.sampled_from(ACTIONS), ANYTIME, arrives=ANYTIME, duration=DURATIONS_SAID, channel=CHANNELS
)
PLAIN: Final = st.builds(untimed, st.sampled_from(ACTIONS), ANYTIME, duration=DURATIONS_SAID, channel=CHANNELS)
ENTRIES: Final = st.lists(st.one_of(FRESH, PLAIN), max_size=12)


def is_end(entry: Entry) -> bool:
    """Tell whether an entry ends an attempt."""
    return Code.MANIFEST_COMPLETE <= entry.code <= Code.DOWNLOAD_FAILURE


def remembering(before: Steps) -> Memory:
    """Give what is remembered of entries that are settled."""
    memory = Memory()
    walk(before, memory)
    return memory


@given(ENTRIES, ENTRIES, st.randoms(use_true_random=False))
def test_order_of_arrival_does_not_matter(before: Steps, entries: Steps, random: randomness.Random) -> None:
    """The same entries come to the same, and leave the same behind, in whatever order they stand."""
    first, second = remembering(before), remembering(before)
    expected = walk(entries, first)
    random.shuffle(entries)
    assert (expected, first) == (walk(entries, second), second)


@given(ENTRIES, ENTRIES)
def test_what_is_settled_adds_up(before: Steps, entries: Steps) -> None:
    """Each failure is one or a repeat, each attempt has an end of its own, and what has no end yet is a tail."""
    settled = walk(entries, remembering(before))
    assert sum(entry.code >= Code.DOWNLOAD_FAILURE for entry in entries) == len(settled.failures) + settled.repeats
    assert len(settled.attempts) <= sum(map(is_end, entries))
    assert not any(entry.code >= Code.MANIFEST_COMPLETE for entry in settled.tail)
    assert not Counter(settled.tail) - Counter(entries)
    for attempt in settled.attempts:
        assert (attempt.outcome == "completed") == (attempt.reached == "complete")
        assert attempt.duration_ms is None or attempt.outcome == "completed"


@given(ENTRIES, st.one_of(FRESH, PLAIN))
def test_memory_takes_what_says_nothing_new(before: Steps, entry: Entry) -> None:
    """What is taken for a straggler without a walk is one that a walk makes nothing of, and both remember the same."""
    first, second = remembering(before), remembering(before)
    settled = walk([entry], second)
    says_nothing = not (settled.attempts or settled.failures or settled.tail)
    assert says_nothing == first.takes(entry)
    assert not says_nothing or first == second


@st.composite
def bursts(draw: st.DrawFn) -> list[Steps]:
    """Draw what happens in bursts with more than half a minute between them, all by one clock."""
    make = draw(st.sampled_from([timed, untimed]))
    now = 0.0
    drawn = []
    for _ in range(draw(st.integers(1, 4))):
        now += 30.001
        burst = []
        for _ in range(draw(st.integers(1, 6))):
            now += draw(SECONDS)
            burst.append(make(draw(st.sampled_from(ACTIONS)), now, channel=draw(CHANNELS)))
        drawn.append(burst)
    return drawn


@given(bursts())
def test_settling_in_steps_is_settling_at_once(drawn: list[Steps]) -> None:
    """What is settled burst after burst, open attempts taken along, comes to the same as all bursts together."""
    at_once, memory = Memory(), Memory()
    expected = walk([entry for burst in drawn for entry in burst], at_once)
    found = Settled()
    for burst in drawn:
        settled = walk([*found.tail, *burst], memory)
        found.attempts += settled.attempts
        found.failures += settled.failures
        found.repeats += settled.repeats
        found.tail = settled.tail
    assert Counter(expected.failures) == Counter(found.failures)
    found.failures = expected.failures
    assert (expected, at_once) == (found, memory)
