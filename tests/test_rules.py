"""Rules, alerts, who is told, and what they are told to do."""

import functools
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from ruamel.yaml import YAML

from tests.support.alertmanager import Alertmanager, Receivers, connected
from tests.support.dashboards import ROOT, committed
from tests.support.ports import wait_for
from tests.test_telemetry import full_page, label_names

RULES = sorted((ROOT / "prometheus" / "rules").glob("*.yml"))
CASES = sorted((ROOT / "prometheus" / "rules-tests").glob("*.yml"))
ALERTMANAGER = ROOT / "prometheus" / "alertmanager.yml"
RUNBOOKS = (ROOT / "docs" / "runbooks.md").read_text(encoding="utf-8")
RECEIVERS = {"critical": "page", "warning": "team"}
ANNOTATIONS = {"summary", "description", "runbook_url", "dashboard_url"}
# Of the past hour, and once is enough.
WITHOUT_FOR = {"CapgoDeadLetters", "CapgoJournalDamaged"}
# What Prometheus has itself.
FOREIGN = {
    "up": {"job", "instance"},
    "prometheus_rule_evaluation_failures_total": {"job", "instance", "rule_group"},
    "ALERTS": {"alertname", "alertstate"},
}
# Labels that are nobody's: a bucket's bound, and those of recording rules.
OWN_LABELS = {"le", "step"}
UNITS: Final = {"w": 604_800, "d": 86_400, "h": 3600, "m": 60, "s": 1}
# A fact, not a number that somebody would change: something is there, is on, or is off.
FACTS = {"> 0", "== 0", "== 1", ">= 0"}

Yaml = dict[str, Any]


class Alert(NamedTuple):
    """An alerting rule and its file."""

    file: str
    rule: Yaml

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.rule["alert"])


@functools.cache
def read(path: Path) -> Yaml:
    """Read a YAML file."""
    found: Yaml = YAML(typ="safe").load(path)
    return found


def all_rules() -> Iterator[tuple[str, Yaml]]:
    """Give all rules, each with its file's name."""
    for path in RULES:
        for group in read(path)["groups"]:
            for rule in group["rules"]:
                yield path.name, rule


ALERTS = [Alert(name, rule) for name, rule in all_rules() if "alert" in rule]
EXPRESSIONS = [(name, str(rule.get("alert") or rule["record"]), str(rule["expr"])) for name, rule in all_rules()]
ids = [f"{alert.name}-{alert.rule['labels']['severity']}" for alert in ALERTS]
alerts = pytest.mark.parametrize("alert", ALERTS, ids=ids)


def run(*command: str | Path) -> str:
    """Run a command that must succeed, and give what it wrote."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout


# --- promtool ---------------------------------------------------------------------------------------------------------


@pytest.mark.server("promtool")
def test_rules_pass_the_linter() -> None:
    """Prometheus takes all rules, and there are no duplicates."""
    assert len(RULES) == run("promtool", "check", "rules", "--lint=all", "--lint-fatal", *RULES).count("SUCCESS")


@pytest.mark.server("promtool")
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_rules_do_what_their_cases_say(path: Path) -> None:
    """Every case holds on Prometheus's own engine."""
    assert "SUCCESS" in run("promtool", "test", "rules", path)


# --- the cases --------------------------------------------------------------------------------------------------------


def seconds(duration: str) -> int:
    """Give a duration as Prometheus writes it, such as 1h30m, in seconds."""
    return sum(int(number) * UNITS[unit] for number, unit in re.findall(r"(\d+)([wdhms])", duration))


def moments(alert: Alert) -> Iterator[tuple[int, dict[int, bool]]]:
    """Give, of each case about an alert, the interval of evaluation, and at which moments it fires and does not."""
    for path in CASES:
        file = read(path)
        for case in file["tests"]:
            found = {
                seconds(each["eval_time"]): any(
                    expected["exp_labels"]["severity"] == alert.rule["labels"]["severity"]
                    and expected["exp_labels"].get("burn") == alert.rule["labels"].get("burn")
                    for expected in each.get("exp_alerts", ())
                )
                for each in case.get("alert_rule_test", ())
                if each["alertname"] == alert.name
            }
            if found:
                yield seconds(file["evaluation_interval"]), found


@alerts
def test_alert_fires_not_a_step_earlier_and_resolves(alert: Alert) -> None:
    """There is a case in which it is silent, fires at the next evaluation, and is silent again at the end."""
    stories = []
    for step, found in moments(alert):
        first = min((at for at, fires in found.items() if fires), default=None)
        if first is not None:
            stories.append((found.get(first - step) is False, found[max(found)] is False))
    assert stories, alert.name
    assert any(earlier and resolves for earlier, resolves in stories), stories


