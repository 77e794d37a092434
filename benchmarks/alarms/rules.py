"""The rules that the alerts need, taken from the real files as they are."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML

RULES: Final = Path(__file__).resolve().parents[2] / "prometheus" / "rules"
_NAMES: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")

_LOW_VOLUME: Final = """\
and
app_platform_version:capgo_rollbacks:increase15m
>= on () group_left () capgo:threshold_rollbacks_min:const
"""
_USUAL: Final = """\
and
app_platform_version:capgo_rollbacks:ratio_lower15m
>
clamp_max(
  app_platform_version:capgo_rollbacks:usual_ratio * on () group_left () capgo:threshold_usual_factor:const,
  scalar(capgo:threshold_rollback_ratio_surely:const)
)"""
SPIKE: Final = "CapgoUpdateFailSpike"
GUARDS: Final = {"low volume": _LOW_VOLUME, "usual": _USUAL}
"""Clauses of CapgoUpdateFailSpike without which it would be wrong."""

Rule = dict[str, Any]
Group = dict[str, Any]


def read(directory: Path = RULES) -> list[Group]:
    """Read the groups, in the order of their files; thresholds first, because all others need them."""
    files = sorted(directory.glob("*.yml"), key=lambda path: (path.stem != "thresholds", path.name))
    yaml = YAML(typ="safe")
    return [group for path in files for group in yaml.load(path)["groups"]]


def needed(groups: Iterable[Group], is_wanted: Callable[[Rule], bool] = lambda _: True) -> list[Group]:
    """Leave out recordings that no alert needs, which are for dashboards, and the alerts' texts.

    Args:
        groups: of rules.
        is_wanted: says which alerts are measured.
    """
    every = list(groups)
    recordings: dict[str, list[Rule]] = {}
    for group in every:
        for rule in group["rules"]:
            if "record" in rule:
                recordings.setdefault(rule["record"], []).append(rule)
    alerts = [rule for group in every for rule in group["rules"] if "alert" in rule and is_wanted(rule)]
    names: set[str] = set()
    queue = [name for rule in alerts for name in _NAMES.findall(rule["expr"])]
    while queue:
        name = queue.pop()
        if name not in names:
            names.add(name)
            queue += [other for rule in recordings.get(name, ()) for other in _NAMES.findall(rule["expr"])]
    return [
        {**group, "rules": kept}
        for group in every
        if (kept := [_bare(rule) for rule in group["rules"] if rule.get("record") in names or rule in alerts])
    ]


def metrics(groups: Iterable[Group]) -> frozenset[str]:
    """Give every name in the expressions of rules, those of scraped metrics among them."""
    return frozenset(name for group in groups for rule in group["rules"] for name in _NAMES.findall(rule["expr"]))


def with_unguarded(groups: Iterable[Group]) -> list[Group]:
    """Add what CapgoUpdateFailSpike would be without each of its guards, to see that the measurement notices.

    Raises:
        ValueError: if the alert does not have a guard as it is known here.
    """
    return [{**group, "rules": [each for rule in group["rules"] for each in _with_unguarded(rule)]} for group in groups]


def _with_unguarded(rule: Rule) -> list[Rule]:
    if rule.get("alert") != SPIKE:
        return [rule]
    unguarded = []
    for guard, clause in GUARDS.items():
        if clause not in rule["expr"]:
            msg = f"{SPIKE} has no guard {guard!r} as it is known here: {rule['expr']}"
            raise ValueError(msg)
        expression = rule["expr"].replace(clause, "")
        unguarded.append({**rule, "alert": f"{SPIKE} without {guard}", "expr": expression})
    return [rule, *unguarded]


def _bare(rule: Rule) -> Rule:
    return {key: value for key, value in rule.items() if key != "annotations"}
