"""The README and the other documents say what is so."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from exporter.configuration import render
from exporter.settings import Settings, variable
from tests.support.inprocess import running
from tests.support.tables import table_rows

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted((*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").rglob("*.md")))


def code_blocks(language: str) -> list[str]:
    """Return the README's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


async def test_quick_start_answers_and_counts_as_written() -> None:
    """The quick start's body gives the reply and the counters that the README shows, also when it is sent twice."""
    (curl,) = (block for block in code_blocks("sh") if "curl -X POST" in block)
    body = curl.split("-d '")[1].rsplit("'", 1)[0]
    (reply,) = code_blocks("json")
    (counters,) = (block for block in code_blocks("") if block.startswith("capgo_stats_events_total"))
    async with running() as exporter:
        for _ in range(2):
            answer = await exporter.post(body)
            assert (200, json.loads(reply)) == (answer.status, json.loads(answer.body))
            page = await exporter.metrics()
            assert counters.splitlines() == [
                line for line in page.splitlines() if re.match("capgo_stats_events_total", line)
            ]
        assert await exporter.sample("capgo_exporter_events_total", outcome="duplicate", reason="") == len(
            json.loads(body)
        )


def test_settings_table_equals_the_code() -> None:
    """The settings table names every setting, in the code's order, with its default and its meaning."""
    expected = [
        [f"`{variable(name)}`", f"`{render(name, field.default)}`", field.description]
        for name, field in Settings.model_fields.items()
    ]
    assert expected == table_rows(ROOT / "README.md", "Settings")


def test_metrics_table_equals_the_documentation() -> None:
    """The README's metrics table names the same metrics as docs/metrics.md, which a test compares with the code."""
    documented = [row[0] for row in table_rows(ROOT / "docs" / "metrics.md", "All metrics")]
    assert documented == [row[0] for row in table_rows(ROOT / "README.md", "Metrics")]


def test_architecture_names_every_module() -> None:
    """The table of modules in docs/architecture.md holds every module of the package and no other."""
    package = ROOT / "exporter"
    modules = {
        path.relative_to(package).with_suffix("").as_posix()
        for path in package.rglob("*.py")
        if path.name not in {"__init__.py", "__main__.py"}
    }
    named = set()
    for row in table_rows(ROOT / "docs" / "architecture.md", "Modules"):
        names = re.findall(r"`([a-z_/]+)`", row[0])
        folder = names[0].rpartition("/")[0]
        named |= {name if "/" in name or not folder else f"{folder}/{name}" for name in names}
    assert modules == named


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link of a document leads to a file of the project."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    missing = [link for link in links if not (document.parent / link).exists()]
    assert [] == missing


def test_make_targets_of_the_documents_exist() -> None:
    """Every `make` target that the README and CONTRIBUTING.md name is in the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    texts = [README, (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")]
    named = {name for text in texts for name in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)}
    assert named
    assert set() == named - targets


def test_documents_set_values_that_there_are() -> None:
    """Where a document sets a setting that takes a few words, it is one of them."""
    wrong = []
    for path in DOCUMENTS:
        for name, value in re.findall(r"\b(EXPORTER_[A-Z_]+)=([a-z-]+)", path.read_text(encoding="utf-8")):
            field = Settings.model_fields.get(name.removeprefix("EXPORTER_").lower())
            words = get_args(field.annotation) if field is not None else ()
            if words and all(isinstance(word, str) for word in words) and value not in words:
                wrong.append((path.name, name, value))
    assert [] == wrong
