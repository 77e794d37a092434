"""docs/openapi.yaml: valid, equal to the routes, and true of the real server."""

import asyncio
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import schemathesis
from aiohttp import web
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate
from ruamel.yaml import YAML
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import negative_data_rejection

from exporter.intake import SLOW_DISK, Intake
from exporter.operations import HealthHandler, MetricsHandler
from exporter.releases_hook import ReleasesHandler
from exporter.stats import StatsHandler
from exporter.telemetry import REPLIES
from tests.support.exporter import ExporterProcess, Reply
from tests.support.hostile import bad_lines
from tests.support.inprocess import running

TOKEN: Final = "a-token"  # noqa: S105 -- the test's own
TOKENS: Final = {f"{name}_token": TOKEN for name in ("ingest", "releases", "metrics")}
BEARER: Final = {"Authorization": f"Bearer {TOKEN}"}
EXAMPLES: Final = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "12"))
"""Examples for each operation, of good requests and of bad ones each."""

# What is not as described is accepted all the same: a batch must never be lost for one odd field.
LENIENT: Final = [negative_data_rejection]


@pytest.fixture(scope="module", name="described")
def read_description() -> Mapping[str, Any]:
    """The description."""
    path = Path(__file__).parents[1] / "docs" / "openapi.yaml"
    loaded: Mapping[str, Any] = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    return loaded


def operations(described: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Give method, path and description of each operation."""
    for path, item in described["paths"].items():
        for method, operation in item.items():
            if method != "parameters":
                yield method.upper(), path, operation


def handler_name(route: web.AbstractRoute) -> str:
    """Give the name by which the metrics know the handler of a route."""
    owner = getattr(route.handler, "__self__", None)
    names = {StatsHandler: "stats", MetricsHandler: "metrics", ReleasesHandler: "releases"}
    return route.handler.__name__ if isinstance(owner, HealthHandler) else names[type(owner)]


def test_it_is_valid(described: Mapping[str, Any]) -> None:
    """It is OpenAPI 3.1."""
    validate(described)
    assert described["openapi"].startswith("3.1.")


async def test_it_equals_the_routes(described: Mapping[str, Any]) -> None:
    """Every path and method of the application is described with the statuses of its handler, and no other."""
    async with running(TOKENS) as exporter:
        routes = {
            (route.method, route.resource.canonical): handler_name(route)
            for route in exporter.exporter.public.router.routes()
            if route.method != "HEAD" and route.resource is not None
        }
    assert routes.keys() == {(method, path) for method, path, _ in operations(described)}
    statuses: dict[str, set[int]] = defaultdict(set)
    for method, path, operation in operations(described):
        statuses[routes[method, path]] |= {int(status) for status in operation["responses"]}
    assert {name: set(replies) for name, replies in REPLIES.items() if name != "none"} == statuses


def examples(described: Mapping[str, Any], part: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give the examples of a JSON body or answer, by name."""
    content = resolved(described, part).get("content", {})
    found: Mapping[str, Any] = content.get("application/json", {}).get("examples", {})
    return {name: example["value"] for name, example in found.items()}


def resolved(described: Mapping[str, Any], part: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow references."""
    while "$ref" in part:
        target: Any = described
        for key in part["$ref"].removeprefix("#/").split("/"):
            target = target[key]
        part = target
    return part


async def test_examples_are_answered_as_described(described: Mapping[str, Any]) -> None:
    """An example is answered as the example of the same name among the answers; with 200 if there is none."""
    answered: Counter[int] = Counter()
    async with running(TOKENS) as exporter:
        for method, path, operation in operations(described):
            answers = {
                name: (int(status), value)
                for status, answer in operation["responses"].items()
                for name, value in examples(described, answer).items()
            }
            for name, body in examples(described, operation.get("requestBody", {})).items():
                reply = await exporter.request(method, path.replace("{token}", TOKEN), json=body, headers=BEARER)
                status, said = answers.get(name, (200, reply.json()))
                assert (status, said) == (reply.status, reply.json()), name
                content = resolved(described, operation["responses"][str(status)])["content"]["application/json"]
                OAS31Validator({**content["schema"], "components": described["components"]}).validate(reply.json())
                answered[status] += 1
    assert {200: 4 * 4 + 2, 400: 4 * 2 + 1} == answered


def check_reply(described: Mapping[str, Any], operation: Mapping[str, Any], reply: Reply) -> None:
    """Compare a JSON reply with its description: status, required headers, body."""
    answer = resolved(described, operation["responses"][str(reply.status)])
    for name, header in answer.get("headers", {}).items():
        value = reply.headers[name]
        OAS31Validator(header["schema"]).validate(int(value) if value.isdigit() else value)
    schema = answer["content"]["application/json"]["schema"]
    OAS31Validator({**schema, "components": described["components"]}).validate(reply.json())


async def test_refusals_are_as_described(described: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a token, and while nothing can be stored, each operation answers as it says."""
    refused: Counter[int] = Counter()
    async with running(TOKENS) as exporter:
        for method, path, operation in operations(described):
            target = path.replace("{token}", "wrong")
            if "401" in operation["responses"]:
                reply = await exporter.request(method, target, json={})
                check_reply(described, operation, reply)
                refused[reply.status] += 1
        monkeypatch.setattr(Intake, "closed_because", property(lambda _: SLOW_DISK))
        for method, path, operation in operations(described):
            if "503" in operation["responses"] and path not in {"/releases", "/healthz"}:
                target = path.replace("{token}", TOKEN)
                reply = await exporter.request(method, target, json={}, headers=BEARER)
                check_reply(described, operation, reply)
                refused[reply.status] += 1
    assert {401: 4 * 2 + 2, 503: 4 + 1} == refused


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
async def test_the_server_does_as_described(tmp_path: Path, described: Mapping[str, Any], mode: GenerationMode) -> None:
    """Generated requests, as described and not, are answered with statuses, headers and bodies of the description."""
    env = {f"EXPORTER_{name.upper()}": token for name, token in TOKENS.items()}
    async with ExporterProcess(tmp_path, env) as exporter:
        await asyncio.to_thread(attack, exporter.url, dict(described), mode)
        assert [] == bad_lines(exporter)


def attack(url: str, described: dict[str, Any], mode: GenerationMode) -> None:
    """Send generated requests to every operation and check the answers."""
    for result in schemathesis.openapi.from_dict(described).get_all_operations():
        assert isinstance(result, Ok)
        attack_one(url, result.ok(), mode)


def attack_one(url: str, operation: Any, mode: GenerationMode) -> None:
    """Send generated requests to one operation and check the answers."""
    if mode is GenerationMode.NEGATIVE and operation.method != "post":
        return  # nothing can be wrong with it
    cases = operation.as_strategy(generation_mode=mode)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases, shows_token=st.booleans())
    def check(case: Any, *, shows_token: bool) -> None:
        if shows_token or mode is GenerationMode.POSITIVE:
            case.headers.update(BEARER)
            if case.path_parameters:
                case.path_parameters["token"] = TOKEN
        if mode is GenerationMode.POSITIVE:
            case.headers.pop("Content-Encoding", None)  # the body is not compressed
        case.call_and_validate(base_url=url, excluded_checks=LENIENT)

    check()
