"""Draw the dashboards: `python -m grafana.pictures [DIRECTORY]`; needs Debian's prometheus and influxdb."""

import asyncio
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from grafana.pictures.asking import Asker
from grafana.pictures.picture import draw, save
from tests.support.month import Month, month, plan

_ROOT: Final = Path(__file__).parents[2]
_DEVICES: Final = 600
_FINE_HOURS: Final = 3.0


class Picture(NamedTuple):
    """What is shown of a dashboard: its upper rows, by Grafana's grid, and so many of the last hours."""

    dashboard: str
    rows: int
    hours: float | None = None


_LATELY: Final = (Picture("overview", 29, 3), Picture("failures", 30, 3), Picture("health", 47, 48))
_MONTH: Final = (Picture("downloads", 48), Picture("rollout", 37))


async def main(directory: Path) -> None:
    """Simulate a month and draw every picture of it."""
    with tempfile.TemporaryDirectory() as temporary:
        planned = replace(plan(_DEVICES, step_seconds=900, fine_step_seconds=15), fine_hours=_FINE_HOURS)
        async with month(Path(temporary) / "month", planned) as servers:
            for picture in _LATELY:
                await _draw(picture, servers, directory)
            await _look_back(servers, "25h")  # Prometheus got what did not change once a day only.
            for picture in _MONTH:
                await _draw(picture, servers, directory)


async def _look_back(servers: Month, time: str) -> None:
    """Let Prometheus take a sample for the present for so long."""
    await servers.prometheus.stop()
    servers.prometheus.process.argv.append(f"--query.lookback-delta={time}")
    await servers.prometheus.start()


async def _draw(picture: Picture, servers: Month, directory: Path) -> None:
    text = (_ROOT / "grafana" / "dashboards" / f"capgo-{picture.dashboard}.json").read_text(encoding="utf-8")
    dashboard = json.loads(text)
    variables = {variable["name"]: ".+" for variable in dashboard["templating"]["list"]}
    asker = Asker(servers.prometheus, servers.influxdb, servers.values(picture.hours))
    path = directory / f"{picture.dashboard}.png"
    save(await draw(dashboard, asker, variables, picture.rows), path)
    print(path)  # noqa: T201 -- a command


if __name__ == "__main__":
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else _ROOT / "docs" / "pictures"
    where.mkdir(parents=True, exist_ok=True)
    asyncio.run(main(where))
