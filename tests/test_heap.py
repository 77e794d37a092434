"""What the garbage collector need not look at."""

import gc
import os
import signal
import sys
from pathlib import Path

from exporter.heap import frozen
from tests.support.delivering import events
from tests.support.exporter import ExporterProcess
from tests.support.ports import wait_for

_TELLING = """
import gc, os, signal
from exporter.cli import main
signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"%d\\n" % gc.get_freeze_count()))
main(["serve"])
"""


class _Node:
    """Something that the garbage collector looks at."""


def test_what_was_there_before_is_left_alone_until_the_block_ends() -> None:
    """Garbage of before is gone, and what is made within the block is looked at as ever."""
    before = _Node()
    left = gc.get_freeze_count()
    garbage = _Node()
    garbage.self = garbage  # type: ignore[attr-defined]
    del garbage
    with frozen():
        within = _Node()
        looked_at = [each for each in gc.get_objects() if isinstance(each, _Node)]
        assert [within] == looked_at
        assert gc.get_freeze_count() > left
    assert {before, within} == {each for each in gc.get_objects() if isinstance(each, _Node)}
    assert left == gc.get_freeze_count()


async def test_an_exporter_that_serves_has_frozen_what_it_started_with(tmp_path: Path) -> None:
    """Some 100,000 objects, on which a full collection spends 50 ms; in the end they are taken down as ever."""
    exporter = ExporterProcess(tmp_path)
    exporter.process.argv = [sys.executable, "-c", _TELLING]
    async with exporter:
        os.kill(exporter.pid, signal.SIGUSR1)
        told = exporter.process.stdout_path
        await wait_for(lambda: told.read_text().endswith("\n"), "the number of objects")
        assert int(told.read_text()) > 50_000
        assert 200 == (await exporter.post(events(1))).status
        assert 0 == await exporter.terminate()
        assert [] == [line for line in exporter.logs() if "raw" in line]
