"""What an operator changes in a journal: exact to the point, whatever goes on meanwhile."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from exporter import chores
from exporter.journal.codec import decompress
from exporter.journal.edits import DAMAGED, holds_device
from exporter.journal.opening import FILE_NAME
from exporter.journal.records import DeadLetter, Discard, Edit, Forget, Retry, Totals, Transaction
from exporter.journal.salvage import Salvage
from exporter.journal.store import Journal
from exporter.tools.inspection import status, verify
from exporter.tools.keeper import open_keeper
from exporter.tools.problems import RemoteError
from tests.support.delivering import accept, delivering, devices, devices_in, emptied, events, stored_devices
from tests.support.fakeinflux import NEVER, ScriptedInflux, Step
from tests.support.inprocess import running
from tests.support.ports import wait_for
from tests.support.recordings import Answer
from tests.test_salvage import opened

NOW_MS = 1_795_140_000_000


def line(device: str, number: int) -> str:
    """Make a point of a device."""
    return f'capgo_stats,app_id=a count=1i,device_id="{device}" {number}'


def stored(journal: Journal, table: str = "points") -> list[str]:
    """Give the lines of a table."""
    key = {"points": "number", "dead_letters": "id"}[table]
    with closing(sqlite3.connect(journal.path)) as connection:
        rows = connection.execute(f"SELECT lines FROM {table} ORDER BY {key}").fetchall()  # noqa: S608 -- fixed names
    return [each for (blob,) in rows for each in decompress(blob)]


def edit(journal: Journal, *edits: Edit, lines: tuple[str, ...] = ()) -> Totals:
    """Store edits with some points, check the journal, and give its totals."""
    number = journal.totals.last_transaction + 1
    totals = journal.commit(Transaction(number, NOW_MS, lines=list(lines), edits=list(edits))).totals
    assert [] == list(verify(journal.path))
    return totals


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('m,a=b device_id="d" 1', True),
        ('m,a=b count=1i,device_id="d",z="x" 1', True),
        ('m,a=b count=1i,device_id="d2" 1', False),
        ('m,a=b count=1i,custom_device_id="d" 1', False),
        ('m,a=b count=1i,message=",device_id=\\"d\\"" 1', False),
        ('m,a=b bundle_id="x,device_id=",channel="d" 1', False),
        ('m,a=b bundle_id=",device_id=",channel=",device_id=",device_id="d" 1', True),
        ('m,a=",device_id="d"\\ x count=1i 1', False),
        ('m,a=\\ device_id="d" count=1i 1', False),
        ('m,a="\\ " count=1i,device_id="d" 1', True),
        ('m,a=b message="\\\\",device_id="d" 1', True),
    ],
)
def test_a_device_is_known_by_its_field_alone(text: str, expected: bool) -> None:  # noqa: FBT001 -- a row of a table
    """No text, tag or other field that looks like it is taken for it."""
    assert expected == holds_device(text, ("d", "another"))
    assert not holds_device(text, (",channel=",))


def test_edits_keep_the_totals(tmp_path: Path) -> None:
    """Points move, go and shrink as asked, in one transaction with new ones, and nothing else does."""
    with closing(opened(tmp_path)) as journal:
        letters = [
            DeadLetter("refused", "bad", [line("x", 1), line("y", 2)]),
            DeadLetter("refused", "bad", [line("x", 3)]),
            DeadLetter(DAMAGED, "damaged", ["1f8b"]),
            DeadLetter("refused", "bad", [line("z", 4)]),
        ]
        journal.commit(Transaction(1, NOW_MS, lines=[line("x", 5), line("y", 6)], dead_letters=letters))
        journal.commit(Transaction(2, NOW_MS, lines=[line("x", 7)]))
        journal.commit(Transaction(3, NOW_MS, lines=[line("y", 8)]))
        forget = Forget(("x",), groups=[1, 2, 3, 77], letters=[1, 2, 3, 77])
        retry, discard = Retry([3, 4, 77]), Discard([3, 77])
        totals = edit(journal, forget, retry, discard, lines=(line("x", 9),))
        assert (2, 2, 1, 1) == (forget.points, forget.dead_letter_points, retry.points, discard.points)
        assert [line("y", 6), line("y", 8), line("x", 9), line("z", 4)] == stored(journal)
        assert [line("y", 2)] == stored(journal, "dead_letters")
        assert (4, 1) == (totals.points, totals.dead_letter_points)
        again = edit(journal, Forget(("x",), groups=[1, 2, 3], letters=[1, 2]), Retry([3, 4]))
        assert (4, 1) == (again.points, again.dead_letter_points)


def test_damaged_rows_are_passed_over(tmp_path: Path) -> None:
    """An edit does not fail on them: they are delivery's to find, and `discard`'s to delete."""
    with closing(opened(tmp_path)) as journal:
        journal.commit(
            Transaction(1, NOW_MS, lines=[line("x", 1)], dead_letters=[DeadLetter("refused", "bad", [line("x", 2)])])
        )
        with closing(sqlite3.connect(journal.path)) as connection:
            connection.execute("UPDATE points SET lines = x'00'")
            connection.execute("UPDATE dead_letters SET lines = x'00'")
            connection.commit()
        forget, retry = Forget(("x",), groups=[1], letters=[1]), Retry([1])
        committed = journal.commit(Transaction(2, NOW_MS, edits=[forget, retry]))
        assert (0, 0, 0) == (forget.points, forget.dead_letter_points, retry.points)
        assert (1, 1) == (committed.totals.points, committed.totals.dead_letter_points)


def test_what_is_forgotten_while_a_new_file_is_made_stays_forgotten(tmp_path: Path) -> None:
    """Groups that were copied before they were rewritten or deleted are so in the new file, too."""
    with closing(opened(tmp_path)) as journal:
        journal.commit(Transaction(1, NOW_MS, lines=[line("x", 1), line("y", 2)]))
        journal.commit(Transaction(2, NOW_MS, lines=[line("x", 3)]))
        journal.commit(Transaction(3, NOW_MS, lines=[line("y", 4)]))
        salvage = Salvage(tmp_path / FILE_NAME)
        until = journal.begin_salvage()
        salvage.begin()
        salvage.copy_points(until)
        edit(journal, Forget(("x",), groups=[1, 2, 3]))
        salvaged = journal.adopt(salvage)
        assert [line("y", 2), line("y", 4)] == stored(journal)
        assert (2, 0, 0) == (salvaged.totals.points, salvaged.lost_points, salvaged.lost_dead_letter_points)
        assert [] == list(verify(journal.path))


async def test_what_is_being_sent_is_waited_for(tmp_path: Path, scripted_influx: ScriptedInflux) -> None:
    """When `forget` returns, no request that holds the device is under way: what is deleted then stays deleted."""
    scripted_influx.play(Step(Answer(503), delay_seconds=0.3))
    async with delivering(scripted_influx, data_dir=tmp_path) as exporter:
        batch = await accept(exporter, events(20))
        await wait_for(lambda: bool(scripted_influx.requests), "the first request")
        async with open_keeper(tmp_path) as keeper:
            forgotten = await keeper.forget((batch[0]["device_id"],))
        assert devices(batch) == stored_devices(scripted_influx)
        assert (1, 0, 0) == (forgotten.points, forgotten.dead_letter_points, forgotten.unreadable)
        sent = len(scripted_influx.requests)
        later = await accept(exporter, events(1))
        await emptied(exporter)
        texts = [record.text for request in scripted_influx.requests[sent:] for record in request.records]
        assert devices(later) == devices_in(texts)


async def test_what_is_refused_meanwhile_is_forgotten_too(tmp_path: Path, scripted_influx: ScriptedInflux) -> None:
    """A request under way that makes dead letters of the device is over before they are looked through."""
    refusal = {"code": "invalid", "message": "partial write: field type conflict dropped=3"}
    scripted_influx.play(Step(Answer(400, refusal), delay_seconds=0.3))
    async with delivering(scripted_influx, data_dir=tmp_path) as exporter:
        batch = await accept(exporter, events(3))
        await wait_for(lambda: bool(scripted_influx.requests), "the first request")
        async with open_keeper(tmp_path) as keeper:
            forgotten = await keeper.forget((batch[1]["device_id"],))
        assert 1 == forgotten.dead_letter_points
        await emptied(exporter)
        assert 2 == await exporter.sample("capgo_exporter_dead_letter_points")


async def test_an_influxdb_that_does_not_answer_is_not_waited_for_for_ever(
    tmp_path: Path, scripted_influx: ScriptedInflux, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits is deleted, and it is said that something may be under way."""
    monkeypatch.setattr(chores, "SETTLE_SECONDS", 0.2)
    scripted_influx.default = NEVER
    async with delivering(scripted_influx, data_dir=tmp_path, influx_timeout=60.0, shutdown_timeout=0.1) as exporter:
        batch = await accept(exporter, events(3))
        await wait_for(lambda: bool(scripted_influx.requests), "the first request")
        async with open_keeper(tmp_path) as keeper:
            with pytest.raises(RemoteError, match="forget the device again"):
                await keeper.forget((batch[1]["device_id"],))
        assert devices([batch[0], batch[2]]) == devices_in(exporter.lines())


async def test_a_long_path_is_no_obstacle(tmp_path: Path) -> None:
    """The system takes only some hundred bytes for a socket's path; a data directory's may be longer."""
    data_dir = tmp_path / ("x" * 120)
    async with running({"data_dir": data_dir}) as exporter:
        await accept(exporter, events(2))
        assert status(data_dir / FILE_NAME).in_use
        async with open_keeper(data_dir) as keeper:
            await keeper.vacuum()
        assert 2 == len(exporter.lines())
    assert not status(data_dir / FILE_NAME).in_use
