"""Who may send: tokens of which each will do, and the apps that may report."""

import hmac
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from exporter.access import AllowList, Tokens, token_texts
from exporter.intake import Intake
from tests.support.inprocess import running

NEW, OLD = "the-new-token", "the-old/token ü"
EVENT = {"app_id": "com.example.shop", "platform": "ios", "action": "set", "version_name": "1.0.0", "device_id": "d"}


def event(app_id: str) -> dict[str, Any]:
    """Make an event of an app."""
    return {**EVENT, "app_id": app_id}


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a", ["a"]), (" a b ", ["a b"]), ("a, b,,c,", ["a", "b", "c"]), ("a\nb\r\n", ["a", "b"])],
)
def test_a_setting_holds_several_tokens(text: str, expected: list[str]) -> None:
    """Commas separate them in a variable, lines in a file."""
    assert expected == token_texts(SecretStr(text))


def test_no_setting_holds_no_token() -> None:
    """Then nobody needs one."""
    tokens = Tokens(token_texts(None))
    assert not tokens
    assert not tokens.include("")


@pytest.mark.parametrize("shown", ["", "the-new-toke", f"{NEW}{OLD}", f"{NEW},{OLD}", "\udcff"])
def test_what_is_none_of_them_will_not_do(shown: str) -> None:
    """Neither do parts of one, or all of them together."""
    assert not Tokens([NEW, OLD]).include(shown)


@pytest.mark.parametrize("shown", [NEW, OLD, "wrong", "wrong-as-long!"])
def test_every_token_is_compared(monkeypatch: pytest.MonkeyPatch, shown: str) -> None:
    """Each is compared in constant time, also when another one was right, so that time does not tell which it was."""
    compared = []
    compare = hmac.compare_digest

    def note(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", note)
    Tokens([NEW, OLD]).include(shown)
    assert [NEW.encode(), OLD.encode()] == compared


@pytest.mark.parametrize("token", [NEW, OLD])
async def test_during_rotation_both_are_right(token: str) -> None:
    """As last path segment, as query parameter and as bearer token."""
    async with running({"ingest_token": f"{NEW},{OLD}"}) as exporter:
        quoted = token.replace("/", "%2F").replace(" ", "%20").replace("ü", "%C3%BC")
        replies = [
            await exporter.request("POST", f"/stats/{quoted}", json=EVENT),
            await exporter.request("POST", "/stats", json=EVENT, params={"token": token}),
            await exporter.request("POST", "/stats", json=EVENT, headers={"Authorization": f"Bearer {token}"}),
        ]
        assert [200] * 3 == [reply.status for reply in replies]
        assert 401 == (await exporter.post(EVENT, path="/stats/wrong")).status


async def test_a_defect_shows_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is logged and answered when a handler fails names neither the path nor the query."""

    async def fail(*_: object) -> None:
        message = "a defect"
        raise RuntimeError(message)

    monkeypatch.setattr(Intake, "accept", fail)
    with capture_logs() as logs:
        async with running({"ingest_token": "SECRET"}) as exporter:
            replies = [await exporter.post(EVENT, path=path) for path in ("/stats/SECRET", "/stats?token=SECRET")]
            page = await exporter.metrics()
    assert [500, 500] == [reply.status for reply in replies]
    assert "SECRET" not in f"{replies}{page}{logs}"


# --- apps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "app_id", "expected"),
    [
        ("", "com.example.shop", True),
        ("com.example.*", "com.example.shop", True),
        ("com.example.*", "com.example.shop.beta", True),
        ("com.example.*", "com.example.", True),
        ("com.example.*", "com.example", False),
        ("com.example.*", "com.examples.shop", False),
        ("com.example.*", "evil.com.example.shop", False),
        ("com.example.*", "comXexample.shop", False),
        ("com.example.*", "COM.example.shop", False),
        ("com.example.*", "com.example.shop\nx", True),
        ("com.example.shop", "com.example.shop\n", False),
        ("com.?.shop", "com.a.shop", True),
        ("com.?.shop", "com.ab.shop", False),
        ("com.[ab].shop", "com.b.shop", True),
        ("com.[ab].shop", "com.c.shop", False),
        ("com.a.*,com.b", "com.b", True),
        ("com.a.*,com.b", "com.b.x", False),
        ("com.example.*", "unknown", True),
        ("com.example.*,-unknown", "unknown", False),
        ("com.example.*,-com.example.test*", "com.example.tests", False),
        ("com.example.*,-com.example.test*", "com.example.shop", True),
        ("-com.example.*", "com.other", True),
        ("-com.example.*", "com.example.shop", False),
        ("com.a,-com.a", "com.a", False),
    ],
)
def test_names_and_wildcards(names: str, app_id: str, expected: object) -> None:
    """Wildcards are those of a shell, for the whole name and its case; what is excluded stays so."""
    assert expected == AllowList(name for name in names.split(",") if name).allows(app_id)


def test_many_stars_take_no_time() -> None:
    """A hostile name does not make a pattern search for ever."""
    assert not AllowList(["*a*a*a*a*a*a*a*b"]).allows("a" * 100_000)


def test_room_is_kept_for_exact_names_only() -> None:
    """Nobody knows how many apps a wildcard will meet."""
    assert {"com.a", "com.b"} == AllowList(["com.a", "com.b", "com.c.*", "com.?", "-unknown", "-com.d"]).exact


async def test_wildcards_reserve_nothing() -> None:
    """An app that only a wildcard allows takes one of the places for apps; one that is named has its own."""
    settings = {"allowed_apps": "com.named,com.*", "max_apps": "1"}
    async with running(settings) as exporter:
        for app_id in ("com.first", "com.second", "com.named", "org.stranger"):
            assert 200 == (await exporter.post(event(app_id))).status
        assert {"com.first", "com.named", "other"} == {key.app_id for key in await exporter.counters()}


@pytest.mark.parametrize("names", ["com.example.shop", "com.example.*"])
async def test_unlisted_apps_can_be_rejected(names: str) -> None:
    """A body of theirs alone gets 403; among others each of their events gets an error, and none is stored."""
    stranger = event("com.stranger")
    refused = {"error": "app_not_allowed", "message": "This endpoint takes no events of this app"}
    async with running({"allowed_apps": names, "unlisted_apps": "reject"}) as exporter:
        for body in (stranger, [stranger, stranger]):
            reply = await exporter.post(body)
            assert (403, refused) == (reply.status, reply.json())
        reply = await exporter.post([stranger, EVENT, {"app_id": "no action"}])
        assert 200 == reply.status
        assert ["app_not_allowed", None, "missing_action"] == [each.get("error") for each in reply.json()["results"]]
        assert 200 == (await exporter.post([stranger, {"app_id": "no action"}])).status
        assert ["com.example.shop"] == [key.app_id for key in await exporter.counters()]
        assert 1 == len(exporter.points())
        rejected = await exporter.sample("capgo_exporter_events_total", outcome="rejected", reason="app_not_allowed")
        assert 5.0 == rejected
