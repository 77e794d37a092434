"""Distinct devices: their estimates against exact sets, and what is kept of them under which bound."""

import zlib
from collections.abc import Collection, Iterable
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from exporter.derived.device_metrics import AppSketches
from exporter.derived.devices import Devices
from exporter.derived.sketches import Sketch, SketchKind, count, count_added, unite
from exporter.journal.derived_records import SketchRow

TODAY = 20_772
APP = "com.example.shop"
OTHER_APP = "com.example.other"
PLATFORM, VERSION = SketchKind.PLATFORM, SketchKind.VERSION
AFFECTED, SUCCEEDED, FAILED = SketchKind.AFFECTED, SketchKind.SUCCEEDED, SketchKind.FAILED
ERROR = 0.05
"""Three standard errors of 1.6 %, as the module says."""
Values = dict[tuple[str, ...], float]


class Store:
    """Devices, with what the journal would hold of them."""

    def __init__(self, max_sketches: int = 10_000) -> None:
        """Start with an empty journal."""
        self.drops = 0
        self.devices = Devices(max_sketches, self._drop)
        self.rows: dict[int, SketchRow] = {}
        self.log: list[tuple[int, list[int]]] = []
        self.staged: list[tuple[Sketch, list[int]]] = []

    def _drop(self) -> None:
        self.drops += 1

    def see(
        self, kind: SketchKind, name: str, hashes: Iterable[int], day: int = TODAY, *, app_id: str = APP
    ) -> Sketch | None:
        """Stage devices that were seen, on the current day."""
        return self.see_on(TODAY, (app_id, kind, name, day), hashes)

    def see_on(self, today: int, thing: tuple[str, SketchKind, str, int], hashes: Iterable[int]) -> Sketch | None:
        """Stage devices that were seen."""
        sketch = self.devices.find(*thing, today)
        if sketch is not None:
            self.staged.append((sketch, list(hashes)))
        return sketch

    def commit(self, *, snapshot: bool = False) -> None:
        """Store what is staged, and show it."""
        devices = self.devices
        new = [sketch.row() for sketch in devices.unstored]
        snapshots = devices.snapshot() if snapshot else []
        gone = [sketch.sketch_id for sketch in devices.doomed]
        if snapshot:
            self.log = []
        self.rows |= {row.sketch_id: row for row in new}
        for blob, sketch_id in snapshots:
            self.rows[sketch_id] = self.rows[sketch_id]._replace(sketch=blob)
        for sketch_id in gone:
            self.rows.pop(sketch_id, None)
        self.log += [(sketch.sketch_id, hashes) for sketch, hashes in self.staged]
        devices.mark_stored([row.sketch_id for row in new])
        for sketch, hashes in self.staged:
            devices.apply(sketch, hashes)
        devices.mark_snapshot([sketch_id for _, sketch_id in snapshots])
        devices.remove(gone)
        self.staged = []

    def add(self, kind: SketchKind, name: str, hashes: Iterable[int], day: int = TODAY, *, app_id: str = APP) -> None:
        """Store devices that were seen, in a transaction of their own."""
        assert self.see(kind, name, hashes, day, app_id=app_id) is not None
        self.commit()

    def restored(self) -> Devices:
        """Start anew from the journal."""
        devices = Devices(10_000, self._drop)
        self.restore(devices)
        return devices

    def restore(self, devices: Devices) -> None:
        """Take over what the journal holds."""
        devices.restore(self.rows.values())
        for sketch_id, hashes in self.log:
            devices.replay(sketch_id, hashes)

    def values(self, name: str, today: int = TODAY) -> Values:
        """Give a metric's values of the app, by its other labels."""
        return values(self.devices, name, today)

    def kept(self) -> set[tuple[str, str, str, int]]:
        """Name all sketches that the journal holds."""
        return {(row.app_id, row.kind, row.name, row.day) for row in self.rows.values()}


def values(devices: Devices, name: str, today: int = TODAY, app_id: str = APP) -> Values:
    """Give a metric's values of an app, by its other labels."""
    family = next(family for family in devices.collect(today) if family.name == name)
    samples = [sample for sample in family.samples if sample.labels["app_id"] == app_id]
    return {tuple(sample.labels.values())[1:]: sample.value for sample in samples}


def page(devices: Devices, today: int = TODAY) -> str:
    """Render all metrics."""

    class Collector:
        def collect(self) -> Iterable[Metric]:
            return devices.collect(today)

    registry = CollectorRegistry()
    registry.register(Collector())
    text: str = generate_latest(registry).decode()
    return text


