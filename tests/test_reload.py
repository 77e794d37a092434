"""Reloading: what files hold is applied on SIGHUP and when they change, without losing a request."""

import asyncio
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from exporter.configuration import Source
from exporter.settings import Settings
from tests.conftest import StartExporter
from tests.support.exporter import ExporterProcess
from tests.support.inprocess import ManualClock, Running, running
from tests.support.ports import wait_for

EVENT = {"app_id": "com.example.shop", "platform": "ios", "action": "set", "version_name": "1.0.0", "device_id": "d"}
READ = "the settings were read anew"
WRONG = "the settings are wrong; the old ones stay"
LATE = "settings were changed that hold from the next start on"


def write(path: Path, text: str) -> None:
    """Change a file as an editor does that keeps it."""
    path.write_text(text, encoding="ascii")


async def status(exporter: ExporterProcess, token: str, body: Any = EVENT) -> int:
    """Post an event with a token."""
    return (await exporter.post(body, f"/stats?token={token}")).status


async def hangup(exporter: ExporterProcess, said: str = READ) -> dict[str, Any]:
    """Send SIGHUP, and give what the exporter says of it."""
    before = len(exporter.events(said))
    exporter.process.send_signal(signal.SIGHUP)
    await wait_for(lambda: len(exporter.events(said)) > before, f"{said!r} in the log")
    return exporter.events(said)[-1]


async def is_right(exporter: ExporterProcess) -> bool:
    """Tell whether the page says that the settings in the files could be used."""
    return "capgo_exporter_settings_reload_successful 1.0" in await exporter.metrics()


@pytest.fixture(name="token_file")
def make_token_file(tmp_path: Path) -> Path:
    """A file with the token that is right at first."""
    path = tmp_path / "token"
    path.write_text("old\n", encoding="ascii")
    return path


async def test_tokens_are_rotated(exporter_process: StartExporter, token_file: Path) -> None:
    """On SIGHUP the new token is right as well; when the file changes again, the old one is wrong soon."""
    exporter = await exporter_process({"EXPORTER_INGEST_TOKEN_FILE": str(token_file)})
    assert (200, 401) == (await status(exporter, "old"), await status(exporter, "new"))
    write(token_file, "new\nold\n")
    assert ["EXPORTER_INGEST_TOKEN"] == (await hangup(exporter))["changed"]
    assert (200, 200) == (await status(exporter, "old"), await status(exporter, "new"))
    write(token_file, "new\n")

    async def is_over() -> bool:
        return await status(exporter, "old") == 401

    await wait_for(is_over, "the change of the file to be noticed")
    assert 200 == await status(exporter, "new")
    assert [] == [line for line in exporter.logs() if "old\\n" in str(line) or "new\\n" in str(line)]


async def test_a_file_that_is_replaced_is_noticed(exporter_process: StartExporter, token_file: Path) -> None:
    """Kubernetes, and editors, put another file in its place, and perhaps with the same size."""
    exporter = await exporter_process({"EXPORTER_INGEST_TOKEN_FILE": str(token_file)})
    other = token_file.with_name("other")
    other.write_text("new\n", encoding="ascii")
    other.replace(token_file)

    async def is_new() -> bool:
        return await status(exporter, "new") == 200

    await wait_for(is_new, "the change of the file to be noticed")


async def test_no_request_is_lost(exporter_process: StartExporter, token_file: Path) -> None:
    """Posts go on on their connections while settings are read anew again and again; each is answered and counted."""
    exporter = await exporter_process({"EXPORTER_INGEST_TOKEN_FILE": str(token_file)})
    stopped = asyncio.Event()

    async def post() -> list[int]:
        statuses = []
        while not stopped.is_set():
            statuses.append(await status(exporter, "old"))
        return statuses

    posts = [asyncio.create_task(post()) for _ in range(8)]
    for number in range(10):
        write(token_file, f"old,new-{number}\n")
        await hangup(exporter)
    stopped.set()
    statuses = [each for task in posts for each in await task]
    assert {200} == set(statuses)
    assert len(statuses) == sum((await exporter.counters()).values())


async def test_wrong_settings_change_nothing(exporter_process: StartExporter, token_file: Path) -> None:
    """The old ones hold, the log says what is wrong, and a metric tells until it is mended."""
    exporter = await exporter_process({"EXPORTER_INGEST_TOKEN_FILE": str(token_file)})
    write(token_file, "\n")
    said = await hangup(exporter, WRONG)
    assert ["EXPORTER_INGEST_TOKEN: is empty; unset it, or give a value"] == said["problems"]
    assert (200, False) == (await status(exporter, "old"), await is_right(exporter))
    write(token_file, "new\n")
    await hangup(exporter)
    assert (200, 401, True) == (await status(exporter, "new"), await status(exporter, "old"), await is_right(exporter))


async def test_what_is_no_path_does_not_end_the_watch(exporter_process: StartExporter) -> None:
    """A path with a zero in it is a mistake like others; when it is mended, that is noticed as ever."""
    exporter = await exporter_process()
    dotenv = exporter.process.directory / ".env"
    write(dotenv, "EXPORTER_INGEST_TOKEN_FILE='a\0b'\n")
    said = await hangup(exporter, WRONG)
    assert ["EXPORTER_INGEST_TOKEN_FILE: a\0b: embedded null byte"] == said["problems"]
    write(dotenv, "EXPORTER_ALLOWED_APPS=com.example.other\n")
    await wait_for(lambda: exporter.events(READ), "the change to be noticed")
    assert await is_right(exporter)