@alerts
def test_alert_is_silent_in_a_case_of_its_own(alert: Alert) -> None:
    """There is a case about what is below its thresholds: nothing, or only what the case says, fires."""
    quiet = [found for _, found in moments(alert) if not any(found.values())]
    asked = [
        each["expr"]
        for path in CASES
        for case in read(path)["tests"]
        for each in case.get("promql_expr_test", ())
        if f'ALERTS{{alertname="{alert.name}"' in each["expr"]
    ]
    # Facts have no thresholds: the replica that is well is in the same case.
    assert quiet or asked or "threshold" not in alert.rule["expr"] or alert.file == "exporter.yml", alert.name


# --- what an alert has ------------------------------------------------------------------------------------------------


@alerts
def test_alert_has_what_a_person_needs(alert: Alert) -> None:
    """A severity that somebody is told about, a fixed summary, a description with numbers, and two links."""
    annotations = alert.rule["annotations"]
    assert ANNOTATIONS == set(annotations)
    assert alert.name.startswith("Capgo")
    assert alert.rule["labels"]["severity"] in RECEIVERS
    assert re.fullmatch(r"[A-Z][^{}]+\.", annotations["summary"])
    assert annotations["description"].rstrip().endswith((".", "{{ end }}"))
    assert ("for" in alert.rule) == (alert.name not in WITHOUT_FOR)


@alerts
def test_alert_has_a_runbook(alert: Alert) -> None:
    """Its link leads to a section of docs/runbooks.md that says everything, and the severity stands in the table."""
    assert f"{{{{ $externalLabels.runbooks_url }}}}#{alert.name.lower()}" == alert.rule["annotations"]["runbook_url"]
    (section,) = re.findall(rf"^## {alert.name}\n(.*?)(?=^## |\Z)", RUNBOOKS, re.MULTILINE | re.DOTALL)
    for part in ("Means", "Hurt", "Check", "Do", "Resolves", "False alarms"):
        assert 1 == section.count(f"**{part}**:"), part
    assert "```" in section
    (row,) = re.findall(rf"^\| \[{alert.name}\]\(#{alert.name.lower()}\) \| (.+?) \|", RUNBOOKS, re.MULTILINE)
    assert alert.rule["labels"]["severity"] in row


def test_runbooks_are_about_alerts_that_exist() -> None:
    """No section and no row of the table is about an alert that is gone, and links within the file lead somewhere."""
    names = {alert.name for alert in ALERTS}
    headings = re.findall(r"^## (.+)$", RUNBOOKS, re.MULTILINE)
    assert names == {heading for heading in headings if heading.startswith("Capgo")}
    assert names == set(re.findall(r"^\| \[(Capgo\w+)\]", RUNBOOKS, re.MULTILINE))
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([\w-]+)\)", RUNBOOKS)) <= anchors


@alerts
def test_dashboard_link_leads_somewhere(alert: Alert) -> None:
    """The dashboard is there, and has the variables that the link sets, from labels that the alert has."""
    url = alert.rule["annotations"]["dashboard_url"]
    match = re.match(r"\{\{ \$externalLabels\.grafana_url \}\}/d/([\w-]+)", url)
    assert match, url
    boards = {board["uid"]: board for board in committed().values()}
    variables = {variable["name"] for variable in boards[match[1]]["templating"]["list"]}
    asked = re.findall(r"var-(\w+)=(\{\{ \$labels\.(\w+) \| urlquery \}\}|\$__all)", url)
    assert url.count("var-") == len(asked)
    assert {name for name, _, _ in asked} <= variables
    assert all({"app": "app_id"}.get(name, name) == label for name, _, label in asked if label)


def test_links_are_external_labels_that_alerts_do_not_carry() -> None:
    """The links' beginnings are in the configuration, and are taken off the alerts, which they would only widen."""
    config = read(ROOT / "prometheus" / "prometheus.yml")
    assert {"grafana_url", "runbooks_url"} == set(config["global"]["external_labels"])
    (dropped,) = config["alerting"]["alert_relabel_configs"]
    assert ("labeldrop", {"grafana_url", "runbooks_url"}) == (dropped["action"], set(dropped["regex"].split("|")))


# --- numbers and names ------------------------------------------------------------------------------------------------


def test_numbers_are_in_thresholds() -> None:
    """No alert compares with a number of its own."""
    for alert in ALERTS:
        code = re.sub(r'"[^"]*"', '""', str(alert.rule["expr"]))
        found = {
            " ".join(match.groups())
            for match in re.finditer(r"(==|!=|>=|<=|>|<)\s*(?:bool\s+)?(-?[\d.]+(?:e-?\d+)?)", code)
        }
        assert found <= FACTS, alert.name
        assert not re.search(r"[\d.]\s*(==|!=|>=|<=|>|<)|[*/+-]\s*[\d.]+\b", code), alert.name


