"""Notices: what happens again and again is told once an hour."""

import secrets
from pathlib import Path

import pytest
import structlog

from exporter.notices import Notices
from tests.support.inprocess import ManualClock, running


def test_each_reason_is_told_once_an_hour() -> None:
    """The same event and reason are told again after an hour; others at once."""
    clock = ManualClock()
    with structlog.testing.capture_logs() as told:
        notices = Notices(clock.clock.monotonic)
        for _ in range(3):
            notices.warn("full", "disk", first_value="a")
            notices.warn("full", "memory")
            notices.warn("slow")
            clock.advance(1200)
        assert ["full", "full", "slow"] == [line["event"] for line in told]
        assert {"event": "full", "log_level": "warning", "reason": "disk", "first_value": "a"} == told[0]
        notices.warn("full", "disk")
    assert 4 == len(told)


@pytest.mark.parametrize(
    ("policy", "line"),
    [
        ("drop-oldest", {"event": "EXPORTER_JOURNAL_MAX_BYTES is reached; the oldest points are dropped"}),
        ("reject", {"event": "events are refused with 503", "reason": "the journal is full"}),
    ],
)
async def test_a_full_journal_is_told_of_once(tmp_path: Path, policy: str, line: dict[str, str]) -> None:
    """Both ways to be full leave one line, however many requests find it so."""
    limit = 1 << 16
    settings = {"journal_max_bytes": limit, "journal_full": policy, "data_dir": tmp_path}
    with structlog.testing.capture_logs() as told:
        async with running(settings) as server:
            for _ in range(40):
                noise = [secrets.token_hex(500) for _ in range(20)]  # compresses to no less than its half
                await server.post(
                    [
                        {"app_id": "a", "platform": "ios", "action": "set", "device_id": text, "version_name": "1"}
                        for text in noise
                    ]
                )
    warnings = [each for each in told if each["log_level"] == "warning"]
    assert [{**line, "log_level": "warning"}] == warnings
