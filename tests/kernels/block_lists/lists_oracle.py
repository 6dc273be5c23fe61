"""Selection and inversion row by row in plain Python, and problems to try them on."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, frexp, inf, isnan

import numpy as np
import torch

from genkit.kernels.block_lists import Budget, Kept


def chosen(scores: list[float], forced: list[bool], budget: Budget) -> list[int]:
    """The columns that a row keeps, by the words of the docstrings."""
    scores = [inf if isnan(x) else x for x in scores]
    floor, cap = budget.bounds(len(scores))
    mine = [c for c, held in enumerate(forced) if held]
    others = [c for c in range(len(scores)) if not forced[c] and scores[c] != -inf]
    others.sort(key=lambda c: (-scores[c], c))
    wanted = len(mine)
    if budget.mass is not None:
        weights = masses([scores[c] if c in mine or c in others else 0.0 for c in range(len(scores))])
        need = ceil(float(np.float32(budget.mass)) * float(sum(weights)))
        held = sum(weights[c] for c in mine)
        for c in others:
            if held >= need or not weights[c]:
                break
            held, wanted = held + weights[c], wanted + 1
    count = max(min(max(wanted, floor), cap), len(mine))
    return sorted(mine + others[: count - len(mine)])


def masses(scores: list[float]) -> list[int]:
    """Whole numbers in proportion to the scores, the largest with 30 bits."""
    top = max(0.0, *scores)
    if top == inf:
        return [int(x == inf) for x in scores]
    shift = 30 - frexp(top)[1] if top else 0
    return [int(Fraction(max(x, 0.0)) * Fraction(2) ** shift) for x in scores]


def turned(count: torch.Tensor, index: torch.Tensor, columns: int) -> list[list[int]]:
    """For one head: the rows that visit every column."""
    found: list[list[int]] = [[] for _ in range(columns)]
    for row, (used, entries) in enumerate(zip(count.tolist(), index.tolist(), strict=True)):
        for column in entries[:used]:
            found[column].append(row)
    return found


def scores_like(seed: int, shape: tuple[int, int, int, int], levels: int | None, odd: bool) -> torch.Tensor:
    """Random scores; with few levels there are many ties, and odd ones hold NaN, infinities and zeros of both signs."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(shape, generator=g)
    if levels is not None:
        scores = (scores * levels).round() / levels
    if odd:
        kind = torch.randint(0, 12, shape, generator=g)
        for code, value in enumerate((torch.nan, torch.inf, -torch.inf, -torch.inf, 0.0, -0.0)):
            scores[kind == code] = value
        scores[:, :, 0] = -torch.inf
    return scores


def kept_like(seed: int, rows: int, columns: int) -> Kept:
    """Random ranges, some empty, and sometimes a few columns."""
    g = torch.Generator().manual_seed(seed)
    first = torch.randint(0, columns + 1, (rows,), generator=g)
    last = (first + torch.randint(0, 4, (rows,), generator=g)).clamp(max=columns)
    kept = Kept.of(first, last, columns)
    return kept.with_columns([seed % columns]) if seed % 3 == 0 else kept


BUDGETS = (
    Budget(keep=1),
    Budget(keep=5),
    Budget(keep=0.4),
    Budget(mass=0.5),
    Budget(mass=0.9, floor=3, cap=0.5),
    Budget(mass=1.0),
    Budget(mass=0.05, floor=2, cap=7),
)


def check(scores: torch.Tensor, budget: Budget, kept: Kept, count: torch.Tensor, index: torch.Tensor) -> None:
    """Fail unless the lists are those of the oracle, ascending, and 0 beyond the count."""
    mask = kept.mask().tolist()
    batch, heads, rows, columns = scores.shape
    assert count.dtype == index.dtype == torch.int32 and index.shape[:3] == (batch, heads, rows)
    for b in range(batch):
        for h in range(heads):
            for m in range(rows):
                wanted = chosen(scores[b, h, m].tolist(), mask[m], budget)
                assert count[b, h, m] == len(wanted) <= index.shape[-1], (b, h, m)
                assert index[b, h, m].tolist() == wanted + [0] * (index.shape[-1] - len(wanted)), (b, h, m)
