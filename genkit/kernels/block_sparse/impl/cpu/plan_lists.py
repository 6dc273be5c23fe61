"""A plan's lists as the native kernels walk them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from genkit.kernels.native.attention.visits import HALF, Lists, Visits, query_words, unit_for
from genkit.kernels.plan.bit_tiles import unpack
from genkit.kernels.plan.tables import PlanTables
from genkit.kernels.plan.visibility import rule_groups

_KEPT_BYTES = 128 << 20  # bits kept on a plan; beyond this they are made again when needed
_SPAN_BYTES = 32 << 20  # bits made together
_TOGETHER_BYTES, _TOGETHER = 8 << 20, 1 << 20  # bits and visits of all lists up to which they are made at once


class PlanLists(Lists):
    """The lists of a plan."""

    def __init__(self, plan: PlanTables, tiles: bool):
        unit, self.length = unit_for(plan.block_k, tiles)
        covers = int(plan.q_valid.sum()) == plan.n_q
        super().__init__(plan.n_k, plan.block_q, covers, unit, plan.blocks_k * self.length, tiles)
        self.plan = plan

    def place(self, x: Tensor, into: Tensor) -> None:
        size, into = self.plan.block_k, into.unflatten(1, (-1, self.length))
        whole = self.n_k // size
        into[:, :whole, :size].copy_(x[:, : whole * size].unflatten(1, (whole, size)))
        if rest := self.n_k - whole * size:
            into[:, whole, :rest].copy_(x[:, whole * size :])

    def collect(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, self.length))[:, :, : self.plan.block_k].flatten(1, 2)[:, : self.n_k]

    def visits(self, batch: int, head: int) -> Iterator[Visits]:
        """Kept on the plan while the budget lasts."""
        plan, group = self.plan, batch % rule_groups(self.plan)
        key = batch % plan.batch, head % plan.heads, group
        made = plan.cache.setdefault(("native", self.unit), {})
        if key not in made:
            made.update(self._beside(group))
        if key in made:
            yield from made[key]
            return
        partial = plan.partial_count[key[:2]]
        size = self.halves * self.length * 4
        lists = slice(key[0], key[0] + 1), slice(key[1], key[1] + 1)
        spans = _spans(partial.tolist(), _SPAN_BYTES // size)
        parts = (self._make(lists, low, high, group)[0] for low, high in spans)
        if self._keep(int(partial.sum()) * size):
            made[key] = list(parts)
            parts = iter(made[key])
        yield from parts

    def _keep(self, size: int) -> bool:
        """Whether so many bytes may be kept on the plan; they then count."""
        total = self.plan.cache.get("native bytes", 0) + size
        if total <= _KEPT_BYTES:
            self.plan.cache["native bytes"] = total
        return total <= _KEPT_BYTES

    def _beside(self, group: int) -> dict[tuple[int, int, int], list[Visits]]:
        """The visits of all lists with the rules of a group, made at once where their masks are small: most of what it
        takes is then the same for one list and for many. Nothing where they are not."""
        plan = self.plan
        batches = slice(0, plan.batch)
        if plan.batch > 1 and rule_groups(plan) > 1:
            batches = slice(group, group + 1)
        partial = int(plan.partial_count[batches].sum())
        count = (int(plan.full_count[batches].sum()) + partial) * (self.length // self.unit)
        size = partial * self.halves * self.length * 4
        if count > _TOGETHER or size > _TOGETHER_BYTES or not self._keep(size):
            return {}
        own = product(range(plan.batch)[batches], range(plan.heads))
        made = self._make((batches, slice(0, plan.heads)), 0, plan.blocks_q, group)
        return {(*key, group): [visits] for key, visits in zip(own, made, strict=True)}

    def _make(self, lists: tuple[slice, slice], low: int, high: int, group: int) -> list[Visits]:
        """The visits of the query blocks [low, high) of some lists: full blocks of keys first, then those with masks.
        Mask 0 hides the empty slots at the end of a full block."""
        plan, count = self.plan, high - low
        per_block = self.length // self.unit

        def rows_of(table: Tensor) -> Tensor:
            return table[lists][:, :, low:high].flatten(0, 2)

        full, part = rows_of(plan.full_count), rows_of(plan.partial_count)
        full_index, part_index = rows_of(plan.full_index), rows_of(plan.partial_index)
        widths = full_index.shape[1], part_index.shape[1]
        slots = torch.arange(max(widths))
        used = torch.cat([slots[: widths[0]] < full[:, None], slots[: widths[1]] < part[:, None]], 1)
        blocks = torch.cat([full_index, part_index], 1)[used]
        partial = torch.zeros_like(used)
        partial[:, widths[0] :] = True
        partial = partial[used]
        parts = torch.arange(per_block)
        empty = torch.where((parts == per_block - 1) & (plan.block_k != self.length), 0, -1)
        masks = torch.where(partial[:, None], (partial.cumsum(0)[:, None] - 1) * per_block + 1 + parts, empty)
        rows = (torch.arange(len(used)) % count + low)[:, None].expand_as(used)[used][partial]
        starts = torch.nn.functional.pad(used.sum(1).cumsum(0) * per_block, (1, 0))
        units = (blocks[:, None] * per_block + parts).flatten().int()
        tiles = None
        if plan.tiles is not None:
            tiles = rows_of(plan.tiles.index)[used[:, widths[0] :]].long()
        bits = torch.cat([self._tail(), self._bits(rows, blocks[partial].long(), group, tiles)])
        shared = units, masks.flatten().int(), bits, plan.q_valid[low:high].long()
        return [Visits(low, count, starts[at : at + count + 1], *shared) for at in range(0, len(used), count)]

    def _tail(self) -> Tensor:
        """(1, halves, unit) int32: every query sees the slots of a block's last unit that hold keys."""
        keys = torch.arange(self.length - self.unit, self.length) < self.plan.block_k
        return torch.where(keys, -1, 0).int().expand(1, self.halves, -1)

    def _bits(self, rows: Tensor, blocks: Tensor, group: int, tiles: Tensor | None) -> Tensor:
        """(pairs * units of a block, halves, unit) int32 for pairs of query and key blocks. In a plan with bit tiles
        ``tiles`` (pairs,) are theirs."""
        plan, parts = self.plan, self.halves
        query, slot = torch.arange(plan.block_q), torch.arange(plan.block_k)
        together = max(1, (4 << 20) // (parts * HALF * self.length))
        found = [torch.empty(0, parts, self.unit, dtype=torch.int32)]
        for at in range(0, len(rows), together):
            row, block = rows[at : at + together, None], blocks[at : at + together, None]
            seen = torch.zeros(len(row), parts * HALF, self.length, dtype=torch.bool)
            shown = seen[:, : plan.block_q, : plan.block_k]
            shown[:] = (slot < plan.k_valid[block])[:, None]
            if tiles is not None:
                shown &= unpack(plan.tiles.words[tiles[at : at + together]], plan.block_k)
            elif plan.rule is not None:
                shown &= plan.rule.tile(row * plan.block_q + query, block * plan.block_k + slot, group)
            words = query_words(seen)  # (pairs, halves, slots of a block)
            found.append(words.unflatten(2, (-1, self.unit)).transpose(1, 2).flatten(0, 1))
        return torch.cat(found)


def _spans(counts: list[int], limit: int) -> Iterator[tuple[int, int]]:
    """Ranges of successive blocks whose counts add up to at most ``limit``, or that are one block."""
    low = total = 0
    for at, count in enumerate(counts):
        if at > low and total + count > limit:
            yield low, at
            low, total = at, 0
        total += count
    yield low, len(counts)
