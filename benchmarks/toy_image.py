"""toy-image by the judge: accuracy per attribute on seen and held-out prompts."""

from __future__ import annotations

import argparse

from benchmarks import toy_picture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks toy_image``."""
    toy_picture.add_arguments(parser, "toy-image")


def run(options: argparse.Namespace) -> int:
    """Measure, print and write the report."""
    return toy_picture.run("toy_image", options, lcm_steps=(4, 8))
