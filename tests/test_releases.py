"""Releases: what is first seen, what is established, and in which order the newest stand."""

import random
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from exporter.derived.releases import ESTABLISHED_DEVICES, RANKS, Release, Releases, is_established, parse
from exporter.journal.derived_records import ReleaseRow

APP = "com.example.shop"
FIRST_SEEN = "capgo_version_first_seen_timestamp_seconds"


@dataclass
class Fleet:
    """Devices that send events, and a journal that stores at once unless told otherwise.

    Attributes:
        installs: the stored installs by app and version.
        stored: the journal's rows.
    """

    installs: dict[str, dict[str, int]] = field(default_factory=dict)
    stored: dict[tuple[str, str], ReleaseRow] = field(default_factory=dict)
    now_ms: int = 1_800_000_000_000

    def __post_init__(self) -> None:
        """Start with an empty journal."""
        self.releases = Releases(lambda: self.installs)

    def see(self, version: str, *devices: int, app_id: str = APP) -> list[ReleaseRow]:
        """Take an event of each device, or of nobody in particular, and give the rows to store."""
        self.now_ms += 1000
        seen = [self.releases.observe(app_id, version, device, self.now_ms) for device in (devices or (None,))]
        return [self.releases.row(release) for release in seen if release is not None][-1:]

    def store(self, *rows: ReleaseRow) -> None:
        """Commit rows."""
        self.stored.update(((row.app_id, row.version), row) for row in rows)
        self.releases.mark_stored(rows)

    def release(self, *versions: str, app_id: str = APP) -> None:
        """Let each version be run by as many devices as establish it, one version after the other."""
        for version in versions:
            self.store(*self.see(version, *range(ESTABLISHED_DEVICES), app_id=app_id))

    def restarted(self) -> "Fleet":
        """Give a fleet whose exporter restored what the journal holds, in any order."""
        other = Fleet(self.installs, dict(self.stored), self.now_ms)
        rows = list(self.stored.values())
        random.Random(1).shuffle(rows)  # noqa: S311 -- no secret
        other.releases.restore(rows)
        return other

    def first_seen(self) -> dict[tuple[str, str], float]:
        """Give what is shown of first events."""
        family, _ = self.releases.collect()
        return {(sample.labels["app_id"], sample.labels["version"]): sample.value for sample in family.samples}

    def newest(self, order: str = "semver", app_id: str = APP) -> list[str]:
        """Give the ranked versions of an app, after seeing that the ranks are 1, 2, 3."""
        _, family = self.releases.collect()
        labels = [
            sample.labels
            for sample in family.samples
            if (sample.labels["app_id"], sample.labels["order"]) == (app_id, order)
        ]
        assert [str(rank) for rank in range(1, len(labels) + 1)] == [each["rank"] for each in labels]
        return [each["version"] for each in labels]


def row(version: str = "1.0.0", devices: Iterable[int] = (), first_seen_ms: int = 5, app_id: str = APP) -> ReleaseRow:
    """Make a journal's row."""
    return ReleaseRow(app_id, version, first_seen_ms, array("Q", devices).tobytes())


# --- what is stored ---------------------------------------------------------------------------------------------------


def test_the_first_event_makes_a_release_with_its_arrival_time() -> None:
    """It is stored with the first event, whatever that is, and its time never changes."""
    fleet = Fleet()
    assert [row("2.3.0", [], 1_800_000_001_000)] == fleet.see("2.3.0")
    assert [] == fleet.see("2.3.0")
    assert [row("2.3.0", [7], 1_800_000_001_000)] == fleet.see("2.3.0", 7)


def test_a_release_is_stored_only_when_it_grew() -> None:
    """A device that was seen, and any device past the twentieth, changes nothing."""
    fleet = Fleet()
    assert [row("1.0.0", [1, 2], 1_800_000_001_000)] == fleet.see("1.0.0", 2, 1)
    assert [] == fleet.see("1.0.0", 1, 2)
    assert [row("1.0.0", range(1, 21), 1_800_000_001_000)] == fleet.see("1.0.0", *range(1, 1000))
    assert [] == fleet.see("1.0.0", 5000)


def test_a_hash_may_have_all_of_its_64_bits() -> None:
    """The largest and the smallest come back from the journal."""
    fleet = Fleet()
    fleet.store(*fleet.see("1.0.0", (1 << 64) - 1, 0))
    again = fleet.restarted()
    assert [] == again.see("1.0.0", 0, (1 << 64) - 1)


