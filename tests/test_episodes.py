"""Episodes: when they are due, how they are found then, and that nothing is lost between stops."""

from copy import deepcopy
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.derived import episodes as module
from exporter.derived.episode import Episode
from exporter.derived.episodes import MAX_EPISODES, Episodes
from exporter.derived.tracks import Track, role_of
from exporter.derived.walk import Attempt, Entry, Failure, Settled

BEGAN_MS: Final = 1_800_000_000_000
HOURS: Final = 3600.0
MAX_ENTRIES: Final = 64

ACTIONS: Final = ("download_0", "download_10", "download_complete", "download_fail", "unzip_fail", "update_fail")

Labels = tuple[str, str, str, str]
Step = tuple[str, float]

LABELS: Final[Labels] = ("app", "ios", "1.0.0", "prod")


def ms(seconds: float) -> int:
    """Give the moment so many seconds after the beginning, in milliseconds."""
    return BEGAN_MS + round(seconds * 1000)


def entry(action: str, arrives: float, *, at: float | None = None) -> Entry:
    """Make an entry; `at` is the device's own time."""
    role = role_of(action, action)
    assert role.code is not None
    happened = ms(arrives if at is None else at)
    detail = action if role.is_failure else ""
    return Entry(happened, role.code, ms(arrives) - happened, at is not None, detail, "beta" if detail else "")


def episode_of(*steps: Step) -> Episode:
    """Make an episode of entries without times."""
    episode = Episode(Track(LABELS), 1)
    for action, arrives in steps:
        assert episode.add(entry(action, arrives))
    return episode


# --- when it is due ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "due", "is_open", "has_ended"),
    [
        pytest.param([("download_0", 0)], 2 * HOURS, True, False, id="a step waits for two hours"),
        pytest.param(
            [("download_0", 0), ("download_10", 5)], 2 * HOURS + 5, True, False, id="two hours from the last step"
        ),
        pytest.param([("download_complete", 3)], 13, False, True, id="an end waits ten seconds for stragglers"),
        pytest.param([("download_fail", 3)], 13, False, True, id="a failure does, too"),
        pytest.param([("update_fail", 3)], 13, False, True, id="a roll-back does, too"),
        pytest.param([("download_0", 0), ("download_complete", 3)], 13, False, True, id="an end closes a download"),
        pytest.param([("download_0", 0), ("update_fail", 3)], 13, True, True, id="a roll-back closes no download"),
        pytest.param(
            [("download_zip_complete", 3), ("download_complete", 12), ("download_90", 12.5)],
            *(13, False, True),
            id="ten seconds from the first end, whatever comes meanwhile",
        ),
    ],
)
def test_due(steps: list[Step], due: float, *, is_open: bool, has_ended: bool) -> None:
    """An episode is settled ten seconds after an end or a failure arrived, or two hours after its last step."""
    episode = episode_of(*steps)
    assert (ms(due), is_open, has_ended) == (episode.due_ms, episode.is_open, episode.has_ended)


def test_settled_and_remembered_for_five_minutes() -> None:
    """What has ended is counted, and remembered for five minutes from the last change."""
    episode = episode_of(("download_fail", 0), ("download_fail", 3))
    settled = episode.settle()
    assert [Attempt("failed", "0", "", None)] == settled.attempts
    assert [Failure("download_fail", "beta")] == settled.failures
    assert (ms(303), [], False, False) == (episode.due_ms, episode.entries, episode.is_open, episode.has_ended)
    assert episode.memory is not None
    assert episode.memory.takes(entry("download_90", 7))


def test_what_is_remembered_outlives_the_next_failure() -> None:
    """While a roll-back waits to be counted, late reports of a failed download are still known as such."""
    episode = episode_of(("download_fail", 0))
    episode.settle()
    for action, arrives in (("update_fail", 20), ("download_fail", 21)):
        episode.add(entry(action, arrives))
    assert Settled([], [Failure("update_fail", "beta")], repeats=1) == episode.settle()


def test_what_goes_on_after_an_end_is_an_open_attempt() -> None:
    """Steps of a new attempt that came while the last one waited for stragglers are followed on, for two hours."""
    episode = Episode(Track(LABELS), 1)
    for action, at in (("download_complete", 0.0), ("download_0", 60.0), ("download_10", 61.0)):
        episode.add(entry(action, 100, at=at))
    assert (ms(110), False) == (episode.due_ms, episode.is_open)
    assert ["completed"] == [attempt.outcome for attempt in episode.settle().attempts]
    assert [entry("download_0", 100, at=60), entry("download_10", 100, at=61)] == episode.entries
    assert (ms(100 + 2 * HOURS), True, False) == (episode.due_ms, episode.is_open, episode.has_ended)


