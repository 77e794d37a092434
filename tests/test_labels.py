"""Labels: normalised, capped, and never moved between series."""

from collections.abc import Iterable
from typing import Any

import pytest

from exporter.caps import CappedValues
from exporter.events import Event
from exporter.labels import LabelPolicy, Labels, environment, normalise, split_version
from tests.support.exporter import CounterKey
from tests.support.inprocess import ManualClock, Running, running

HOUR = 3600.0


class Overflow:
    """Remembers what did not get a series of its own."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.seen: list[tuple[str, str]] = []

    def __call__(self, label: str, value: str) -> None:
        """Remember one."""
        self.seen.append((label, value))


class Policy(LabelPolicy):
    """A policy with a clock and caps of the test's own."""

    def __init__(self, *, apps: int = 10, versions: int = 10, actions: int = 2, reserved: Iterable[str] = ()) -> None:
        """Set the caps."""
        self.time = ManualClock()
        self.overflow = Overflow()
        self.marked: set[tuple[str, str]] = set()
        super().__init__(
            max_apps=apps,
            max_versions_per_app=versions,
            max_unknown_actions=actions,
            reserved_apps=reserved,
            is_marked=lambda app_id, version: (app_id, version) in self.marked,
            monotonic=self.time.clock.monotonic,
            on_overflow=self.overflow,
        )

    def labels(self, app_id: str = "app", action: str = "set", **fields: Any) -> Labels:
        """Give the labels of an event."""
        return self.place(Event(app_id, action, **fields)).labels

    def versions(self, names: Iterable[str], app_id: str = "app") -> list[str]:
        """Give the label `version` of an event for each name."""
        return [self.labels(app_id, version_name=name).version for name in names]


def numbered(start: int, stop: int) -> list[str]:
    """Give version names 1.0.start to 1.0.stop, the last one left out."""
    return [f"1.0.{number}" for number in range(start, stop)]


# --- one label at a time ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.2.3", "1.2.3"),
        (" 1.2.3\n", "1.2.3"),
        ("a\nb\tc\x00d", "a b c d"),
        ("a\u2028b\u0085c", "a b c"),
        ("C:\\app", "C:/app"),
        ("\\", "/"),
        ('quo"te, = é😀', 'quo"te, = é😀'),
        (" \t ", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    """Control characters become spaces, backslashes slashes, and the ends are trimmed."""
    assert expected == normalise(text)


@pytest.mark.parametrize(
    ("version_name", "expected"),
    [
        ("1.2.3", ("1.2.3", "")),
        ("1.2.3:assets/main.js", ("1.2.3", "assets/main.js")),
        ("1.2.3:a:b", ("1.2.3", "a:b")),
        ("1.2.3:", ("1.2.3", "")),
        (":assets/main.js", (":assets/main.js", "")),
        ("", ("", "")),
    ],
)
def test_split_version(version_name: str, expected: tuple[str, str]) -> None:
    """The part before the first colon is the version, unless the colon stands in front."""
    assert expected == split_version(version_name)


@pytest.mark.parametrize(
    ("is_prod", "is_emulator", "expected"),
    [
        (True, False, "prod"),
        (None, None, "prod"),
        (True, None, "prod"),
        (None, False, "prod"),
        (False, False, "dev"),
        (False, None, "dev"),
        (True, True, "emulator"),
        (False, True, "emulator"),
        (None, True, "emulator"),
    ],
)
def test_environment(is_prod: bool | None, is_emulator: bool | None, expected: str) -> None:  # noqa: FBT001 -- a table
    """An emulator is one whatever else is said; what is missing is taken as production."""
    assert expected == environment(Event("app", "set", is_prod=is_prod, is_emulator=is_emulator))


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        ("android", "android"),
        ("iOS", "ios"),
        ("ELECTRON", "electron"),
        ("web", "web"),
        ("other", "other"),
        ("windows", "other"),
        (" ios", "other"),
        ("", "other"),
        (None, "other"),
    ],
)
def test_platform(platform: str | None, expected: str) -> None:
    """Lower case, and `other` for all that is not a platform of Capgo's."""
    assert expected == Policy().labels(platform=platform).platform