@pytest.mark.parametrize("version", ["builtin", "unknown", "other"])
def test_what_is_no_version_is_no_release(version: str) -> None:
    """Neither stored nor shown, however many devices run it."""
    fleet = Fleet(installs={APP: {version: 1000}})
    assert [] == fleet.see(version, *range(ESTABLISHED_DEVICES))
    assert ({}, [], []) == (fleet.first_seen(), fleet.newest(), fleet.newest("first_seen"))


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_nothing_is_shown_before_it_is_stored() -> None:
    """Neither a new release nor the devices that would establish it."""
    fleet = Fleet()
    first = fleet.see("1.0.0", 1)
    assert ({}, []) == (fleet.first_seen(), fleet.newest())
    fleet.store(*first)
    rest = fleet.see("1.0.0", *range(1, ESTABLISHED_DEVICES + 1))
    assert ({(APP, "1.0.0"): 1_800_000_001.0}, []) == (fleet.first_seen(), fleet.newest())
    fleet.store(*rest)
    assert ["1.0.0"] == fleet.newest()


def test_a_commit_shows_its_row_and_not_what_came_since() -> None:
    """Devices that came while the transaction was written wait for the next one."""
    fleet = Fleet()
    written = fleet.see("1.0.0", *range(ESTABLISHED_DEVICES - 1))
    fleet.see("1.0.0", 999)
    fleet.store(*written)
    assert [] == fleet.newest()


def test_forgotten_releases_are_gone() -> None:
    """The next event makes a release again; a row that was on its way is left alone."""
    fleet = Fleet()
    fleet.release("1.0.0", "2.0.0")
    late = fleet.releases.row(Release(APP, "1.0.0", 5, {1}))
    fleet.releases.forget([(APP, "1.0.0"), (APP, "never seen")])
    fleet.releases.mark_stored([late])
    assert ({(APP, "2.0.0")}, ["2.0.0"], ["2.0.0"]) == (
        set(fleet.first_seen()),
        fleet.newest(),
        fleet.newest("first_seen"),
    )
    assert [row("1.0.0", [1], 1_800_000_003_000)] == fleet.see("1.0.0", 1)


def test_a_release_may_be_forgotten_before_it_was_stored() -> None:
    """It was never shown, and leaves nothing behind."""
    fleet = Fleet()
    written = fleet.see("1.0.0", 1)
    fleet.releases.forget([(APP, "1.0.0")])
    fleet.store(*written)
    assert {} == fleet.first_seen()


def test_everything_can_be_forgotten() -> None:
    """A cleared store starts anew."""
    fleet = Fleet()
    fleet.release("1.0.0")
    fleet.releases.clear()
    assert ({}, []) == (fleet.first_seen(), fleet.newest())
    assert 1 == len(fleet.see("1.0.0"))


def test_the_families_have_their_names_in_both_formats() -> None:
    """A rule finds `capgo_version_rank_info` whichever format Prometheus asked for."""
    fleet = Fleet()
    fleet.release("2.3.0")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(fleet.releases)
    expected = {
        (FIRST_SEEN, "2.3.0", None, None, 1_800_000_001.0),
        ("capgo_version_rank_info", "2.3.0", "semver", "1", 1.0),
        ("capgo_version_rank_info", "2.3.0", "first_seen", "1", 1.0),
    }
    for families in (
        parse_text(generate_latest(registry).decode()),
        parse_openmetrics(generate_openmetrics(registry).decode()),
    ):
        samples = [sample for family in families for sample in family.samples]
        assert {APP} == {sample.labels["app_id"] for sample in samples}
        assert expected == {
            (each.name, each.labels["version"], each.labels.get("order"), each.labels.get("rank"), each.value)
            for each in samples
        }


# --- what is established ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("devices", "installs", "all_installs", "expected"),
    [
        (20, 0, 0, True),
        (20, 0, 1_000_000, True),
        (19, 0, 0, False),
        (19, 9, 1000, False),
        (2, 10, 1000, True),
        (2, 9, 1000, False),
        (2, 10, 1001, False),
        (1, 1000, 1000, False),
        (0, 1000, 1000, False),
        (2, 0, 0, False),
        (2, 1, 1, True),
    ],
)
def test_established(devices: int, installs: int, all_installs: int, *, expected: bool) -> None:
    """20 devices, or exactly 1 % of the installs and two devices."""
    assert expected == is_established(devices, installs, all_installs)


def test_a_developer_blinds_nobody() -> None:
    """One device's `999.0.0` with one of 50 installs is 2 % of them, and has no rank."""
    fleet = Fleet(installs={APP: {"2.3.0": 49, "999.0.0": 1}})
    fleet.release("2.3.0")
    fleet.store(*fleet.see("999.0.0", 1))
    assert (["2.3.0"], ["2.3.0"]) == (fleet.newest(), fleet.newest("first_seen"))
    assert {(APP, "2.3.0"), (APP, "999.0.0")} == set(fleet.first_seen())


