"""Write the dashboards: `python -m grafana.generate [DIRECTORY]`, by default `grafana/dashboards`."""

import sys
from pathlib import Path
from typing import Final

from grafana.generate.catalogue import files

DIRECTORY: Final = Path(__file__).parents[1] / "dashboards"


def main(directory: Path) -> None:
    """Write every dashboard, and delete those that are not made any more."""
    made = files()
    directory.mkdir(parents=True, exist_ok=True)
    for stale in set(directory.glob("*.json")) - {directory / name for name in made}:
        stale.unlink()
    for name, text in made.items():
        (directory / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DIRECTORY)
