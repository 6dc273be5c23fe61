"""Comparing several ways to run one model from the same seeds: what each costs, and what it changes."""

from __future__ import annotations

from genkit.evaluation.comparison.api import compare
from genkit.evaluation.comparison.results import Comparison

__all__ = ["Comparison", "compare"]
