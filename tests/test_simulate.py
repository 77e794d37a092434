"""The simulated fleet on its own: the same from the same seed, bodies like those of clients, and each client's rules.

What a client does with a reply is written down here by hand, from the contract; a table of the simulator's own would
prove nothing.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random

import pytest

from exporter.actions import BY_NAME
from exporter.simulate.clients import ELECTRON, MOBILE, Shape
from exporter.simulate.device import Device, make_profile
from exporter.simulate.fleet import Fleet
from exporter.simulate.outbox import Delivery, Outbox, Reply
from exporter.simulate.replies import read_reply
from exporter.simulate.scenario import HOUR_MS, Noise, Release, Scenario, demo, month
from exporter.simulate.timeline import Timeline
from exporter.simulate.truth import Truth

START_MS = 1_750_000_000_000
DAY_MS = 24 * HOUR_MS
GENERATIONS = [generation for generation, _ in (*MOBILE, *ELECTRON)]


def said(scenario: Scenario, days: float = 1.0) -> list[tuple[int, bytes]]:
    """Give the times and bodies of what a fleet posts to a server that takes everything."""
    fleet = Fleet(scenario, START_MS)
    posts = []
    for delivery in fleet.deliveries(START_MS + int(days * DAY_MS)):
        posts.append((delivery.at_ms, delivery.encode()))
        fleet.answer(delivery)
    return posts


def events(posts: list[tuple[int, bytes]]) -> list[dict[str, object]]:
    """Give the events of posts."""
    bodies = [json.loads(body) for _, body in posts]
    return [event for body in bodies for event in (body if isinstance(body, list) else [body])]


@pytest.fixture(scope="module")
def posts() -> list[tuple[int, bytes]]:
    """Three days of a fleet that has all clients, and releases of all kinds of badness."""
    return said(month(devices=150, days=3.0), 3.0)


# --- the same seed ----------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes() -> None:
    """Every POST is the same, at the same time."""
    scenario = month(seed=7, devices=40, days=1.0)
    assert said(scenario) == said(scenario)


def test_another_seed_gives_something_else() -> None:
    """Nothing of the fleet is fixed but the scenario."""
    one, other = (said(month(seed=seed, devices=40, days=1.0)) for seed in (7, 8))
    assert set() == {body for _, body in one} & {body for _, body in other}


def test_time_may_pass_in_pieces(posts: list[tuple[int, bytes]]) -> None:
    """A fleet does the same, however often its owner looks."""
    fleet = Fleet(month(devices=150, days=3.0), START_MS)
    pieces = []
    for hour in range(1, 25):
        for delivery in fleet.deliveries(START_MS + hour * HOUR_MS):
            pieces.append((delivery.at_ms, delivery.encode()))
            fleet.answer(delivery)
        assert START_MS + hour * HOUR_MS == fleet.now_ms
    assert [post for post in posts if post[0] < START_MS + DAY_MS] == pieces


# --- bodies -----------------------------------------------------------------------------------------------------------

KEYS = {
    # What tests/samples has for the client, so that a sample and an event can be compared by generation.
    "android-8.51-batch-good-update": ("android", Shape.TIMED, {"timestamp"}),
    "android-8.51-worker-single": ("android", Shape.TIMED, set[str]()),
    "ios-8.51-batch": ("ios", Shape.TIMED, {"timestamp"}),
    "mobile-4-single": ("ios", Shape.EARLY, set[str]()),
    "electron-0.0.6-download_complete": ("electron", Shape.ELECTRON, set[str]()),
}


@pytest.mark.parametrize("name", KEYS)
def test_events_have_the_fields_of_the_samples(
    name: str, samples: Mapping[str, bytes], posts: list[tuple[int, bytes]]
) -> None:
    """An event of a client has the fields that the sample of that client has, with values of the same types."""
    platform, shape, times = KEYS[name]
    body = json.loads(samples[name])
    sample = body[0] if isinstance(body, list) else body
    version = {Shape.TIMED: "8.51.", Shape.EARLY: "4.", Shape.ELECTRON: "0.0."}[shape]
    alike = [
        event
        for event in events(posts)
        if event["platform"] == platform
        and str(event["plugin_version"]).startswith(version)
        and ("timestamp" in event) == bool(times)
    ]
    optional = {"metadata", "bundle_id", "message"}
    assert {frozenset(sample.keys() - optional)} == {frozenset(event.keys() - optional) for event in alike}
    assert {key: type(value) for key, value in sample.items() if key not in optional} == {
        key: type(value) for key, value in alike[0].items() if key not in optional
    }


def test_ios_says_its_fields_in_its_own_order(samples: Mapping[str, bytes], posts: list[tuple[int, bytes]]) -> None:
    """Nobody should depend on it, but bodies are those of the samples to the order."""
    for name in ("ios-8.51-batch", "android-8.51-batch-good-update"):
        sample = json.loads(samples[name])[0]
        alike = [
            event
            for event in events(posts)
            if event["platform"] == sample["platform"]
            and str(event["plugin_version"]).startswith("8.51")
            and "timestamp" in event
            and "metadata" not in event
        ]
        assert {tuple(sample)} == {tuple(event) for event in alike}


def test_only_batches_are_lists_with_times(posts: list[tuple[int, bytes]]) -> None:
    """Events that come alone have no time, events in a list have one; a list is never longer than 200."""
    for _, body in posts:
        decoded = json.loads(body)
        if isinstance(decoded, list):
            assert 0 < len(decoded) <= 200
            assert all(isinstance(event["timestamp"], int) for event in decoded)
        else:
            assert "timestamp" not in decoded


def test_every_action_is_known(posts: list[tuple[int, bytes]]) -> None:
    """The fleet makes nothing up, and knows much."""
    actions = {str(event["action"]) for event in events(posts)}
    assert set() == actions - set(BY_NAME)
    assert len(actions) >= 40


def test_metadata_is_text(posts: list[tuple[int, bytes]]) -> None:
    """Metadata is an object of strings, and plugins before 8.46 have none."""
    for event in events(posts):
        metadata = event.get("metadata", {})
        assert isinstance(metadata, dict)
        assert all(isinstance(value, str) for value in metadata.values())
        if metadata:
            assert (8, 46) <= tuple(map(int, str(event["plugin_version"]).split(".")))[:2]


def test_steps_are_those_of_the_platforms(posts: list[tuple[int, bytes]]) -> None:
    """A zip on iOS has 0, 70, 80 and 90 only; Android never says `download_0`."""
    steps = Counter[tuple[str, str]]()
    zips = {
        (event["device_id"], event["version_name"])
        for event in events(posts)
        if event["platform"] == "ios" and event["action"] == "download_zip_start"
    }
    manifests = {
        (event["device_id"], event["version_name"])
        for event in events(posts)
        if event["platform"] == "ios" and event["action"] == "download_manifest_start"
    }
    assert set() == zips & manifests
    for event in events(posts):
        if event["platform"] == "android":
            steps["android", str(event["action"])] += 1
        elif (event["device_id"], event["version_name"]) in zips:
            steps["ios zip", str(event["action"])] += 1
    assert 0 == steps["android", "download_0"]
    assert 0 < steps["android", "download_10"]
    for percent in range(0, 100, 10):
        assert (percent in {0, 70, 80, 90}) == (steps["ios zip", f"download_{percent}"] > 0), percent


# --- what a reply does ------------------------------------------------------------------------------------------------


@dataclass
class Client:
    """A device of one generation whose outbox is in the test's hands.

    Attributes:
        device: says what the test wants.
        posted: what it has sent, oldest first.
    """

    device: Device
    timeline: Timeline
    truth: Truth
    posted: list[Delivery]

    @property
    def actions(self) -> list[list[str]]:
        """The actions of each POST."""
        return [[report.action for report in delivery.reports] for delivery in self.posted]

    def wait(self, milliseconds: int) -> None:
        """Let time pass."""
        until_ms = self.timeline.now_ms + milliseconds
        while (next_ms := self.timeline.next_ms()) is not None and next_ms <= until_ms:
            self.timeline.advance()
        self.timeline.catch_up(until_ms)

    def answer(self, reply: Reply) -> None:
        """Answer the last POST."""
        delivery = self.posted[-1]
        delivery.outbox.answer(delivery, reply)


def client(version: str, platform: str = "android") -> Client:
    """Make a device with a version of the plugin, whose app has just started."""
    (generation, *_) = [each for each in GENERATIONS if version in each.versions]
    profile = replace(PROFILE, generation=generation, platform=platform, plugin_version=version)
    timeline, truth, posted = Timeline(START_MS), Truth(), list[Delivery]()
    device = Device(profile, Scenario(), timeline, Random(1))  # noqa: S311 -- no secret
    device.outbox = Outbox(profile, timeline, truth, posted.append, lambda: False)
    device.outbox.on_rate_limit = device.say_rate_limit
    device.outbox.launch()
    return Client(device, timeline, truth, posted)


PROFILE = replace(
    make_profile(Scenario(emulator_share=0.0, dev_share=0.0), Random(1)),  # noqa: S311 -- no secret
    skew_ms=0,
)

LOST, AGAIN = "lost for good", "sent again after a second"
OUTCOMES = {
    # From the contract: "Transport, by client", and "What a reply does to the device".
    "4.41.0": {200: "", 400: LOST, 408: LOST, 413: LOST, 500: LOST, 503: LOST, None: LOST},
    "7.9.0": {200: "", 400: LOST, 408: LOST, 413: LOST, 500: LOST, 503: LOST, None: LOST},
    "8.30.2": {200: "", 400: LOST, 408: LOST, 413: LOST, 500: LOST, 503: LOST, None: LOST},
    "8.44.0": {200: "", 400: LOST, 408: LOST, 413: LOST, 500: LOST, 503: LOST, None: LOST},
    "8.51.4": {200: "", 400: LOST, 408: LOST, 413: LOST, 500: LOST, 503: LOST, None: LOST},
    "8.51.5": {200: "", 400: LOST, 408: AGAIN, 413: LOST, 500: AGAIN, 503: AGAIN, None: AGAIN},
    "7.51.13": {200: "", 400: LOST, 408: AGAIN, 413: LOST, 500: AGAIN, 503: AGAIN, None: AGAIN},
    "8.51.14": {200: "", 400: LOST, 408: AGAIN, 413: LOST, 500: AGAIN, 503: AGAIN, None: AGAIN},
    "0.0.1": {200: "", 400: LOST, 408: LOST, 413: LOST, 500: LOST, 503: LOST, None: LOST},
}


@pytest.mark.parametrize("platform", ["android", "ios"])
@pytest.mark.parametrize(
    ("version", "status"), [(version, status) for version, replies in OUTCOMES.items() for status in replies]
)
def test_what_a_reply_does(version: str, status: int | None, platform: str) -> None:
    """Each generation drops, or sends again after a second, what the contract says; nothing else is sent."""
    device = client(version, "electron" if version == "0.0.1" else platform)
    device.device.say("app_moved_to_foreground")
    device.wait(1000)
    device.answer(Reply(status))
    device.wait(999)
    assert 1 == len(device.posted)
    device.wait(1)
    outcome = OUTCOMES[version][status]
    assert (2 if outcome == AGAIN else 1) == len(device.posted)
    assert (1 if outcome == LOST else 0) == device.truth.lost
    assert (1 if outcome == "" else 0) == device.truth.delivered
    if outcome == AGAIN:
        assert device.posted[0].body == device.posted[1].body
        assert [False, True] == [delivery.is_repeat for delivery in device.posted]


@pytest.mark.parametrize("version", OUTCOMES)
def test_batches(version: str) -> None:
    """From 8.42 on, and in 7.51, events are gathered for a second; before, each goes at once."""
    device = client(version, "electron" if version == "0.0.1" else "ios")
    for action in ("app_moved_to_foreground", "get", "set"):
        device.device.say(action)
        device.wait(100)
    device.wait(1000)
    is_batch = version in {"8.44.0", "8.51.4", "8.51.5", "7.51.13", "8.51.14"}
    alone = [["app_moved_to_foreground"], ["get"], ["set"]]
    assert ([["app_moved_to_foreground", "get", "set"]] if is_batch else alone) == device.actions


def test_a_passing_error_delays_everything() -> None:
    """What could not be sent goes again with what has happened since, oldest first, each second."""
    device = client("8.51.14")
    device.device.say("get")
    device.wait(1000)
    device.device.say("set")
    for _ in range(3):
        device.answer(Reply(503))
        device.wait(1000)
    device.answer(Reply(200))
    device.wait(5000)
    assert [["get"], ["get", "set"], ["get", "set"], ["get", "set"]] == device.actions
    assert (2, 0) == (device.truth.delivered, device.truth.lost)


@pytest.mark.parametrize(("version", "survives"), [("8.51.5", False), ("7.51.13", True), ("8.51.14", True)])
def test_the_end_of_the_app(version: str, *, survives: bool) -> None:
    """8.51.6 and 7.51.13 keep what waits on the device; 8.51.5 loses it when the app starts anew."""
    device = client(version)
    device.device.outbox.is_online = False
    device.device.say("app_moved_to_background")
    device.wait(1000)
    device.device.outbox.suspend()
    device.wait(DAY_MS)
    device.device.outbox.is_online = True
    device.device.outbox.launch()
    device.wait(1000)
    assert ([["app_moved_to_background"]] if survives else []) == device.actions
    assert (0 if survives else 1) == device.truth.lost


def test_at_most_200_events_wait() -> None:
    """Of 250 events without a network, the oldest 50 are dropped, and the rest makes one batch."""
    device = client("8.51.14")
    device.device.outbox.is_online = False
    for _ in range(250):
        device.device.say("get")
    device.device.outbox.is_online = True
    device.wait(1000)
    assert ([200], 50) == ([len(delivery.reports) for delivery in device.posted], device.truth.lost)


def test_android_up_to_6_repeats_after_a_time_out() -> None:
    """Volley posts once more, which is a true duplicate; everyone else does not, and other errors have no repeat."""
    timeout = Reply(None, timed_out=True)
    posts = {}
    for version, platform in (("4.41.0", "android"), ("6.8.2", "android"), ("4.41.0", "ios"), ("7.9.0", "android")):
        for name, reply in (("timeout", timeout), ("error", Reply(None))):
            device = client(version, platform)
            device.device.say("set")
            device.answer(reply)
            device.wait(5000)
            posts[version, platform, name] = len(device.posted)
            if len(device.posted) > 1:
                device.answer(reply)
            assert (1, 1) == (device.truth.lost, len(set(device.truth.doubtful)))
    assert {("4.41.0", "android", "timeout"), ("6.8.2", "android", "timeout")} == {
        key for key, count in posts.items() if count == 2
    }


def test_the_worker_posts_once() -> None:
    """Android's download worker sends each event alone and never again, whatever the plugin does."""
    for version in ("6.8.2", "8.51.14"):
        for reply in (Reply(503), Reply(None, timed_out=True), Reply(None)):
            device = client(version)
            device.device.say_by_worker("download_zip_start", "1.0.0")
            device.answer(reply)
            device.wait(5000)
            assert ([["download_zip_start"]], 1) == (device.actions, device.truth.lost)


