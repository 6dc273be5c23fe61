"""Additive biases on the CPU: their values for one row of work, and the gradient of their tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from genkit.kernels.plan.bias import Bias, LowRank, Quadratic, Table

_JOINED = 4  # keys to a place from which on axes are looked up together


def values(terms: Sequence[Bias], batch: int, head: int, start: int, stop: int, tokens: Tensor | slice) -> Tensor:
    """(stop - start, keys) sum of all terms for the queries [start, stop) and the given keys, at least float32."""
    first, *others = (_turned(term, batch, head, slice(start, stop), tokens).mT for term in terms)
    for other in others:
        first = first + other
    return first


def turned_values(
    terms: Sequence[Bias], batch: int, head: int, start: int, stop: int, tokens: Tensor, factor: float, into: Tensor
) -> None:
    """Write :func:`values` times a factor to float32 ``into`` (keys, stop - start)."""
    rows = slice(start, stop)
    for number, term in enumerate(terms):
        if number == 0 and isinstance(term, LowRank) and term.f.dtype != torch.float64:
            f, g = _factors(term, batch, head, rows, tokens)
            torch.mm(g, (f * factor).mT, out=into)
        elif number == 0 and not isinstance(term, LowRank):
            _look_up(term, head, rows, tokens, factor, into)
        else:
            part = _turned(term, batch, head, rows, tokens)
            torch.mul(part, factor, out=into) if number == 0 else into.add_(part, alpha=factor)


def _given(table: Tensor | None) -> Tensor:
    """A table that a bias has filled in where it was left out."""
    assert table is not None
    return table


def _pick(table: Tensor, axis: int, at: int) -> Tensor:
    return table.select(axis, at if table.shape[axis] > 1 else 0)


def _factors(term: LowRank, batch: int, head: int, rows: slice, tokens: Tensor | slice) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(term.f.dtype, torch.float32)
    f, g = (_pick(_pick(side, 2, head), 0, batch) for side in (term.f, term.g))
    return f[rows].to(wide), g[tokens].to(wide)


@dataclass
class _Along:
    """Axes that are looked up together: every key has one of few places on them.

    Attributes:
        axes: their numbers. sizes: places per axis. at: (keys,) int64, the place of every key, last axis fastest.
    """

    axes: list[int]
    sizes: list[int]
    at: Tensor


def _axes(term: Quadratic | Table, tokens: Tensor | slice) -> list[_Along]:
    """The axes of a term, joined as long as all places of a group are a small part of the keys."""
    groups: list[_Along] = []
    for axis, (places, inverse) in enumerate(term.key_places):
        at = inverse[tokens]
        last = groups[-1] if groups else None
        if last is not None and _JOINED * prod(last.sizes) * len(places) <= len(at):
            last.axes.append(axis)
            last.at = last.at * len(places) + at
            last.sizes.append(len(places))
        else:
            groups.append(_Along([axis], [len(places)], at))
    return groups


def _apart(term: Quadratic, axis: int, rows: slice) -> Tensor:
    """(places, queries) squared distance on an axis beyond the hinge."""
    apart = (term.q_pos[rows, axis] - term.key_places[axis][0][:, None]).abs_().sub_(_given(term.hinge)[axis])
    return apart.clamp_(min=0).square_()


def _entries(term: Table, axis: int, rows: slice) -> tuple[Tensor, Tensor]:
    """(places, queries): index into the table of an axis, clamped, and where it was in range."""
    size = term.values[axis].shape[1]
    entry = term.q_pos[rows, axis] - term.key_places[axis][0][:, None] + size // 2
    return entry.clamp(0, size - 1).long(), (entry >= 0) & (entry < size)


def _column(term: Quadratic | Table, axis: int, head: int, rows: slice) -> Tensor:
    """(places, queries) what an axis adds."""
    if isinstance(term, Quadratic):
        return _apart(term, axis, rows) * (-_pick(term.weight, 0, head)[axis] * _given(term.q_gain)[rows])
    entry, inside = _entries(term, axis, rows)
    return _pick(term.values[axis], 0, head)[entry].where(inside, 0)


def _turned(term: Bias, batch: int, head: int, rows: slice, tokens: Tensor | slice) -> Tensor:
    """(keys, queries) one term."""
    if isinstance(term, LowRank):
        f, g = _factors(term, batch, head, rows, tokens)
        return g @ f.mT
    wide = term.weight.dtype if isinstance(term, Quadratic) else term.values[0].dtype
    shape = len(term.k_pos[tokens]), len(term.q_pos[rows])
    into = term.k_pos.new_empty(shape, dtype=torch.promote_types(wide, torch.float32))
    _look_up(term, head, rows, tokens, 1.0, into)
    return into


def _look_up(
    term: Quadratic | Table, head: int, rows: slice, tokens: Tensor | slice, factor: float, into: Tensor
) -> None:
    """Write a term times a factor to ``into`` (keys, queries). Distances are looked up by the few places that an axis
    has, not computed for every pair."""
    for number, group in enumerate(_axes(term, tokens)):
        column = _column(term, group.axes[0], head, rows)
        for axis in group.axes[1:]:
            column = (column[:, None] + _column(term, axis, head, rows)).flatten(0, 1)
        column = (column * factor).to(into.dtype)
        if number == 0 and into.is_contiguous():
            torch.index_select(column, 0, group.at, out=into)
        elif number == 0:
            into.copy_(column.index_select(0, group.at))
        else:
            into.add_(column.index_select(0, group.at))
    if isinstance(term, Quadratic):
        gain = _given(term.k_gain)[tokens]
        if not bool((gain == 1).all()):
            into.mul_(gain[:, None])


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
        else:
            turned = d_scores.mT.to(torch.promote_types(found[0].dtype, torch.float32))
            if isinstance(term, Quadratic):
                turned = turned * _given(term.k_gain)[tokens][:, None] * _given(term.q_gain)[rows]
            for group in _axes(term, tokens):
                sums_of = turned.new_zeros(prod(group.sizes), turned.shape[1]).index_add_(0, group.at, turned)
                for place, axis in enumerate(group.axes):
                    others = [other for other in range(len(group.axes)) if other != place]
                    column = sums_of.unflatten(0, group.sizes)
                    _accumulate_column(term, found, axis, head, rows, column.sum(others) if others else column)


def _accumulate_column(
    term: Quadratic | Table, found: list[Tensor], axis: int, head: int, rows: slice, column: Tensor
) -> None:
    """Add the gradient of what an axis adds, (places, queries)."""
    if isinstance(term, Quadratic):
        _pick(found[0], 0, head)[axis] -= (column * _apart(term, axis, rows)).sum()
        return
    entry, inside = _entries(term, axis, rows)
    _pick(found[axis], 0, head).index_add_(0, entry.flatten(), (column * inside).flatten().to(found[axis].dtype))