@pytest.mark.parametrize(
    ("version_name", "expected", "raw"),
    [
        ("1.2.3", "1.2.3", ()),
        (None, "unknown", ()),
        ("", "unknown", ()),
        ("builtin", "builtin", ()),
        ("1.2.3:assets/main.js", "1.2.3", (("file", "assets/main.js"),)),
        (" 1.2.3", "1.2.3", (("version_raw", " 1.2.3"),)),
        ("1\\2:f", "1/2", (("version_raw", "1\\2"), ("file", "f"))),
        (" ", "unknown", (("version_raw", " "),)),
        ("x" * 128, "x" * 128, ()),
        ("x" * 129, "other", (("version_raw", "x" * 129),)),
    ],
)
def test_version(version_name: str | None, expected: str, raw: tuple[tuple[str, str], ...]) -> None:
    """What the label does not say goes into a field; what it says does not."""
    placement = Policy().place(Event("app", "set", version_name=version_name))
    assert (expected, raw) == (placement.labels.version, placement.raw)


@pytest.mark.parametrize(
    ("app_id", "action", "expected", "raw"),
    [
        ("com.example.shop", "set", ("com.example.shop", "set"), ()),
        ("unknown", "NoChannelOrOverride", ("unknown", "NoChannelOrOverride"), ()),
        ("app\n", "my_action", ("app", "my_action"), (("app_id_raw", "app\n"),)),
        ("app", "SET", ("app", "SET"), ()),
        ("app", " set", ("app", "set"), (("action_raw", " set"),)),
        ("x" * 129, "y" * 129, ("other", "other"), (("app_id_raw", "x" * 129), ("action_raw", "y" * 129))),
        ("\x00", "\x00", ("unknown", "unknown"), (("app_id_raw", "\x00"), ("action_raw", "\x00"))),
    ],
)
def test_app_and_action(app_id: str, action: str, expected: tuple[str, str], raw: tuple[tuple[str, str], ...]) -> None:
    """Both are case-sensitive, and keep their raw text where the label differs."""
    placement = Policy().place(Event(app_id, action))
    assert (expected, raw) == ((placement.labels.app_id, placement.labels.action), placement.raw)


# --- caps -------------------------------------------------------------------------------------------------------------


def test_most_of_a_cap_is_taken_freely() -> None:
    """An exporter put in front of a living fleet meets all its versions at once: 80 of 100 have no pace."""
    policy = Policy(versions=100)
    assert numbered(0, 80) == policy.versions(numbered(0, 80))
    assert 0 == policy.time.seconds - ManualClock().seconds


def test_the_rest_of_a_cap_is_taken_at_a_pace() -> None:
    """Past the free share 20 new versions of an app get labels in an hour; later events of a refused one may."""
    policy = Policy(versions=200)
    policy.versions(numbered(0, 160))
    assert [*numbered(160, 180), "other"] == policy.versions(numbered(160, 181))
    policy.time.advance(HOUR - 1)
    assert ["other"] == policy.versions(["1.0.180"])
    policy.time.advance(1)
    assert [*numbered(180, 200), "other"] == policy.versions(numbered(180, 201))
    policy.time.advance(HOUR)
    assert ["other", "1.0.180"] == policy.versions(["1.0.200", "1.0.180"])


def test_apps_have_a_slower_pace() -> None:
    """Past the free share 5 new apps get labels in an hour."""
    policy = Policy(apps=100)
    apps = [f"app{number}" for number in range(86)]
    assert [*apps[:85], "other"] == [policy.labels(app).app_id for app in apps]
    policy.time.advance(HOUR)
    assert "app85" == policy.labels("app85").app_id