def test_thresholds_are_numbers_that_are_used() -> None:
    """Each threshold, and the choice of how devices are joined, is a number; each is compared with, none is missing."""
    recorded = {rule["record"]: rule["expr"] for name, rule in all_rules() if name == "thresholds.yml"}
    used = {name for _, _, expression in EXPRESSIONS for name in re.findall(r"capgo:\w+:const", expression)}
    assert set(recorded) == used
    assert all(re.fullmatch(r"vector\([\d.]+\)", expression) for expression in recorded.values())


async def test_metrics_and_labels_exist() -> None:
    """Every metric and label that a rule or a query of an annotation names is on the exporter's page, or recorded."""
    page = await full_page()
    known: dict[str, set[str]] = {name: {*label_names(each), "job", "instance"} for name, each in page.items()}
    recorded = {rule["record"] for _, rule in all_rules() if "record" in rule}
    labels = OWN_LABELS.union(*known.values(), *FOREIGN.values())
    texts = [expression for _, _, expression in EXPRESSIONS]
    # Queries of annotations stand in quotation marks, within which there are only single ones.
    texts += [text for alert in ALERTS for text in _queries(alert)]
    for text in texts:
        for name, matchers in _selectors(text):
            base = re.sub("_(bucket|sum|count)$", "", name)
            assert base in known.keys() | FOREIGN.keys() | recorded, (name, text)
            if base not in recorded:
                assert matchers <= (known | FOREIGN)[base] | OWN_LABELS, (name, text)
        for names in re.findall(r"\b(?:by|on|ignoring|without|group_left|group_right) \(([^)]*)\)", text):
            assert set(re.findall(r"\w+", names)) <= labels, text


def _queries(alert: Alert) -> Iterator[str]:
    """Give the queries in an alert's description."""
    description = re.sub(r"\s+", " ", str(alert.rule["annotations"]["description"]))
    return (text for text in re.findall(r'printf "([^"]*)"', description) if "{" in text)


def _selectors(text: str) -> Iterator[tuple[str, set[str]]]:
    """Give the metrics that a query names, each with the labels that it is filtered by."""
    bare = re.sub(r"\"[^\"]*\"|'[^']*'|%q", "0", re.sub(r"\[[^]]*\]", "", text))
    for match in re.finditer(r"\b([a-zA-Z_:][\w:]*)(?:\{([^}]*)\})?", bare):
        name, matchers = match.groups()
        if matchers is not None or ":" in name or name.startswith("capgo_") or name in FOREIGN:
            yield name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers or ""))


def test_names_without_a_selector_are_found() -> None:
    """The test before this one sees names with and without braces, and looks into both kinds of quotation marks."""
    found = list(_selectors("""sum by (a) (x:y:z) / capgo_up{b="c{d}", e='f', g=%q} > on () capgo:t:const and up"""))
    assert [("x:y:z", set()), ("capgo_up", {"b", "e", "g"}), ("capgo:t:const", set()), ("up", set())] == found


# --- who is told ------------------------------------------------------------------------------------------------------


@pytest.mark.server("amtool")
def test_alertmanager_takes_its_configuration() -> None:
    """Nothing is wrong with it."""
    assert "SUCCESS" in run("amtool", "check-config", ALERTMANAGER)


@pytest.mark.server("amtool")
@pytest.mark.parametrize("severity", ["critical", "warning", ""])
def test_severity_decides_who_is_told(severity: str) -> None:
    """Critical alerts page, all others are for the team, also those that forgot to say how severe they are."""
    labels = [f"severity={severity}"] if severity else []
    receiver = RECEIVERS.get(severity, "team")
    command = ["amtool", "config", "routes", "test", f"--config.file={ALERTMANAGER}", f"--verify.receivers={receiver}"]
    assert receiver == run(*command, *labels, "alertname=CapgoAnything", "app_id=com.example.shop").strip()


def test_pages_leave_sooner_than_warnings() -> None:
    """A page waits 10 seconds; a warning waits for longer, so that a page about the same has muted it by then."""
    routes = read(ALERTMANAGER)["route"]["routes"]
    waits = {route["receiver"]: seconds(route["group_wait"]) for route in routes}
    assert 10 == waits["page"]
    assert waits["team"] > waits["page"] + 15
    assert ["alertname", "app_id"] == read(ALERTMANAGER)["route"]["group_by"]