def hashes(number: int, seed: int = 0) -> list[int]:
    """Make up so many devices; those of one seed begin alike."""
    random = Random(seed)  # noqa: S311 -- no secret
    return [random.getrandbits(63) for _ in range(number)]


def windows(name: str, one: float, seven: float, thirty: float) -> Values:
    """Write the values of a thing's windows."""
    return {(name, "1d"): one, (name, "7d"): seven, (name, "30d"): thirty}


def close(exact: int, estimate: float) -> bool:
    """Tell whether an estimate is within the bound."""
    return abs(estimate - exact) <= exact * ERROR


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("number", [1, 10, 100, 1_000, 100_000])
def test_a_day_is_within_the_error_bound(number: int, seed: int) -> None:
    """Estimates of one day are within 5 % whatever the number of devices, and exact up to 100; repeats do not count."""
    store = Store()
    seen = hashes(number, seed)
    store.add(PLATFORM, "ios", seen)
    store.add(PLATFORM, "ios", seen[::2])
    estimate = store.values("capgo_devices")["ios", "1d"]
    assert close(number, estimate)
    if number <= 100:
        assert number == estimate


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("number", [1, 10, 100, 1_000, 100_000])
def test_windows_are_within_the_error_bound(number: int, seed: int) -> None:
    """Devices that come back on other days count once in a window, and the estimate is within 5 % of the exact set."""
    store = Store()
    exact: dict[int, set[int]] = {}
    every = hashes(number * 3, seed)
    random = Random(seed)  # noqa: S311 -- no secret
    for day in range(TODAY - 29, TODAY + 1, 3):
        start = random.randrange(number * 2 + 1)
        exact[day] = set(every[start : start + number])
        store.add(PLATFORM, "ios", exact[day], day)
    for window, days in (("1d", 1), ("7d", 7), ("30d", 30)):
        union = set().union(*(devices for day, devices in exact.items() if day > TODAY - days))
        estimate = store.values("capgo_devices")["ios", window]
        assert close(len(union), estimate), window
        if len(union) <= 100:
            assert len(union) == estimate


def test_up_to_300_devices_are_exact() -> None:
    """While a sketch keeps devices one by one, and so do unions of such ones, the figures are exact."""
    store = Store()
    every = hashes(300)
    for number, device in enumerate(every, 1):
        store.see(PLATFORM, "ios", [device], TODAY - number % 3)
        store.commit()
        assert number == store.values("capgo_devices")["ios", "7d"]


def test_a_longer_window_never_shows_less() -> None:
    """Estimators differ between a day and a union, but 7 days never show fewer devices than one of them."""
    for seed in range(40):
        store = Store()
        seen = hashes(3_000, seed)
        for day in (TODAY, TODAY - 1, TODAY - 20):
            store.add(PLATFORM, "ios", seen, day)
        shown = store.values("capgo_devices")
        assert shown["ios", "1d"] <= shown["ios", "7d"] <= shown["ios", "30d"]


def test_small_sketches_are_stored_small() -> None:
    """The serialised size grows with the devices: under 200 bytes for 20, and never over 4.2 KiB."""
    sizes = []
    for number in (1, 20, 100, 300, 100_000):
        sketch = Sketch(1, APP, PLATFORM, "ios", TODAY)
        sketch.add(hashes(number))
        sizes.append(len(sketch.dump()))
    assert sorted(set(sizes)) == sizes
    assert sizes[1] < 200
    assert sizes[-1] < 4_300


def test_only_what_is_stored_is_shown() -> None:
    """A new sketch shows nothing before its COMMIT, and after it its devices."""
    store = Store()
    store.see(PLATFORM, "ios", hashes(3))
    store.see(VERSION, "2.0.0", hashes(3))
    store.see(SUCCEEDED, "", hashes(3))
    assert [] == [sample for family in store.devices.collect(TODAY) for sample in family.samples]
    store.commit()
    assert windows("ios", 3, 3, 3) == store.values("capgo_devices")
    assert not store.devices.unstored


