"""One dynamic method with many selectors: score every pair of blocks, keep what the budget allows, attend exactly."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from genkit.attention.block_select import budget, checks, keys
from genkit.attention.block_select.presets import PLAIN, PRESETS
from genkit.attention.block_select.selectors import SELECTORS
from genkit.attention.cache import PatchCache
from genkit.attention.dynamic import Permutation, attend_grid
from genkit.attention.grid_blocks import GridBlocks, auto_across, share_of_all
from genkit.attention.keep import kept
from genkit.attention.method import Density, check_choice
from genkit.attention.read_blocks import BlocksRead
from genkit.attention.registry import register
from genkit.attention.scored import WithBias
from genkit.attention.site import Place, Site
from genkit.attention.static import check_tokens
from genkit.attention.weights import PatchWeights
from genkit.errors import UsageError
from genkit.kernels import BlockPlan, block_sparse_attention
from genkit.kernels.scores.estimate import pooled_scores
from genkit.kernels.scores.pool import pool_blocks
from genkit.kernels.scores.routing import kmeans_order, reordered
from genkit.layout import TokenLayout

_OWNER = "block_select"


class _LeftOut:
    """The value of a setting that is not given; None is one that may be given."""

    def __repr__(self) -> str:
        return "preset's"


_LEFT_OUT = _LeftOut()
#: Settings that methods share.
_SHARED = ("bias", "weights", "length_scale")


def _given(text: str) -> Any:
    """A setting that is the preset's, or the plain one, where it is left out."""
    return field(default=_LEFT_OUT, metadata={"help": text})


