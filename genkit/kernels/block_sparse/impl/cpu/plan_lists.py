"""A plan's lists as the native kernels walk them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from genkit.kernels.native.attention.visits import HALF, Lists, Visits, query_words, unit_for
from genkit.kernels.plan.bit_tiles import unpack
from genkit.kernels.plan.tables import PlanTables
from genkit.kernels.plan.visibility import rule_groups

_KEPT_BYTES = 128 << 20  # bits kept on a plan; beyond this they are made again when needed
_SPAN_BYTES = 32 << 20  # bits made together


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
        plan = self.plan
        key = batch % plan.batch, head % plan.heads, batch % rule_groups(plan)
        made = plan.cache.setdefault(("native", self.unit), {})
        if key in made:
            yield from made[key]
            return
        partial = plan.partial_count[key[:2]]
        size = self.halves * self.length * 4
        used = plan.cache.get("native bytes", 0) + int(partial.sum()) * size
        spans = _spans(partial.tolist(), _SPAN_BYTES // size)
        if used > _KEPT_BYTES:
            yield from (self._make(key, low, high) for low, high in spans)
            return
        plan.cache["native bytes"] = used
        made[key] = [self._make(key, low, high) for low, high in spans]
        yield from made[key]

    def _make(self, key: tuple[int, int, int], low: int, high: int) -> Visits:
        """The visits of the query blocks [low, high): full blocks of keys first, then those with masks. Mask 0 hides
        the empty slots at the end of a full block."""
        plan, own = self.plan, key[:2]
        per_block = self.length // self.unit
        lists = [
            (count[own][low:high], index[own][low:high])
            for count, index in ((plan.full_count, plan.full_index), (plan.partial_count, plan.partial_index))
        ]
        used = torch.cat([torch.arange(index.shape[1]) < count[:, None] for count, index in lists], 1)
        blocks = torch.cat([index for _, index in lists], 1)[used]
        partial = torch.zeros_like(used)
        partial[:, lists[0][1].shape[1] :] = True
        partial = partial[used]
        parts = torch.arange(per_block)
        filled = plan.block_k == self.length
        full = torch.where((parts == per_block - 1) & (not filled), 0, -1)
        masks = torch.where(partial[:, None], (partial.cumsum(0)[:, None] - 1) * per_block + 1 + parts, full)
        rows = torch.arange(low, high)[:, None].expand_as(used)[used][partial]
        starts = torch.nn.functional.pad(used.sum(1).cumsum(0) * per_block, (1, 0))
        units = (blocks[:, None] * per_block + parts).flatten().int()
        tiles = None
        if plan.tiles is not None:
            tiles = plan.tiles.index[own][low:high][used[:, lists[0][1].shape[1] :]].long()
        bits = torch.cat([self._tail(), self._bits(rows, blocks[partial].long(), key[2], tiles)])
        return Visits(low, high - low, starts, units, masks.flatten().int(), bits, plan.q_valid[low:high].long())

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
