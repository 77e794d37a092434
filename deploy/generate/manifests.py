"""Prometheus's rules as PrometheusRules, and Grafana's dashboards as ConfigMaps.

kustomize reads no file outside of its own directory, so they are written there; a test compares.
"""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

_ROOT: Final = Path(__file__).parents[2]
_HEAD: Final = "# Written by `make kubernetes`; do not edit.\n"
_NAME_LABEL: Final = {"app.kubernetes.io/name": "capgo-stats-exporter"}
DIRECTORY: Final = _ROOT / "deploy" / "kubernetes"

Manifest = dict[str, Any]


def files() -> dict[str, str]:
    """Give the texts of the generated files, by name."""
    return {
        "rules.yaml": _text(_rules(path) for path in sorted((_ROOT / "prometheus" / "rules").glob("*.yml"))),
        "dashboards.yaml": _text(
            _dashboard(path) for path in sorted((_ROOT / "grafana" / "dashboards").glob("*.json"))
        ),
    }


def _rules(path: Path) -> Manifest:
    """Make a PrometheusRule of a file of rules, whose content is what its `spec` wants to be."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": f"capgo-{path.stem}", "labels": _NAME_LABEL},
        "spec": _legible(YAML(typ="safe").load(path)),
    }


def _dashboard(path: Path) -> Manifest:
    """Make a ConfigMap of a dashboard, labelled for the sidecar of Grafana's chart; small, as etcd wants it."""
    dashboard = json.loads(path.read_text(encoding="utf-8"))
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"{path.stem}-dashboard",
            "labels": {**_NAME_LABEL, "grafana_dashboard": "1"},
            "annotations": {"grafana_folder": "Capgo"},
        },
        "data": {path.name: LiteralScalarString(json.dumps(dashboard, separators=(",", ":"), ensure_ascii=False))},
    }


def _legible(value: Any) -> Any:  # noqa: ANN401 -- whatever a YAML file holds
    """Let texts of several lines be written as such."""
    if isinstance(value, Mapping):
        return {key: _legible(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_legible(each) for each in value]
    return LiteralScalarString(value) if isinstance(value, str) and "\n" in value else value


def _text(manifests: Iterable[Manifest]) -> str:
    yaml = YAML()
    yaml.width = 100_000  # of folded lines, some come out wrong
    yaml.representer.ignore_aliases = lambda _: True
    out = io.StringIO()
    yaml.dump_all(list(manifests), out)
    return _HEAD + out.getvalue()