async def test_a_dotenv_file_that_is_gone_takes_no_limit_with_it(exporter_process: StartExporter) -> None:
    """While it is replaced the old settings hold, and then the new ones; without it none do, if that is asked for."""
    exporter = await exporter_process()
    dotenv = exporter.process.directory / ".env"
    write(dotenv, "EXPORTER_ALLOWED_APPS=com.example.other\nEXPORTER_UNLISTED_APPS=reject\n")
    await hangup(exporter)
    dotenv.unlink()
    await wait_for(lambda: exporter.events(WRONG), "the loss of the file to be noticed")
    assert [".env: is gone; SIGHUP does without it"] == exporter.events(WRONG)[-1]["problems"]
    assert (403, False) == ((await exporter.post(EVENT)).status, await is_right(exporter))
    before = len(exporter.events(READ))
    write(dotenv, "EXPORTER_ALLOWED_APPS=com.example.third\nEXPORTER_UNLISTED_APPS=reject\n")
    await wait_for(lambda: len(exporter.events(READ)) > before, "the file to be noticed")
    assert (403, True) == ((await exporter.post(EVENT)).status, await is_right(exporter))
    dotenv.unlink()
    await hangup(exporter)
    assert (200, True) == ((await exporter.post(EVENT)).status, await is_right(exporter))


async def test_the_dotenv_file_is_read_anew(exporter_process: StartExporter) -> None:
    """What it holds of limits and of allowed apps changes; what needs a restart is named, and stays as it is."""
    exporter = await exporter_process()
    dotenv = exporter.process.directory / ".env"
    assert 200 == (await exporter.post(EVENT)).status
    dotenv.write_text(
        "EXPORTER_ALLOWED_APPS=com.example.*,-com.example.shop\n"
        "EXPORTER_UNLISTED_APPS=reject\n"
        "EXPORTER_MAX_APP_EVENTS_PER_SECOND=1\n"
        "EXPORTER_MAX_BODY_BYTES=1KiB\n"
        "EXPORTER_INGEST_TOKEN=a-token\n",
        encoding="ascii",
    )
    said = await hangup(exporter, LATE)
    assert {"EXPORTER_MAX_BODY_BYTES", "EXPORTER_INGEST_TOKEN"} == set(said["settings"])
    assert {"EXPORTER_ALLOWED_APPS", "EXPORTER_UNLISTED_APPS", "EXPORTER_MAX_APP_EVENTS_PER_SECOND"} == set(
        exporter.events(READ)[-1]["changed"]
    )
    assert 403 == (await exporter.post(EVENT)).status
    other = {**EVENT, "app_id": "com.example.other"}
    assert [200, 503] == [(await exporter.post(body)).status for body in ([other] * 100, other)]
    dotenv.unlink()
    await hangup(exporter)
    assert [200, 200] == [(await exporter.post(body)).status for body in (EVENT, other)]


def live(exporter: Running, changes: Mapping[str, Any]) -> None:
    """Let other settings hold."""
    exporter.exporter.apply(Settings(**{**exporter.settings.model_dump(), **changes}))


async def test_an_app_that_is_no_longer_allowed_is_not_counted() -> None:
    """Short ways to its series are forgotten; when it is allowed again, it goes on where it was."""
    async with running() as exporter:
        for changes in ({}, {"allowed_apps": "com.other"}, {"allowed_apps": "com.example.shop"}):
            live(exporter, changes)
            assert 200 == (await exporter.post(EVENT)).status
        assert [2] == list((await exporter.counters()).values())
        assert 1 == await exporter.sample("capgo_exporter_events_total", outcome="filtered", reason="app_not_allowed")


async def test_a_limit_that_is_lowered_holds_for_what_was_sent() -> None:
    """Who sent much a moment ago has to wait as the new limit says of what comes from now on."""
    async with running({"max_client_events_per_second": "1000"}, ManualClock().clock) as exporter:
        assert 200 == (await exporter.post([EVENT] * 100)).status
        live(exporter, {"max_client_events_per_second": 1})
        assert [200, 503] == [(await exporter.post(body)).status for body in ([EVENT] * 100, EVENT)]
        live(exporter, {"max_client_events_per_second": None})
        assert 200 == (await exporter.post(EVENT)).status


def test_the_files_of_the_settings(tmp_path: Path) -> None:
    """The `.env` file, and those that variables name, there too; files of others are not looked at."""
    dotenv = tmp_path / ".env"
    dotenv.write_text("EXPORTER_METRICS_TOKEN_FILE=/two\nGRAFANA_TOKEN_FILE=/no\n", encoding="ascii")
    environ = {"EXPORTER_INGEST_TOKEN_FILE": "/one", "INFLUXDB_V2_TOKEN_FILE": "/three", "OTHER_FILE": "/no"}
    expected = {dotenv, Path("/one"), Path("/two"), Path("/three")}
    assert expected == Source(environ, {}, dotenv).files()
    assert set() == Source({}, {}, None).files()


def test_allowed_apps_from_a_file(tmp_path: Path) -> None:
    """A name a line, for that changes while the exporter runs."""
    path = tmp_path / "apps"
    path.write_text("com.example.shop\ncom.example.*\n", encoding="ascii")
    settings = Source({"EXPORTER_ALLOWED_APPS_FILE": str(path)}, {}, None).load()
    assert {"com.example.shop", "com.example.*"} == settings.allowed_apps