def test_windows_roll_over_with_the_day() -> None:
    """A window holds the current UTC day so far and the 6 or 29 before it; what the new day brings is added."""
    store = Store()
    seen = hashes(10)
    for day, hash_ in ((TODAY, 0), (TODAY - 1, 1), (TODAY - 6, 2), (TODAY - 7, 3), (TODAY - 29, 4)):
        store.add(PLATFORM, "ios", [seen[hash_], seen[9]], day)
    assert windows("ios", 2, 4, 6) == store.values("capgo_devices")
    assert windows("ios", 0, 3, 5) == store.values("capgo_devices", TODAY + 1)
    store.see_on(TODAY + 1, (APP, PLATFORM, "ios", TODAY + 1), [seen[5]])
    store.commit()
    assert windows("ios", 1, 4, 6) == store.values("capgo_devices", TODAY + 1)
    assert windows("ios", 0, 1, 6) == store.values("capgo_devices", TODAY + 7)


def test_a_late_event_counts_on_its_own_day() -> None:
    """A device seen on an older day joins the windows that hold that day, although these were shown before."""
    store = Store()
    store.add(PLATFORM, "ios", hashes(2))
    store.add(PLATFORM, "ios", hashes(2), TODAY - 7)
    assert windows("ios", 2, 2, 2) == store.values("capgo_devices")
    store.add(PLATFORM, "ios", hashes(5), TODAY - 6)
    assert windows("ios", 2, 5, 5) == store.values("capgo_devices")
    store.add(PLATFORM, "ios", hashes(9), TODAY - 7)
    assert windows("ios", 2, 5, 9) == store.values("capgo_devices")


def test_days_outside_the_windows_are_not_counted() -> None:
    """There is no sketch for a day 30 days ago; a clock that is ahead over midnight counts today."""
    store = Store()
    assert store.see(PLATFORM, "ios", hashes(1), TODAY - 30) is None
    assert store.see(PLATFORM, "ios", hashes(1), TODAY - 29) is not None
    ahead = store.see(PLATFORM, "ios", hashes(1), TODAY + 1)
    assert store.see(PLATFORM, "ios", hashes(1)) is ahead
    assert 0 == store.drops


def test_ten_versions_are_shown() -> None:
    """Those with most devices in the last two days, counted once each; a tie goes to the last seen, then by name."""
    store = Store()
    for number in range(12):
        store.add(VERSION, f"2.0.{number}", hashes(number + 3))
        store.add(VERSION, f"2.0.{number}", hashes(number + 3), TODAY - 1)
    store.add(VERSION, "1.9.0", hashes(900), TODAY - 2)
    store.add(VERSION, "1.8.0", hashes(8, 1), TODAY - 1)
    store.add(VERSION, "1.8.0", hashes(8, 2))
    shown = [version for version, window in store.values("capgo_version_devices") if window == "1d"]
    assert ["1.8.0", *(f"2.0.{number}" for number in range(11, 2, -1))] == shown
    store.add(VERSION, "2.0.0", hashes(30))
    assert "2.0.0" == next(iter(store.values("capgo_version_devices")))[0]
    quiet = [version for version, window in store.values("capgo_version_devices", TODAY + 5) if window == "1d"]
    assert ["1.8.0", "2.0.0", "2.0.1", "2.0.10"] == quiet[:4]


def test_ratios() -> None:
    """Issue-free and adoption are shares of distinct devices, over all platforms; of no device there is none."""
    store = Store()
    store.add(PLATFORM, "ios", hashes(10))
    store.add(PLATFORM, "android", hashes(30, 1))
    store.add(VERSION, "2.0.0", hashes(10))
    store.add(VERSION, "1.0.0", hashes(20, 2), TODAY - 8)
    store.add(AFFECTED, "2.0.0", hashes(4))
    store.add(AFFECTED, "1.0.0", hashes(5, 2), TODAY - 8)
    assert {("2.0.0",): 0.25, ("1.0.0",): 0} == store.values("capgo_version_adoption_ratio")
    assert {**windows("2.0.0", 0.6, 0.6, 0.6), ("1.0.0", "30d"): 0.75} == store.values("capgo_version_issue_free_ratio")
    assert {**windows("2.0.0", 4, 4, 4), **windows("1.0.0", 0, 0, 5)} == store.values("capgo_version_affected_devices")
    store.add(PLATFORM, "android", hashes(60, 1))
    assert {("2.0.0",): 1 / 7, ("1.0.0",): 0} == store.values("capgo_version_adoption_ratio")
    assert {} == store.values("capgo_version_adoption_ratio", TODAY + 1)


def test_ratios_are_clamped() -> None:
    """Estimates may contradict each other, yet no share leaves 0 to 1."""
    store = Store()
    store.add(PLATFORM, "ios", hashes(2))
    store.add(VERSION, "2.0.0", hashes(3))
    store.add(AFFECTED, "2.0.0", hashes(4))
    assert {("2.0.0",): 1} == store.values("capgo_version_adoption_ratio")
    assert windows("2.0.0", 0, 0, 0) == store.values("capgo_version_issue_free_ratio")


