"""Points that the journal drops because it is full: each is counted once, as dropped or as what InfluxDB made of it."""

from collections.abc import Callable, Iterable

from exporter.journal.records import PointsRow


class Drops:
    """Counts dropped points, those that are being sent once their sender is done.

    The oldest groups are dropped, and these are the ones that are on their way: InfluxDB may have them already.
    """

    def __init__(self, count: Callable[[int], None]) -> None:
        """Set what counts points that are lost."""
        self._count = count
        self._until = 0
        self._sent: set[int] = set()
        self._undecided: dict[int, int] = {}

    def note(self, groups: dict[int, int]) -> None:
        """Take note of groups that the journal dropped, the oldest ones it held: their numbers and points."""
        self._until = max(self._until, *groups)
        self._undecided |= groups
        self._decide()

    def begin(self, rows: list[PointsRow]) -> list[PointsRow]:
        """Note that groups will be sent; gives those that were not dropped, and counted, since they were read."""
        present = [row for row in rows if row.number > self._until]
        self._sent.update(row.number for row in present)
        return present

    def settle(self, rows: Iterable[PointsRow]) -> None:
        """Note that InfluxDB has, or refused, what was sent: that is counted elsewhere."""
        for row in rows:
            self._undecided.pop(row.number, None)

    def end(self, rows: Iterable[PointsRow]) -> None:
        """Note that groups are no longer sent: those that were dropped meanwhile, and are not settled, are lost."""
        self._sent.difference_update(row.number for row in rows)
        self._decide()

    def _decide(self) -> None:
        lost = self._undecided.keys() - self._sent
        self._count(sum(self._undecided.pop(number) for number in lost))
