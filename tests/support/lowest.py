"""The oldest versions that pyproject.toml allows, as constraints for pip; the standard library is all this needs."""

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent.parent / "pyproject.toml"
_BOUNDS = re.compile(r"(?P<name>[\w.-]+)(\[[\w,]+\])?>=(?P<lowest>[\w.]+),<(?P<limit>[\w.]+)")


def lowest_versions(pyproject: Path = PYPROJECT) -> dict[str, str]:
    """Return the lowest version of each dependency that the exporter runs with.

    Raises:
        ValueError: A dependency has not exactly a lower and an upper bound, `>=` and `<`.
    """
    versions = {}
    for text in tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["dependencies"]:
        bounds = _BOUNDS.fullmatch(text)
        if bounds is None:
            message = f"{text!r} is not name>=lowest,<limit"
            raise ValueError(message)
        versions[bounds["name"]] = bounds["lowest"]
    return versions


def main() -> None:
    """Write the constraints to standard output."""
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in lowest_versions().items())


if __name__ == "__main__":
    main()
