"""Factors of the softmax scale that follow the number of tokens: for grids of other sizes than in training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from genkit.errors import UsageError, explain
from genkit.layout import TokenLayout

_ALLOWED = "none, a number > 0, log:TOKENS, or entropy:TOKENS:SPREAD with TOKENS such as 4096, 30x52 or 21x30x52"
_CAP = 1.3


def log_factor(trained: float, present: float) -> float:
    """``sqrt(ln present / ln trained)``: the factor that keeps the entropy of attention in part as tokens grow in
    number (arXiv 2306.08645; FreeSwim has it with ``present = 2 trained``). Below 1 for fewer tokens."""
    return math.sqrt(math.log(max(2.0, present)) / math.log(max(2.0, trained)))


def entropy_factor(trained: float, present: float, spread: float) -> float:
    """``sqrt(1 + 2 ln(present / trained) / spread^2)``, at most 1.3: the factor that keeps the entropy of normal scores
    of standard deviation ``spread`` (their entropy is ``ln n - spread^2 / 2``); 0.1 where nothing keeps it."""
    return min(_CAP, math.sqrt(max(0.01, 1 + 2 * math.log(present / trained) / spread**2)))


@dataclass(frozen=True)
class ScoreScale:
    """A factor of the softmax scale.

    Args:
        rule: ``"factor"``, ``"log"`` or ``"entropy"``.
        value: the factor, or the spread of the scores.
        tokens: grid tokens in training: one number of all of them, (height, width) or (frames, height, width).
    """

    rule: str
    value: float = 1.0
    tokens: tuple[int, ...] = ()

    def factor(self, layout: TokenLayout) -> float:
        """The factor on a layout; the axes counted are those that ``tokens`` names."""
        if self.rule == "factor":
            return self.value
        trained = math.prod(self.tokens)
        present = math.prod(layout.grid[-len(self.tokens) :]) if len(self.tokens) > 1 else layout.grid_length
        if self.rule == "log":
            return log_factor(trained, present)
        return entropy_factor(trained, present, self.value)


@lru_cache(maxsize=256, typed=True)
def scale_of(value: Any) -> ScoreScale | None:
    """A rule from what a setting holds; None for no factor.

    Raises:
        UsageError: neither of the forms.
    """
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 100:
        return ScoreScale("factor", float(value))
    rule, *rest = value.split(":") if isinstance(value, str) else ("",)
    try:
        if (rule, len(rest)) not in (("log", 1), ("entropy", 2)):
            raise ValueError(rule)
        tokens = tuple(int(side) for side in rest[0].split("x"))
        spread = float(rest[1]) if rule == "entropy" else 1.0
        if len(tokens) > 3 or min(tokens) < 1 or math.prod(tokens) < 2 or not 0 < spread < 100:
            raise ValueError(rest)
    except ValueError as error:
        raise UsageError(explain("length_scale", value, _ALLOWED)) from error
    return ScoreScale(rule, spread, tokens)
