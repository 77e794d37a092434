"""Tables out of figures, and their way into docs/performance.md: between markers, so that nobody copies by hand."""

import sys
from collections.abc import Sequence
from typing import Any, Final

from benchmarks.machine import ROOT

DOCUMENT: Final = ROOT / "docs" / "performance.md"
PICTURES: Final = ROOT / "docs" / "pictures"
_FULL: Final = 0.9
_CONNECTIONS: Final = {"kept": "Connections kept alive", "closed": "A new connection for each POST"}

Figures = dict[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table; the first column is text, the others are numbers."""
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def write(name: str, text: str) -> None:
    """Put a text into the document, between the markers of a name.

    Ends the process if the document has no such markers.
    """
    DOCUMENT.write_text(replace(DOCUMENT.read_text(encoding="utf-8"), name, text), encoding="utf-8")


def replace(document: str, name: str, text: str) -> str:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`."""
    before, begin, rest = document.partition(f"<!-- {name} -->")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not begin or not end:
        sys.exit(f"{DOCUMENT.name} has no markers <!-- {name} --> and <!-- /{name} -->")
    return f"{before}{begin}\n{text.strip()}\n{end}{after}"


def bench(figures: Figures) -> str:
    """Write what `bench.py` measured."""
    options = figures["options"]
    head = (
        f"{figures['machine']}; fsync {figures['fsync_ms']:.2f} ms; {figures['when']} UTC. Load `{options['load']}`, "
        f"{options['connections']} connections, medians of {options['rounds']} rounds of {options['seconds']} s after "
        f"{options['warm_up']} s.{' A quick run.' if options['quick'] else ''}"
    )
    parts = [head]
    for connections in dict.fromkeys(row["connections"] for row in figures["results"]):
        rows = [row for row in figures["results"] if row["connections"] == connections]
        parts.append(f"**{_CONNECTIONS[connections]}**\n\n{_comparison(rows)}")
    if any(row["busy"] < _FULL for row in figures["results"]):
        parts.append("*: the server did not use all of its core: the load, or what else ran there, was the limit.")
    titles = {row["server"]: row["title"] for row in figures["results"]}
    proved = [f"{titles[name]} {found['points']:,} of {found['events']:,}" for name, found in figures["points"].items()]
    if proved:
        parts.append(
            f"Points at a receiver that counts them, of events counted, in a run of their own: {'; '.join(proved)}."
        )
    return "\n\n".join(parts)


def _comparison(rows: Sequence[Figures]) -> str:
    head = ["events a POST, server", "events/s", "CPU s per million", "p50 ms", "p99 ms", "RSS MiB"]
    others = [name for name in ("fastify", "naive", "limit") if any(row["server"] == name for row in rows)]
    head += [f"vs {name}" for name in others]
    written = []
    for row in rows:
        peers = {each["server"]: each["events_per_second"] for each in rows if each["batch"] == row["batch"]}
        mark = "" if row["busy"] >= _FULL else "*"
        written.append(
            [
                f"{row['batch']}, {row['title']}",
                f"{row['events_per_second']:,.0f}{mark}",
                f"{row['cpu_seconds_per_million']:.1f}",
                f"{row['p50_ms']:.1f}",
                f"{row['p99_ms']:.1f}",
                f"{row['rss_mib']:.0f}",
                *(f"{row['events_per_second'] / peers[name]:.2f}" if name in peers else "" for name in others),
            ]
        )
    return table(head, written)
