"""Additive attention biases that never become an N x N tensor: low-rank factors, squared distances, relative tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from genkit.errors import UsageError
from genkit.kernels.permutation import TokenOrder


@dataclass(frozen=True, eq=False)
class LowRank:
    """``bias[b, h, i, j] = sum_r f[b, i, h, r] * g[b, j, h, r]``, differentiable in ``f`` and ``g`` (FlashBias).

    Never put raw token numbers into low-precision factors: keep them float32, centred.

    Args:
        f: (B|1, Nq, H|1, R), or (Nq, R) for all batch entries and heads. g: (B|1, Nk, H|1, R), or (Nk, R).
    """

    f: Tensor
    g: Tensor
    kind: ClassVar[str] = "lowrank"
    trainable: ClassVar[tuple[int, ...]] = (0, 1)

    def __post_init__(self):
        for name in ("f", "g"):
            table = getattr(self, name)
            if table.dim() == 2:
                object.__setattr__(self, name, table[None, :, None])
            elif table.dim() != 4:
                raise UsageError(f"bias: {name} must be (N, R) or (B|1, N, H|1, R), got {tuple(table.shape)}")
        if self.f.shape[-1] != self.g.shape[-1]:
            raise UsageError(f"bias: f and g need the same rank, got {self.f.shape[-1]} and {self.g.shape[-1]}")

    def tensors(self) -> list[Tensor]:
        """The tables in a fixed order."""
        return [self.f, self.g]

    def reorder(self, order: TokenOrder | None, key_order: TokenOrder | None) -> LowRank:
        """The same bias for tokens in block order."""
        return LowRank(
            self.f if order is None else order.apply(self.f), self.g if key_order is None else key_order.apply(self.g)
        )

    def misfit(self, batch: int, n_q: int, n_k: int, heads: int) -> str | None:
        """Why this bias cannot serve such queries and keys, or None."""
        for name, table, count in (("f", self.f, n_q), ("g", self.g, n_k)):
            b, n, h, _ = table.shape
            if n != count or b not in (1, batch) or h not in (1, heads):
                return f"{name} must be ({batch}|1, {count}, {heads}|1, R), got {tuple(table.shape)}"
        return None


@dataclass(frozen=True, eq=False)
class Quadratic:
    """``-q_gain[i] * k_gain[j] * sum_a weight[h, a] * max(|q_pos[i, a] - k_pos[j, a]| - hinge[a], 0)^2``,
    evaluated in float32 from coordinates (no cancellation), differentiable in ``weight``.

    A soft window of width s on one axis is ``weight = 1 / (2 s^2)``. Tokens outside the formula get gain 0.

    Args:
        q_pos: (Nq, A) float32, k_pos: (Nk, A) float32. weight: (H|1, A) or (A,).
        hinge: (A,) distance without penalty, None = 0. q_gain: (Nq,), k_gain: (Nk,), None = 1.
    """

    q_pos: Tensor
    k_pos: Tensor
    weight: Tensor
    hinge: Tensor | None = None
    q_gain: Tensor | None = None
    k_gain: Tensor | None = None
    kind: ClassVar[str] = "quadratic"
    trainable: ClassVar[tuple[int, ...]] = (2,)

    def __post_init__(self):
        put = object.__setattr__
        wide = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        for name in ("q_pos", "k_pos", "weight"):
            put(self, name, getattr(self, name).to(wide))
        if self.weight.dim() == 1:
            put(self, "weight", self.weight[None])
        axes = self.q_pos.shape[-1]
        for name, like, size in (
            ("hinge", 0.0, axes),
            ("q_gain", 1.0, self.q_pos.shape[0]),
            ("k_gain", 1.0, self.k_pos.shape[0]),
        ):
            table = getattr(self, name)
            table = self.q_pos.new_full((size,), like) if table is None else table.to(wide)
            if table.shape != (size,):
                raise UsageError(f"bias: {name} must be ({size},), got {tuple(table.shape)}")
            put(self, name, table)
        if self.q_pos.dim() != 2 or self.k_pos.dim() != 2 or not axes == self.k_pos.shape[1] == self.weight.shape[-1]:
            raise UsageError(
                f"bias: q_pos (Nq, A), k_pos (Nk, A), weight (H|1, A) must share A, got "
                f"{tuple(self.q_pos.shape)}, {tuple(self.k_pos.shape)}, {tuple(self.weight.shape)}"
            )

    def tensors(self) -> list[Tensor]:
        """The tables in a fixed order."""
        return [self.q_pos, self.k_pos, self.weight, self.hinge, self.q_gain, self.k_gain]

    @cached_property
    def key_places(self) -> list[tuple[Tensor, Tensor]]:
        """Per axis the different coordinates of keys (U,), and which of them every key has (Nk,) int64."""
        return _places(self.k_pos)

    def reorder(self, order: TokenOrder | None, key_order: TokenOrder | None) -> Quadratic:
        """The same bias for tokens in block order."""
        changes = {}
        if order is not None:
            changes.update(q_pos=order.apply(self.q_pos, 0), q_gain=order.apply(self.q_gain, 0))
        if key_order is not None:
            changes.update(k_pos=key_order.apply(self.k_pos, 0), k_gain=key_order.apply(self.k_gain, 0))
        return replace(self, **changes)

    def misfit(self, batch: int, n_q: int, n_k: int, heads: int) -> str | None:
        """Why this bias cannot serve such queries and keys, or None."""
        return _coordinates(self.q_pos, self.k_pos, n_q, n_k) or _per_head("weight", self.weight, heads)


@dataclass(frozen=True, eq=False)
class Table:
    """``bias[h, i, j] = sum_a values[a][h, q_pos[i, a] - k_pos[j, a] + reach_a]``, differentiable in ``values``
    (learned relative tables). A distance beyond ``reach_a`` on an axis adds nothing for that axis.

    Args:
        values: per axis (H|1, 2 * reach_a + 1). q_pos: (Nq, A), k_pos: (Nk, A) integer coordinates.
    """

    values: tuple[Tensor, ...]
    q_pos: Tensor
    k_pos: Tensor

    def __post_init__(self):
        put = object.__setattr__
        put(self, "values", tuple(table[None] if table.dim() == 1 else table for table in self.values))
        put(self, "q_pos", self.q_pos.to(torch.int32))
        put(self, "k_pos", self.k_pos.to(torch.int32))
        axes = len(self.values)
        if self.q_pos.dim() != 2 or self.k_pos.dim() != 2 or not axes == self.q_pos.shape[1] == self.k_pos.shape[1]:
            raise UsageError(
                f"bias: {axes} tables need q_pos (Nq, {axes}) and k_pos (Nk, {axes}), got "
                f"{tuple(self.q_pos.shape)} and {tuple(self.k_pos.shape)}"
            )
        for table in self.values:
            if table.dim() != 2 or table.shape[1] % 2 == 0:
                raise UsageError(f"bias: a table must be (H|1, 2 * reach + 1), got {tuple(table.shape)}")

    @property
    def kind(self) -> str:
        """Name of the kind and number of tables."""
        return f"table{len(self.values)}"

    @property
    def trainable(self) -> tuple[int, ...]:
        """Positions in :meth:`tensors` that may get a gradient."""
        return tuple(range(len(self.values)))

    def tensors(self) -> list[Tensor]:
        """The tables in a fixed order."""
        return [*self.values, self.q_pos, self.k_pos]

    @cached_property
    def key_places(self) -> list[tuple[Tensor, Tensor]]:
        """Per axis the different coordinates of keys (U,), and which of them every key has (Nk,) int64."""
        return _places(self.k_pos)

    def reorder(self, order: TokenOrder | None, key_order: TokenOrder | None) -> Table:
        """The same bias for tokens in block order."""
        return Table(
            self.values,
            self.q_pos if order is None else order.apply(self.q_pos, 0),
            self.k_pos if key_order is None else key_order.apply(self.k_pos, 0),
        )

    def misfit(self, batch: int, n_q: int, n_k: int, heads: int) -> str | None:
        """Why this bias cannot serve such queries and keys, or None."""
        bad = (_per_head("values", table, heads) for table in self.values)
        return _coordinates(self.q_pos, self.k_pos, n_q, n_k) or next((text for text in bad if text), None)


Bias = LowRank | Quadratic | Table


def _coordinates(q_pos: Tensor, k_pos: Tensor, n_q: int, n_k: int) -> str | None:
    if (q_pos.shape[0], k_pos.shape[0]) != (n_q, n_k):
        return f"coordinates are for {q_pos.shape[0]} queries and {k_pos.shape[0]} keys, there are {n_q} and {n_k}"
    return None


def _places(positions: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [torch.unique(column, return_inverse=True) for column in positions.unbind(1)]


def _per_head(name: str, table: Tensor, heads: int) -> str | None:
    return None if table.shape[0] in (1, heads) else f"{name} has {table.shape[0]} heads, allowed: 1 or {heads}"


def flatten(terms: Sequence[Bias]) -> tuple[str, list[Tensor]]:
    """Kinds joined by commas, and all tables: what an operator's schema can carry."""
    return ",".join(term.kind for term in terms), [table for term in terms for table in term.tensors()]


def unflatten(kinds: str, tables: Sequence[Tensor]) -> tuple[Bias, ...]:
    """Inverse of :func:`flatten`."""
    terms: list[Bias] = []
    tables = list(tables)
    for kind in filter(None, kinds.split(",")):
        if kind == "lowrank":
            terms.append(LowRank(*tables[:2]))
        elif kind == "quadratic":
            terms.append(Quadratic(*tables[:6]))
        else:
            axes = int(kind.removeprefix("table"))
            terms.append(Table(tuple(tables[:axes]), *tables[axes : axes + 2]))
        del tables[: len(terms[-1].tensors())]
    return tuple(terms)


def trainable(kinds: str) -> list[bool]:
    """For every table of :func:`flatten`, whether it may get a gradient."""
    flags: list[bool] = []
    for kind in filter(None, kinds.split(",")):
        if kind == "lowrank":
            flags += [True, True]
        elif kind == "quadratic":
            flags += [False, False, True, False, False, False]
        else:
            flags += [True] * int(kind.removeprefix("table")) + [False, False]
    return flags
