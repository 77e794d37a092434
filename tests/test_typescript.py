"""The dashboards against Grafana's own types, by TypeScript's compiler."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dashboards import DIRECTORY, ROOT, Json

SOURCES = ROOT / "tests" / "typescript"

pytestmark = pytest.mark.server("node", "npm")

# By what is wrong: the right text, the wrong one, and a word of what the compiler says.
MISTAKES = {
    "an unknown colour mode": ('"mode": "thresholds"', '"mode": "threshold"', "threshold"),
    "an unknown way to draw": ('"drawStyle": "bars"', '"drawStyle": "bar"', "bar"),
    "an option of another panel": ('"graphMode": "none"', '"drawStyle": "none"', "drawStyle"),
    "a misspelt key": ('"gridPos"', '"gridpos"', "gridpos"),
    "a text for a number": ('"refresh": 2', '"refresh": "2"', "not assignable"),
}


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with the compiler, Grafana's types and ours."""
    directory = tmp_path_factory.mktemp("typescript")
    for path in SOURCES.iterdir():
        if path.is_file():
            shutil.copy(path, directory)
    _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"], directory)
    yield directory
    shutil.rmtree(directory)


def test_dashboards_have_grafanas_types(compiler: Path) -> None:
    """The compiler finds nothing wrong with any of the eight."""
    for path in DIRECTORY.glob("*.json"):
        _write(compiler, path.stem, json.loads(path.read_text()))
    assert "" == _compile(compiler)


def test_mistakes_are_found(compiler: Path) -> None:
    """Each of some planted mistakes is an error, so that the types are not too loose to be of use."""
    text = (DIRECTORY / "capgo-overview.json").read_text()
    for path in compiler.glob("capgo-*.ts"):
        path.unlink()
    for number, (right, wrong, _) in enumerate(MISTAKES.values()):
        assert right in text
        _write(compiler, f"capgo-mistake-{number}", json.loads(text.replace(right, wrong, 1)))
    errors = _compile(compiler).splitlines()
    for number, (name, (_, _, said)) in enumerate(MISTAKES.items()):
        assert any(line.startswith(f"capgo-mistake-{number}.ts") and said in line for line in errors), name


def _write(directory: Path, name: str, dashboard: Json) -> None:
    text = json.dumps(dashboard, indent=2, ensure_ascii=False)
    source = f'import type {{ Dashboard }} from "./types";\n\nexport const dashboard: Dashboard = {text};\n'
    (directory / f"{name}.ts").write_text(source)


def _compile(directory: Path) -> str:
    """Give what the compiler says, empty if nothing is wrong."""
    command = [str(directory / "node_modules" / ".bin" / "tsc"), "--project", "."]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _run(command: list[str], directory: Path) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
