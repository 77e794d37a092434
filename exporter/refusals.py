"""Refusals: what an answer of InfluxDB leaves of the lines that were sent."""

from collections import Counter
from dataclasses import dataclass, field

from exporter.influx import Answer, Verdict
from exporter.journal.records import DeadLetter
from exporter.lines import Lines


@dataclass(slots=True)
class Report:
    """What became of points.

    Attributes:
        delivered: how many InfluxDB has.
        rejected: how many are refused for good, by reason.
        dead_letters: what is kept of them; nothing of those beyond the retention.
    """

    delivered: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    dead_letters: list[DeadLetter] = field(default_factory=list)

    def reject(self, reason: str, error: str, lines: list[str], points: int | None = None) -> None:
        """Keep lines as dead letters; they are as many points, unless another number is given."""
        self.rejected[reason] += len(lines) if points is None else points
        self.dead_letters.append(DeadLetter(reason, error, lines))


def sort_out(part: Lines, answer: Answer, report: Report) -> list[Lines]:
    """Report what an answer says of lines, and give those that are to be sent again, in parts, the last one first.

    They may be stored already, but writing a point twice changes nothing.
    """
    if answer.verdict is Verdict.STORED:
        beyond = min(answer.beyond_retention, len(part))
        report.rejected["beyond_retention"] += beyond
        report.delivered += len(part) - beyond
        return []
    named = {number: error for number, error in answer.bad_lines.items() if 1 <= number <= len(part)}
    if named:
        rest = _set_aside(part.lines(), named, report)
        return [Lines.of(rest)] if rest else []
    if len(part) > 1 and answer.refused < len(part):
        middle = len(part) // 2
        return [part.part(middle, len(part)), part.part(0, middle)]
    report.reject("too_large" if answer.verdict is Verdict.TOO_LARGE else "refused", answer.error, part.lines())
    return []


def _set_aside(part: list[str], named: dict[int, str], report: Report) -> list[str]:
    """Make dead letters of the lines that the server named by their 1-based numbers, and give the rest."""
    by_error: dict[str, list[str]] = {}
    for number, error in named.items():
        by_error.setdefault(error, []).append(part[number - 1])
    for error, lines in by_error.items():
        report.reject("refused", error, lines)
    return [line for number, line in enumerate(part, 1) if number not in named]