@pytest.mark.parametrize(("platform", "posts"), [("android", 1), ("ios", 2)])
def test_an_empty_reply(platform: str, posts: int) -> None:
    """On iOS an empty body is a failure: the batch is sent again, although it was stored."""
    device = client("8.51.14", platform)
    device.device.say("set")
    device.wait(1000)
    device.answer(Reply(200, has_body=False))
    device.wait(1000)
    device.answer(Reply(200))
    assert (posts, 1) == (len(device.posted), device.truth.delivered)


@pytest.mark.parametrize(
    ("version", "tells", "outcome"),
    [
        ("4.41.0", False, LOST),
        ("6.8.2", False, LOST),
        ("7.20.1", True, "silent"),
        ("8.30.2", True, "silent"),
        ("8.44.0", True, "silent"),
        ("8.51.4", True, "silent"),
        ("8.51.5", True, "waits"),
        ("7.51.13", True, "waits"),
        ("8.51.14", True, "waits"),
    ],
)
def test_429(version: str, outcome: str, *, tells: bool) -> None:
    """6.14.28 to 8.51.4 fall silent until the app starts again, later ones wait as asked, with updates too."""
    device = client(version)
    device.device.say("get")
    device.wait(1000)
    device.answer(Reply(429, retry_after_seconds=120))
    assert (["rate_limit_reached"] in device.actions) == tells
    sent = len(device.posted)
    device.wait(100_000)
    assert sent == len(device.posted)
    assert (outcome != "waits") == device.device.outbox.may_update
    device.device.say("set")
    device.wait(119_999 - 101_000 + 1000)
    assert sent + (outcome == LOST) == len(device.posted)
    device.wait(1000)
    assert device.device.outbox.may_update
    assert (["get", "set"] in device.actions) == (outcome == "waits")
    device.device.outbox.launch()
    device.device.say("delete")
    device.wait(1000)
    assert "delete" == device.actions[-1][-1]