def of(name: str, severity: str, **labels: str) -> dict[str, str]:
    """Give the labels of an alert."""
    return {"alertname": name, "severity": severity, **labels}


SHOP = {"app_id": "shop", "version": "2.0.0"}
EXPORTER = {"job": "capgo-stats-exporter", "instance": "a:9746"}
SOURCES = [
    of("CapgoExporterDown", "critical", **EXPORTER),
    of("CapgoUpdateFailSpike", "critical", **SHOP, platform="ios"),
    of("CapgoJournalFilling", "critical", **EXPORTER),
]
MUTED = [
    of("CapgoNoEvents", "warning", app_id="shop"),
    of("CapgoDailyFailRatio", "warning", **SHOP),
    of("CapgoDownloadFailSpike", "warning", **SHOP, platform="android"),
    of("CapgoUpdateFailBurn", "warning", app_id="shop", platform="ios", burn="fast"),
]
TOLD = [
    of("CapgoNewVersionWorse", "warning", app_id="shop", version="1.9.0"),
    of("CapgoLowTrafficRollback", "warning", app_id="other", version="2.0.0"),
    of("CapgoDeadLetters", "warning", **EXPORTER, reason="refused"),
    of("CapgoDeliveryStalled", "warning", **EXPORTER),
]


@pytest.mark.server("prometheus-alertmanager")
async def test_alerts_are_muted_by_worse_ones(tmp_path: Path) -> None:
    """A real Alertmanager with our routes: what follows from a worse alert is told to nobody, everything else is."""
    async with Receivers() as receivers:
        config = connected(read(ALERTMANAGER), receivers.url, wait="1s")
        async with Alertmanager(tmp_path, config) as alertmanager:
            await alertmanager.fire(SOURCES)
            await wait_for(lambda: receivers.told("page") == _names(SOURCES), "the pages")
            await alertmanager.fire([*MUTED, *TOLD])
            await wait_for(lambda: receivers.told("team") == _names(TOLD), "the warnings")
            states = await alertmanager.states()
    expected = dict.fromkeys(_names(MUTED), "suppressed") | dict.fromkeys(_names([*TOLD, *SOURCES]), "active")
    assert expected == states
    assert _names(SOURCES) == receivers.told("page")


@pytest.mark.server("prometheus-alertmanager")
async def test_muting_is_of_the_same_thing(tmp_path: Path) -> None:
    """A full journal mutes the warning about itself, not that about another exporter's; nor does a platform another."""
    async with Receivers() as receivers, Alertmanager(tmp_path, connected(read(ALERTMANAGER), receivers.url)) as one:
        await one.fire(SOURCES)
        same = of("CapgoJournalFilling", "warning", **EXPORTER)
        assert await _state_beside(one, same) == "suppressed"
        assert await _state_beside(one, same | {"instance": "b:9746"}) == "active"
        burning = of("CapgoUpdateFailBurn", "warning", app_id="shop", platform="ios", burn="slow")
        assert await _state_beside(one, burning) == "suppressed"
        assert await _state_beside(one, burning | {"platform": "android"}) == "active"
        assert await _state_beside(one, burning | {"app_id": "other"}) == "active"


async def _state_beside(alertmanager: Alertmanager, labels: Mapping[str, str]) -> str:
    """Fire an alert and give the state in which it is."""
    probe = dict(labels)
    probe["probe"] = "-".join(labels.values())
    await alertmanager.fire([probe])
    return await alertmanager.state_of(probe)


@pytest.mark.server("prometheus-alertmanager")
async def test_one_message_is_about_an_apps_versions(tmp_path: Path) -> None:
    """Two versions and platforms of an app that have the same trouble are one page, another app's is another."""
    spikes = [
        of("CapgoUpdateFailSpike", "critical", app_id="shop", version="2.0.0", platform="ios"),
        of("CapgoUpdateFailSpike", "critical", app_id="shop", version="2.0.1", platform="android"),
        of("CapgoUpdateFailSpike", "critical", app_id="other", version="2.0.0", platform="ios"),
    ]
    async with Receivers() as receivers:
        config = connected(read(ALERTMANAGER), receivers.url, wait="1s")
        async with Alertmanager(tmp_path, config) as alertmanager:
            await alertmanager.fire(spikes)
            await wait_for(lambda: len(receivers.told("page")) == len(spikes), "the pages")
    assert {"shop": 2, "other": 1} == {
        message["groupLabels"]["app_id"]: len(message["alerts"]) for _, message in receivers.messages
    }


def _names(of_alerts: list[dict[str, str]]) -> list[str]:
    return sorted(labels["alertname"] for labels in of_alerts)
