"""Small fleets of phones and desktops that update themselves, and the ways in which their events may arrive."""

import random as randomness
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from hypothesis import strategies as st

Event = dict[str, Any]

_SECOND_MS: Final = 1000
_MINUTE_MS: Final = 60_000
_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 86_400_000
_FLUSH_MS: Final = 5 * _SECOND_MS
_BUNCH_MS: Final = 6 * _SECOND_MS

_VERSIONS: Final = ("1.2.0", "1.10.0", "1.10.0", "1.10.0-beta.1")
_OLD_VERSIONS: Final = (None, "", "unknown", "builtin", "0.9.0", "1.2.0", "1.10.0:assets/main.js")
_CHANNELS: Final[tuple[Event, ...]] = (
    {},
    {"defaultChannel": "production"},
    {"defaultChannel": "production", "channel": "beta"},
)
_BUILDS: Final[tuple[Event, ...]] = (
    *({}, {}, {"is_prod": True, "is_emulator": False}),
    *({"is_prod": False}, {"is_emulator": True}),
)
_MINUTES_APART: Final = (1, 1.5, 10, 70, 122, 500, 1600)
_WAITS_MS: Final = tuple(int(minutes * _MINUTE_MS) for minutes in _MINUTES_APART)
_DELAYS_MS: Final = (0, 0, 0, 4 * _SECOND_MS, 40 * _MINUTE_MS, 2 * _HOUR_MS, 26 * _HOUR_MS)
# What the device's clock shows against ours: believed up to ten minutes ahead, and for a week back.
_BELIEVED_SKEWS_MS: Final = (0, 0, 2 * _SECOND_MS, -2 * _SECOND_MS, 5 * _MINUTE_MS, -5 * _MINUTE_MS)
_WRONG_SKEWS_MS: Final = (1000 * _DAY_MS, -700 * _DAY_MS)
# Steps of one flush may lie any time apart; those that are told apart by their arrival stand in bunches, because
# what is older than ten seconds may be counted already.
_DEVICE_GAPS_MS: Final = (0, 1, 400, 400, 1900, 2100, 9000, 11_000, 29_000, 31_000, 200_000)
_BUNCH_GAPS_MS: Final = (0, 1, 400, 400, 2100)
_BUNCHES_APART_MS: Final = (45_000, 600_000, 7_300_000)

_RISING: Final = tuple(f"download_{step}" for step in range(10, 100, 10))
_IOS_FILES: Final = tuple(f"download_{step}" for step in (10, 20, 20, 30, 40, 40, 50, 60, 70))
_DOWNLOADS: Final = {
    "android": (
        ("download_zip_start", "download_0", *_RISING, "download_zip_complete", "download_complete"),
        ("download_manifest_start", "download_0", "download_manifest_complete", "download_complete"),
        ("download_zip_start", "download_zip_complete", "download_complete"),
    ),
    "ios": (
        ("download_0", "download_70", "download_80", "download_90", "download_complete"),
        ("download_manifest_start", "download_0", *_IOS_FILES, "download_manifest_complete", "download_complete"),
    ),
    "electron": ((*_RISING, "download_complete"),),
}
_FAILURES: Final = (
    ("download_fail",),
    ("checksum_fail", "download_fail", "finish_download_fail"),
    ("download_manifest_file_fail", "download_manifest_file_fail", "download_fail"),
    ("manifest_path_fail", "finish_download_fail"),
    ("unzip_fail", "download_fail"),
    ("new_kind_of_fail", "download_fail"),
)
_LIFE: Final = (
    *("app_moved_to_foreground", "app_moved_to_background", "ping", "get", "noNew", "new_action"),
    *("app_launch_ready", "webview_page_loaded", "app_crash", "app_memory_warning", "os_version_changed"),
)


@dataclass(frozen=True)
class Client:
    """A device, and the plugin on it.

    Attributes:
        fields: what each of its events says.
        sends: `flushes` of several events with times, or `singles` without, or `mixed` as the Android worker does.
        skew_ms: what its clock shows more than ours.
    """

    fields: Event
    sends: str
    skew_ms: int

    @property
    def is_free(self) -> bool:
        """Whether its events may arrive in another order without meaning something else."""
        return self.sends == "flushes" and abs(self.skew_ms) < _HOUR_MS


@dataclass(frozen=True)
class Sent:
    """An event and when it arrives, in milliseconds since the fleet began."""

    event: Event
    at_ms: int


@dataclass(frozen=True)
class Session:
    """What a device tells in one go.

    Attributes:
        sent: the events, in order.
        is_free: whether they may arrive in another order, and together.
    """

    sent: list[Sent]
    is_free: bool