def test_an_attempt_without_an_end_stalls() -> None:
    """What nothing ended within two hours has stalled, and nothing of it is remembered."""
    episode = episode_of(("download_0", 0), ("download_40", 1))
    assert [Attempt("stalled", "40", "", None)] == episode.settle().attempts
    assert ([], None, False) == (episode.entries, episode.memory, episode.is_open)
    assert episode.due_ms < ms(2 * HOURS)


def test_a_clock_set_back_makes_nobody_wait_longer() -> None:
    """After our clock was set back, an episode is due as long after the new time as it would be after the old one."""
    ended, going = episode_of(("download_fail", 500)), episode_of(("download_0", 500))
    for now in (100, 200):
        ended.wait_from(ms(now))
        going.wait_from(ms(now))
    assert (ms(110), True) == (ended.due_ms, ended.has_ended)
    assert (ms(100 + 2 * HOURS), False) == (going.due_ms, going.has_ended)


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_repeated_steps_are_condensed() -> None:
    """Of a step that is reported again and again the first and the last are kept; the highest step stays known."""
    episode = Episode(Track(LABELS), 1)
    for second in range(1000):
        assert episode.add(entry(f"download_{second % 3 * 30}", second, at=second))
    assert len(episode.entries) <= MAX_ENTRIES
    for action in ("download_0", "download_30", "download_60"):
        code = entry(action, 0).code
        moments = [each.time_ms for each in episode.entries if each.code == code]
        sent = [ms(second) for second in range(1000) if f"download_{second % 3 * 30}" == action]
        assert (sent[0], sent[-1]) == (min(moments), max(moments))
    assert ["60"] == [attempt.reached for attempt in episode.settle().attempts]


def test_condensing_loses_no_end_and_no_failure() -> None:
    """Ends and failures are all kept; when nothing but those fills an episode, it takes no more."""
    episode = Episode(Track(LABELS), 1)
    assert all(episode.add(entry("download_10", second)) for second in range(40))
    ends = [entry(action, 40 + n) for n in range(31) for action in ("download_fail", "download_complete")]
    assert all(episode.add(each) for each in ends)
    assert sorted([entry("download_10", 0), entry("download_10", 39), *ends]) == sorted(episode.entries)
    assert not episode.add(entry("download_fail", 99))
    assert not episode.add(entry("download_20", 99))
    assert MAX_ENTRIES == len(episode.entries)


def test_one_has_to_go_for_the_hundred_thousand_and_first() -> None:
    """The episode that has not changed for longest makes room, and only when there is none."""
    episodes = Episodes()
    track = Track(LABELS)
    made = [episodes.begin(track, device) for device in range(MAX_EPISODES - 1)]
    assert episodes.oldest() is None
    made.append(episodes.begin(track, MAX_EPISODES))
    assert (100_000, made[0]) == (len(episodes), episodes.oldest())
    episodes.log(made[:2], 1)
    assert episodes.oldest() is made[2]
    episodes.forget(made[2])
    assert episodes.oldest() is None
    assert 2 not in track.episodes


# --- the queue --------------------------------------------------------------------------------------------------------


def queued(episodes: Episodes, track: Track, device: int, *steps: Step) -> Episode:
    """Begin an episode and queue it."""
    episode = track.episodes.get(device) or episodes.begin(track, device)
    for action, arrives in steps:
        episode.add(entry(action, arrives))
    episodes.queue(episode)
    return episode


def due(episodes: Episodes, seconds: float) -> list[int]:
    """Give the devices whose episodes are due at a moment."""
    return [episode.device for episode in episodes.due(ms(seconds))]


def test_each_due_episode_comes_once_and_in_order() -> None:
    """Whoever is due first comes first, at the millisecond, and does not come again by itself."""
    episodes, track = Episodes(), Track(LABELS)
    for device, ends in ((1, 7), (2, 5), (3, 6), (4, 5)):
        queued(episodes, track, device, ("download_complete", ends))
    assert [] == due(episodes, 14.999)
    assert [2, 4, 3] == due(episodes, 16.999)
    assert [1] == due(episodes, 17)
    assert [] == due(episodes, 9999)


def test_who_is_due_later_by_now_waits_on() -> None:
    """An episode that was put off since it was queued is found at its new time, and only then."""
    episodes, track = Episodes(), Track(LABELS)
    for seconds in (0, 1000, 2000):
        queued(episodes, track, 1, ("download_10", seconds))
    assert [] == due(episodes, 2 * HOURS + 1999)
    assert [1] == due(episodes, 2 * HOURS + 2000)


