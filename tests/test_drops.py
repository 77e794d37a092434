"""Dropped points: each is counted once, whoever had it in hand."""

from exporter.drops import Drops
from exporter.journal.records import PointsRow

ROWS = [PointsRow(number, 10 * number, b"") for number in (1, 2, 3)]


def test_what_nobody_sends_is_counted_at_once() -> None:
    """Groups that wait, and those whose sender is done."""
    counted: list[int] = []
    drops = Drops(counted.append)
    drops.end(drops.begin(ROWS[:1]))
    drops.note({1: 10, 2: 20})
    assert 30 == sum(counted)


def test_what_is_sent_is_counted_when_it_is_not_settled() -> None:
    """Of three groups that are dropped on their way, those of the sender that gave up."""
    counted: list[int] = []
    drops = Drops(counted.append)
    taken, lost = drops.begin(ROWS[:1]), drops.begin(ROWS[1:])
    drops.note({1: 10, 2: 20})
    drops.note({3: 30})
    assert 0 == sum(counted)
    drops.settle(taken)
    drops.end(taken)
    assert 0 == sum(counted)
    drops.end(lost)
    assert 50 == sum(counted)
    drops.end(lost)
    assert 50 == sum(counted)


def test_what_is_dropped_while_it_is_read_is_not_sent() -> None:
    """It is counted already."""
    counted: list[int] = []
    drops = Drops(counted.append)
    drops.note({1: 10, 2: 20})
    assert ROWS[2:] == drops.begin(ROWS)
    assert 30 == sum(counted)