def test_device_days_are_exact_for_small_fleets() -> None:
    """A device's day is a success if any update was, else a failure; a window sums its days."""
    store = Store()
    random = Random(3)  # noqa: S311 -- no secret
    fleet = hashes(60)
    model: dict[int, tuple[set[int], set[int]]] = {}
    for _ in range(400):
        day, failed = TODAY - random.randrange(30), random.random() < 0.5
        device = random.choice(fleet)
        model.setdefault(day, (set(), set()))[failed].add(device)
        store.add(FAILED if failed else SUCCEEDED, "", [device], day)
    expected: Values = {}
    for window, days in (("1d", 1), ("7d", 7), ("30d", 30)):
        in_window = [each for day, each in model.items() if day > TODAY - days]
        expected["success", window] = sum(len(succeeded) for succeeded, _ in in_window)
        expected["failure", window] = sum(len(failed - succeeded) for succeeded, failed in in_window)
    assert expected == store.values("capgo_device_day_outcomes")
    assert 0 < expected["failure", "30d"] < expected["success", "30d"]


def test_device_days_follow_each_change() -> None:
    """A failure turns into a success when one comes, on an old day too, and days leave the windows."""
    store = Store()
    store.add(FAILED, "", hashes(3), TODAY - 6)
    assert {**windows("success", 0, 0, 0), **windows("failure", 0, 3, 3)} == store.values("capgo_device_day_outcomes")
    store.add(SUCCEEDED, "", hashes(1), TODAY - 6)
    assert {**windows("success", 0, 1, 1), **windows("failure", 0, 2, 2)} == store.values("capgo_device_day_outcomes")
    store.add(SUCCEEDED, "", hashes(9))
    assert {**windows("success", 9, 10, 10), **windows("failure", 0, 2, 2)} == store.values("capgo_device_day_outcomes")
    assert (
        windows("success", 0, 9, 10)["success", "7d"]
        == store.values("capgo_device_day_outcomes", TODAY + 1)["success", "7d"]
    )
    assert 0 == store.values("capgo_device_day_outcomes", TODAY + 24)["failure", "30d"]


@pytest.mark.parametrize(("number", "failures"), [(1_000, 20), (10_000, 100), (100_000, 2_000)])
def test_few_failures_of_many_devices(number: int, failures: int) -> None:
    """Errors of what is subtracted cancel: few failures among many are found to a half, and none is none."""
    for seed in range(12):
        succeeded, failed = (Sketch(1, APP, kind, "", TODAY) for kind in (SUCCEEDED, FAILED))
        seen = hashes(number, seed)
        only_failed = hashes(failures, 1_000 + seed)
        succeeded.add(seen)
        failed.add(only_failed)
        assert pytest.approx(failures, rel=1 / 2) == count_added(succeeded.hll, failed.hll)
        assert 0 == count_added(succeeded.hll, succeeded.hll)
        failed.add(seen)
        assert pytest.approx(failures, rel=1 / 2) == count_added(succeeded.hll, failed.hll)


def test_failures_are_never_more_than_failed() -> None:
    """A difference of large estimates cannot exceed the devices that failed at all, nor fall below 0."""
    for seed in range(200):
        succeeded, failed = (Sketch(1, APP, kind, "", TODAY) for kind in (SUCCEEDED, FAILED))
        succeeded.add(hashes(20_000, seed))
        failed.add(hashes(3, 1_000 + seed))
        assert 0 <= count_added(succeeded.hll, failed.hll) <= 3
    for seed in range(200):
        succeeded, failed = (Sketch(1, APP, kind, "", TODAY) for kind in (SUCCEEDED, FAILED))
        succeeded.add(hashes(383, seed))
        failed.add(hashes(386, seed))
        assert 0 <= count_added(succeeded.hll, failed.hll) <= 386 * ERROR


def test_a_union_of_nothing_is_nothing() -> None:
    """No sketches have no devices."""
    assert 0 == count([])
    assert [] == unite([])


