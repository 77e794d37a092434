"""The series of derived figures: buckets, births, caps, and what a restart finds."""

from bisect import bisect_left
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Histogram as ClientHistogram

from exporter.caps import SeriesRoom
from exporter.counters import Counters
from exporter.derived import families
from exporter.derived.figures import Figures
from exporter.exposition import Page
from exporter.journal.records import Birth
from exporter.series import Family, Lifecycle, MetricType, Series
from exporter.units import parse_duration_seconds
from tests.support.exporter import parse_samples
from tests.support.inprocess import running

TRACK: Final = ("app", "ios", "1.0.0", "prod")
LAUNCH: Final = ("app", "ios", "1.0.0")
NOW_MS: Final = 1_800_000_000_000
BOUNDS: Final = (0.5, 2.0, 60.0)
HISTOGRAMS: Final = [family for family in families.FAMILIES if family.type is MetricType.HISTOGRAM]
EVENT: Final = {"app_id": "app", "platform": "ios", "version_name": "1.0.0", "device_id": "d"}


class Store(Figures):
    """A store of figures with bounds of the test's own.

    Attributes:
        lifecycle: where new series enter.
        overflow: what got no series of its own.
    """

    def __init__(self, bounds: tuple[float, ...] = BOUNDS, max_series: int = 1000) -> None:
        """Make an empty store."""
        self.lifecycle = Lifecycle()
        self.overflow: list[tuple[str, str]] = []
        super().__init__(
            self.lifecycle,
            dict.fromkeys(HISTOGRAMS, bounds),
            SeriesRoom(max_series),
            lambda label, value: self.overflow.append((label, value)),
        )

    def store(self) -> None:
        """Let everything be stored and seen in full."""
        self.lifecycle.mark_stored({series.series_id for series in self.lifecycle.unstored})
        for series in self:
            series.birth = Birth.FULL

    def observe(self, duration_ms: float, labels: tuple[str, ...] = LAUNCH) -> None:
        """Count a launch's duration."""
        histogram = self.histogram(families.LAUNCH_DURATION, labels, NOW_MS)
        histogram.bucket(duration_ms).value += 1
        histogram.sum.value += round(duration_ms)

    def page(self) -> str:
        """Render the page of these figures."""
        page = Page(CollectorRegistry(), Counters(self.lifecycle, SeriesRoom(1000), lambda *_: None), self)
        return page.render(openmetrics=False, to_scraper=False).decode()


def samples(page: str, family: Family) -> dict[str, float]:
    """Give the samples of a histogram by suffix and bound."""
    return {
        sample.name.removeprefix(f"{family.name}_") + sample.labels.get("le", ""): sample.value
        for sample in parse_samples(page)
        if sample.name.startswith(family.name)
    }


# --- families ---------------------------------------------------------------------------------------------------------

_TRACK: Final = "app_id platform version environment"
_VERSION: Final = "app_id platform version"


def test_families() -> None:
    """The names, types and labels of the families are as documented; no two share a name."""
    expected = {
        "capgo_installs_total": ("counter", _TRACK),
        "capgo_uninstalls_total": ("counter", _TRACK),
        "capgo_update_failures_total": ("counter", f"{_TRACK} reason"),
        "capgo_late_events_total": ("counter", f"{_TRACK} kind"),
        "capgo_download_attempts_total": ("counter", f"{_TRACK} outcome reached"),
        "capgo_downloads_in_flight": ("gauge", _TRACK),
        "capgo_channel_updates_total": ("counter", "app_id platform channel environment outcome"),
        "capgo_download_duration_seconds": ("histogram", _VERSION),
        "capgo_download_kind_duration_seconds": ("histogram", "app_id platform kind"),
        "capgo_launch_duration_seconds": ("histogram", _VERSION),
        "capgo_webview_load_duration_seconds": ("histogram", _VERSION),
    }
    found = {family.sample_name: (family.type.value, " ".join(family.labels)) for family in families.FAMILIES}
    assert expected == found
    assert len(expected) == len(families.FAMILIES)


