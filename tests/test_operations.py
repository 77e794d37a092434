"""The endpoints for operators: health, readiness, the landing page, who may read metrics, and where."""

import base64
import re
from collections.abc import Mapping
from typing import Any

import pytest

from exporter import __version__
from exporter.delivery import Delivery
from exporter.expiry import Expiry
from exporter.exposition import Page
from exporter.journal.records import Committed, Transaction
from exporter.journal.store import CommitFailedError, Journal
from tests.support import recordings
from tests.support.exporter import SCRAPE_HEADERS, parse_samples
from tests.support.fakeinflux import ACCEPT, ScriptedInflux, Step
from tests.support.inprocess import Running, running
from tests.support.ports import wait_for

TOKEN = "a-token-of-the-test"  # noqa: S105 -- the test's own
EVENT = {"app_id": "com.example.shop", "platform": "ios", "action": "set", "version_name": "1.0.0", "device_id": "d"}
READY = {"status": "ready", "influxdb": "not configured", "degraded": False}


async def get(exporter: Running, path: str, **options: Any) -> tuple[int, Any]:
    """Return the status and the decoded JSON body of an endpoint."""
    reply = await exporter.request("GET", path, **options)
    return reply.status, reply.json()


# --- health and readiness ---------------------------------------------------------------------------------------------


async def test_healthy_and_ready() -> None:
    """A new exporter is both, also without InfluxDB."""
    async with running() as exporter:
        assert (200, {"status": "ok", "ended_tasks": []}) == await get(exporter, "/healthz")
        assert (200, READY) == await get(exporter, "/readyz")


async def test_unhealthy_when_a_task_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A background task that ended by itself makes `/healthz` 503 and is named; events are still taken."""

    async def end(expiry: Expiry) -> None:
        del expiry

    monkeypatch.setattr(Expiry, "run", end)
    async with running() as exporter:
        assert (503, {"status": "failed", "ended_tasks": ["expiry"]}) == await get(exporter, "/healthz")
        assert (200, READY) == await get(exporter, "/readyz")
        assert (await exporter.post(EVENT)).status == 200


async def test_not_ready_while_draining() -> None:
    """While stopping `/readyz` is 503, so that a load balancer sends no more; the process is healthy."""
    async with running() as exporter:
        exporter.exporter.drain.begun = True
        assert (503, {**READY, "status": "draining"}) == await get(exporter, "/readyz")
        assert (200, {"status": "ok", "ended_tasks": []}) == await get(exporter, "/healthz")


async def test_not_ready_while_the_journal_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first failed commit until the disk works again `/readyz` is 503 and a metric is 0."""
    commit, recover = Journal.commit, Journal.recover
    fails = True

    def failing_commit(journal: Journal, transaction: Transaction) -> Committed:
        if fails:
            message = "disk full"
            raise CommitFailedError(message, is_certain=True)
        return commit(journal, transaction)

    def failing_recover(journal: Journal, reason: str = "") -> int:
        if fails:
            raise CommitFailedError(reason, is_certain=False)
        return recover(journal, reason)

    monkeypatch.setattr(Journal, "commit", failing_commit)
    monkeypatch.setattr(Journal, "recover", failing_recover)
    async with running() as exporter:
        assert (await exporter.post(EVENT)).status == 503
        assert (503, {**READY, "status": "events cannot be stored"}) == await get(exporter, "/readyz")
        assert (200, {"status": "ok", "ended_tasks": []}) == await get(exporter, "/healthz")
        assert await exporter.sample("capgo_exporter_journal_writable") == 0
        assert await exporter.sample("capgo_exporter_journal_commit_failures_total") == 1
        fails = False

        async def ready() -> bool:
            return (200, READY) == await get(exporter, "/readyz")

        await wait_for(ready, "the exporter to be ready again")
        assert await exporter.sample("capgo_exporter_journal_writable") == 1
        assert (await exporter.post(EVENT)).status == 200