@register(_OWNER)
@dataclass(frozen=True)
class BlockSelect(WithBias):
    """Every block of the grid attends exactly to the blocks that a score says matter to it.

    A score estimates, for every head, how much attention each block of queries pays to each block of keys; a budget
    decides how many are kept. Nothing is trained. Text and other extra tokens see everything and are seen by
    everything. Keep the first quarter of the steps dense (:meth:`recommended`): at high noise scores say little.

    Settings that are left out are those of ``preset``, or else the defaults given here. ``None`` for ``across``,
    ``top_p``, ``tail``, ``guard`` or ``agreement`` turns off what a preset or a default would set.

    Args:
        preset: published settings by name: ``xattention``, ``proxyattn``, ``hip``, ``vsa``, ``draft``, ``sparge``,
            ``svg``, ``svg2``, ``asa``.
        score: ``"pooled"`` (products of block means, default), ``"sampled"`` (softmax over some tokens of each block),
            ``"antidiagonal"`` (one product per cell of ``stride`` x ``stride``), ``"proxy"`` (mean query and key of a
            group of heads), ``"tree"`` (a search from the top down, for very many blocks), ``"offset"`` (exact rows,
            averaged by relative place), ``"vertical"`` (exact rows, averaged by key), ``"kmeans"`` (tokens sorted by
            content first, then pooled), ``"keys"`` (single keys by trained weights, the same for all queries).
        block: tokens per block, default 64.
        across: frames and rows across the strips that blocks are cut from; default: blocks as long on every axis.
            ``1x1`` = runs of the sequence.
        keep: blocks kept per row, own included: a number, or a share of the blocks; default 0.2.
        top_p: keep as many blocks as hold this share of the row's mass instead.
        ranking: with ``top_p``: ``"own"``; ``"shared"``: the score ranks, and a head's own pooled map tells how many
            blocks it needs.
        scope: who shares ``keep``: each ``"row"`` of blocks, or each ``"head"``.
        least, most: with ``top_p``: fewest blocks, and largest share of the blocks, per row; default 1 and 0.5.
        sink: ``"first_frame"``: its blocks are kept by every row.
        guard: blocks whose tokens are less alike than this (mean cosine) are kept whole, as rows and as columns, since
            their mean says little about them.
        tail: read the dropped blocks as means of so many neighbouring tokens, a mean of n weighing as much as n keys;
            divides ``block``. Costs 1 / tail of what was dropped.
        refresh: steps that one selection serves; default 1.
        seed: of drawn tokens.
        samples, reduction: of ``sampled``; tokens per block (8), and how pairs add up (``mass``, ``max``, ``row_max``).
        stride, pairing: of ``antidiagonal``; divides ``block`` (8), ``aligned`` or ``reversed`` places.
        groups, agreement: of ``proxy``; groups of heads (1), least cosine of a head's map with its group's (0.8).
        fan_out, slack: of ``tree``; nodes below a node (8), blocks scored per block kept (1.5).
        rows: of ``offset`` and ``vertical``; exact rows per block (1).
        clusters, iterations: of ``kmeans``; clusters per head (32), rounds (4).
        weights: file with the weights of ``keys``, or with those of a learned bias.
        untrained: of ``keys``; begin with weights that choose nothing sensible, to train them.

    Sources: those of the presets; selection from pooled keys: docs/methods/block_select.md.
    """

    preset: str | None = field(default=None, metadata={"help": f"published settings: {', '.join(PRESETS)}"})
    score: str = _given("how pairs of blocks are scored: " + ", ".join(SELECTORS))
    block: int = _given("tokens per block; 64")
    across: tuple[int, int] | None = _given("frames and rows across the strips that blocks are cut from")
    keep: int | float = _given("blocks kept per row: number or share; 0.2")
    top_p: float | None = _given("share of a row's mass to keep instead")
    ranking: str = _given("with top_p: own, or shared (a head's own map tells how many)")
    scope: str = _given("who shares keep: row or head")
    least: int = _given("with top_p: fewest blocks per row; 1")
    most: float = _given("with top_p: largest share of the blocks per row; 0.5")
    sink: str = _given("kept by every row: none or first_frame")
    tail: int | None = _given("read what is dropped as means of so many tokens")
    guard: float | None = _given("blocks less alike than this (mean cosine) are kept whole")
    refresh: int = _given("steps that one selection serves; 1")
    seed: int = _given("of drawn tokens; 0")
    samples: int = _given("sampled: tokens per block; 8")
    reduction: str = _given("sampled: mass, max or row_max")
    stride: int = _given("antidiagonal: cell; 8")
    pairing: str = _given("antidiagonal: aligned or reversed")
    groups: int = _given("proxy: groups of heads; 1")
    agreement: float | None = _given("proxy: least cosine with the group; 0.8")
    fan_out: int = _given("tree: nodes below a node; 8")
    slack: float = _given("tree: blocks scored per block kept; 1.5")
    rows: int = _given("offset, vertical: exact rows per block; 1")
    clusters: int = _given("kmeans: clusters per head; 32")
    iterations: int = _given("kmeans: rounds; 4")
    untrained: bool = _given("keys: begin with untrained weights, to train them")

    roles: ClassVar[tuple[str, ...]] = ("self", "joint")
    trainable: ClassVar[bool] = True
    by_data: ClassVar[bool] = True
    variants: ClassVar[tuple[dict, ...]] = ({}, {"score": "keys", "untrained": True})
    weights_of: ClassVar[str] = "score=keys, or a bias with learned terms (table, or learned=true)"
    source: ClassVar[str] = "XAttention, ProxyAttn, HiP, VSA, DraftAttention, SpargeAttn, Sparse VideoGen 1 and 2"

    def __post_init__(self):
        super().__post_init__()
        if self.bias is not None and self.score == "keys":
            raise UsageError(
                f"{_OWNER}.bias: got {self.bias!r}, and score=keys adds a bias of its own to keys in lists of their "
                f"own; use another score, or leave bias out"
            )
        if self.preset is not None:
            check_choice(_OWNER, "preset", self.preset, tuple(PRESETS))
        asked = {name: getattr(self, name) for name in PLAIN if self._is_given(name)}
        own = PRESETS[self.preset].settings if self.preset else {}
        if "keep" in asked and "top_p" not in asked:
            own = {name: value for name, value in own.items() if name != "top_p"}
        self._set(PLAIN | own | asked)
        check_choice(_OWNER, "score", self.score, tuple(SELECTORS))
        # what a preset gives and others leave without effect is not refused, nor kept: files repeat what is here
        self._set({name: PLAIN[name] for name in checks.without_effect(self) if name not in asked})
        checks.check_values(self)
        checks.check_effect(self, asked)

    def _is_given(self, name: str) -> bool:
        value = getattr(self, name)
        return value is not _LEFT_OUT and (value is not None or name in checks.NONE)

    def _set(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def describe(self) -> str:
        """See :meth:`Method.describe`: the preset, and what differs from it."""
        base = PLAIN | (PRESETS[self.preset].settings if self.preset else {})
        changed = [f"{name}={getattr(self, name)}" for name in base if getattr(self, name) != base[name]]
        changed += [f"{name}={getattr(self, name)}" for name in _SHARED if getattr(self, name) is not None]
        return f"{self.name}({', '.join([*([f'preset={self.preset}'] if self.preset else []), *changed])})"

    @property
    def has_weights(self) -> bool:
        """See :attr:`WithBias.has_weights`: those of ``keys``, too."""
        return self.learns or self.score == "keys"

    def install(self, place: Place, cache: PatchCache) -> Iterable[Any]:
        """See :meth:`Method.install`: makes the weights of ``keys``, or those of a learned bias."""
        if self.score == "keys":
            self.check_weights()
            PatchWeights.of(cache).put(self.name, place.name, keys.KeyWeights(place), self.settings())
        return super().install(place, cache)

    def check_weights(self) -> None:
        """See :meth:`Method.check_weights`."""
        if self.score == "keys" and self.weights is None and not self.untrained:
            raise UsageError(
                f"{_OWNER}.score=keys must be trained; give weights=FILE (made by scripts/train_patch.py keys), "
                f"untrained=true to train it, or another score"
            )

    @property
    def heads_apart(self) -> bool:
        """See :attr:`Method.heads_apart`: unless heads share a ranking."""
        return SELECTORS[self.score].alone

    @property
    def every_grid(self) -> bool:
        """See :attr:`Method.every_grid`: blocks are chosen in each grid. Trained keys, and a bias of distances, are of
        one grid."""
        return self.score != "keys" and self.bias is None

    def recommended(self, steps: int, layers: int) -> dict[str, str]:
        """The first quarter of the steps dense: scores are flat at high noise."""
        return {"steps": f"{math.ceil(steps / 4)}:"} if steps > 1 else {}

    def blocks_on(self, grid: tuple[int, int, int]) -> GridBlocks:
        """The blocks of a concrete grid."""
        across = (1, 1) if self.score == "kmeans" else self.across or auto_across(grid, self.block)
        return GridBlocks(grid, self.block, (min(across[0], grid[0]), min(across[1], grid[1])))

    def details(self, layout: TokenLayout) -> str:
        """See :meth:`Method.details`."""
        count = math.ceil(layout.grid_length / self.block)
        if self.top_p is None:
            many = f"{budget.blocks_kept(self, count)} per row" + (" on average" if self.scope == "head" else "")
        else:
            most = budget.blocks_kept(self, count)
            many = f"as many as hold {self.top_p:.0%} of the estimated mass, at most {most}"
        return f"{count} blocks of {self.block} tokens, {many};  selection costs {SELECTORS[self.score].cost}"

    def select_blocks(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        blocks: GridBlocks,
        scale: float | None = None,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """bool (B, H, M, M): the blocks every row keeps; q, k (B, N, H, D) in the order of the blocks. No gradient.

        ``bias`` (1, H|1, M, M), the mean bias of two blocks, counts with the scores.
        """
        q, k = q.detach(), k.detach()
        selector = SELECTORS[self.score]
        scores = selector.score(q, k, blocks, self, budget.blocks_kept(self, blocks.count), scale)
        own = None
        if self.ranking == "shared":
            own = pooled_scores(q, k, self.block, self.block, scale=scale)
        if bias is not None:
            scores = budget.with_bias(scores, bias, selector.masses)
            own = None if own is None else budget.with_bias(own, bias, True)
        return budget.select(scores, self._always(q, k, blocks), self, own)

    def _always(self, q: torch.Tensor, k: torch.Tensor, blocks: GridBlocks) -> torch.Tensor:
        """bool, broadcast to (B, H, M, M): the own block, the sink, and blocks whose tokens are unlike each other."""
        if self.score == "kmeans":
            always = torch.zeros_like(blocks.own)
        else:
            always = blocks.own
        if self.sink == "first_frame":
            always = always | blocks.first
        if self.guard is not None:
            rows, columns = (_alike(x, self.block) < self.guard for x in (q, k))
            if columns.shape[1] != rows.shape[1]:
                columns = columns.repeat_interleave(rows.shape[1] // columns.shape[1], 1)
            always = always | rows[..., None] | columns[:, :, None]
        return always

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """See :meth:`Method.attend`; exact attention over the tokens of the kept blocks."""
        if self.score == "keys":
            self.require(site, cache)
            check_tokens(q, k, site)
            return self._lists(site, cache, q.device).attend(q, k, v, self.scaled(q, site))
        return self._attend(q, k, v, site, cache)[0]

    @property
    def tells_blocks(self) -> bool:
        """See :attr:`Method.tells_blocks`: not with means of the rest, nor with an order of its own in every head."""
        return self.tail is None and self.score not in ("kmeans", "keys")

    def attend_blocks(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> tuple[torch.Tensor, BlocksRead] | None:
        """See :meth:`Method.attend_blocks`."""
        if not self.tells_blocks:
            return super().attend_blocks(q, k, v, site, cache)
        out, plan, permutation = self._attend(q, k, v, site, cache)
        return out, BlocksRead(plan, True, permutation)

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> tuple[torch.Tensor, BlockPlan, Permutation]:
        self.require(site, cache)
        check_tokens(q, k, site)
        site = self.scaled(q, site)
        blocks = self.grid_blocks(site, cache, q.device)
        plans: list[BlockPlan] = []

        def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            plans.append(self._plan(q, k, blocks, site, cache))
            order = blocks.permutation.order
            bias = self.bias_terms(q, site, cache, order, pooled=self.tail is not None) or None
            return block_sparse_attention(q, k, v, plans[0], scale=site.scale, backend=cache.backend, bias=bias)

        def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            if self.score != "kmeans":
                return attended(q, k, v)
            order, key_order = self._orders(q, k)
            out, lse = attended(reordered(q, order), reordered(k, key_order), reordered(v, key_order))
            back = order.argsort(-1)
            return reordered(out, back), lse.gather(2, back)

        out: Any = attend_grid(q, k, v, site, cache, run, blocks.permutation)
        return out, plans[0], blocks.permutation

    def _plan(self, q: torch.Tensor, k: torch.Tensor, blocks: GridBlocks, site: Site, cache: PatchCache) -> BlockPlan:
        order = blocks.permutation.order
        chosen = self._selection(q, k, blocks, site, cache, self.block_bias(q, site, cache, order, self.block))
        cache.measure((self, site.name), lambda: blocks.share(self._read(chosen.double()), site.layout))
        sizes: dict[str, Any] = {"block_q": self.block, "block_k": self.block, "check": False}
        if self.tail is None:
            return BlockPlan.from_dense_blocks(chosen, q.shape[1], k.shape[1], **sizes)
        levels = torch.where(chosen, 1, self.tail).to(torch.int32)
        return BlockPlan.from_levels(levels, q.shape[1], k.shape[1], factors=(1, self.tail), **sizes)

    def _selection(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        blocks: GridBlocks,
        site: Site,
        cache: PatchCache,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """The blocks of a call: chosen now, or those of an earlier step of the same run, layer and branch."""
        if self.refresh == 1 or site.step is None or (torch.is_grad_enabled() and q.requires_grad):
            return self.select_blocks(q, k, blocks, site.scale, bias)
        key = (_OWNER, self, site.name, site.branch, tuple(q.shape))
        run, last, chosen = cache.held(key, (site.run, -1, None))
        if run != site.run:  # another prompt: its schedule may begin at a later step than the last run ended with
            last, chosen = -1, None
        together = last // self.refresh == site.step // self.refresh
        if chosen is None or site.step <= last or not together:
            fresh = self.select_blocks(q, k, blocks, site.scale, bias)
            if chosen is not None and site.step > last:
                self._count_overlap(chosen, fresh, cache)
            chosen = fresh
        cache.hold(key, (site.run, site.step, chosen))
        return chosen

    def _count_overlap(self, old: torch.Tensor, fresh: torch.Tensor, cache: PatchCache) -> None:
        """Remember how much of a fresh selection the one before it had."""
        total, count = cache.held((_OWNER, self, "overlap"), (0.0, 0))
        share = (old & fresh).sum() / fresh.sum()
        cache.hold((_OWNER, self, "overlap"), (total + share, count + 1))

    def remarks(self, cache: PatchCache) -> list[str]:
        """See :meth:`Method.remarks`: what reusing selections missed."""
        total, count = cache.held((_OWNER, self, "overlap"), (0.0, 0))
        told = super().remarks(cache)
        if not count:
            return told
        return [
            *told,
            f"{self.name}: a selection served up to {self.refresh} steps; where it was renewed, the one before held "
            f"{float(total) / count:.0%} of the blocks of the fresh one",
        ]

    def pair_rows(
        self, q: torch.Tensor, k: torch.Tensor, site: Site, cache: PatchCache, queries: torch.Tensor
    ) -> torch.Tensor:
        """The tokens of the blocks that are kept, chosen now; see :meth:`Method.pair_rows`. Means of a tail are not
        counted. The choice of ``keys`` is read from ``k`` in place of values: :meth:`read_rows` has both."""
        if self.score == "keys":
            return self._lists(site, cache, q.device).rows(k.detach(), q.shape[2], site, queries)
        blocks = self.grid_blocks(site, cache, q.device)
        start, stop = site.layout.grid_span
        q, k = (x.detach()[:, start:stop].index_select(1, blocks.permutation.order) for x in (q, k))
        block_q = block_k = (torch.arange(q.shape[1], device=q.device) // self.block).expand(*_per_head(q), -1)
        if self.score == "kmeans":
            order, key_order = self._orders(q, k)
            q, k = reordered(q, order), reordered(k, key_order)
            key_order = key_order.repeat_interleave(q.shape[2] // k.shape[2], 1)
            block_q, block_k = block_q.gather(-1, order.argsort(-1)), block_k.gather(-1, key_order.argsort(-1))
        site = self.scaled(q, site)
        bias = self.block_bias(q, site, cache, blocks.permutation.order, self.block)
        chosen = self.select_blocks(q, k, blocks, site.scale, bias)
        cache.measure((self, site.name), lambda: blocks.share(self._read(chosen.double()), site.layout))
        inverse = blocks.permutation.inverse
        inside = (queries >= start) & (queries < stop)
        block_q, block_k = block_q[..., inverse[queries[inside] - start]], block_k[..., inverse]
        rows = chosen.gather(2, block_q[..., None].expand(-1, -1, -1, chosen.shape[3]))
        read = rows.gather(3, block_k[:, :, None].expand(-1, -1, rows.shape[2], -1))
        found = chosen.new_ones(*chosen.shape[:2], len(queries), site.layout.length)
        found[:, :, inside, start:stop] = read
        return found

    def read_rows(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache, queries: torch.Tensor
    ) -> torch.Tensor:
        """See :meth:`Method.read_rows`."""
        return self.pair_rows(q, v if self.score == "keys" else k, site, cache, queries)

    def grid_blocks(self, site: Site, cache: PatchCache, device: torch.device) -> GridBlocks:
        """The blocks of a site's grid, made once."""
        found: GridBlocks = kept(cache, _blocks, self, site.layout.grid, device=device)
        return found

    def _lists(self, site: Site, cache: PatchCache, device: torch.device) -> keys.KeyLists:
        blocks = self.grid_blocks(site, cache, device)
        return keys.KeyLists(self, blocks, budget.blocks_kept(self, blocks.count), cache)

    def _orders(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys by content, (B, H, N) and (B, Hk, N) int64."""
        clusters = min(self.clusters, q.shape[1])
        order, key_order = (kmeans_order(x.detach(), clusters, self.iterations) for x in (q, k))
        return order, key_order

    def density(self, site: Site, cache: PatchCache) -> Density | None:
        """Density of the last call at the site; before any call, what ``keep`` comes to, or None with ``top_p``."""
        share = cache.measured((self, site.name))
        if share is None:
            if self.top_p is not None or self.guard is not None:
                return None
            count = math.ceil(site.layout.grid_length / self.block)
            share = share_of_all(self._read(budget.blocks_kept(self, count) / count), site.layout)
        if self.score == "keys":
            executed = self._lists(site, cache, cache.device).executed(site.layout)
            return Density(min(share, executed), executed)
        return Density(share, share)

    def _read(self, chosen: Any) -> Any:
        """Keys that are read per key of a block; a mean of the tail counts as one."""
        return chosen + (1 - chosen) / self.tail if self.tail else chosen


def _blocks(method: BlockSelect, grid: tuple[int, int, int]) -> GridBlocks:
    return method.blocks_on(grid)


def _per_head(x: torch.Tensor) -> tuple[int, int]:
    return x.shape[0], x.shape[2]


def _alike(x: torch.Tensor, block: int) -> torch.Tensor:
    """(B, H, M): mean cosine of all pairs of tokens of a block."""
    unit = torch.nn.functional.normalize(x.float(), dim=-1)
    return pool_blocks(unit, block).square().sum(-1).transpose(1, 2)
