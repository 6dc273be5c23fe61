"""Additive biases on the CPU: their values for one row of work, and the gradient of their tables."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genkit.kernels.plan.bias import Bias, LowRank, Quadratic, Table


def values(terms: Sequence[Bias], batch: int, head: int, start: int, stop: int, tokens: Tensor | slice) -> Tensor:
    """(stop - start, keys) sum of all terms for the queries [start, stop) and the given keys, at least float32."""
    return sum(_values(term, batch, head, slice(start, stop), tokens) for term in terms)


def turned_values(
    terms: Sequence[Bias], batch: int, head: int, start: int, stop: int, tokens: Tensor, factor: float, into: Tensor
) -> None:
    """Write :func:`values` times a factor to float32 ``into`` (keys, stop - start)."""
    first, *others = terms
    if isinstance(first, LowRank) and first.f.dtype != torch.float64:
        f, g = _factors(first, batch, head, slice(start, stop), tokens)
        torch.mm(g, (f * factor).mT, out=into)
    else:
        torch.mul(_values(first, batch, head, slice(start, stop), tokens).mT, factor, out=into)
    for term in others:
        into.add_(_values(term, batch, head, slice(start, stop), tokens).mT, alpha=factor)


def _pick(table: Tensor, axis: int, at: int) -> Tensor:
    return table.select(axis, at if table.shape[axis] > 1 else 0)


def _factors(term: LowRank, batch: int, head: int, rows: slice, tokens: Tensor | slice) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(term.f.dtype, torch.float32)
    f, g = (_pick(_pick(side, 2, head), 0, batch) for side in (term.f, term.g))
    return f[rows].to(wide), g[tokens].to(wide)


def _apart(term: Quadratic, axis: int, rows: slice, tokens: Tensor | slice) -> Tensor:
    """Signed distance on an axis, or how far it is beyond the hinge."""
    apart = term.q_pos[rows, axis][:, None] - term.k_pos[tokens, axis]
    hinge = float(term.hinge[axis])
    return apart.abs_().sub_(hinge).clamp_(min=0) if hinge else apart


def _with_gains(term: Quadratic, x: Tensor, rows: slice, tokens: Tensor | slice) -> Tensor:
    """x (queries, keys) times the gains, in its own memory."""
    for gain in (term.q_gain[rows][:, None], term.k_gain[tokens]):
        if not bool((gain == 1).all()):
            x = x.mul_(gain)
    return x


def _places(term: Table, axis: int, rows: slice, tokens: Tensor | slice) -> tuple[Tensor, Tensor]:
    """Index into the table of an axis, clamped, and where it was in range."""
    size = term.values[axis].shape[1]
    place = term.q_pos[rows, axis][:, None] - term.k_pos[tokens, axis] + size // 2
    return place.clamp(0, size - 1).long(), (place >= 0) & (place < size)


def _values(term: Bias, batch: int, head: int, rows: slice, tokens: Tensor | slice) -> Tensor:
    if isinstance(term, LowRank):
        f, g = _factors(term, batch, head, rows, tokens)
        return f @ g.mT
    if isinstance(term, Quadratic):
        found = term.q_pos.new_zeros(())
        for axis, weight in enumerate(_pick(term.weight, 0, head).tolist()):
            apart = _apart(term, axis, rows, tokens)
            found = torch.addcmul(found, apart, apart, value=-weight)
        return _with_gains(term, found, rows, tokens)
    total = 0
    for axis, table in enumerate(term.values):
        place, inside = _places(term, axis, rows, tokens)
        total = total + _pick(table, 0, head)[place].where(inside, 0)
    return total


def gradients(terms: Sequence[Bias]) -> list[list[Tensor]]:
    """Zeroed float32 (float64) accumulators, one list per term in the order of ``term.trainable``."""
    return [
        [
            torch.zeros_like(
                term.tensors()[at],
                dtype=torch.promote_types(term.tensors()[at].dtype, torch.float32),
                memory_format=torch.contiguous_format,
            )
            for at in term.trainable
        ]
        for term in terms
    ]


def accumulate(
    terms: Sequence[Bias],
    sums: list[list[Tensor]],
    d_scores: Tensor,
    batch: int,
    head: int,
    start: int,
    stop: int,
    tokens: Tensor,
) -> None:
    """Add the gradient of one row of work: ``d_scores`` (stop - start, keys) is the gradient of the biased scores."""
    rows = slice(start, stop)
    for term, found in zip(terms, sums, strict=True):
        if isinstance(term, LowRank):
            f, g = _factors(term, batch, head, rows, tokens)
            df, dg = (_pick(_pick(side, 2, head), 0, batch) for side in found)
            # a pair that an infinite factor hides has gradient 0, not 0 times infinity
            f, g = (side.masked_fill(side.isinf(), 0) for side in (f, g))
            df[rows] += (d_scores.to(f.dtype) @ g).to(df.dtype)
            dg.index_add_(0, tokens, (d_scores.mT.to(f.dtype) @ f).to(dg.dtype))
        elif isinstance(term, Quadratic):
            weighted = _with_gains(term, d_scores.to(term.q_pos.dtype, copy=True), rows, tokens)
            for axis in range(term.q_pos.shape[1]):
                apart = _apart(term, axis, rows, tokens)
                _pick(found[0], 0, head)[axis] -= torch.linalg.vecdot(weighted, apart.square_()).sum()
        else:
            for axis, into in enumerate(found):
                place, inside = _places(term, axis, rows, tokens)
                part = (d_scores * inside).flatten().to(into.dtype)
                _pick(into, 0, head).index_add_(0, place.flatten(), part)