async def test_ready_but_degraded_while_influxdb_fails(scripted_influx: ScriptedInflux) -> None:
    """A failing InfluxDB is told in the body of `/readyz` with 200, because events can be stored; the token is not."""
    scripted_influx.default = Step(recordings.unauthorized())
    settings = {"influx_url": scripted_influx.url, "influx_token": TOKEN, "influx_org": "o", "shutdown_timeout": "1s"}
    async with running(settings) as exporter:
        assert (200, {**READY, "influxdb": "ok"}) == await get(exporter, "/readyz")
        await exporter.post(EVENT)

        async def degraded() -> dict[str, Any]:
            status, body = await get(exporter, "/readyz")
            assert (200, True) == (status, body["degraded"])
            assert isinstance(body, dict)
            return body

        body = await wait_for(degraded, "the failure to show")
        assert body["status"] == "ready"
        assert re.match(r"rejected_credentials: 401: ", body["influxdb"])
        assert TOKEN not in str(body)
        scripted_influx.default = ACCEPT


async def test_degraded_when_delivery_has_ended(
    scripted_influx: ScriptedInflux, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever InfluxDB said last, it is not ok if nobody delivers; events are still taken."""

    async def end(delivery: Delivery) -> None:
        del delivery

    monkeypatch.setattr(Delivery, "run", end)
    async with running({"influx_url": scripted_influx.url}) as exporter:
        expected = {"status": "ready", "influxdb": "delivery has ended; restart the exporter", "degraded": True}
        assert (200, expected) == await get(exporter, "/readyz")
        assert (503, {"status": "failed", "ended_tasks": ["delivery"]}) == await get(exporter, "/healthz")


# --- the landing page -------------------------------------------------------------------------------------------------


async def test_landing_page_names_the_exporter_and_its_links() -> None:
    """`/` says what this is, its version, where devices post, and every link on it works."""
    async with running({"stats_path": "/a&b"}) as exporter:
        reply = await exporter.request("GET", "/")
        assert (200, "text/html; charset=utf-8") == (reply.status, reply.headers["Content-Type"])
        page = reply.body.decode()
        assert f"capgo-stats-exporter {__version__}" in page
        assert "<code>/a&amp;b</code>" in page
        links = re.findall(r'href="([^"]+)"', page)
        assert ["/metrics", "/healthz", "/readyz"] == links
        assert [200] * 3 == [(await exporter.request("GET", link)).status for link in links]


# --- who may read metrics ---------------------------------------------------------------------------------------------

WRONG_AUTHORISATIONS: list[Mapping[str, str]] = [
    {},
    {"Authorization": ""},
    {"Authorization": "Bearer"},
    {"Authorization": "Bearer wrong"},
    {"Authorization": f"Bearer {TOKEN}x"},
    {"Authorization": f"Basic {TOKEN}"},
    {"Authorization": f"Basic {base64.b64encode(TOKEN.encode()).decode()}"},
    {"Authorization": f"Basic {base64.b64encode(f'{TOKEN}:x'.encode()).decode()}"},
    {"Authorization": "Basic \udcff"},
    {"Authorization": "Basic /w=="},
    {"Authorization": TOKEN},
    {"Authorization": "Bearer \udcff"},
]


@pytest.mark.parametrize("headers", WRONG_AUTHORISATIONS, ids=lambda headers: ascii(headers.get("Authorization")))
async def test_metrics_need_the_token(headers: Mapping[str, str]) -> None:
    """Without the right token `/metrics` is 401, says how to ask, and shows nothing."""
    async with running({"metrics_token": TOKEN}) as exporter:
        reply = await exporter.request("GET", "/metrics", headers=headers)
        assert (401, 'Bearer, Basic realm="metrics"') == (reply.status, reply.headers["WWW-Authenticate"])
        assert {"error": "unauthorized", "message": "The token is missing or wrong"} == reply.json()


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_metrics_are_shown_for_the_token(scheme: str) -> None:
    """With the bearer token the page comes, which does not hold it; health needs no token."""
    async with running({"metrics_token": TOKEN}) as exporter:
        reply = await exporter.request("GET", "/metrics", headers={"Authorization": f"{scheme} {TOKEN}"})
        assert reply.status == 200
        assert TOKEN.encode() not in reply.body
        assert (await exporter.request("GET", "/healthz")).status == 200
        assert (await exporter.request("GET", "/readyz")).status == 200


@pytest.mark.parametrize("user", ["", "prometheus"])
@pytest.mark.parametrize("token", [TOKEN, "another:ü"])
async def test_metrics_are_shown_for_the_password(user: str, token: str) -> None:
    """Each of several tokens will do as password of any user, for readers who know basic credentials only."""
    async with running({"metrics_token": f"{TOKEN}, another:ü"}) as exporter:
        credentials = base64.b64encode(f"{user}:{token}".encode()).decode()
        reply = await exporter.request("GET", "/metrics", headers={"Authorization": f"Basic {credentials}"})
        assert reply.status == 200


async def test_a_refused_scrape_starts_no_birth() -> None:
    """A request without the token cannot pass for a scrape: the first scrape with it still shows the 0."""
    async with running({"metrics_token": TOKEN, "scrape_interval": "1ms"}) as exporter:
        await exporter.post(EVENT)
        for _ in range(3):
            assert (await exporter.request("GET", "/metrics", headers=SCRAPE_HEADERS)).status == 401
        reply = await exporter.request(
            "GET", "/metrics", headers={**SCRAPE_HEADERS, "Authorization": f"Bearer {TOKEN}"}
        )
        (line,) = re.findall(rb"capgo_stats_events_total\{.*action=\"set\".*", reply.body)
        assert line.endswith(b" 0")


# --- two listeners ----------------------------------------------------------------------------------------------------


async def test_second_listener_takes_everything_but_stats() -> None:
    """With a second listener the first serves the stats path alone, and the second everything else."""
    async with running({"metrics_listen": "127.0.0.1:0"}) as exporter:
        paths = ("/stats", "/stats/", "/metrics", "/healthz", "/readyz", "/")

        async def statuses(url: str) -> list[int]:
            return [(await exporter.request("GET", path, url=url)).status for path in paths]

        assert exporter.url != exporter.metrics_url
        assert [200, 200, 404, 404, 404, 404] == await statuses(exporter.url)
        assert [404, 404, 200, 200, 200, 200] == await statuses(exporter.metrics_url)
        assert (await exporter.post(EVENT)).status == 200
        assert 1 == sum((await exporter.counters()).values())


# --- what every answer has in common ----------------------------------------------------------------------------------


async def test_requests_are_counted_by_handler_and_status() -> None:
    """Every answer is counted, and timed, under its handler; what no handler serves is under `none`."""
    async with running() as exporter:
        await exporter.post(EVENT)
        await exporter.post("not JSON")
        for method, path in (("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/"), ("GET", "/no"), ("PUT", "/stats")):
            await exporter.request(method, path)
        await exporter.metrics()
        samples = parse_samples(await exporter.metrics())
        counted = {
            (sample.labels["handler"], sample.labels["code"])
            for sample in samples
            if sample.name == "capgo_exporter_http_requests_total" and sample.value == 1
        }
        expected = {("stats", "200"), ("stats", "400"), ("metrics", "200"), ("healthz", "200"), ("readyz", "200")}
        assert expected | {("index", "200"), ("none", "404"), ("none", "405")} == counted
        assert await exporter.sample("capgo_exporter_http_request_duration_seconds_count", handler="stats") == 2


async def test_a_handler_that_fails_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours is answered with 500, counted as such, and the next request is served."""

    def fail(*arguments: Any, **options: Any) -> None:
        del arguments, options
        monkeypatch.undo()
        message = "a fault of ours"
        raise RuntimeError(message)

    async with running() as exporter:
        monkeypatch.setattr(Page, "pieces", fail)
        assert (await exporter.request("GET", "/metrics")).status == 500
        assert await exporter.sample("capgo_exporter_http_requests_total", handler="metrics", code="500") == 1
