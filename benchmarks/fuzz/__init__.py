"""Coverage-guided fuzzing of what takes bytes from strangers: `python -m benchmarks.fuzz TARGET --seconds 60`."""