# --- histograms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("duration_ms", "bound"),
    [
        (0, "0.5"),
        (500, "0.5"),
        (500.001, "2.0"),
        (501, "2.0"),
        (2000, "2.0"),
        (2001, "60.0"),
        (60_000, "60.0"),
        (60_000.5, "+Inf"),
        (1e300, "+Inf"),
    ],
)
def test_bucket(duration_ms: float, bound: str) -> None:
    """An upper bound belongs to its bucket, what is past the last one to infinity's."""
    histogram = Store().histogram(families.DOWNLOAD_DURATION, LAUNCH, NOW_MS)
    assert (*LAUNCH, bound) == histogram.bucket(duration_ms).labels


@given(st.sets(st.integers(1, 100_000), min_size=1, max_size=10).map(sorted), st.data())
def test_bounds_in_milliseconds_are_exact(bounds_ms: list[int], data: st.DataObject) -> None:
    """A duration of just as many milliseconds as a bound is in its bucket, one more is in the next."""
    bounds = tuple(parse_duration_seconds(f"{bound}ms") for bound in bounds_ms)
    histogram = Store(bounds).histogram(families.DOWNLOAD_DURATION, LAUNCH, NOW_MS)
    duration_ms = data.draw(st.sampled_from(bounds_ms)) + data.draw(st.integers(-1, 1))
    assert histogram.buckets[bisect_left(bounds_ms, duration_ms)] is histogram.bucket(duration_ms)
    assert [str(bound / 1000) for bound in bounds_ms] == [bucket.labels[-1] for bucket in histogram.buckets[:-1]]


def test_a_histogram_is_cumulative_on_the_page() -> None:
    """Each bucket counts what is in the smaller ones, too; the last one is the count; the sum is in seconds."""
    store = Store()
    for duration_ms in (100, 500, 1500, 1500, 59_999, 61_000, 3_600_000):
        store.observe(duration_ms)
    store.store()
    expected = {
        "bucket0.5": 2.0,
        "bucket2.0": 4.0,
        "bucket60.0": 5.0,
        "bucket+Inf": 7.0,
        "count": 7.0,
        "sum": 3724.599,
    }
    assert expected == samples(store.page(), families.LAUNCH_DURATION)


@given(
    st.sets(st.floats(0.001, 1e7).map(lambda bound: round(bound, 3)), min_size=1, max_size=10).map(sorted),
    st.lists(st.integers(0, 20_000_000), max_size=20),
)
def test_a_histogram_reads_as_prometheus_clients_own(bounds: list[float], durations_ms: list[int]) -> None:
    """Bounds, counts and the sum are written as prometheus-client writes those of its own histogram."""
    store = Store(tuple(bounds))
    registry = CollectorRegistry()
    family = families.LAUNCH_DURATION
    own = ClientHistogram(family.name, family.help, family.labels, registry=registry, buckets=bounds)
    for duration_ms in durations_ms:
        store.observe(duration_ms)
        own.labels(*LAUNCH).observe(duration_ms / 1000)
    store.store()
    expected = [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]
    found = [line for line in store.page().splitlines() if family.name in line]
    assert without_sum(expected) == without_sum(found)
    if durations_ms:
        sums = [samples("\n".join(lines), family)["sum"] for lines in (expected, found)]
        assert sums[0] == pytest.approx(sums[1])


def without_sum(lines: list[str]) -> list[str]:
    """Leave out the sum, which is exact here and adds up rounding errors there; lines may stand in any order."""
    return sorted(sorted_labels(line) for line in lines if "_sum{" not in line)


def sorted_labels(line: str) -> str:
    """Put the labels of a line in order, and write whole values alike."""
    name, brace, rest = line.partition("{")
    if line.startswith("#") or not brace:
        return line
    labels, _, value = rest.rpartition("} ")
    return f"{name}{{{','.join(sorted(labels.split(',')))}}} {float(value)}"


async def test_sums_are_in_whole_milliseconds() -> None:
    """Durations with fractions are rounded one by one, so that a restart cannot change the sum."""
    durations = ("0.4", "100.6", "1499.5", "1e3", "0")
    async with running({"launch_buckets": "1s,1500ms"}) as exporter:
        for duration in durations:
            metadata = {"duration_ms": duration}
            await exporter.post({**EVENT, "action": "app_launch_ready", "metadata": metadata})
        page = await exporter.metrics()
    expected = {"bucket1.0": 4.0, "bucket1.5": 5.0, "bucket+Inf": 5.0, "count": 5.0, "sum": 2.601}
    assert expected == samples(page, families.LAUNCH_DURATION)