def test_who_is_due_earlier_by_now_is_found_in_time() -> None:
    """A download that ended is due at once, though it stood in the queue for two hours later; it comes once."""
    episodes, track = Episodes(), Track(LABELS)
    queued(episodes, track, 1, ("download_10", 0))
    episode = queued(episodes, track, 1, ("download_fail", 5))
    assert [1] == due(episodes, 15)
    episode.settle()
    episodes.queue(episode)
    assert [] == due(episodes, 304.999)
    assert [1] == due(episodes, 305)
    episodes.forget(episode)
    assert [] == due(episodes, 9 * HOURS)


def test_who_is_forgotten_is_not_due() -> None:
    """An episode that was taken out is not found any more, nor in the way of another one of the same device."""
    episodes, track = Episodes(), Track(LABELS)
    episodes.forget(queued(episodes, track, 1, ("download_fail", 0)))
    again = queued(episodes, track, 1, ("download_fail", 3))
    assert [again] == list(episodes.due(ms(100)))
    assert [again] == list(episodes)


def test_a_clock_set_back_is_followed() -> None:
    """When our clock was set back by more than a minute, whoever waits does so from the new time on."""
    episodes, track = Episodes(), Track(LABELS)
    queued(episodes, track, 1, ("download_fail", 5000))
    assert [] == due(episodes, 5001)
    assert [] == due(episodes, 1000)
    assert [1] == due(episodes, 1010)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["download_10", "download_fail"]), st.floats(0, 9000)), max_size=30
    )
)
def test_the_queue_is_as_good_as_looking_at_everyone(changes: list[tuple[int, str, float]]) -> None:
    """However episodes change, those found are those that are due, each once, and in time none is left."""
    episodes, track = Episodes(), Track(LABELS)
    now = 0.0
    for device, action, seconds in changes:
        now += seconds
        expected = {each.device for each in episodes if each.due_ms <= ms(now)}
        found = due(episodes, now)
        assert sorted(expected) == sorted(found)
        for each in found:
            episodes.forget(track.episodes[each])
        queued(episodes, track, device, (action, now))
    assert len(episodes) == len(due(episodes, now + 3 * HOURS))


# --- the log ----------------------------------------------------------------------------------------------------------

Key = tuple[Labels, int]
Known = tuple[tuple[Entry, ...], Entry | None, dict[int, Entry], int, bool, bool]


class World:
    """Episodes with a journal's part of their log, changed and settled as events do it.

    Attributes:
        episodes: what is in memory.
        rows: what is stored.
        now: our clock, in seconds.
    """

    def __init__(self) -> None:
        """Begin without a history."""
        self.episodes = Episodes()
        self.rows: dict[int, bytes] = {}
        self.now = 0.0
        self._tracks: dict[Labels, Track] = {}
        self._changed: dict[Episode, None] = {}
        self._number = 0

    def track(self, labels: Labels) -> Track:
        """Give the track of some labels."""
        return self._tracks.setdefault(labels, Track(labels))

    def change(self, labels: Labels, device: int, action: str) -> None:
        """Let a device do something."""
        track, new = self.track(labels), entry(action, self.now)
        episode = track.episodes.get(device) or self.episodes.begin(track, device)
        if not episode.takes(new):
            episode.add(new)
            self.episodes.queue(episode)
        self._changed[episode] = None

    def settle(self) -> None:
        """Settle, or forget, whatever is due."""
        for episode in self.episodes.due(ms(self.now)):
            if not episode.entries:
                self.episodes.forget(episode)
                continue
            episode.settle()
            self._changed[episode] = None
            self.episodes.queue(episode)

    def commit(self) -> int:
        """Store what has changed, and return how many states were written."""
        self._number += 1
        blob = self.episodes.log(self._changed, self._number)
        self._changed.clear()
        if blob is None:
            return 0
        self.rows[self._number] = blob
        needed_from = self.episodes.needed_from()
        self.rows = {number: row for number, row in self.rows.items() if number >= needed_from}
        return len(msgspec.msgpack.decode(blob))

    def restart(self) -> None:
        """Forget everything that is not stored, and read back what is."""
        self._changed.clear()
        self.episodes.restore(self.rows.items(), self.track)

    def known(self) -> dict[Key, Known]:
        """Give all there is to know of the episodes, in no order."""
        return {
            (episode.track.labels, episode.device): (
                tuple(episode.entries),
                episode.memory.end if episode.memory else None,
                episode.memory.anchors if episode.memory else {},
                episode.due_ms,
                episode.is_open,
                episode.has_ended,
            )
            for episode in self.episodes
        }