@dataclass(frozen=True)
class Post:
    """One POST: events that arrive together, as an array or alone."""

    events: list[Event]
    at_ms: int
    session: int

    @property
    def can_be_sent_again(self) -> bool:
        """Whether each event can be recognised."""
        return all("timestamp" in event for event in self.events)


@st.composite
def fleets(draw: st.DrawFn, began_ms: int) -> list[Session]:
    """Draw the sessions of a fleet's devices, one after another, at least a minute apart.

    Args:
        draw: hypothesis' own.
        began_ms: our clock when the fleet begins, in milliseconds since 1970.
    """
    clients = [draw(_clients(number)) for number in range(draw(st.integers(2, 4)))]
    sessions: list[Session] = []
    now_ms = 0
    for _ in range(draw(st.integers(1, 10))):
        client = draw(st.sampled_from(clients))
        now_ms += draw(st.sampled_from(_WAITS_MS))
        happened = _times(draw, client, draw(_stories(client)), now_ms)
        now_ms = happened[-1].at_ms
        session = Session([_stamped(client, one, began_ms) for one in happened], client.is_free)
        if client.is_free:
            session = _flushed(session, now_ms + draw(st.sampled_from(_DELAYS_MS)), began_ms)
            now_ms = session.sent[-1].at_ms + _FLUSH_MS
        sessions.append(session)
    return sessions


def posts(sessions: Sequence[Session], random: randomness.Random, *, shuffled: bool) -> Iterator[Post]:
    """Give events in batches of any size; what has no time that is believed keeps its own moment."""
    for number, session in enumerate(sessions):
        if not session.is_free:
            yield from _each_alone(session, number)
            continue
        events = [sent.event for sent in session.sent]
        if shuffled:
            random.shuffle(events)
        began_ms = session.sent[0].at_ms
        moments = sorted(random.randrange(_FLUSH_MS) for _ in events)
        while events:
            size = random.randint(1, len(events))
            yield Post(events[:size], began_ms + moments[-len(events)], number)
            events = events[size:]


def posts_one_by_one(sessions: Sequence[Session]) -> Iterator[Post]:
    """Give each event alone, in order."""
    for number, session in enumerate(sessions):
        yield from _each_alone(session, number)


def sent_again(all_posts: Sequence[Post], random: randomness.Random) -> Iterator[Post]:
    """Give POSTs, and now and then an earlier one again, whole or in part: at once, or with a later session."""
    earlier: list[Post] = []
    for post in all_posts:
        yield post
        if post.can_be_sent_again:
            earlier.append(post)
        if earlier and random.random() < 0.4:
            again = random.choice(earlier)
            size = random.randint(1, len(again.events))
            yield replace(post, events=random.sample(again.events, size))


def _each_alone(session: Session, number: int) -> Iterator[Post]:
    for sent in session.sent:
        yield Post([sent.event], sent.at_ms, number)


@st.composite
def _clients(draw: st.DrawFn, number: int) -> Client:
    platform = draw(st.sampled_from(["android", "ios", "electron"]))
    device = draw(st.sampled_from([f"d{number}", f"d{number}", f"d{number}", f"D{number}", "shared", "", None]))
    fields = {
        "app_id": draw(st.sampled_from(["com.example.one"] * 3 + ["com.example.two"])),
        "platform": platform,
        "plugin_version": draw(st.sampled_from(["8.51.6", "8.51.6", "6.14.24"])),
        **draw(st.sampled_from(_BUILDS)),
        **draw(st.sampled_from(_CHANNELS)),
        **({} if device is None else {"device_id": f"{device}-{number}" if device == "shared" else device}),
    }
    if platform == "electron":
        fields["plugin_version"] = "0.0.1"
        fields["platform"] = draw(st.sampled_from(["electron", "android"]))
        return Client(fields, "singles", 0)
    sends = draw(st.sampled_from(["flushes", "flushes", "flushes", "singles", "mixed", "wrong"]))
    if sends == "wrong":
        return Client(fields, "flushes", draw(st.sampled_from(_WRONG_SKEWS_MS)))
    skew_ms = draw(st.sampled_from(_BELIEVED_SKEWS_MS)) if sends == "flushes" else 0
    return Client(fields, sends, skew_ms)


def _stories(client: Client) -> st.SearchStrategy[list[Event]]:
    """Give what happens on a device in one session, without times."""
    platform = "electron" if client.fields["plugin_version"] == "0.0.1" else str(client.fields["platform"])
    kinds: list[st.SearchStrategy[list[Event]]] = [_downloads(platform), _activations(), _lives()]
    return st.lists(st.one_of(kinds), min_size=1, max_size=2).map(lambda parts: [one for part in parts for one in part])


