"""What the block-sparse operator executes: for every query block, which key blocks it visits, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genkit.errors import UsageError
from genkit.kernels.block_lists import BlockLists, Budget, Kept, list_mask, rounded, select
from genkit.kernels.permutation import TokenOrder
from genkit.kernels.plan.bit_tiles import BitTiles, distinct
from genkit.kernels.plan.checks import refuse_empty_rows, refuse_empty_tokens
from genkit.kernels.plan.density import Density, measure
from genkit.kernels.plan.lists import aligned, from_mask, split_ragged, tidied, to_mask
from genkit.kernels.plan.mask_mods import MaskMod, Seen, read_blocks
from genkit.kernels.plan.mask_spec import ABSENT, FULL, PARTIAL, Rule, classify
from genkit.kernels.plan.sizes import SAME, Sizes
from genkit.kernels.plan.tables import PlanTables, PooledKeys

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True, eq=False)
class BlockPlan(PlanTables):
    """Which key blocks every (batch, head, query block) visits: what ``block_sparse_attention`` executes.

    Make one with ``from_rule`` (a mask in closed form), ``from_mask_mod`` or ``from_block_mask`` (any mask),
    ``from_dense_blocks``, ``from_indices``, ``from_levels`` (whole blocks), ``from_scores`` or ``from_lists`` (chosen
    on a device) or ``dense``. The fields, which backends read, are those of
    :class:`~genkit.kernels.plan.tables.PlanTables`.
    """

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
        """Plan of a mask specification in closed form (stated in original token order).

        Args:
            block_q, block_k: tokens per block; with a permutation, its own block size replaces them.
            order: permutation of the queries, or None for the order given.
            key_order: permutation of the keys; by default the same as the queries' when the lengths agree.
            keep: (B|1, H|1, Mq, Mk) bool, blocks that may be visited at all, in block order; None = all.
            off: (B|1, H|1, Mq) bool, query blocks switched off on purpose.
            check: verify token by token that no row is empty by accident (costs a pass over partial blocks of rows
                without a full block).

        Cost: O(N) memory plus Mq x Mk states; never N x N.

        Raises:
            UsageError: sizes that do not fit, or a row that sees no key and was not switched off.
        """
        sizes = Sizes.of(rule.n_q, rule.n_k, block_q, block_k, order, key_order, rule.device)
        rule = sizes.permute(rule)
        state = classify(rule, sizes.block_q, sizes.block_k, sizes.q_valid, sizes.k_valid)[:, None]
        if keep is not None:
            sizes.expect("keep", keep)
            state = torch.where(keep.to(state.device), state, ABSENT)
        return cls._build(sizes, state == FULL, state == PARTIAL, rule=rule, off=off, check=check)

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
            rule: a mask specification applied on top, stated in original token order, or None.
            Others as in :meth:`from_rule`. With ``check=False``, and without a rule and rows that are off, nothing
            waits for a GPU; lists then are as wide as there are key blocks, where :meth:`from_scores` knows a bound.
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
        sizes = Sizes.of(n_q, n_k, block_q, block_k, order, key_order, mask.device)
        sizes.expect("mask", mask)
        if mask.device.type != "cpu" and off is None and not check:
            options = {"block_q": block_q, "block_k": block_k, "order": order, "key_order": key_order}
            return cls.from_lists(list_mask(mask), n_q, n_k, **options)
        whole = sizes.whole_keys
        return cls._build(sizes, mask & whole, mask & ~whole, off=off, check=check)

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
            options: as in :meth:`from_dense_blocks`. With ``check=False``, and without a rule and rows that are off,
                nothing waits for the device: entries outside are taken for the nearest block.
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
        looks = options.get("check", True)
        if not looks and options.get("rule") is None and options.get("off") is None:
            sizes = {"block_q": block_q, "block_k": block_k, "order": order, "key_order": key_order}
            return cls.from_lists(tidied(count, index, blocks_k), n_q, n_k, **sizes)
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
    def from_lists(
        cls,
        lists: BlockLists,
        n_q: int,
        n_k: int,
        *,
        block_q: int = 64,
        block_k: int = 64,
        order: TokenOrder | None = None,
        key_order: TokenOrder | str | None = SAME,
    ) -> BlockPlan:
        """Plan of lists that :mod:`genkit.kernels.block_lists` made: nothing is read back from the device, whatever
        backend runs it.

        Entries are not looked at. They cannot lie outside: such lists hold positions of a row's own scores, the shapes
        are checked here, and a list made elsewhere goes through :meth:`from_indices`. A row whose list is empty is
        switched off.

        Args:
            lists: over the key blocks of the plan, ascending. Others as in :meth:`from_rule`.
        """
        sizes = Sizes.of(n_q, n_k, block_q, block_k, order, key_order, lists.index.device)
        blocks_q, blocks_k = len(sizes.q_valid), len(sizes.k_valid)
        count, index = lists
        shape = (*count.shape, index.shape[-1])
        if index.dim() != 4 or index.shape != shape or count.shape[2] != blocks_q or index.shape[3] > rounded(blocks_k):
            raise UsageError(
                f"plan: lists must be (B|1, H|1, {blocks_q}, up to {rounded(blocks_k)}), got count "
                f"{tuple(count.shape)} and index {tuple(index.shape)}"
            )
        full, partial = split_ragged(lists, sizes.k_valid, sizes.block_k, sizes.even_keys, sizes.key_order is None)
        return cls(
            n_q, n_k, sizes.block_q, sizes.block_k, full.count, full.index, partial.count, partial.index, sizes.q_valid,
            sizes.k_valid, order=sizes.order, key_order=sizes.key_order, even_keys=sizes.even_keys,
        )  # fmt: skip

    @classmethod
    def from_scores(
        cls,
        scores: Tensor,
        budget: Budget,
        kept: Kept,
        n_q: int,
        n_k: int,
        *,
        block_q: int = 64,
        block_k: int = 64,
        order: TokenOrder | None = None,
        key_order: TokenOrder | str | None = SAME,
        backend: str = "auto",
    ) -> BlockPlan:
        """Plan of the best key blocks of every query block, chosen and listed on the device of the scores.

        Args:
            scores: (B|1, H|1, Mq, Mk), see :func:`genkit.kernels.block_lists.select`.
            budget: how many. kept: what is kept in any case, made once and moved to the device.
            backend: of the selection. Others as in :meth:`from_rule`.
        """
        lists = select(scores, budget, kept, backend=backend)
        return cls.from_lists(lists, n_q, n_k, block_q=block_q, block_k=block_k, order=order, key_order=key_order)

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
        key_mask: Tensor | None = None,
        check: bool = True,
        factors: Sequence[int] | None = None,
    ) -> BlockPlan:
        """Plan of a pyramid: each visited key block is read in full or as means of p neighbouring tokens, a mean of p
        keys weighing as much as p keys (its logit gets ln p). Paper: Pyramid Sparse Attention.

        Args:
            levels: (B|1, H|1, Mq, Mk) integer: 0 = skip, 1 = every token, p = means of p tokens. p divides block_k.
                Means take valid tokens only; the last mean of a ragged block weighs as many tokens as it has.
            key_mask: (B, Nk) or (Nk,) bool, True = attend. A hidden key (padded text) enters no mean, and a mean weighs
                as much as its visible keys; one without any is hidden.
            factors: the levels above 0 that may occur, where they are known beforehand; None = look. Nothing then waits
                for a GPU, with ``check=False`` and without hidden keys.
        """
        sizes = Sizes.of(n_q, n_k, block_q, block_k, order, key_order, levels.device)
        sizes.expect("levels", levels, (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8))
        factors = [int(p) for p in (levels.unique().tolist() if factors is None else factors) if p != 0]
        wrong = [p for p in factors if p < 0 or sizes.block_k % p]
        if wrong:
            raise UsageError(f"plan: levels {wrong} given, allowed: 0 (skip) and divisors of block_k={sizes.block_k}")
        if off is not None:
            levels = levels.masked_fill(off.to(levels.device)[..., None], 0)
        if check:
            refuse_empty_rows((levels != 0).sum(-1), sizes, off)
        plans = {p: cls._build_blocks(sizes.pool(p), levels == p) for p in factors if p > 1}
        if key_mask is None:
            pooled = tuple(PooledKeys(p, plan, sizes.behind(p)) for p, plan in plans.items())
            return replace(cls._build_blocks(sizes, levels == 1), pooled=pooled)
        rule = Rule.everything(n_q, n_k).to(levels.device).hide_keys(key_mask)
        whole = cls.from_dense_blocks(
            levels == 1, n_q, n_k, block_q=sizes.block_q, block_k=sizes.block_k, rule=rule, order=order,
            key_order=key_order, check=False,
        )  # fmt: skip
        visible = sizes.visible(key_mask.to(levels.device).reshape(-1, n_k))
        behind = {p: visible.unflatten(1, (-1, p)).sum(-1).float() for p in plans}
        return replace(whole, pooled=tuple(PooledKeys(p, plan, behind[p], visible) for p, plan in plans.items()))

    @classmethod
    def dense(
        cls, n_q: int, n_k: int, *, block_q: int = 64, block_k: int = 64, device: torch.device | str = "cpu"
    ) -> BlockPlan:
        """Every query block visits every key block."""
        mask = torch.ones(1, 1, -(-n_q // block_q), -(-n_k // block_k), dtype=torch.bool, device=device)
        return cls.from_dense_blocks(mask, n_q, n_k, block_q=block_q, block_k=block_k)

    @classmethod
    def from_mask_mod(
        cls,
        mask_mod: MaskMod,
        n_q: int,
        n_k: int,
        *,
        batch: int = 1,
        heads: int = 1,
        block_q: int = 64,
        block_k: int = 64,
        order: TokenOrder | None = None,
        key_order: TokenOrder | str | None = SAME,
        keep: Tensor | None = None,
        off: Tensor | None = None,
        check: bool = True,
        device: torch.device | str = "cpu",
    ) -> BlockPlan:
        """Plan of any mask, for instance one without a closed form.

        Args:
            mask_mod: ``(b, h, i, j) -> bool``, as FlexAttention takes it: whether query i sees key j, all four integer
                tensors of one shape (mapped with ``torch.vmap``: no branches on values). Token numbers are in original
                order.
            batch, heads: how many of each the mask tells apart; 1 = the same for all.
            device: where the mask function is evaluated and the plan lives.
            Others as in :meth:`from_rule`.

        Cost: every pair of tokens of the kept blocks is asked once, a million at a time; partial blocks are stored as a
        bit a pair, equal ones once. A mask that has a closed form is better given to :meth:`from_rule`.

        Raises:
            UsageError: sizes that do not fit, or a row that sees no key and was not switched off.
        """
        sizes = Sizes.of(n_q, n_k, block_q, block_k, order, key_order, torch.device(device))
        if keep is None:
            keep = torch.ones(1, 1, len(sizes.q_valid), len(sizes.k_valid), dtype=torch.bool, device=sizes.device)
        sizes.expect("keep", keep)
        shape = max(batch, keep.shape[0]), max(heads, keep.shape[1]), *keep.shape[2:]
        keep = keep.to(sizes.device).expand(shape)
        if off is not None:
            keep = keep & ~off.to(sizes.device)[..., None]
        return cls._from_seen(sizes, keep.shape, read_blocks(sizes, mask_mod, keep), off, check)

    @classmethod
    def from_block_mask(cls, mask: BlockMask, rule: Rule | None = None) -> BlockPlan:
        """Plan of a FlexAttention ``BlockMask``, whatever its mask function computes.

        What the mask function hides inside blocks is kept as bits (see :meth:`from_mask_mod`), unless the mask came
        from :meth:`to_block_mask` of a plan with a rule, or ``rule`` says the same in closed form. A query block that
        visits nothing counts as switched off.

        Args:
            rule: what the mask function says, in closed form. It is compared with the function on every partial block.

        Raises:
            UsageError: a rule that says something else than the mask function.
        """
        from genkit.kernels.plan.interop import read_block_mask

        sizes, rule, full, partial, seen = read_block_mask(mask, rule)
        if seen is not None:
            return cls._from_seen(sizes, full.shape, seen, None, check=False, full=full)
        return cls._build(sizes, full, partial, rule=rule, check=False)

    def to_block_mask(self) -> BlockMask:
        """The same plan as a FlexAttention ``BlockMask`` over the tokens in block order.

        Raises:
            UsageError: a plan with pooled keys.
        """
        from genkit.kernels.plan.interop import to_block_mask

        return to_block_mask(self)

    def density(self) -> Density:
        """Densities ``(computed, executed)``, averaged over batch entries and heads; a pooled mean of p tokens counts
        as one pair. The first call may visit every partial block token by token; the result is kept."""
        if "density" not in self.cache:
            self.cache["density"] = measure(self)
        return self.cache["density"]

    # ---- from block masks to lists --------------------------------------------------------------------------------

    @classmethod
    def _build_blocks(cls, sizes: Sizes, mask: Tensor) -> BlockPlan:
        if mask.device.type != "cpu":
            # blocks of means may be ragged anywhere
            full, partial = split_ragged(list_mask(mask), sizes.k_valid, sizes.block_k, sizes.even_keys, False)
            return cls(
                sizes.n_q, sizes.n_k, sizes.block_q, sizes.block_k, full.count, full.index, partial.count,
                partial.index, sizes.q_valid, sizes.k_valid, order=sizes.order, key_order=sizes.key_order,
                even_keys=sizes.even_keys,
            )  # fmt: skip
        return cls._build(sizes, mask & sizes.whole_keys, mask & ~sizes.whole_keys, check=False)

    @classmethod
    def _build(
        cls,
        sizes: Sizes,
        full: Tensor,
        partial: Tensor,
        *,
        rule: Rule | None = None,
        tiles: BitTiles | None = None,
        off: Tensor | None = None,
        check: bool,
    ) -> BlockPlan:
        """The plan of (B|1, H|1, Mq, Mk) bool masks of full and partial blocks; ``tiles`` belong to ``partial``."""
        if off is not None:
            blocked = off.to(full.device)[..., None]
            full, partial = full & ~blocked, partial & ~blocked
        plan = cls(
            sizes.n_q,
            sizes.n_k,
            sizes.block_q,
            sizes.block_k,
            *from_mask(full),
            *from_mask(partial),
            sizes.q_valid,
            sizes.k_valid,
            rule,
            tiles,
            sizes.order,
            sizes.key_order,
            (),
            sizes.even_keys,
        )
        if check:
            refuse_empty_rows(plan.full_count + plan.partial_count, sizes, off, rule)
            refuse_empty_tokens(plan, off)
        return plan

    @classmethod
    def _from_seen(
        cls,
        sizes: Sizes,
        shape: torch.Size,
        seen: Seen,
        off: Tensor | None,
        check: bool,
        full: Tensor | None = None,
    ) -> BlockPlan:
        """The plan of blocks that were read token by token, and of ``full`` ones besides."""
        full = torch.zeros(shape, dtype=torch.bool, device=sizes.device) if full is None else full.clone()
        full[seen.of(seen.every)] = True
        partial = torch.zeros_like(full)
        partial[seen.of(seen.some & ~seen.every)] = True
        tiles = None
        if bool(seen.hides.any()):
            words, number = distinct(seen.words[seen.some & ~seen.every])
            tiles = BitTiles(words, aligned(partial, number))
        return cls._build(sizes, full, partial, tiles=tiles, off=off, check=check)