def test_unknown_actions_have_a_cap_and_no_pace() -> None:
    """Known actions take no place; an unknown one past the cap is `other`."""
    policy = Policy(actions=2)
    actions = ["new_1", "set", "new_2", "app_crash", "new_3", "new_1", "other"]
    assert ["new_1", "set", "new_2", "app_crash", "other", "new_1", "other"] == [
        policy.labels(action=action).action for action in actions
    ]
    assert [("action", "new_3")] == policy.overflow.seen


def test_a_cap_of_no_unknown_actions() -> None:
    """With a cap of 0 every unknown action is `other`, and the text is kept."""
    placement = Policy(actions=0).place(Event("app", "new"))
    assert ("other", (("action_raw", "new"),)) == (placement.labels.action, placement.raw)


def test_a_value_that_has_a_label_keeps_it() -> None:
    """A flood past the cap takes nothing from the values that are there."""
    policy = Policy(versions=5)
    policy.versions(numbered(0, 1000))
    assert numbered(0, 5) == policy.versions(numbered(0, 5))
    assert ["other"] == policy.versions(["1.0.999"])


def test_every_app_has_versions_of_its_own() -> None:
    """One app's flood does not touch another app's versions."""
    policy = Policy(versions=5)
    policy.versions(numbered(0, 1000), "one")
    assert numbered(0, 4) == policy.versions(numbered(0, 4), "two")


def test_free_values_take_no_place() -> None:
    """`builtin`, `unknown` and `other` are labels of their own, full or not."""
    policy = Policy(apps=1, versions=1)
    policy.labels("app", version_name="1.0.0")
    free = ["builtin", "unknown", "other"]
    assert ["1.0.0", *free, "other"] == policy.versions(["1.0.0", *free, "2.0.0"])
    assert ["app", "unknown", "other", "other"] == [
        policy.labels(app).app_id for app in ("app", "unknown", "other", "another")
    ]
    assert [("version", "2.0.0"), ("app_id", "another")] == policy.overflow.seen


def test_marked_releases_always_have_labels() -> None:
    """Past the cap a version that was marked has its own label, in its app alone; it takes the place of no other."""
    policy = Policy(versions=10)
    assert numbered(0, 10) == policy.versions(numbered(0, 10))
    policy.marked.add(("app", "2.0.0"))
    assert ["2.0.0", "other", "1.0.3"] == policy.versions(["2.0.0", "2.0.1", "1.0.3"])
    policy.versions(numbered(0, 10), "app2")
    assert ["other"] == policy.versions(["2.0.0"], "app2")
    policy.marked.clear()  # A release whose mark is forgotten keeps its place.
    assert ["2.0.0"] == policy.versions(["2.0.0"])


def test_reserved_apps_always_have_labels() -> None:
    """The apps of the allow-list stand on top of the cap."""
    policy = Policy(apps=1, reserved=["one", "two"])
    assert ["any", "other", "one", "two"] == [policy.labels(app).app_id for app in ("any", "late", "one", "two")]


def test_what_is_restored_is_there_whatever_the_cap() -> None:
    """A start with a smaller cap moves no value into `other`."""
    policy = Policy(apps=1, versions=1, actions=0)
    for number in range(5):
        policy.restore(Labels(f"app{number}", "ios", f"action{number}", f"1.0.{number}", "prod"))
    for number in range(5):
        assert Labels(f"app{number}", "other", f"action{number}", f"1.0.{number}", "prod") == policy.labels(
            f"app{number}", f"action{number}", version_name=f"1.0.{number}"
        )


def test_released_places_are_taken_again() -> None:
    """What has no series any more makes room."""
    policy = Policy(apps=1, versions=1, actions=1)
    policy.labels("app", "new", version_name="1.0.0")
    policy.release(apps=["app"], versions=[("app", "1.0.0")], actions=["new"])
    assert Labels("next", "other", "newer", "2.0.0", "prod") == policy.labels("next", "newer", version_name="2.0.0")


