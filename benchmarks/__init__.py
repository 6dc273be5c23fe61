"""Benchmarks: quality beside speed, each with a baseline measured in the same run. ``python -m benchmarks --help``."""
