"""Writes the tables of metrics in the documents anew, from what an exporter that has counted everything shows."""

import asyncio
import re
from pathlib import Path

from tests.test_telemetry import EVENTS, PREFIX, full_page, label_names

ROOT = Path(__file__).resolve().parent.parent.parent
_TABLE = re.compile(r"(\| metric \| type \| labels \| meaning \|\n\|---\|---\|---\|---\|\n)(?:\|.*\n)+")


def main() -> None:
    """Replace both tables; what is written around them stays."""
    found = asyncio.run(full_page())
    rows = []
    for name in sorted(found, key=lambda name: (name != EVENTS, name.startswith(PREFIX))):
        cells = f"`{name}`", found[name].type, ", ".join(f"`{label}`" for label in label_names(found[name]))
        rows.append(f"| {' | '.join((*cells, found[name].documentation))} |\n".replace("|  |", "| |"))
    for path in (ROOT / "docs/metrics.md", ROOT / "README.md"):
        text = path.read_text(encoding="utf-8")
        path.write_text(_TABLE.sub(lambda table: table[1] + "".join(rows), text), encoding="utf-8")


if __name__ == "__main__":
    main()
