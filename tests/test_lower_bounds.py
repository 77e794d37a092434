"""The ranges of pyproject.toml are what is tested: here with the newest versions, and by `make test-lowest`."""

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.lowest import PYPROJECT, lowest_versions

ROOT = PYPROJECT.parent
DEPENDENCIES = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
CONSTRAINTS = Path(sys.prefix) / "constraints.txt"  # in the environment that `make test-lowest` makes


@pytest.mark.parametrize("dependency", DEPENDENCIES)
def test_installed_version_is_in_its_range(dependency: str) -> None:
    """What the tests run with is what pyproject.toml allows, and exactly the oldest of it where that is tested."""
    requirement = Requirement(dependency)
    installed = Version(metadata.version(requirement.name))

    assert installed in requirement.specifier
    if CONSTRAINTS.exists():
        assert Version(lowest_versions()[requirement.name]) == installed


@pytest.mark.parametrize("dependency", DEPENDENCIES)
def test_every_dependency_is_used(dependency: str) -> None:
    """Each dependency is imported by the package."""
    name = canonicalize_name(Requirement(dependency).name)
    providers = metadata.packages_distributions()
    modules = [module for module in providers if name in map(canonicalize_name, providers[module])]
    importing = re.compile(rf"^\s*(?:from|import) (?:{'|'.join(modules)})\b", re.MULTILINE)

    assert modules
    assert any(importing.search(path.read_text(encoding="utf-8")) for path in (ROOT / "exporter").rglob("*.py"))


def test_both_bounds_are_needed(tmp_path: Path) -> None:
    """A dependency without an upper or a lower bound is refused: nobody could test such a range."""
    pyproject = tmp_path / "pyproject.toml"
    for text in ("aiohttp", "aiohttp>=3", "aiohttp<4", "aiohttp~=3.1", "aiohttp==3.1"):
        pyproject.write_text(f"[project]\ndependencies = [{text!r}]\n", encoding="utf-8")
        with pytest.raises(ValueError, match=re.escape(text)):
            lowest_versions(pyproject)


def test_make_runs_tests_that_exist_with_the_lowest_versions() -> None:
    """Each test file that the Makefile names for the lowest versions exists, this one among them."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    (names,) = re.findall(r"^LOWEST_TESTS := (.*)$", makefile, re.MULTILINE)

    assert "lower_bounds" in names.split()
    assert [] == [name for name in names.split() if not (ROOT / f"tests/test_{name}.py").exists()]
