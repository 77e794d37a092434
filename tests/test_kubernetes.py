"""`deploy/kubernetes`: rendered by kubectl, valid, and in step with container, compose, rules and dashboards."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import pytest
from openapi_schema_validator import OAS31Validator
from ruamel.yaml import YAML

from deploy.generate import manifests
from exporter.settings import Settings, variable
from exporter.units import parse_duration_seconds
from tests.support.process import minimal_environment

ROOT: Final = Path(__file__).parents[1]
VERSIONS: Final = ("1.29", "1.37")
NAME: Final = {"app.kubernetes.io/name": "capgo-stats-exporter"}
SECRET: Final = re.compile(r"--from-literal=(EXPORTER_\w+)=")
Manifest = dict[str, Any]

_TEXT: Final = {"type": "string"}
_TEXTS: Final = {"type": "object", "additionalProperties": _TEXT}


def _closed(*required: str, **properties: Any) -> Manifest:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _list_of(items: Manifest) -> Manifest:
    return {"type": "array", "items": items, "minItems": 1}


# What the Prometheus Operator's API reference has of the fields in use; any other field is a mistake.
_RULE: Final = _closed(
    "expr",
    record=_TEXT,
    alert=_TEXT,
    expr=_TEXT,
    **{"for": _TEXT, "keep_firing_for": _TEXT},
    labels=_TEXTS,
    annotations=_TEXTS,
) | {"oneOf": [{"required": ["record"]}, {"required": ["alert"]}]}
_RELABELING: Final = _closed("targetLabel", sourceLabels=_list_of(_TEXT), targetLabel=_TEXT)
OPERATOR_SPECS: Final = {
    "PrometheusRule": _closed(
        "groups", groups=_list_of(_closed("name", "rules", name=_TEXT, interval=_TEXT, rules=_list_of(_RULE)))
    ),
    "PodMonitor": _closed(
        *("selector", "podMetricsEndpoints"),
        jobLabel=_TEXT,
        selector=_closed("matchLabels", matchLabels=_TEXTS),
        podMetricsEndpoints=_list_of(
            _closed("port", port=_TEXT, path=_TEXT, interval=_TEXT, relabelings=_list_of(_RELABELING))
        ),
    ),
}


def render(directory: Path) -> list[Manifest]:
    """Render a directory as `kubectl apply -k` does."""
    result = subprocess.run(["kubectl", "kustomize", directory], capture_output=True, text=True, check=False)
    assert 0 == result.returncode, result.stderr
    return list(YAML(typ="safe").load_all(result.stdout))


@pytest.fixture(scope="module")
def rendered() -> list[Manifest]:
    """What is applied."""
    return render(ROOT / "deploy" / "kubernetes")


@pytest.fixture(scope="module")
def compose() -> Manifest:
    """The compose file."""
    document: Manifest = YAML(typ="safe").load(ROOT / "docker-compose.yml")
    return document


def one(objects: list[Manifest], kind: str, name: str = "capgo-stats-exporter") -> Manifest:
    """Find an object; a generated one by how its name begins."""
    found = [each for each in objects if each["kind"] == kind and each["metadata"]["name"].startswith(name)]
    assert found, f"no {kind} {name}"
    return found[0]


def container(objects: list[Manifest]) -> Manifest:
    """Give the exporter's container."""
    (found,) = one(objects, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    return dict(found)


def check(objects: list[Manifest], version: str) -> None:
    """Hold objects against Kubernetes' own schemas, without unknown fields, and against the operator's."""
    for each in objects:
        if each["kind"] in OPERATOR_SPECS:
            assert "monitoring.coreos.com/v1" == each["apiVersion"]
            assert [] == [
                error.message for error in OAS31Validator(OPERATOR_SPECS[each["kind"]]).iter_errors(each["spec"])
            ]
        else:
            kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.server("kubectl")
@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(rendered: list[Manifest], version: str) -> None:
    """All kinds that are promised are there, and each object is valid in old and new versions of Kubernetes."""
    check(rendered, version)
    kinds = {each["kind"] for each in rendered}
    promised = {"StatefulSet", "Service", "Ingress", "NetworkPolicy", "PodDisruptionBudget", "Namespace", "ConfigMap"}
    assert promised | set(OPERATOR_SPECS) == kinds
    assert {"capgo-stats"} == {each["metadata"].get("namespace", "capgo-stats") for each in rendered}


@pytest.mark.server("kubectl")
def test_an_unknown_field_is_found(rendered: list[Manifest]) -> None:
    """The checks above would tell."""
    for kind in ("StatefulSet", "PodMonitor", "PrometheusRule"):
        broken = json.loads(json.dumps(one(rendered, kind, "capgo")))
        broken["spec"]["replica"] = 3
        with pytest.raises((AssertionError, kubernetes_validate.ValidationError)):
            check([broken], VERSIONS[-1])


def test_rules_and_dashboards_are_the_committed_ones() -> None:
    """`make kubernetes` would change nothing, and what it writes is what Prometheus and Grafana read elsewhere."""
    for name, text in manifests.files().items():
        assert text == (manifests.DIRECTORY / name).read_text(encoding="utf-8"), f"{name}: run `make kubernetes`"
    yaml = YAML(typ="safe")
    rules = list(yaml.load_all(manifests.DIRECTORY / "rules.yaml"))
    assert [yaml.load(path) for path in sorted((ROOT / "prometheus/rules").glob("*.yml"))] == [
        each["spec"] for each in rules
    ]
    boards = {
        name: json.loads(text)
        for each in yaml.load_all(manifests.DIRECTORY / "dashboards.yaml")
        for name, text in each["data"].items()
    }
    assert {path.name: json.loads(path.read_text()) for path in (ROOT / "grafana/dashboards").glob("*.json")} == boards


@pytest.mark.server("kubectl")
def test_objects_refer_to_each_other(rendered: list[Manifest]) -> None:
    """Selectors, ports and names: Services, Ingress, monitor, policy and budget all mean the exporter's pods."""
    stateful = one(rendered, "StatefulSet")["spec"]
    assert NAME == stateful["template"]["metadata"]["labels"] == stateful["selector"]["matchLabels"]
    ports = {port["name"]: port["containerPort"] for port in container(rendered)["ports"]}
    services = [each for each in rendered if each["kind"] == "Service"]
    for service in services:
        assert NAME == service["spec"]["selector"]
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
    assert "None" == one(services, "Service", stateful["serviceName"])["spec"]["clusterIP"]
    (path,) = one(rendered, "Ingress")["spec"]["rules"][0]["http"]["paths"]
    assert (Settings().stats_path, "Prefix") == (path["path"], path["pathType"])
    backend = path["backend"]["service"]
    assert ("capgo-stats-exporter", "stats") == (backend["name"], backend["port"]["name"])
    (endpoint,) = one(rendered, "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert "metrics" == endpoint["port"]
    policy = one(rendered, "NetworkPolicy")["spec"]
    assert NAME == policy["podSelector"]["matchLabels"]
    assert set(ports.values()) == {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
    for kind in ("PodMonitor", "PodDisruptionBudget"):
        assert NAME == one(rendered, kind)["spec"]["selector"]["matchLabels"]


@pytest.mark.server("kubectl")
def test_prometheus_sees_what_the_alerts_ask_for(rendered: list[Manifest]) -> None:
    """The job is the alerts' one, an instance outlasts its pod's address, and the exporter knows the interval."""
    monitor = one(rendered, "PodMonitor")["spec"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert NAME == {monitor["jobLabel"]: "capgo-stats-exporter"}
    assert 'job="capgo-stats-exporter"' in (ROOT / "prometheus/rules/exporter.yml").read_text()
    relabeling = {"sourceLabels": ["__meta_kubernetes_pod_name"], "targetLabel": "instance"}
    assert [relabeling] == endpoint["relabelings"]
    assert endpoint["interval"] == one(rendered, "ConfigMap")["data"]["EXPORTER_SCRAPE_INTERVAL"]


@pytest.mark.server("kubectl")
def test_the_pod_is_the_dockerfiles_and_composes(rendered: list[Manifest], compose: Manifest) -> None:
    """User, ports, data directory, read-only root and the time to stop are the same everywhere."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    pod = one(rendered, "StatefulSet")["spec"]["template"]["spec"]
    exporter = container(rendered)
    service = compose["services"]["exporter"]
    user = pod["securityContext"]
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}\n" in dockerfile
    assert user["runAsGroup"] == user["fsGroup"]
    assert user["runAsNonRoot"] is True
    assert f"EXPOSE {exporter['ports'][0]['containerPort']}\n" in dockerfile
    assert ["9746:9746"] == service["ports"]
    data, tmp = exporter["volumeMounts"]
    assert f"EXPORTER_DATA_DIR={data['mountPath']}\n" in dockerfile
    assert [tmp["mountPath"]] == service["tmpfs"]
    assert [data["name"]] == [
        each["metadata"]["name"] for each in one(rendered, "StatefulSet")["spec"]["volumeClaimTemplates"]
    ]
    security = exporter["securityContext"]
    assert service["read_only"] is security["readOnlyRootFilesystem"] is True
    assert service["cap_drop"] == security["capabilities"]["drop"]
    assert security["allowPrivilegeEscalation"] is False
    delay = parse_duration_seconds(one(rendered, "ConfigMap")["data"]["EXPORTER_SHUTDOWN_DELAY"])
    grace = parse_duration_seconds(service["stop_grace_period"])
    assert delay > 0
    assert 2 * Settings().shutdown_timeout < grace
    assert grace + delay <= pod["terminationGracePeriodSeconds"]
    assert exporter["image"].startswith("registry.example.com/capgo-stats-exporter:")


@pytest.mark.server("kubectl")
def test_the_settings_are_right(rendered: list[Manifest], compose: Manifest, tmp_path: Path) -> None:
    """The exporter takes settings and secrets as they are named, and compose's shared ones are the same."""
    settings = one(rendered, "ConfigMap")["data"]
    secrets = SECRET.findall((ROOT / "docs" / "kubernetes.md").read_text())
    assert "EXPORTER_HASH_KEY" in secrets
    assert {variable(name) for name in Settings.model_fields} >= set(settings) | set(secrets)
    env = minimal_environment(
        **settings, **dict.fromkeys(secrets, "a-secret"), PYTHONPATH=str(ROOT), EXPORTER_DATA_DIR=str(tmp_path)
    )
    command = [sys.executable, "-m", "exporter", "check-config"]
    result = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert 0 == result.returncode, result.stdout + result.stderr
    shared = compose["services"]["exporter"]["environment"]
    for name in (
        "EXPORTER_METRICS_LISTEN",
        "EXPORTER_SCRAPE_INTERVAL",
        "EXPORTER_INFLUX_ORG",
        "EXPORTER_INFLUX_BUCKET",
    ):
        assert shared[name] == settings[name]
    references = [each[kind]["name"] for each in container(rendered)["envFrom"] for kind in each]
    assert [one(rendered, "ConfigMap")["metadata"]["name"], "capgo-stats-exporter"] == references


@pytest.mark.server("kubectl")
def test_the_documented_overlay_works(tmp_path: Path) -> None:
    """The example of docs/kubernetes.md, taken from there, renders, is valid, and changes what it says."""
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    overlay = text.split("```yaml\n# kustomization.yaml\n", 1)[1].split("```", 1)[0]
    base = os.path.relpath(manifests.DIRECTORY, tmp_path.resolve())
    overlay = overlay.replace("capgo-stats-exporter/deploy/kubernetes", base)
    (tmp_path / "kustomization.yaml").write_text(overlay)
    client = subprocess.run(["kubectl", "version", "--client"], capture_output=True, text=True, check=True).stdout
    if "Kustomize Version" not in client:
        # Debian 12 has kubectl 1.20, which renders the base, but not such an overlay: the document says 1.21.
        assert 'Minor:"20"' in client
        return
    changed = render(tmp_path)
    check(changed, VERSIONS[-1])
    assert "stats.mycompany.example" == one(changed, "Ingress")["spec"]["rules"][0]["host"]
    assert {"kube-prometheus-stack"} == {
        each["metadata"]["labels"]["release"] for each in changed if each["kind"] in OPERATOR_SPECS
    }
    assert "com.example.shop" == one(changed, "ConfigMap")["data"]["EXPORTER_ALLOWED_APPS"]
    assert 5 == one(changed, "StatefulSet")["spec"]["replicas"]
