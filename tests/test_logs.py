"""Logs: what they say of a failure, and what they keep to themselves."""

import subprocess
import sys
from pathlib import Path

import pytest

FAILURE = """
import logging, sys
from exporter import logs
import structlog

logs.configure(sys.argv[1], "info")

def answer(token):
    headers = {"Authorization": token}
    raise LookupError("a defect")

for log in (structlog.get_logger(), logging.getLogger("aiohttp.server")):
    try:
        answer(sys.stdin.readline().strip())
    except LookupError:
        log.exception("a request failed")
"""


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_failure_shows_where_and_no_variables(form: str) -> None:
    """A traceback names lines of code; what the frames hold may be a token, or what a device sent."""
    done = subprocess.run(
        [sys.executable, "-c", FAILURE, form],
        input="tok-one\ntok-two\n",
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert 2 == done.stderr.count("LookupError: a defect")
    assert "tok-" not in done.stdout + done.stderr
