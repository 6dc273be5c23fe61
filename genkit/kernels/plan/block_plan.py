"""What the block-sparse operator executes: for every query block, which key blocks it visits, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from genkit.errors import UsageError
from genkit.kernels.permutation import TokenOrder
from genkit.kernels.plan.checks import refuse_empty_rows
from genkit.kernels.plan.lists import from_mask, to_mask
from genkit.kernels.plan.mask_spec import ABSENT, FULL, PARTIAL, Rule, classify

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

SAME = "same"


@dataclass(frozen=True)
class InverseLists:
    """For every key block, the query blocks that visit it (what dK and dV need).

    ``full_count`` (B|1, H|1, Mk) int32 and ``full_index`` (B|1, H|1, Mk, W) int32, ascending, 0 beyond the count;
    ``partial_count`` and ``partial_index`` alike.
    """

    full_count: Tensor
    full_index: Tensor
    partial_count: Tensor
    partial_index: Tensor


class Density(NamedTuple):
    """``computed``: share of the token pairs that are visible; ``executed``: share of pairs in visited blocks, padding
    included (tile work), so it may exceed 1 with padded border blocks."""

    computed: float
    executed: float


@dataclass(frozen=True, eq=False)
class BlockPlan:
    """Lists of key blocks per (batch, head, query block). Make one with ``from_rule``, ``from_dense_blocks``,
    ``from_indices``, ``from_levels`` or ``from_block_mask``; the fields are what backends read.

    Mq and Mk are the numbers of query and key blocks; sizes 1 for batch or head broadcast.

    Args:
        n_q, n_k: tokens of the tensors the operator takes with this plan.
        block_q, block_k: tokens per block.
        full_count: (B|1, H|1, Mq) int32. full_index: (B|1, H|1, Mq, Wf) int32, ascending, 0 beyond the count. A full
            block needs no mask at all: each of its ``block_k`` keys is valid and seen by every valid query.
        partial_count, partial_index: alike; a partial block is masked by ``k_valid`` and, if given, by ``rule``.
        q_valid: (Mq,) int32, k_valid: (Mk,) int32: valid tokens, at the front of each block.
        rule: the :class:`Rule` of the tokens in block order, its tables padded to whole blocks (Mq*block_q queries,
            Mk*block_k keys), or None.
        order, key_order: set when the tensors come in another order than the blocks; the operator then permutes.
        pooled: parts of the keys read as means of several tokens, see ``from_levels``.

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
    order: TokenOrder | None = None
    key_order: TokenOrder | None = None
    pooled: tuple[PooledKeys, ...] = ()
    cache: dict = field(default_factory=dict, repr=False)

    # ---- construction -------------------------------------------------------------------------------------------

    @classmethod
    def from_rule(
        cls,
        rule: Rule,
        *,
        block_q: int = 64,
        block_k: int = 64,
        order: TokenOrder | None = None,
        key_order: TokenOrder | str | None = SAME,
        keep: Tensor | None = None,
        off: Tensor | None = None,
        check: bool = True,
    ) -> BlockPlan:
        """Plan of a closed-form rule (stated in original token order).

        Args:
            block_q, block_k: tokens per block; with an order, its own block size replaces them.
            order: order of the queries, or None for the order given.
            key_order: order of the keys; by default the same as the queries' when the lengths agree.
            keep: (B|1, H|1, Mq, Mk) bool, blocks that may be visited at all, in block order; None = all.
            off: (B|1, H|1, Mq) bool, query blocks switched off on purpose.
            check: verify token by token that no row is empty by accident (costs a pass over partial blocks of rows
                without a full block).

        Cost: O(N) memory plus Mq x Mk states; never N x N.

        Raises:
            UsageError: sizes that do not fit, or a row that sees no key and was not switched off.
        """
        if key_order == SAME:
            key_order = order if order is not None and rule.n_k == order.length else None
        sizes = _Sizes.of(rule.n_q, rule.n_k, block_q, block_k, order, key_order, rule.device)
        rule = sizes.permute(rule)
        state = classify(rule, sizes.block_q, sizes.block_k, sizes.q_valid, sizes.k_valid)[:, None]
        if keep is not None:
            sizes.expect("keep", keep)
            state = torch.where(keep.to(state.device), state, ABSENT)
        return sizes.build(state == FULL, state == PARTIAL, rule, off, check)

    @classmethod
    def from_dense_blocks(
        cls,
        mask: Tensor,
        n_q: int,
        n_k: int,
        *,
        block_q: int = 64,
        block_k: int = 64,
        rule: Rule | None = None,
        order: TokenOrder | None = None,
        key_order: TokenOrder | str | None = SAME,
        off: Tensor | None = None,
        check: bool = True,
    ) -> BlockPlan:
        """Plan of a block mask, static or per batch entry and head.

        Args:
            mask: (B|1, H|1, Mq, Mk) or (Mq, Mk) bool, True = visit, in block order.
            rule: a closed-form rule applied on top, stated in original token order, or None.
            Others as in :meth:`from_rule`.
        """
        mask = mask[None, None] if mask.dim() == 2 else mask
        if rule is not None:
            if (rule.n_q, rule.n_k) != (n_q, n_k):
                raise UsageError(
                    f"plan: n_q={n_q}, n_k={n_k} given, but the rule has {rule.n_q} queries and {rule.n_k} keys"
                )
            return cls.from_rule(
                rule.to(mask.device),
                block_q=block_q,
                block_k=block_k,
                order=order,
                key_order=key_order,
                keep=mask,
                off=off,
                check=check,
            )
        if key_order == SAME:
            key_order = order if order is not None and n_k == order.length else None
        sizes = _Sizes.of(n_q, n_k, block_q, block_k, order, key_order, mask.device)
        sizes.expect("mask", mask)
        whole = (sizes.k_valid == sizes.block_k)[None, None, None]
        return sizes.build(mask & whole, mask & ~whole, None, off, check)

    @classmethod
    def from_indices(
        cls,
        index: Tensor,
        n_q: int,
        n_k: int,
        *,
        count: Tensor | None = None,
        block_q: int = 64,
        block_k: int = 64,
        **options,
    ) -> BlockPlan:
        """Plan of key-block lists, for instance the result of a top-k.

        Args:
            index: (B|1, H|1, Mq, K) integer key blocks, any order; repetitions count once.
            count: (B|1, H|1, Mq) entries used of each list, None = all K.
            options: as in :meth:`from_dense_blocks`.
        """
        order, key_order = options.get("order"), options.get("key_order", SAME)
        if key_order == SAME:
            key_order = order if order is not None and n_k == order.length else None
        blocks_k = key_order.blocks if key_order is not None else -(-n_k // block_k)
        if index.dim() != 4:
            raise UsageError(f"plan: index must be (B|1, H|1, Mq, K), got shape {tuple(index.shape)}")
        if count is None:
            count = torch.full(index.shape[:3], index.shape[3], dtype=torch.int32, device=index.device)
        elif count.shape != index.shape[:3]:
            raise UsageError(f"plan: count must be {tuple(index.shape[:3])}, got {tuple(count.shape)}")
        if not torch.compiler.is_dynamo_compiling():
            used = torch.arange(index.shape[3], device=index.device) < count[..., None]
            if bool((used & ((index < 0) | (index >= blocks_k))).any()):
                raise UsageError(
                    f"plan: index must hold key blocks 0 to {blocks_k - 1}, "
                    f"got {int(index[used].min())} to {int(index[used].max())}"
                )
        return cls.from_dense_blocks(
            to_mask(count, index, blocks_k), n_q, n_k, block_q=block_q, block_k=block_k, **options
        )

    @classmethod
    def from_levels(
        cls,
        levels: Tensor,
        n_q: int,
        n_k: int,
        *,
        block_q: int = 64,
        block_k: int = 64,
        order: TokenOrder | None = None,
        key_order: TokenOrder | str | None = SAME,
        off: Tensor | None = None,
        check: bool = True,
    ) -> BlockPlan:
        """Plan of a pyramid: each visited key block is read in full or as means of p neighbouring tokens, a mean of p
        keys weighing as much as p keys (its logit gets ln p). Paper: Pyramid Sparse Attention.

        Args:
            levels: (B|1, H|1, Mq, Mk) integer: 0 = skip, 1 = every token, p = means of p tokens. p divides block_k.
                Means take valid tokens only; the last mean of a ragged block weighs as many tokens as it has.
        """
        if key_order == SAME:
            key_order = order if order is not None and n_k == order.length else None
        sizes = _Sizes.of(n_q, n_k, block_q, block_k, order, key_order, levels.device)
        sizes.expect("levels", levels, (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8))
        factors = [int(p) for p in levels.unique().tolist() if p != 0]
        wrong = [p for p in factors if p < 0 or sizes.block_k % p]
        if wrong:
            raise UsageError(f"plan: levels {wrong} given, allowed: 0 (skip) and divisors of block_k={sizes.block_k}")
        if off is not None:
            levels = levels.masked_fill(off.to(levels.device)[..., None], 0)
        if check:
            refuse_empty_rows((levels != 0).sum(-1), None, None, sizes, None, off)
        pooled = tuple(
            PooledKeys(p, sizes.pool(p).build_blocks(levels == p), sizes.behind(p)) for p in factors if p > 1
        )
        return replace(sizes.build_blocks(levels == 1), pooled=pooled)

    @classmethod
    def dense(
        cls, n_q: int, n_k: int, *, block_q: int = 64, block_k: int = 64, device: torch.device | str = "cpu"
    ) -> BlockPlan:
        """Every query block visits every key block."""
        mask = torch.ones(1, 1, -(-n_q // block_q), -(-n_k // block_k), dtype=torch.bool, device=device)
        return cls.from_dense_blocks(mask, n_q, n_k, block_q=block_q, block_k=block_k)

    @classmethod
    def from_block_mask(cls, mask: BlockMask, rule: Rule | None = None) -> BlockPlan:
        """Plan of a FlexAttention ``BlockMask``; see :func:`genkit.kernels.plan.interop.from_block_mask`."""
        from genkit.kernels.plan.interop import from_block_mask

        return from_block_mask(mask, rule)

    def to_block_mask(self) -> BlockMask:
        """The same plan as a FlexAttention ``BlockMask`` over the tokens in block order."""
        from genkit.kernels.plan.interop import to_block_mask

        return to_block_mask(self)

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

    def to(self, device: torch.device | str) -> BlockPlan:
        """The same plan with every table on ``device``."""
        device = torch.device(device)
        if device == self.device:
            return self
        moved = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, (Tensor, Rule, TokenOrder))
        }
        if self.key_order is self.order:
            moved["key_order"] = moved.get("order")
        pooled = tuple(
            replace(part, plan=part.plan.to(device), count=None if part.count is None else part.count.to(device))
            for part in self.pooled
        )
        return replace(self, **moved, pooled=pooled, cache={})

    def in_order(self) -> BlockPlan:
        """The plan for tensors already in block order (``order.apply`` done by the caller, padding included), as when
        hidden states stay permuted through a whole stack of layers."""
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

    # ---- derived ------------------------------------------------------------------------------------------------

    def states(self) -> Tensor:
        """(B|1, H|1, Mq, Mk) int8 of ABSENT, PARTIAL, FULL; pooled parts not included."""
        full = to_mask(self.full_count, self.full_index, self.blocks_k)
        partial = to_mask(self.partial_count, self.partial_index, self.blocks_k)
        return full * FULL + partial.to(torch.int8) * PARTIAL

    def inverse(self) -> InverseLists:
        """Lists per key block, built on first use and kept."""
        if "inverse" not in self.cache:
            full = from_mask(to_mask(self.full_count, self.full_index, self.blocks_k).mT)
            partial = from_mask(to_mask(self.partial_count, self.partial_index, self.blocks_k).mT)
            self.cache["inverse"] = InverseLists(*full, *partial)
        return self.cache["inverse"]

    def density(self) -> Density:
        """Densities ``(computed, executed)``, averaged over batch entries and heads; a pooled mean of p tokens counts
        as one pair. The first call may visit every partial block token by token; the result is kept."""
        if "density" not in self.cache:
            from genkit.kernels.plan.density import measure

            self.cache["density"] = Density(*measure(self))
        return self.cache["density"]


@dataclass(frozen=True)
class PooledKeys:
    """Key blocks read as means of ``factor`` neighbouring tokens.

    Args:
        plan: lists over the means, block_k / factor to a block.
        count: (Mk * block_k / factor,) float32, tokens behind each mean; None = ``factor`` behind every valid one.
    """

    factor: int
    plan: BlockPlan
    count: Tensor | None


@dataclass(frozen=True)
class _Sizes:
    """Everything about a plan that does not depend on what is visible."""

    n_q: int
    n_k: int
    block_q: int
    block_k: int
    q_valid: Tensor
    k_valid: Tensor
    order: TokenOrder | None
    key_order: TokenOrder | None

    @classmethod
    def of(
        cls,
        n_q: int,
        n_k: int,
        block_q: int,
        block_k: int,
        order: TokenOrder | None,
        key_order: TokenOrder | None,
        device: torch.device,
    ) -> _Sizes:
        for name, value in (("n_q", n_q), ("block_q", block_q), ("block_k", block_k)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"plan: {name} must be a whole number >= 1, got {value!r}")
        sides = []
        for name, count, block, arrange in (("queries", n_q, block_q, order), ("keys", n_k, block_k, key_order)):
            if arrange is None:
                start = torch.arange(0, count, block, device=device)
                sides.append((block, (count - start).clamp(max=block).to(torch.int32), None))
            elif arrange.length != count:
                raise UsageError(f"plan: the order of the {name} has {arrange.length} tokens, there are {count}")
            else:
                arrange = arrange if arrange.gather.device == device else arrange.to(device)
                sides.append((arrange.block, arrange.valid, arrange))
        if order is not None and key_order is order:
            sides[1] = sides[0]
        (block_q, q_valid, order), (block_k, k_valid, key_order) = sides
        return cls(n_q, n_k, block_q, block_k, q_valid, k_valid, order, key_order)

    @property
    def device(self) -> torch.device:
        return self.q_valid.device

    def expect(self, name: str, table: Tensor, dtypes: Sequence[torch.dtype] = (torch.bool,)) -> None:
        wanted = (len(self.q_valid), len(self.k_valid))
        if table.dim() != 4 or tuple(table.shape[2:]) != wanted or table.dtype not in dtypes:
            kinds = " or ".join(str(kind).removeprefix("torch.") for kind in dtypes)
            raise UsageError(
                f"plan: {name} must be {kinds} of shape (B|1, H|1, {wanted[0]}, {wanted[1]}) for "
                f"{self.n_q} queries in blocks of {self.block_q} and {self.n_k} keys in blocks of "
                f"{self.block_k}, got {table.dtype} {tuple(table.shape)}"
            )

    def permute(self, rule: Rule) -> Rule:
        """The rule in block order, padded to whole blocks."""
        return rule.take(
            self._slots(rule.n_q, self.block_q, self.order), self._slots(rule.n_k, self.block_k, self.key_order)
        )

    def _slots(self, count: int, block: int, order: TokenOrder | None) -> Tensor:
        if order is not None:
            return order.gather
        slots = torch.arange(-(-count // block) * block, device=self.device)
        return torch.where(slots < count, slots, -1)

    def pool(self, factor: int) -> _Sizes:
        """Sizes once every ``factor`` keys of a block are one."""
        n_k = len(self.k_valid) * self.block_k // factor
        k_valid = torch.div(self.k_valid + factor - 1, factor, rounding_mode="floor").to(torch.int32)
        return replace(self, n_k=n_k, block_k=self.block_k // factor, k_valid=k_valid, key_order=None)

    def behind(self, factor: int) -> Tensor | None:
        """Tokens behind each mean, or None when every mean with a token has ``factor`` of them."""
        first = torch.arange(0, self.block_k, factor, device=self.device)
        count = (self.k_valid[:, None] - first).clamp(0, factor).flatten()
        return None if bool((count % factor == 0).all()) else count.float()

    def build_blocks(self, mask: Tensor) -> BlockPlan:
        whole = (self.k_valid == self.block_k)[None, None, None]
        return self.build(mask & whole, mask & ~whole, None, None, check=False)

    def build(self, full: Tensor, partial: Tensor, rule: Rule | None, off: Tensor | None, check: bool) -> BlockPlan:
        if off is not None:
            blocked = off.to(full.device)[..., None]
            full, partial = full & ~blocked, partial & ~blocked
        full_count, full_index = from_mask(full)
        partial_count, partial_index = from_mask(partial)
        plan = BlockPlan(
            self.n_q,
            self.n_k,
            self.block_q,
            self.block_k,
            full_count,
            full_index,
            partial_count,
            partial_index,
            self.q_valid,
            self.k_valid,
            rule,
            self.order,
            self.key_order,
        )
        if check:
            refuse_empty_rows(full_count + partial_count, full_count, plan, self, rule, off)
        return plan