@pytest.mark.parametrize("number", [1, 30, 3_000])
def test_a_device_seen_again_changes_nothing(number: int) -> None:
    """A sketch is written again only if it changed, which its estimate tells for each new device."""
    store = Store()
    seen = hashes(number)
    changes = Sketch(1, APP, PLATFORM, "ios", TODAY)
    before = changes.dump()
    for device in seen:
        assert changes.add([device]) == (before != changes.dump())
        before = changes.dump()
    store.add(PLATFORM, "ios", seen)
    store.commit(snapshot=True)
    store.add(PLATFORM, "ios", seen)
    assert not store.devices.dirty
    store.add(PLATFORM, "ios", hashes(500, 1))
    assert [APP] == [sketch.app_id for sketch in store.devices.dirty]


def test_snapshots_are_due_until_they_are_stored() -> None:
    """A snapshot whose transaction fails is made again, and a change after it makes the sketch dirty again."""
    store = Store()
    store.add(PLATFORM, "ios", hashes(3))
    store.add(VERSION, "2.0.0", hashes(3))
    store.see(PLATFORM, "android", hashes(3))
    ids = [sketch_id for _, sketch_id in store.devices.snapshot()]
    assert ids == [sketch_id for _, sketch_id in store.devices.snapshot()]
    assert 2 == len(ids)
    changed = store.devices.find(APP, PLATFORM, "ios", TODAY, TODAY)
    assert changed is not None
    store.devices.apply(changed, hashes(9))
    store.devices.mark_snapshot(ids)
    assert [changed] == list(store.devices.dirty)


@pytest.mark.parametrize("snapshot_every", [1, 7, 1_000])
def test_a_restart_changes_nothing(snapshot_every: int) -> None:
    """Rows, snapshots and the log of sightings since give the same figures as never having stopped."""
    store = Store()
    random = Random(5)  # noqa: S311 -- no secret
    fleet = hashes(5_000)
    for number in range(1, 200):
        for kind, name in ((PLATFORM, "ios"), (VERSION, f"2.0.{number % 15}"), (AFFECTED, "2.0.1"), (FAILED, "")):
            store.see(kind, name, random.sample(fleet, 40), TODAY - random.randrange(8) ** 2 % 30)
        store.see(SUCCEEDED, "", random.sample(fleet, 40))
        store.commit(snapshot=not number % snapshot_every)
    restored = store.restored()
    assert page(store.devices) == page(restored)
    assert page(store.devices, TODAY + 1) == page(restored, TODAY + 1)
    for devices in (store.devices, restored):
        for sketch_id in store.rows:
            sketch = devices.by_id(sketch_id)
            assert sketch is not None
            devices.apply(sketch, hashes(1_000, 9))
    assert page(store.devices) == page(restored)
    assert {sketch.sketch_id for sketch in store.devices.dirty} == {sketch.sketch_id for sketch in restored.dirty}


def test_a_failed_commit_is_forgotten() -> None:
    """After a failed COMMIT the state is that of the journal: new sketches are gone, doomed ones are back."""
    store = Store(max_sketches=2)
    store.add(PLATFORM, "ios", hashes(3), TODAY - 1)
    store.add(PLATFORM, "ios", hashes(4))
    before = page(store.devices)
    lost = store.see(PLATFORM, "android", hashes(5))
    assert lost is not None
    assert 1 == len(store.devices.doomed)
    assert before == page(store.devices)
    stale = store.devices.find(APP, PLATFORM, "ios", TODAY, TODAY)
    assert stale is not None
    store.devices.clear()
    store.restore(store.devices)
    store.devices.apply(lost, hashes(5))
    store.devices.apply(stale, hashes(5))
    assert stale not in store.devices.dirty
    assert before == page(store.devices)
    assert (0, 0) == (len(store.devices.doomed), len(store.devices.unstored))
    again = store.devices.find(APP, PLATFORM, "android", TODAY, TODAY)
    assert again is not None
    assert again.sketch_id > lost.sketch_id


def test_an_id_in_the_log_is_not_given_again() -> None:
    """Sightings of a sketch that was deleted are skipped, and never reach a later sketch after a second restart."""
    store = Store()
    store.add(PLATFORM, "ios", hashes(3))
    store.add(VERSION, "2.0.0", hashes(3))
    store.devices.forget(APP, "2.0.0")
    store.commit()
    restored = store.restored()
    new = restored.find(APP, VERSION, "3.0.0", TODAY, TODAY)
    assert new is not None
    assert 3 == new.sketch_id
    devices = Devices(10, lambda: None)
    devices.restore([SketchRow(7, APP, "platform", "ios", TODAY, None)])
    eighth = devices.find(APP, PLATFORM, "android", TODAY, TODAY)
    assert eighth is not None
    assert 8 == eighth.sketch_id
    assert windows("ios", 3, 3, 3) == values(restored, "capgo_devices")
    assert {} == values(restored, "capgo_version_devices")


