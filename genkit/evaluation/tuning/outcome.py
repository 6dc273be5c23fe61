"""What a tuning found: plans that were run, the chosen one, and its numbers on held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from genkit.attention.method import Method
from genkit.evaluation.tuning.plans import Plan

if TYPE_CHECKING:
    from genkit.evaluation.tuning.tune import TunePlan

#: The best value of metrics that have one: the nearer a mean is to it, the less the outputs can differ.
_BEST = {"ssim": 1.0, "st_lpips": 0.0}


@dataclass
class Measured:
    """A plan that was run.

    Args:
        plan: with what was predicted. parts: methods and schedules. title: in words.
        values: metric -> a number per calibration prompt.
    """

    plan: Plan
    parts: list[tuple[Method, dict[str, str]]]
    title: str
    values: dict[str, list[float]]

    def mean(self, metric: str) -> float:
        """Mean over the prompts."""
        return float(np.mean(self.values[metric]))


@dataclass
class Outcome:
    """What a tuning found.

    Args:
        tuning: what was asked for. measured: every plan that was run on the calibration prompts. chosen: of them; None
            when none of those tried meets the budget. held_out: of the chosen one, metric -> a number per held-out
            prompt. dense: the same of dense runs, of metrics that they have. made: versions and machine.
    """

    tuning: TunePlan
    measured: list[Measured] = field(default_factory=list)
    chosen: Measured | None = None
    held_out: dict[str, list[float]] = field(default_factory=dict)
    dense: dict[str, list[float]] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether the chosen plan meets the budget on the held-out prompts."""
        budget = self.tuning.budget
        return self.chosen is not None and budget.met(self.held_out[budget.metric])

    @property
    def changes(self) -> dict[str, list[float]]:
        """What the chosen plan gains over dense attention on the same held-out prompts, of metrics that both have."""
        return {
            name: [mine - theirs for mine, theirs in zip(self.held_out[name], values, strict=True)]
            for name, values in self.dense.items()
            if name in self.held_out
        }

    def best(self) -> Measured:
        """Of what was run on the calibration prompts, the plan that is best in the budget's metric."""
        budget = self.tuning.budget
        return max(self.measured, key=lambda each: budget.sign * each.mean(budget.metric))

    @property
    def on_average(self) -> int:
        """Plans that keep the budget on average over the calibration prompts, surely or not."""
        budget = self.tuning.budget
        return sum(budget.met(each.values[budget.metric]) for each in self.measured)


def columns(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """Metric -> a number per prompt, of metrics that every prompt has."""
    return {name: [row[name] for row in rows] for name in rows[0] if all(name in row for row in rows)}


def typical_spread(measured: Sequence[Measured], metric: str, mean: float) -> float:
    """The spread over prompts (standard deviation) that plans like those which were run have at a mean.

    The root mean square of theirs. Of a metric with a best value it is at most what outputs between there and the worst
    one that was seen can have at this mean (Bhatia and Davis 2000: the variance is below the product of the distances
    to both): what bad plans scatter is not held against one that is close to perfect.
    """
    rows = [each.values[metric] for each in measured if len(each.values[metric]) > 1]
    if not rows:
        return 0.0
    usual = float(np.mean([np.var(values, ddof=1) for values in rows]))
    best = _BEST.get(metric)
    if best is not None:
        worst = max(abs(best - value) for values in rows for value in values)
        usual = min(usual, abs(best - mean) * max(worst - abs(best - mean), 0.0))
    return math.sqrt(usual)
