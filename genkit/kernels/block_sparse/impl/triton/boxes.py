"""A mask specification packed into one int32 word per token, so that a kernel tests all axes of a pair at once.

A word has a field per axis, each with a guard bit above it. A query holds the lowest and the highest position it sees,
a key the span of positions it takes part in; a pair is visible when these meet on every axis:
``q_low <= k_high and k_low <= q_high``. With guard bits set on one side the subtractions ``k_high - q_low`` and
``q_high - k_low`` do this for every field, and a field that would fall below zero loses its guard bit instead.

A usual key spans its own position. One of a group that every query sees spans the whole axis; so does the window of a
query that sees every group. Further fields tell hidden keys, switched-off queries, and groups that some queries do not
see. Rules that measure a distance, that show a pair of groups whole without either being shown whole everywhere, or
whose axes need more than 32 bits have no such form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genkit.kernels.block_sparse.impl.triton.tile import BoxTables
from genkit.kernels.plan.block_plan import BlockPlan
from genkit.kernels.plan.mask_spec import ALL, NONE, WINDOW, Rule

#: Words behind the end that a tile longer than its block may read.
BEYOND = 256
BITS = 32


def pack(plan: BlockPlan) -> BoxTables | None:
    """The tables of a plan's rule, None where it has no such form. Looks at the device once or twice."""
    rule = plan.rule
    if rule is None or rule.radius2 is not None:
        return None
    groups = _Groups.of(rule.visible.tolist())
    if groups is None:
        return None
    q_real, k_real = (
        _real(valid, block) for valid, block in ((plan.q_valid, plan.block_q), (plan.k_valid, plan.block_k))
    )
    hidden = ~k_real | _member(rule.k_group, groups.hidden)
    everywhere = _member(rule.k_group, groups.everywhere)
    words = _Words(
        torch.zeros(rule.n_q, dtype=torch.int64, device=rule.device),
        torch.zeros(rule.n_q, dtype=torch.int64, device=rule.device),
        torch.zeros(rule.k_group.shape, dtype=torch.int64, device=rule.device),
        torch.zeros(rule.k_group.shape, dtype=torch.int64, device=rule.device),
    )
    off = ~q_real | _member(rule.q_group, groups.off)
    # A hidden key ends below what every query asks for; a query that is off asks for more than any key has.
    words.add(torch.where(off, 2, 1), 1, ~hidden, ~hidden, 2)
    for refused, group in groups.refused:
        other = rule.k_group != group
        words.add(_member(rule.q_group, refused), 1, other, other, 1)
    if groups.windowed:
        _add_axes(words, rule, _member(rule.q_group, groups.sees_all), everywhere, everywhere | hidden)
    return words.tables() if words.used <= BITS else None


def _real(valid: Tensor, block: int) -> Tensor:
    return (torch.arange(block, device=valid.device) < valid[:, None]).reshape(-1)


def _member(table: Tensor, groups: list[int]) -> Tensor:
    found = torch.zeros_like(table, dtype=torch.bool)
    for group in groups:
        found |= table == group
    return found


@dataclass(frozen=True)
class _Groups:
    """What a visibility table comes to: groups of keys that no query sees or every query sees whole, groups of queries
    that see nothing or everything whole, and for other groups of keys which groups of queries do not see them."""

    hidden: list[int]
    everywhere: list[int]
    off: list[int]
    sees_all: list[int]
    refused: list[tuple[list[int], int]]
    windowed: bool

    @classmethod
    def of(cls, visible: list[list[int]]) -> _Groups | None:
        columns = list(zip(*visible, strict=True))
        hidden = [h for h, codes in enumerate(columns) if set(codes) == {NONE}]
        everywhere = [h for h, codes in enumerate(columns) if WINDOW not in codes and h not in hidden]
        off = [g for g, codes in enumerate(visible) if set(codes) == {NONE}]
        sees_all = [g for g, codes in enumerate(visible) if WINDOW not in codes]
        for g, codes in enumerate(visible):
            if any(code == ALL and g not in sees_all and h not in everywhere for h, code in enumerate(codes)):
                return None
        refused = [
            ([g for g, code in enumerate(codes) if code == NONE and g not in off], h)
            for h, codes in enumerate(columns)
            if h not in hidden
        ]
        windowed = any(WINDOW in codes for codes in visible)
        return cls(hidden, everywhere, off, sees_all, [pair for pair in refused if pair[0]], windowed)


@dataclass
class _Words:
    """The four words while fields are added to them, without guard bits."""

    q_low: Tensor
    q_high: Tensor
    k_low: Tensor
    k_high: Tensor
    used: int = 0
    guard: int = 0

    def add(self, q_low: Tensor, q_high: Tensor | int, k_low: Tensor, k_high: Tensor, bits: int) -> None:
        """A field of ``bits`` bits and a guard bit above it."""
        for name, value in (("q_low", q_low), ("q_high", q_high), ("k_low", k_low), ("k_high", k_high)):
            value = value.long() if isinstance(value, Tensor) else value
            setattr(self, name, getattr(self, name) + value * (1 << self.used))
        self.guard |= 1 << (self.used + bits)
        self.used += bits + 1

    def tables(self) -> BoxTables:
        """What the kernels read."""
        same = bool((self.k_low == self.k_high).all())
        k_low, k_high = _narrow(self.k_low), None if same else _narrow(self.k_high | self.guard)
        guard = self.guard - (1 << 32) if self.guard >= 1 << 31 else self.guard
        stride = k_low.shape[-1] if k_low.shape[0] > 1 else 0
        return BoxTables(_narrow(self.q_low), _narrow(self.q_high | self.guard), k_low, k_high, guard, stride)


def _narrow(words: Tensor) -> Tensor:
    """The low 32 bits, with words behind the end that hold nothing."""
    signed = torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
    return torch.nn.functional.pad(signed, (0, BEYOND)).contiguous()


def _add_axes(words: _Words, rule: Rule, q_all: Tensor, k_all: Tensor, k_other: Tensor) -> None:
    """A field per axis. Positions count from the first one that a windowed key has; ``k_other`` are not such keys."""
    pos, limits = rule.k_pos.long(), torch.iinfo(torch.int32)
    outside = k_other.all(0)[:, None]
    first = torch.where(outside, limits.max, pos).amin(0)
    last = torch.where(outside, limits.min, pos).amax(0)
    low, high = rule.q_lo.long() - first, rule.q_hi.long() - 1 - first
    for axis, size in enumerate((last - first + 1).clamp(min=1).tolist()):
        bits = int(size).bit_length()
        if words.used + bits >= BITS:
            words.used = BITS + 1
            return
        # a window that ends before the first position begins behind the last one
        start = torch.where(high[:, axis] < 0, size, low[:, axis].clamp(0, size))
        end = high[:, axis].clamp(0, size - 1)
        here = (pos[:, axis] - first[axis]).clamp(0, size - 1).expand(k_all.shape)
        words.add(
            torch.where(q_all, 0, start),
            torch.where(q_all, size - 1, end),
            torch.where(k_all, 0, here),
            torch.where(k_all, size, here),
            bits,
        )