# --- births -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", families.FAMILIES, ids=[family.name for family in families.FAMILIES])
def test_birth(family: Family) -> None:
    """A gauge is seen in full from the first, anything that counts begins hidden; nobody sees what is not stored."""
    store = Store()
    labels = tuple("x" for _ in family.labels)
    if family.type is MetricType.HISTOGRAM:
        histogram = store.histogram(family, labels, NOW_MS)
        made = [*histogram.buckets, histogram.sum]
        assert [histogram.buckets[0].labels[:-1]] * 5 == [series.labels[:-1] for series in made]
        assert [] == store.histograms(family)
    else:
        made = [store.find(family, labels, NOW_MS)]
        assert [] == store.of(family)
    birth = Birth.FULL if family.type is MetricType.GAUGE else Birth.HIDDEN
    assert {birth} == {series.birth for series in made}
    assert (len(made), [], made) == (len(store), list(store), list(store.all()))
    store.lifecycle.mark_stored({series.series_id for series in made})
    unborn = list(store.lifecycle.unborn)
    assert made == list(store)
    expected = [] if birth is Birth.FULL else made
    assert expected == unborn


def test_the_same_labels_are_the_same_series() -> None:
    """What is found once is found again, and counted once."""
    store = Store()
    installs = store.find(families.INSTALLS, TRACK, NOW_MS)
    launches = store.histogram(families.LAUNCH_DURATION, LAUNCH, NOW_MS)
    assert installs is store.find(families.INSTALLS, TRACK, NOW_MS + 1)
    assert installs is not store.find(families.UNINSTALLS, TRACK, NOW_MS)
    assert launches is store.histogram(families.LAUNCH_DURATION, LAUNCH, NOW_MS + 1)
    assert launches is not store.histogram(families.WEBVIEW_LOAD_DURATION, LAUNCH, NOW_MS)
    assert 2 + 2 * (len(BOUNDS) + 2) == len(store)


# --- the cap ----------------------------------------------------------------------------------------------------------


def test_past_the_cap_series_are_others() -> None:
    """A new series past the cap is replaced by that of the app, version and channel `other`; what is there stays."""
    store = Store(max_series=2)
    first = store.find(families.INSTALLS, TRACK, NOW_MS)
    second = store.find(families.UPDATE_FAILURES, (*TRACK, "unzip_fail"), NOW_MS)
    assert [] == store.overflow
    third = store.find(families.UPDATE_FAILURES, (*TRACK, "download_fail"), NOW_MS)
    assert ("other", "ios", "other", "prod", "download_fail") == third.labels
    assert [("series", "capgo_update_failures/app/ios/1.0.0/prod/download_fail")] == store.overflow
    updates = store.find(families.CHANNEL_UPDATES, ("app", "ios", "beta", "prod", "installed"), NOW_MS)
    assert ("other", "ios", "other", "prod", "installed") == updates.labels
    assert third is store.find(families.UPDATE_FAILURES, ("b", "ios", "2.0.0", "prod", "download_fail"), NOW_MS)
    assert (first, second) == (
        store.find(families.INSTALLS, TRACK, NOW_MS),
        store.find(families.UPDATE_FAILURES, (*TRACK, "unzip_fail"), NOW_MS),
    )
    assert 3 == len(store.overflow)


@pytest.mark.parametrize(("max_series", "expected"), [(5, "app"), (4, "other")])
def test_a_histogram_fits_as_a_whole(max_series: int, expected: str) -> None:
    """A histogram that has no room for all its series is replaced by that of `other` labels."""
    store = Store(max_series=max_series)
    histogram = store.histogram(families.DOWNLOAD_KIND_DURATION, ("app", "ios", "zip"), NOW_MS)
    assert (expected, "ios", "zip", "sum") == histogram.sum.labels
    assert histogram is store.histogram(families.DOWNLOAD_KIND_DURATION, ("app", "ios", "zip"), NOW_MS)


def test_what_is_removed_makes_room() -> None:
    """Series that are gone free their places, a histogram all of them; others of the same labels stay."""
    store = Store(max_series=7)
    installs = store.find(families.INSTALLS, TRACK, NOW_MS)
    uninstalls = store.find(families.UNINSTALLS, TRACK, NOW_MS)
    histogram = store.histogram(families.LAUNCH_DURATION, LAUNCH, NOW_MS)
    store.store()
    store.remove([installs, *histogram.buckets, histogram.sum])
    assert ([uninstalls], []) == (list(store), store.histograms(families.LAUNCH_DURATION))
    again = store.histogram(families.LAUNCH_DURATION, LAUNCH, NOW_MS)
    assert again is not histogram
    assert ([], 6) == (store.overflow, len(store))


