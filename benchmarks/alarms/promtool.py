"""What the rules make of a history, by `promtool test rules`.

promtool evaluates every group at the same interval, whatever the group's own is. Prometheus evaluates the dear groups
(windows of 6 hours and a day) once a minute, which is the interval of the long runs here.
"""

import json
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.alarms.rules import Group, metrics
from benchmarks.alarms.series import History

_GOT: Final = re.compile(r'expr: "(?P<expr>[^"]*)", time: (?P<time>\S+),\n\s*exp:.*\n\s*got:\s*(?P<got>.*)')
_SAMPLE: Final = re.compile(r"\{(?P<labels>[^}]*)\} (?P<value>[-+.\dE]+)")
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

_FIRING_NOW: Final = "ALERTS{{alertstate='firing'}}"
_STARTS: Final = f"sum_over_time(({_FIRING_NOW} unless {_FIRING_NOW} offset {{step}}s)[{{window}}s:{{step}}s])"
_FIRING: Final = f"count_over_time({_FIRING_NOW}[{{window}}s:{{step}}s])"
_FIRST: Final = f"min_over_time(timestamp({_FIRING_NOW})[{{window}}s:{{step}}s])"


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert with its other labels."""

    name: str
    severity: str
    others: tuple[tuple[str, str], ...]

    @property
    def labels(self) -> dict[str, str]:
        """Give its other labels: what it is about."""
        return dict(self.others)


@dataclass(slots=True)
class Verdict:
    """Which alerts fired.

    Attributes:
        starts: how often each began to.
        firing_seconds: how long each did in all.
        first_seconds: when each did first.
    """

    starts: Counter[Alert] = field(default_factory=Counter)
    firing_seconds: Counter[Alert] = field(default_factory=Counter)
    first_seconds: dict[Alert, float] = field(default_factory=dict)

    def count(self, severity: str) -> Counter[str]:
        """Count the starts of the alerts of a severity by name."""
        counts: Counter[str] = Counter()
        for alert, count in self.starts.items():
            if alert.severity == severity:
                counts[alert.name] += count
        return counts

    def of_app(self, app: str) -> "Verdict":
        """Take the alerts about an app, or about the exporter that has its name."""
        verdict = Verdict()
        for alert, count in self.starts.items():
            if app in {alert.labels.get("app_id"), alert.labels.get("instance")}:
                verdict.starts[alert] = count
                verdict.firing_seconds[alert] = self.firing_seconds[alert]
                verdict.first_seconds[alert] = self.first_seconds[alert]
        return verdict


class PromtoolError(Exception):
    """promtool could not evaluate."""


def judge(
    history: History, groups: Sequence[Group], *, window_seconds: int = 4 * 3600, only_first: bool = False
) -> Verdict:
    """Evaluate rules at each step of a history.

    Args:
        history: what was scraped.
        groups: the rules; see `rules.needed`.
        window_seconds: promtool refuses queries of more than 10,000 samples: alerts are asked for in such portions.
        only_first: ask only when alerts fired first.

    Raises:
        PromtoolError: if promtool complains.
    """
    step = history.step_seconds
    queries = []
    asked = (_FIRST,) if only_first else (_STARTS, _FIRING, _FIRST)
    for begin in range(0, history.seconds, window_seconds):
        end = min(begin + window_seconds, history.seconds)
        window = {"window": end - begin - step, "step": step}
        # The window's first moment is one step after `begin`: the one before has that.
        queries += [{"expr": text.format(**window), "eval_time": f"{end}s"} for text in asked]
    with tempfile.TemporaryDirectory(prefix="alarms-") as directory:
        rules = Path(directory) / "rules.yml"
        rules.write_text(json.dumps({"groups": list(groups)}), encoding="utf-8")
        test = {
            "rule_files": [str(rules)],
            "evaluation_interval": f"{step}s",
            "group_eval_order": [group["name"] for group in groups],
            "tests": [
                {
                    "interval": f"{step}s",
                    "input_series": list(history.inputs(metrics(groups))),
                    "promql_expr_test": queries,
                }
            ],
        }
        path = Path(directory) / "test.yml"
        path.write_text(json.dumps(test), encoding="utf-8")
        # Twice as fast, until there is much to be remembered.
        environment = {"GOGC": "800", "GOMEMLIMIT": "3GiB", **os.environ}
        command = ["promtool", "test", "rules", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode not in {0, 1}:
        message = f"promtool ended with {done.returncode}: {done.stderr}"
        raise PromtoolError(message)
    return _read(done.stdout + done.stderr, step)


def _read(output: str, step: int) -> Verdict:
    """Read what promtool found: nothing was expected, so that all there is, it reports as wrong."""
    verdict = Verdict()
    found = list(_GOT.finditer(output))
    is_read = len(found) == output.count("expr:")
    if not is_read or not (found or "SUCCESS" in output):
        raise PromtoolError(output[:4000])
    for match in found:
        expression = match["expr"]
        for sample in _SAMPLE.finditer(match["got"]):
            labels = dict(_LABEL.findall(sample["labels"]))
            alert = Alert(
                labels.pop("alertname"),
                labels.pop("severity"),
                tuple(sorted((name, value) for name, value in labels.items() if name != "alertstate")),
            )
            value = float(sample["value"])
            if expression.startswith("sum_over_time"):
                verdict.starts[alert] += round(value)
            elif expression.startswith("count_over_time"):
                verdict.firing_seconds[alert] += round(value) * step
            else:
                verdict.first_seconds[alert] = min(value, verdict.first_seconds.get(alert, value))
    return verdict
