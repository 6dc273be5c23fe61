"""The tables of a plan: the data record that functions and backends read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from genkit.kernels.permutation import TokenOrder
from genkit.kernels.plan.bit_tiles import BitTiles
from genkit.kernels.plan.lists import InverseLists, aligned, from_mask, to_mask
from genkit.kernels.plan.mask_spec import FULL, PARTIAL, Rule


@dataclass(frozen=True, eq=False)
class PlanTables:
    """Lists of key blocks per (batch, head, query block), and what decides about their pairs of tokens.

    Mq and Mk are the numbers of query and key blocks; sizes 1 for batch or head broadcast.

    Args:
        n_q, n_k: tokens of the tensors the operator takes with this plan.
        block_q, block_k: tokens per block.
        full_count: (B|1, H|1, Mq) int32. full_index: (B|1, H|1, Mq, Wf) int32, ascending, 0 beyond the count. A full
            block needs no mask at all: each of its ``block_k`` keys is valid and seen by every valid query.
        partial_count, partial_index: alike; a partial block is masked by ``k_valid`` and by ``rule`` or ``tiles``, if
            given.
        q_valid: (Mq,) int32, k_valid: (Mk,) int32: valid tokens, at the front of each block.
        rule: the :class:`Rule` of the tokens in block order, its tables padded to whole blocks (Mq*block_q queries,
            Mk*block_k keys), or None.
        tiles: the :class:`BitTiles` of the partial blocks, where a mask has no closed form, or None. A plan has a rule
            or tiles, or neither.
        order, key_order: set when the tensors come in another order than the blocks; the operator then permutes.
        pooled: parts of the keys read as means of several tokens, see ``from_levels``.
        even_keys: whether no key block lacks a key, as far as shapes tell; False = some may.

    A query block with both counts 0 is switched off: output 0, log-sum-exp -inf.
    """

    n_q: int
    n_k: int
    block_q: int
    block_k: int
    full_count: Tensor
    full_index: Tensor
    partial_count: Tensor
    partial_index: Tensor
    q_valid: Tensor
    k_valid: Tensor
    rule: Rule | None = None
    tiles: BitTiles | None = None
    order: TokenOrder | None = None
    key_order: TokenOrder | None = None
    pooled: tuple[PooledKeys, ...] = ()
    even_keys: bool = False
    cache: dict = field(default_factory=dict, repr=False)

    # ---- shape and place ----------------------------------------------------------------------------------------

    @property
    def blocks_q(self) -> int:
        """Number of query blocks Mq."""
        return self.q_valid.shape[0]

    @property
    def blocks_k(self) -> int:
        """Number of key blocks Mk."""
        return self.k_valid.shape[0]

    @property
    def batch(self) -> int:
        """Batch entries the lists tell apart; 1 = the same for all."""
        return self.full_count.shape[0]

    @property
    def heads(self) -> int:
        """Query heads the lists tell apart; 1 = the same for all."""
        return self.full_count.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return self.full_count.device

    @property
    def off(self) -> Tensor:
        """(B|1, H|1, Mq) bool: query blocks switched off (output 0, log-sum-exp -inf)."""
        total = self.full_count + self.partial_count
        for part in self.pooled:
            total = total + part.plan.full_count + part.plan.partial_count
        return total == 0

    def to(self, device: torch.device | str) -> Self:
        """The same plan with every table on ``device``."""
        device = torch.device(device)
        if device == self.device:
            return self
        moved = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, (Tensor, Rule, BitTiles, TokenOrder))
        }
        if self.key_order is self.order:
            moved["key_order"] = moved.get("order")
        pooled = tuple(part.to(device) for part in self.pooled)
        return replace(self, **moved, pooled=pooled, cache={})

    def in_order(self) -> Self:
        """The plan for tensors already in block order (``order.apply`` done by the caller, padding included), as when
        hidden states stay permuted through a whole stack of layers. The padding must hold finite numbers."""
        if self.order is None and self.key_order is None:
            return self
        if "in_order" not in self.cache:
            n_q = self.n_q if self.order is None else self.order.padded
            n_k = self.n_k if self.key_order is None else self.key_order.padded
            pooled = tuple(replace(part, plan=part.plan.in_order()) for part in self.pooled)
            self.cache["in_order"] = replace(
                self, n_q=n_q, n_k=n_k, order=None, key_order=None, pooled=pooled, cache={}
            )
        return self.cache["in_order"]

    def for_heads(self, first: int, count: int) -> Self:
        """The plan of ``count`` heads from number ``first`` on; itself where heads are not told apart."""
        if self.heads == 1 or (first, count) == (0, self.heads):
            return self
        key = ("heads", first, count)
        if key not in self.cache:
            span = slice(first, first + count)
            lists = ("full_count", "full_index", "partial_count", "partial_index")
            changes: dict = {name: getattr(self, name)[:, span] for name in lists}
            if self.tiles is not None:
                changes["tiles"] = replace(self.tiles, index=self.tiles.index[:, span])
            pooled = tuple(replace(part, plan=part.plan.for_heads(first, count)) for part in self.pooled)
            self.cache[key] = replace(self, **changes, pooled=pooled, cache={})
        return self.cache[key]

    # ---- derived ------------------------------------------------------------------------------------------------

    def states(self) -> Tensor:
        """(B|1, H|1, Mq, Mk) int8 of ABSENT, PARTIAL, FULL; pooled parts not included."""
        full = to_mask(self.full_count, self.full_index, self.blocks_k)
        partial = to_mask(self.partial_count, self.partial_index, self.blocks_k)
        return full * FULL + partial.to(torch.int8) * PARTIAL

    def tile_numbers(self) -> Tensor:
        """(B|1, H|1, Mq, Mk) int32: the bit tile of every partial block, 0 elsewhere."""
        shape = self.batch, self.heads, self.blocks_q, self.blocks_k + 1
        wide = torch.zeros(shape, dtype=torch.int32, device=self.device)
        used = torch.arange(self.partial_index.shape[-1], device=self.device) < self.partial_count[..., None]
        target = torch.where(used, self.partial_index, self.blocks_k).long()
        return wide.scatter_(-1, target, self.tiles.index)[..., :-1]

    def inverse(self) -> InverseLists:
        """Lists per key block, built on first use and kept."""
        if "inverse" not in self.cache:
            full = from_mask(to_mask(self.full_count, self.full_index, self.blocks_k).mT)
            turned = to_mask(self.partial_count, self.partial_index, self.blocks_k).mT
            tile = None if self.tiles is None else aligned(turned, self.tile_numbers().mT[turned])
            self.cache["inverse"] = InverseLists(*full, *from_mask(turned), tile)
        return self.cache["inverse"]


@dataclass(frozen=True)
class PooledKeys:
    """Key blocks read as means of ``factor`` neighbouring tokens.

    Args:
        plan: lists over the means, block_k / factor to a block.
        count: (B|1, Mk * block_k / factor) float32, visible tokens behind each mean; None = ``factor`` behind every
            valid one.
        visible: (B|1, Mk * block_k) bool, keys that enter the means, in block order; None = all valid ones.
    """

    factor: int
    plan: PlanTables
    count: Tensor | None
    visible: Tensor | None = None

    def to(self, device: torch.device) -> PooledKeys:
        """The same with every table on ``device``."""
        count, visible = (None if table is None else table.to(device) for table in (self.count, self.visible))
        return replace(self, plan=self.plan.to(device), count=count, visible=visible)