# --- a restart --------------------------------------------------------------------------------------------------------


BIRTHS: Final = {MetricType.COUNTER: Birth.ZERO, MetricType.GAUGE: Birth.FULL, MetricType.HISTOGRAM: Birth.FULL}


def as_stored(store: Store) -> list[Series]:
    """Give a store's series as the journal holds them, the counters only just born."""
    rows = []
    for series in store:
        row = Series(series.family, series.labels, series.last_ms)
        row.series_id, row.value, row.birth = series.series_id, series.value, BIRTHS[series.family.type]
        rows.append(row)
    return rows


def filled() -> Store:
    """Make a store with a series of each type."""
    store = Store()
    store.find(families.INSTALLS, TRACK, NOW_MS).value = 3
    store.find(families.DOWNLOADS_IN_FLIGHT, TRACK, NOW_MS).value = 2
    for duration_ms in (100, 1000, 90_000):
        store.observe(duration_ms)
    store.observe(100, ("app", "ios", "2.0.0"))
    store.store()
    return store


def test_restore() -> None:
    """What the journal holds is shown as before, keeps its birth, and is found again; new ids are above all."""
    before, after = filled(), Store()
    rows = as_stored(before)
    assert [] == after.restore(reversed(rows))
    assert sorted(before.page().splitlines()) == sorted(after.page().splitlines())
    assert (len(before), set(rows)) == (len(after), set(after))
    assert {families.INSTALLS} == {series.family for series in after.lifecycle.unborn}
    assert after.find(families.INSTALLS, TRACK, NOW_MS) in rows
    after.observe(100)
    assert 2 == after.histogram(families.LAUNCH_DURATION, LAUNCH, NOW_MS).buckets[0].value
    assert len(before) == len(after)
    new = after.find(families.UNINSTALLS, TRACK, NOW_MS)
    assert new.series_id > max(series.series_id for series in rows)


@pytest.mark.parametrize("bounds", [(0.5, 2.0), (0.5, 2.0, 60.0, 90.0), (0.5, 2.0, 59.0), (1.0,)])
def test_restore_with_other_buckets(bounds: tuple[float, ...]) -> None:
    """Histograms with other buckets are given back to be removed, and begin anew; all else is restored."""
    before, after = filled(), Store(bounds)
    rows = as_stored(before)
    stale = after.restore(rows)
    assert [series for series in rows if series.family is families.LAUNCH_DURATION] == stale
    assert all(series.stored for series in stale)
    assert {families.INSTALLS, families.DOWNLOADS_IN_FLIGHT} == {series.family for series in after}
    after.remove(stale)
    after.observe(100)
    after.store()
    assert (1.0, 1.0) == tuple(samples(after.page(), families.LAUNCH_DURATION)[key] for key in ("bucket+Inf", "count"))


def test_restore_of_half_a_histogram() -> None:
    """A histogram of which a series is missing is not made up: it has to be removed."""
    rows = [series for series in as_stored(filled()) if series.labels[-1] != "sum"]
    after = Store()
    stale = after.restore(rows)
    assert {families.LAUNCH_DURATION} == {series.family for series in stale}
    assert 2 == len(after)


async def test_other_buckets_after_a_restart(tmp_path: Path) -> None:
    """Whoever sets other buckets finds histograms that begin at 0 with them, and nothing of the old ones."""
    launch = {**EVENT, "action": "app_launch_ready", "metadata": {"duration_ms": "1500"}}
    found = []
    for buckets in ("1s,2s", "1s,2s", "1s,5s", "1s,5s"):
        async with running({"data_dir": tmp_path, "launch_buckets": buckets}) as exporter:
            await exporter.post(launch)
            found.append(samples(await exporter.metrics(), families.LAUNCH_DURATION))
    assert [1.0, 2.0, 1.0, 2.0] == [each["count"] for each in found]
    assert ["bucket1.0", "bucket5.0", "bucket+Inf", "count", "sum"] == list(found[-1])
    assert [1.5, 3.0, 1.5, 3.0] == [each["sum"] for each in found]