def test_429_holds_back_what_was_about_to_be_sent() -> None:
    """An event of which the second is not over when the reply comes waits as long as the others."""
    device = client("8.51.14")
    device.device.say("get")
    device.wait(1000)
    device.device.say("set")
    device.wait(500)
    device.answer(Reply(429, retry_after_seconds=60))
    device.wait(59_999)
    assert [["get"], ["rate_limit_reached"]] == device.actions
    device.wait(1)
    assert ["get", "set"] == device.actions[-1]


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"Retry-After": "30"}, b"{}", 30.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, b"{}", 0.0),
        ({}, b'{"retryAfterSeconds": 7.5}', 7.5),
        ({}, b'{"moreInfo": {"retryAfterSeconds": 9}}', 9.0),
        ({}, b'{"rateLimitResetAt": 1750000004000}', 4.0),
        ({}, b'{"moreInfo": {"rateLimitResetAt": 1749999999000}}', 0.0),
        ({}, b'{"retryAfterSeconds": "7"}', 0.0),
        ({}, b"[]", 0.0),
        ({}, b"\xff", 0.0),
    ],
)
def test_how_long_a_reply_asks_to_wait(headers: Mapping[str, str], body: bytes, seconds: float) -> None:
    """The header counts in whole seconds only; the body says it at its top or in `moreInfo`."""
    assert seconds == read_reply(429, headers, body, START_MS).retry_after_seconds