def _damaged() -> list[Any]:
    small, large, other = (Sketch(1, APP, PLATFORM, "ios", TODAY) for _ in range(3))
    small.add(hashes(20))
    large.add(hashes(2_000))
    other.hll = type(other.hll)(10)
    other.add(hashes(2_000))
    blobs = [small.dump(), large.dump()]
    return [
        *(pytest.param(blob[:-1], id="cut") for blob in blobs),
        *(pytest.param(blob + b"\0", id="longer") for blob in blobs),
        *(pytest.param(blob[:50] + bytes([blob[50] ^ 1]) + blob[51:], id="flipped") for blob in blobs),
        pytest.param(b"", id="empty"),
        pytest.param(b"\0\0\0\0", id="nothing in it"),
        pytest.param(b"no sketch", id="text"),
        pytest.param(other.dump(), id="another precision"),
        pytest.param(
            zlib.crc32(large.dump()[4:99]).to_bytes(4, "little") + large.dump()[4:99], id="cut, checksum right"
        ),
    ]


@pytest.mark.parametrize("blob", _damaged())
def test_a_damaged_sketch_is_refused(blob: bytes) -> None:
    """Whatever is wrong with a stored sketch, the error names it."""
    row = SketchRow(7, APP, "platform", "ios", TODAY, blob)
    with pytest.raises(
        ValueError, match=rf"the journal's sketch 7 \(platform 'ios' of app '{APP}', day {TODAY}\) is dam"
    ):
        Devices(10, lambda: None).restore([row])


def test_an_unknown_kind_is_refused() -> None:
    """A row of a kind that this version does not know is refused by name."""
    row = SketchRow(7, APP, "planet", "mars", TODAY, None)
    with pytest.raises(ValueError, match=r"planet 'mars'.*'planet' is not a valid SketchKind"):
        Devices(10, lambda: None).restore([row])


def test_retirement() -> None:
    """Days before all windows go; of days before yesterday the 20 biggest versions stay, with those affected."""
    store = Store()
    for day in range(TODAY - 29, TODAY + 1):
        store.add(PLATFORM, "ios", hashes(2), day)
    for day in (TODAY, TODAY - 1, TODAY - 2, TODAY - 29):
        for number in range(1, 24):
            store.see(VERSION, f"2.0.{number}", hashes(number), day)
            store.see(AFFECTED, f"2.0.{number}", hashes(24 - number), day)
    for number in range(25):
        store.see(VERSION, f"3.0.{number % 20}", hashes(1), TODAY - 2, app_id=OTHER_APP)
    store.commit()
    before = store.kept()
    assert windows("3.0.0", 0, 1, 1).items() <= values(store.devices, "capgo_version_devices", TODAY, OTHER_APP).items()
    gone = store.devices.retire(TODAY)
    small = {
        (APP, kind, f"2.0.{number}", day)
        for kind in ("version", "affected")
        for number in (1, 2, 3)
        for day in (TODAY - 2, TODAY - 29)
    }
    assert small == {(sketch.app_id, sketch.kind.value, sketch.name, sketch.day) for sketch in gone}
    assert [] == store.devices.retire(TODAY)
    store.commit()
    assert before - small == store.kept()
    assert page(store.restored()) == page(store.devices)
    store.devices.retire(TODAY + 1)
    store.commit()
    assert TODAY - 28 == min(day for *_, day in store.kept())
    assert 3 * 40 + 40 - 40 + 29 == len([each for each in store.kept() if each[0] == APP]) - 2 * 3


def test_a_version_or_an_app_is_forgotten() -> None:
    """With the series of a version go its sketches and those affected, of all days; with an app all of them."""
    store = Store()
    store.add(PLATFORM, "2.0.0", hashes(2))
    for kind in (VERSION, AFFECTED):
        store.add(kind, "2.0.0", hashes(2))
        store.add(kind, "2.0.0", hashes(2), TODAY - 5)
        store.add(kind, "2.0.1", hashes(2))
        store.add(kind, "2.0.0", hashes(2), app_id=OTHER_APP)
    assert 4 == len(store.devices.forget(APP, "2.0.0"))
    assert [] == store.devices.forget(APP, "2.0.0")
    store.commit()
    assert {("2.0.1", window) for window in ("1d", "7d", "30d")} == set(store.values("capgo_version_devices"))
    assert 3 == len(store.devices.forget(APP))
    store.commit()
    assert {OTHER_APP} == {app_id for app_id, *_ in store.kept()}
    assert [] == store.devices.forget("com.example.nothing")
    store.see(VERSION, "3.0.0", hashes(2), app_id=OTHER_APP)
    assert [] == store.devices.forget(OTHER_APP, "3.0.0")
    assert 0 == store.drops


