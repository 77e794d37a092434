"""Fuzz one target with atheris for some time; an input that breaks a promise is kept, and ends the run with 1."""

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["exporter", "json"]):
    from benchmarks.fuzz.targets import TARGETS, seeds


def main() -> None:
    """Read the arguments and run; atheris never returns."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="how long (60)")
    parser.add_argument("--corpus", type=Path, help="a directory that keeps interesting inputs for the next run")
    arguments = parser.parse_args()
    corpus = arguments.corpus or Path(tempfile.mkdtemp(prefix="fuzz-"))
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(arguments.target)):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [
        sys.argv[0],
        str(corpus),
        f"-max_total_time={arguments.seconds}",
        "-max_len=4096",
        "-rss_limit_mb=1024",
        "-print_final_stats=1",
    ]
    atheris.Setup(options, TARGETS[arguments.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