# --- everything that is said has an end -------------------------------------------------------------------------------


def test_every_event_is_delivered_lost_or_waits() -> None:
    """With servers that fail in every way, no event is forgotten, and what is asked twice is told twice."""
    chance = Random(5)  # noqa: S311 -- no secret
    replies = [Reply(200), Reply(503), Reply(429, retry_after_seconds=60), Reply(None), Reply(400)]
    replies += [Reply(None, timed_out=True), Reply(200, has_body=False), Reply(None, was_sent=False)]
    fleet = Fleet(month(devices=40, days=1.0), START_MS)
    for delivery in fleet.deliveries(START_MS + DAY_MS):
        fleet.answer(delivery, chance.choice(replies))
    truth = fleet.truth
    assert truth.said == truth.delivered + truth.lost + fleet.waiting
    assert min(truth.delivered, truth.repeats, truth.lost, fleet.waiting, len(truth.doubtful)) > 0


# --- scenarios --------------------------------------------------------------------------------------------------------


def test_a_rollout_reaches_more_and_more() -> None:
    """A release reaches nobody before its time, and the share rises evenly between its steps."""
    release = Release("1.0.0", 10.0, ((0.0, 0.1), (4.0, 0.5), (24.0, 1.0)))
    shares = [release.share_at(hours) for hours in (9.9, 10.0, 12.0, 14.0, 24.0, 34.0, 99.0)]
    assert [0.0, 0.1, pytest.approx(0.3), 0.5, 0.75, 1.0, 1.0] == shares


def test_speed_brings_releases_and_sessions_closer() -> None:
    """At 60 times the speed, an hour takes a minute."""
    slow, fast = demo(), demo(speed=60.0)
    assert [release.start_hours / 60 for release in slow.releases] == [release.start_hours for release in fast.releases]
    hours = 1.0
    assert slow.releases[1].share_at(6.0 + hours) == pytest.approx(fast.releases[1].share_at((6.0 + hours) / 60))


def test_without_noise_nothing_fails() -> None:
    """A fleet whose noise is silent, with good releases, reports no trouble."""
    quiet = Noise(*(0.0 for _ in range(10)))
    scenario = Scenario(devices=60, noise=quiet, releases=(Release("2.0.0", 2.0, ((0.0, 1.0),)),))
    actions = {str(event["action"]) for event in events(said(scenario, 2.0))}
    assert "set" in actions
    assert set() == {action for action in actions if "fail" in action or "crash" in action or "error" in action}