def test_nothing_is_left_of_what_is_gone() -> None:
    """Invented names leave no trace in memory when their sketches are removed."""
    app, sketch = AppSketches(), Sketch(1, APP, VERSION, "2.0.0", TODAY)
    app.add(sketch)
    assert [sketch] == list(app)
    app.discard(sketch)
    assert not app


def test_a_doomed_sketch_is_shown_until_it_is_gone() -> None:
    """It takes no more devices, which is counted; after the COMMIT of its deletion a new one may begin."""
    store = Store()
    store.add(VERSION, "2.0.0", hashes(2))
    before = page(store.devices)
    store.devices.forget(APP, "2.0.0")
    assert before == page(store.devices)
    assert store.see(VERSION, "2.0.0", hashes(3)) is None
    assert 1 == store.drops
    store.commit()
    assert {} == store.values("capgo_version_devices")
    store.add(VERSION, "2.0.0", hashes(3))
    assert windows("2.0.0", 3, 3, 3) == store.values("capgo_version_devices")


def test_the_least_valuable_makes_room() -> None:
    """The oldest day goes first; in it versions, the smallest first, with those affected; then the rest in pairs."""
    store = Store(max_sketches=10)
    store.add(SUCCEEDED, "", hashes(9), TODAY - 2)
    store.add(FAILED, "", hashes(1), TODAY - 2)
    store.add(PLATFORM, "ios", hashes(5), TODAY - 2)
    store.add(AFFECTED, "2.0.1", hashes(1), TODAY - 2)
    store.add(VERSION, "2.0.1", hashes(9), TODAY - 2)
    store.add(VERSION, "2.0.0", hashes(5), TODAY - 2)
    store.add(AFFECTED, "2.0.0", hashes(3), TODAY - 2)
    store.add(VERSION, "2.0.0", hashes(1), TODAY - 1)
    store.add(PLATFORM, "ios", hashes(1), TODAY - 1)
    store.add(VERSION, "2.0.0", hashes(1))
    order: list[Collection[tuple[str, str, int]]] = []
    before = store.kept()
    for number in range(9):
        store.add(PLATFORM, f"p{number}", hashes(1))
        dropped = before - store.kept()
        before = store.kept()
        if dropped:
            order.append({(kind, name, TODAY - day) for _, kind, name, day in dropped})
    expected: list[Collection[tuple[str, str, int]]] = [
        {("version", "2.0.0", 2), ("affected", "2.0.0", 2)},
        {("version", "2.0.1", 2), ("affected", "2.0.1", 2)},
        {("platform", "ios", 2)},
        {("succeeded", "", 2), ("failed", "", 2)},
        {("version", "2.0.0", 1)},
        {("platform", "ios", 1)},
    ]
    assert expected == order
    assert 9 == store.drops
    assert 10 == len(store.devices)


def test_what_made_room_leaves_the_windows() -> None:
    """Devices of a day that was dropped are counted no more, although they were shown before."""
    store = Store(max_sketches=2)
    store.add(PLATFORM, "ios", hashes(3, 1), TODAY - 1)
    store.add(PLATFORM, "ios", hashes(2, 2))
    assert windows("ios", 2, 5, 5) == store.values("capgo_devices")
    store.add(PLATFORM, "android", hashes(1))
    assert {**windows("ios", 2, 2, 2), **windows("android", 1, 1, 1)} == store.values("capgo_devices")


def test_nothing_worth_as_much_is_dropped() -> None:
    """There is no sketch when all are worth as much as what is asked for; of today platforms win over versions."""
    store = Store(max_sketches=2)
    store.add(VERSION, "2.0.0", hashes(1))
    store.add(VERSION, "2.0.1", hashes(2))
    assert store.see(VERSION, "2.0.2", hashes(1)) is None
    assert store.see(PLATFORM, "ios", hashes(1), TODAY - 1) is None
    assert 2 == store.drops
    store.add(PLATFORM, "ios", hashes(1))
    assert {("version", "2.0.1"), ("platform", "ios")} == {(kind, name) for _, kind, name, _ in store.kept()}
    store.add(PLATFORM, "android", hashes(1))
    assert store.see(FAILED, "", hashes(1)) is None
    assert 2 == len(store.devices)