def test_twenty_devices_rank_a_version() -> None:
    """The twentieth does, without any install; the nineteenth does not."""
    fleet = Fleet(installs={APP: {"2.3.0": 1_000_000}})
    fleet.release("2.3.0")
    fleet.store(*fleet.see("999.0.0", *range(19)))
    assert ["2.3.0"] == fleet.newest()
    fleet.store(*fleet.see("999.0.0", 19))
    assert ["999.0.0", "2.3.0"] == fleet.newest()


def test_a_share_of_the_installs_ranks_a_version_that_two_devices_run() -> None:
    """Installs of the bundle in the store count among all; another app's do not."""
    fleet = Fleet(installs={APP: {"builtin": 50, "2.3.0": 149, "2.4.0": 1}, "other.app": {"2.4.0": 1000}})
    fleet.store(*fleet.see("2.4.0", 1, 2))
    assert [] == fleet.newest()
    fleet.installs[APP]["2.4.0"] = 2
    assert [] == fleet.newest()
    fleet.installs[APP]["2.4.0"] = 3
    assert ["2.4.0"] == fleet.newest()


# --- orders -----------------------------------------------------------------------------------------------------------


def test_apps_have_ranks_of_their_own() -> None:
    """A version of one app is nothing to another app."""
    fleet = Fleet()
    fleet.release("1.0.0", app_id="one")
    fleet.release("2.0.0", app_id="two")
    assert (["1.0.0"], ["2.0.0"]) == (fleet.newest(app_id="one"), fleet.newest(app_id="two"))


def test_the_two_orders_differ() -> None:
    """A patch of an old release is the newest by time alone; of each order five are shown."""
    fleet = Fleet()
    fleet.release("1.9.0", "1.10.0", "2.0.0-rc.1", "2.0.0", "1.8.0", "1.8.1")
    assert ["2.0.0", "2.0.0-rc.1", "1.10.0", "1.9.0", "1.8.1"] == fleet.newest()
    assert ["1.8.1", "1.8.0", "2.0.0", "2.0.0-rc.1", "1.10.0"] == fleet.newest("first_seen")


def test_versions_that_are_not_semantic_have_no_semantic_rank() -> None:
    """They have one by first seen."""
    fleet = Fleet()
    fleet.release("1.2.3.4", "1.2", "latest", "v2", "01.2.3")
    assert ["v2", "1.2"] == fleet.newest()
    assert ["01.2.3", "v2", "latest", "1.2", "1.2.3.4"] == fleet.newest("first_seen")


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1", (1, 0, 0, None, None)),
        ("1.2", (1, 2, 0, None, None)),
        ("v1.2.3-rc.1+build.5", (1, 2, 3, "rc.1", "build.5")),
        ("2026-05-01", (2026, 0, 0, "05-01", None)),  # a date: in order among others
        ("1.2.3.4", None),
        ("vv1.2.3", None),
        ("V1.2.3", None),
        ("1.2.3 ", None),
        ("1.02.3", None),
        ("", None),
        ("v", None),
        ("1.2.3-", None),
        ("٣.2.1", None),
        (f"1.0.{'9' * 124}", (1, 0, int("9" * 124), None, None)),
        (f"1.0.{'9' * 125}", None),
        (f"1.0.{'9' * 4301}", None),
        (f"1.0.0-{'9' * 4301}", None),
    ],
)
def test_parse(version: str, expected: tuple[int, int, int, str | None, str | None] | None) -> None:
    """What a label can hold is read, and nothing is too long to be refused without an error."""
    parsed = parse(version)
    assert expected == (None if parsed is None else parsed.to_tuple())


def test_huge_numbers_stand_in_their_order() -> None:
    """They are compared as numbers, in a pre-release too."""
    fleet = Fleet()
    big, bigger = f"1.0.{'8' * 123}", f"1.0.{'1' * 124}"
    rc, later_rc = f"1.0.0-{'8' * 121}", f"1.0.0-{'1' * 122}"
    fleet.release(bigger, later_rc, big, rc, f"1.0.{'9' * 4400}")
    assert [bigger, big, later_rc, rc] == fleet.newest()


def test_first_seen_decides_between_equal_versions() -> None:
    """Build metadata, a `v` and missing zeros are nothing to semantic versions."""
    fleet = Fleet()
    fleet.release("1.0.0+b", "v1.0.0", "1.0.0+a", "1.0", "1.0.0")
    assert ["1.0.0", "1.0", "1.0.0+a", "v1.0.0", "1.0.0+b"] == fleet.newest()


def test_ties_are_decided_by_the_text() -> None:
    """Versions of one batch come in the same millisecond; a restart shows them in the same order."""
    rows = [row(version, range(20)) for version in ("1.0.0+a", "1.0.0+c", "1.0.0+b")]
    for order in (rows, rows[::-1]):
        fleet = Fleet()
        fleet.releases.restore(order)
        expected = ["1.0.0+c", "1.0.0+b", "1.0.0+a"]
        assert (expected, expected) == (fleet.newest(), fleet.newest("first_seen"))


