"""Which alerts would have fired in a time of which a Prometheus has only samples.

`promtool tsdb create-blocks-from rules` asks a running Prometheus, which does not see new blocks before it starts
again; so rules that need what others record have to wait for the next round. Alerts it leaves out: here they are
recorded, as if they had no `for`.
"""

import asyncio
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML

from tests.support.prometheus import Prometheus

Rule = dict[str, Any]

_ALERTS: Final = "ALERTS"
_NAME: Final = re.compile(r"[a-z_]+:[\w:]+")
_STEP: Final = "60s"


def read(files: Sequence[Path]) -> list[Rule]:
    """Read rules; an alert becomes one that records `ALERTS`, as Prometheus does while it fires."""
    yaml = YAML(typ="safe")
    groups = [group for path in files for group in yaml.load(path.read_text())["groups"]]
    return [_recording(rule) for group in groups for rule in group["rules"]]


def rounds(rules: Sequence[Rule]) -> list[list[Rule]]:
    """Sort what alerts need, and the alerts, into rounds: each needs only what the rounds before it recorded."""
    waiting = _needed(rules)
    found: list[list[Rule]] = []
    while waiting:
        unknown = {rule["record"] for rule in waiting}
        ready = [rule for rule in waiting if not _names(rule) & unknown]
        assert ready, f"rules need each other: {unknown}"
        found.append(ready)
        waiting = [rule for rule in waiting if rule not in ready]
    return found


async def backfill(prometheus: Prometheus, data: Path, files: Sequence[Path], start: float, end: float) -> None:
    """Record, and start Prometheus again after each round.

    Args:
        prometheus: a running one.
        data: its directory of blocks.
        files: with the rules.
        start: of the time, in seconds since 1970.
        end: of the time.
    """
    for number, rules in enumerate(rounds(read(files))):
        path = data.parent / f"round-{number}.yml"
        path.write_text(json.dumps({"groups": [{"name": "backfill", "rules": rules}]}))
        await promtool(
            *("tsdb", "create-blocks-from", "--quiet", "rules", f"--url={prometheus.url}", f"--output-dir={data}"),
            *(f"--start={start:.0f}", f"--end={end:.0f}", f"--eval-interval={_STEP}", str(path)),
        )
        await prometheus.stop()
        await prometheus.start()


async def promtool(*arguments: str) -> None:
    """Run promtool, which must succeed."""
    process = await asyncio.create_subprocess_exec(
        "promtool", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


def _recording(rule: Rule) -> Rule:
    if "record" in rule:
        return {key: rule[key] for key in ("record", "expr", "labels") if key in rule}
    labels = {**rule.get("labels", {}), "alertname": rule["alert"], "alertstate": "firing"}
    return {"record": _ALERTS, "expr": f"({rule['expr']}) * 0 + 1", "labels": labels}


def _needed(rules: Sequence[Rule]) -> list[Rule]:
    """Leave out what no alert needs."""
    wanted = {_ALERTS}
    while True:
        needed = [rule for rule in rules if rule["record"] in wanted]
        names = wanted.union(*map(_names, needed))
        if names == wanted:
            return needed
        wanted = names


def _names(rule: Rule) -> set[str]:
    return set(_NAME.findall(rule["expr"]))