def test_a_new_sketch_under_way_is_not_dropped() -> None:
    """What a transaction may be about to insert stays, so that the journal and the store agree after it."""
    store = Store(max_sketches=1)
    waiting = store.see(PLATFORM, "ios", hashes(1), TODAY - 1)
    assert store.see(PLATFORM, "ios", hashes(1)) is None
    assert [waiting] == list(store.devices.unstored)
    assert not store.devices.doomed
    store.commit()
    store.add(PLATFORM, "ios", hashes(1))
    assert {(APP, "platform", "ios", TODAY)} == store.kept()
    pair = Store(max_sketches=2)
    pair.add(SUCCEEDED, "", hashes(1), TODAY - 1)
    pair.see(FAILED, "", hashes(1), TODAY - 1)
    pair.see(PLATFORM, "ios", hashes(1))
    pair.commit()
    assert {(APP, "failed", "", TODAY - 1), (APP, "platform", "ios", TODAY)} == pair.kept()


def test_a_flood_leaves_a_living_app_its_day() -> None:
    """Invented apps, versions and platforms never exceed the bound, nor push out what a living app has of today."""
    store = Store(max_sketches=300)
    for day in range(TODAY - 29, TODAY + 1):
        store.add(PLATFORM, "ios", hashes(50), day)
        store.add(SUCCEEDED, "", hashes(20), day)
        store.add(VERSION, "2.0.0", hashes(50), day)
    random = Random(1)  # noqa: S311 -- no secret
    for number in range(3_000):
        app_id = f"com.evil{number % 40}"
        day = TODAY - random.randrange(30)
        store.see(VERSION, f"9.{number % 101}", hashes(100, number), day, app_id=app_id)
        store.see(AFFECTED, f"9.{number % 101}", hashes(100, number), day, app_id=app_id)
        store.see(PLATFORM, ("ios", "android", "electron", "other")[number % 4], hashes(1), TODAY, app_id=app_id)
        assert len(store.devices) <= 300
        assert len(store.devices.unstored) <= 30
        if not number % 10:
            store.commit()
            assert len(store.rows) <= 300
    store.commit()
    assert store.drops > 300
    assert 50 == store.values("capgo_devices")["ios", "1d"]
    assert 20 == store.values("capgo_device_day_outcomes")["success", "1d"]
    assert {("2.0.0",): 1} == store.values("capgo_version_adoption_ratio")
    assert page(store.devices) == page(store.restored())


def test_a_lower_bound_is_met_in_time() -> None:
    """A store restored past its bound drops what is too much when the next sketch is made."""
    store = Store()
    for day in range(TODAY - 19, TODAY + 1):
        store.add(PLATFORM, "ios", hashes(2), day)
    smaller = Devices(5, lambda: None)
    store.restore(smaller)
    assert 20 == len(smaller)
    assert smaller.find(APP, PLATFORM, "android", TODAY, TODAY) is not None
    assert 5 == len(smaller)
    assert 16 == len(smaller.doomed)


def test_the_page_parses() -> None:
    """The six families are well formed, in a fixed order, and say that distinct counts cannot be added up."""
    store = Store()
    for app_id in ("com.b", 'com."a"\\'):
        for kind, name in ((PLATFORM, "ios"), (VERSION, "2.0.0"), (AFFECTED, "2.0.0"), (SUCCEEDED, ""), (FAILED, "")):
            store.add(kind, name, hashes(2), app_id=app_id)
    families = list(text_string_to_metric_families(page(store.devices)))
    expected = {
        "capgo_devices": (["app_id", "platform", "window"], 6),
        "capgo_version_devices": (["app_id", "version", "window"], 6),
        "capgo_version_affected_devices": (["app_id", "version", "window"], 6),
        "capgo_version_issue_free_ratio": (["app_id", "version", "window"], 6),
        "capgo_version_adoption_ratio": (["app_id", "version"], 2),
        "capgo_device_day_outcomes": (["app_id", "outcome", "window"], 12),
    }
    assert expected == {family.name: (list(family.samples[0].labels), len(family.samples)) for family in families}
    assert {"gauge"} == {family.type for family in families}
    assert [] == [family.name for family in families if "cannot be added up" not in family.documentation]
    for family in families:
        apps = [sample.labels["app_id"] for sample in family.samples]
        assert all(first <= second for first, second in pairwise(apps))