@st.composite
def _downloads(draw: st.DrawFn, platform: str) -> list[Event]:
    """A download or a part of one: it may have begun earlier, stop anywhere, repeat steps, or fail."""
    version = draw(st.sampled_from(_VERSIONS))
    steps = list(draw(st.sampled_from(_DOWNLOADS[platform])))
    ending = draw(st.sampled_from(["complete", "complete", "stops", "stops", "fails", "fails"]))
    first = draw(st.sampled_from([0, 0, 0, len(steps) // 2]))
    last = len(steps) if ending == "complete" else draw(st.integers(first, len(steps)))
    taken = steps[first:last]
    if draw(st.booleans()) and taken:
        again = draw(st.integers(0, len(taken) - 1))
        taken = [*taken[: again + 1], *taken[draw(st.integers(0, again)) :]]
    story: list[Event] = [{"action": action, "version_name": version} for action in taken]
    if story and ending == "complete" and draw(st.booleans()):
        duration = draw(st.sampled_from(["1234", "500", "-1", "nan", "soon", "7200001"]))
        story[-1]["metadata"] = {"duration_ms": duration}
    if ending == "fails" or not story:
        failures = draw(st.sampled_from(_FAILURES))
        story += [{"action": action, "version_name": _named(version, action)} for action in failures]
    return story


def _named(version: str, action: str) -> str:
    """Give the name that a failure has a version by: what is about a file names the file, too."""
    return f"{version}:assets/main.js" if "manifest" in action else version


@st.composite
def _activations(draw: st.DrawFn) -> list[Event]:
    """A bundle is activated, often after another one, and may be rolled back."""
    version = draw(st.sampled_from(_VERSIONS))
    story: list[Event] = [{"action": "set", "version_name": version}]
    old = draw(st.sampled_from(_OLD_VERSIONS))
    if old is not None:
        story[0]["old_version_name"] = old
    rolled_back = draw(st.sampled_from([(), (), ("update_fail",), ("set_fail",), ("set_fail", "update_fail")]))
    return [*story, *({"action": action, "version_name": version} for action in rolled_back)]


@st.composite
def _lives(draw: st.DrawFn) -> list[Event]:
    """The app is used."""
    event: Event = {"action": draw(st.sampled_from(_LIFE))}
    version = draw(st.sampled_from([*_VERSIONS, "builtin", "", None]))
    if version is not None:
        event["version_name"] = version
    if event["action"] in {"app_launch_ready", "webview_page_loaded"}:
        event["metadata"] = {"duration_ms": draw(st.sampled_from(["90", "1500", "2500", "60000", "", "-5"]))}
    return [event]


def _times(draw: st.DrawFn, client: Client, story: Sequence[Event], began_ms: int) -> list[Sent]:
    """Let a story happen, from a moment on."""
    now_ms = bunch_began_ms = began_ms
    happened = []
    for event in story:
        if client.is_free:
            now_ms += draw(st.sampled_from(_DEVICE_GAPS_MS))
        elif now_ms - bunch_began_ms < _BUNCH_MS and draw(st.integers(0, 4)):
            now_ms += draw(st.sampled_from(_BUNCH_GAPS_MS))
        else:
            now_ms += draw(st.sampled_from(_BUNCHES_APART_MS))
            bunch_began_ms = now_ms
        happened.append(Sent(event, now_ms))
    return happened


def _stamped(client: Client, sent: Sent, began_ms: int) -> Sent:
    """Let an event say what its client says: the device, and with most clients the time on its clock."""
    event = {**client.fields, **sent.event}
    by_worker = client.sends == "mixed" and event["action"].startswith("download_")
    if client.sends != "singles" and not by_worker:
        event["timestamp"] = began_ms + sent.at_ms + client.skew_ms
    return Sent(event, sent.at_ms)


def _flushed(session: Session, at_ms: int, began_ms: int) -> Session:
    """Let all events of a session arrive soon after a moment, none of them within seconds of being an hour late."""
    while any(_is_nearly_late(began_ms + at_ms - sent.event["timestamp"]) for sent in session.sent):
        at_ms += 2 * _FLUSH_MS
    # One action at one moment is one event, whatever else it says: which of two stayed would depend on their order.
    events = {(one.event["action"], one.event.get("version_name"), one.event["timestamp"]): one for one in session.sent}
    step_ms = _FLUSH_MS // len(events)
    sent_at = [Sent(one.event, at_ms + step_ms * index) for index, one in enumerate(events.values())]
    return Session(sent_at, is_free=True)


def _is_nearly_late(age_ms: int) -> bool:
    return -2 * _FLUSH_MS < age_ms - _HOUR_MS <= _FLUSH_MS