def test_crowding_counts_what_must_go_for_the_next_to_be_free() -> None:
    """It is 0 within the free share, and one more with every value past it."""
    values = CappedValues(10, 5, lambda: 0.0)
    crowding = []
    for number in range(10):
        crowding.append(values.crowding)
        assert values.admit(str(number))
    assert ([0, 0, 0, 0, 0, 0, 0, 0, 1, 2], 3) == (crowding, values.crowding)


# --- through the exporter ---------------------------------------------------------------------------------------------


async def post(exporter: Running, *events: dict[str, Any]) -> None:
    """Post events as one batch and see that it is answered."""
    reply = await exporter.post([{"app_id": "app", "action": "set", "platform": "ios", **event} for event in events])
    assert 200 == reply.status


async def test_an_overflow_is_counted_and_its_text_kept() -> None:
    """The counter and the tags say `other`, the fields say what it was, and a metric says which cap it met."""
    settings = {"max_apps": 1, "max_versions_per_app": 1, "max_unknown_actions": 0}
    async with running(settings) as exporter:
        await post(exporter, {"version_name": "1.0.0"})
        await post(
            exporter, {"app_id": "late", "action": "new", "version_name": "1.0.0"}, {"version_name": "2.0.0:f.js"}
        )
        assert {
            CounterKey("app", "ios", "set", "1.0.0", "prod"): 1,
            CounterKey("other", "ios", "other", "1.0.0", "prod"): 1,
            CounterKey("app", "ios", "set", "other", "prod"): 1,
        } == await exporter.counters()
        raw = [
            {name: value for name, value in point.fields.items() if name.endswith("_raw") or name == "file"}
            for point in exporter.points()
        ]
        assert [
            {},
            {"app_id_raw": "late", "action_raw": "new"},
            {"version_raw": "2.0.0", "file": "f.js"},
        ] == raw
        overflow = [
            await exporter.sample("capgo_exporter_label_overflow_total", label=label)
            for label in ("app_id", "action", "version", "series")
        ]
        assert [1.0, 1.0, 1.0, 0.0] == overflow


async def test_a_repeated_overflow_is_counted_each_time() -> None:
    """The short way to a series is not taken by events whose texts are not the labels."""
    async with running({"max_versions_per_app": 1}) as exporter:
        await post(exporter, *[{"version_name": "1"}, {"version_name": "2"}] * 3)
        assert ["2", "2", "2"] == [
            point.fields["version_raw"] for point in exporter.points() if point.tags["version"] == "other"
        ]
        assert 3.0 == await exporter.sample("capgo_exporter_label_overflow_total", label="version")


async def test_the_bound_on_all_series_keeps_the_texts() -> None:
    """Past the bound on series an event is counted with `other` labels, and nothing of it is lost."""
    async with running({"max_series": 100, "max_versions_per_app": 1000}) as exporter:
        await post(exporter, *[{"version_name": version} for version in numbered(0, 100)])
        counters = await exporter.counters(zeros=True)
        assert 100 == sum(counters.values())
        assert 105 >= len(counters)
        moved = [point for point in exporter.points() if point.tags["app_id"] == "other"]
        assert counters[CounterKey("other", "ios", "set", "other", "prod")] == len(moved) > 50
        assert {("app", "1.0.99")} <= {
            (str(point.fields["app_id_raw"]), str(point.fields["version_raw"])) for point in moved
        }
        assert len(moved) <= await exporter.sample("capgo_exporter_label_overflow_total", label="series")


async def test_a_value_never_moves_between_series(tmp_path: Any) -> None:
    """What was `other` stays counted there, also when there is room after a restart with a larger cap."""
    for cap in (1, 10):
        async with running({"data_dir": tmp_path, "max_versions_per_app": cap}) as exporter:
            await post(exporter, {"version_name": "1"}, {"version_name": "2"})
    async with running({"data_dir": tmp_path}) as exporter:
        assert {
            CounterKey("app", "ios", "set", "1", "prod"): 2,
            CounterKey("app", "ios", "set", "other", "prod"): 1,
            CounterKey("app", "ios", "set", "2", "prod"): 1,
        } == await exporter.counters()