@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.just("change"),
                st.tuples(st.sampled_from(["1.0.0", "2.0.0"]), st.integers(1, 3), st.sampled_from(ACTIONS)),
            ),
            st.tuples(st.just("wait"), st.sampled_from([0.5, 5.0, 11.0, 301.0, 7201.0])),
            st.tuples(st.sampled_from(["commit", "commit", "restart"]), st.none()),
        ),
        max_size=40,
    )
)
def test_what_is_read_back_is_what_was_stored(steps: list[tuple[str, Any]]) -> None:
    """Whatever changes, is settled and forgotten, after a stop everything is as it was stored, and goes on as such."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SLACK_STATES", 2)
        world = World()
        stored: dict[Key, Known] = {}
        for step, value in [*steps, ("restart", None)]:
            if step == "change":
                version, device, action = value
                world.change(("app", "ios", version, "prod"), device, action)
            elif step == "wait":
                world.now += value
                world.settle()
            elif step == "commit":
                world.commit()
                stored = deepcopy(world.known())
            else:
                world.restart()
                found = world.known()
                assert stored == {key: known for key, known in found.items() if key in stored}
                assert [] == [key for key, (entries, *_) in found.items() if entries and key not in stored]
                stored = deepcopy(found)


def test_what_was_not_stored_is_not_known() -> None:
    """When a transaction fails, an episode that it began is gone, and one that it changed is as before."""
    world = World()
    world.change(LABELS, 1, "download_0")
    world.commit()
    expected = deepcopy(world.known())
    world.change(LABELS, 1, "download_fail")
    world.change(LABELS, 2, "download_0")
    world.restart()
    assert expected == world.known()
    assert {1} == set(world.track(LABELS).episodes)


def test_what_is_settled_late_is_settled_once() -> None:
    """What is counted so late that it is forgotten at once does not come back from the log, to be counted again."""
    world = World()
    for device, action in ((1, "download_0"), (2, "download_fail"), (3, "download_fail")):
        world.change(LABELS, device, action)
    world.commit()
    world.now += 3 * HOURS
    world.settle()
    assert {} == world.known()
    world.commit()
    world.restart()
    assert {} == world.known()


def test_the_log_is_read_in_the_order_in_which_it_was_written() -> None:
    """After a restart the rows of those who changed least recently are still the ones that are kept."""
    world = World()
    for devices in ((1, 4), (2,), (1,)):
        for device in devices:
            world.change(LABELS, device, "download_0")
        world.commit()
    expected = deepcopy(world.known())
    world.restart()
    assert [4, 2, 1] == [episode.device for episode in world.episodes]
    world.change(LABELS, 4, "download_10")
    world.commit()
    assert [2, 3, 4] == sorted(world.rows)
    world.restart()
    assert expected.keys() == world.known().keys()
    assert expected[LABELS, 2] == world.known()[LABELS, 2]


def test_after_a_restart_everything_is_due_as_before() -> None:
    """What was waited for before a stop is waited for after it, in the same order."""
    world = World()
    for device, action in ((3, "download_0"), (1, "download_fail"), (2, "update_fail")):
        world.change(LABELS, device, action)
        world.now += 1
    world.commit()
    world.restart()
    assert [1, 2] == due(world.episodes, 12)
    assert [3] == due(world.episodes, 2 * HOURS)


def test_the_log_stays_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    """One device that never rests does not make the log hold on to rows for ever because of all that do."""
    monkeypatch.setattr(module, "_SLACK_STATES", 100)
    world = World()
    for device in range(300):
        world.change(LABELS, device, "download_0")
    written = {1: world.commit()}
    largest = 0
    for number in range(2, 2000):
        world.change(LABELS, 0, "download_10")
        written[number] = world.commit()
        largest = max(largest, sum(written[row] for row in world.rows))
    assert 2 * 300 + 100 <= largest <= 2 * 300 + 100 + 3 * 102
    assert sum(written.values()) < 3 * 2300
    expected = deepcopy(world.known())
    world.restart()
    assert expected == world.known()


def test_a_damaged_log_is_told() -> None:
    """A row that cannot be read is an error, not an episode less."""
    world = World()
    world.change(LABELS, 1, "download_0")
    world.commit()
    world.rows[1] = world.rows[1][:-3]
    with pytest.raises(ValueError, match="truncated"):
        world.restart()


def test_a_roll_back_does_not_hide_a_download() -> None:
    """A step opens an episode also while a failure of activation waits to be counted, in whichever order they come."""
    assert [True, True] == [
        episode_of(*entries).is_open
        for entries in ((("update_fail", 0), ("download_0", 1)), (("download_0", 0), ("update_fail", 1)))
    ]