IDENTIFIERS = st.sampled_from(["alpha", "beta", "rc", "0", "1", "2", "10", "rc1", "-", "B"])
PRERELEASES = st.lists(IDENTIFIERS, min_size=1, max_size=3)
NUMBERS = st.integers(0, 12) | st.integers(0, 10**30)


@dataclass(frozen=True)
class Written:
    """A semantic version as the standard has it, apart from how it is written."""

    numbers: tuple[int, int, int]
    prerelease: tuple[str, ...]
    build: str
    prefix: str

    @property
    def text(self) -> str:
        """The version as an event says it."""
        core = ".".join(map(str, self.numbers))
        return f"{self.prefix}{core}{'-' if self.prerelease else ''}{'.'.join(self.prerelease)}{self.build}"

    @property
    def precedence(self) -> tuple[object, ...]:
        """A key in the order of https://semver.org, section 11."""
        identifiers = tuple((not each.isdecimal(), int(each) if each.isdecimal() else each) for each in self.prerelease)
        return (self.numbers, not self.prerelease, identifiers)


SEMANTIC = st.builds(
    Written,
    st.tuples(NUMBERS, NUMBERS, NUMBERS),
    st.just(()) | PRERELEASES.map(tuple),
    st.sampled_from(["", "+1", "+2.b"]),
    st.sampled_from(["", "v"]),
)
FREE_TEXTS = st.sampled_from(["latest", "1.2.3.4", "2026.05.01", "1..2", "x1.0.0"]).map(lambda text: (text, None))
ANY_VERSION = SEMANTIC.map(lambda written: (written.text, written)) | FREE_TEXTS


@given(
    st.lists(
        st.tuples(ANY_VERSION, st.integers(0, 3), st.integers(17, 20)), max_size=15, unique_by=lambda each: each[0][0]
    ),
    st.data(),
)
def test_the_ranks_are_those_of_a_plain_sort(
    seen: list[tuple[tuple[str, Written | None], int, int]], data: st.DataObject
) -> None:
    """Whatever was seen, in whatever order it was stored, forgotten or not, before and after a restart."""
    rows = [row(text, range(devices), first_seen_ms) for (text, _), first_seen_ms, devices in seen]
    gone = {each.version for each in rows if data.draw(st.booleans())} if data.draw(st.booleans()) else set()
    fleet = Fleet()
    for each in rows:
        for device in [None, *range(len(each.devices) // 8)]:
            fleet.releases.observe(APP, each.version, device, each.first_seen_ms)
    fleet.store(*rows)
    fleet.releases.forget((APP, version) for version in gone)
    restored = Fleet()
    restored.releases.restore(each for each in rows if each.version not in gone)
    left = [
        (written, first_seen_ms, text)
        for (text, written), first_seen_ms, devices in seen
        if devices >= ESTABLISHED_DEVICES and text not in gone
    ]
    semantic = [(written.precedence, first_seen_ms, text) for written, first_seen_ms, text in left if written]
    by_semver = [text for _, _, text in sorted(semantic, reverse=True)][:RANKS]
    timed = [(first, written is not None, written.precedence if written else (), text) for written, first, text in left]
    by_time = [text for *_, text in sorted(timed, reverse=True)][:RANKS]
    for each_fleet in (fleet, restored):
        assert (by_semver, by_time) == (each_fleet.newest(), each_fleet.newest("first_seen"))


# --- restarts ---------------------------------------------------------------------------------------------------------


def test_a_restart_shows_the_same() -> None:
    """What the journal has is shown as before, and grows on."""
    fleet = Fleet()
    fleet.release("1.9.0", "1.10.0")
    fleet.store(*fleet.see("2.0.0", *range(19)))
    again = fleet.restarted()
    assert (fleet.first_seen(), fleet.newest(), fleet.newest("first_seen")) == (
        again.first_seen(),
        again.newest(),
        again.newest("first_seen"),
    )
    assert [] == again.see("2.0.0", *range(19))
    again.store(*again.see("2.0.0", 19))
    assert ["2.0.0", "1.10.0", "1.9.0"] == again.newest()


@pytest.mark.parametrize(
    "damaged",
    [
        row()._replace(devices=b"1234567"),
        row()._replace(devices=b"123456789"),
        row(devices=range(21)),
        row(devices=[1, 1]),
        row("builtin"),
        row(""),
        row(app_id=""),
        row(first_seen_ms=-1),
    ],
    ids=["short", "long", "too many", "repeated", "no release", "no version", "no app", "time"],
)
def test_a_damaged_row_is_told(damaged: ReleaseRow) -> None:
    """Nothing of such a journal is taken over."""
    fleet = Fleet()
    with pytest.raises(ValueError, match="a release is damaged"):
        fleet.releases.restore([row("2.0.0"), damaged])
    assert {} == fleet.first_seen()
