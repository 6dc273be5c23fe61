"""Pyramid sparse attention: important blocks are read token by token, others as means of two, four or eight tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.dynamic import attend_grid
from genkit.attention.grid_blocks import GridBlocks, auto_across, share_of_all
from genkit.attention.keep import kept
from genkit.attention.method import Density, check_choice, check_int, check_number, check_used, is_number
from genkit.attention.pyramid.gilbert import gilbert_order
from genkit.attention.pyramid.levels import FACTORS, levels_by_share, levels_by_threshold, similarity_cap
from genkit.attention.registry import register
from genkit.attention.scored import WithBias
from genkit.attention.site import Site
from genkit.attention.static import check_tokens
from genkit.errors import UsageError, explain
from genkit.kernels import BlockPlan, block_sparse_attention
from genkit.kernels.scores.estimate import sampled_scores
from genkit.layout import TokenLayout

_OWNER = "pyramid"
_MODES, _ORDERS, _IMPORTANCE = ("threshold", "quantile"), ("gilbert", "box", "sequence"), ("softmax", "row_max")
Four = tuple[float, float, float, float]


@register(_OWNER)
@dataclass(frozen=True)
class Pyramid(WithBias):
    """Blocks of keys are read the more coarsely the less they matter: token by token, as means, or not at all.

    A mean of p neighbouring keys weighs as much as p keys. At the same number of products a query then sees several
    times as many blocks as under a selection that keeps or drops. Nothing is trained. Text and other extra tokens see
    everything and are seen by everything.

    Args:
        mode: ``"threshold"``: by running share of the row's importance; ``"quantile"``: by rank.
        thresholds: of the levels 1, 2, 4 and 8, ascending; where the last one is reached the rest is dropped.
        quantiles: of the row's blocks that the levels take.
        block: tokens per block, a multiple of 8. Published: 128.
        order: ``"gilbert"`` (published), ``"box"`` (strips through the grid, blocks of :class:`BlockSelect`) or
            ``"sequence"``.
        importance: ``"softmax"``: the largest sampled weight of a pair of blocks (the paper's formula); ``"row_max"``:
            every sampled row scaled by its own largest score instead of its sum (the published code).
        samples: sampled tokens, as a share of the block; published 0.25.
        crossing: the block that crosses a threshold is read at the finer level, and 6 % of a row at the finest (the
            published code); off: the paper's formula, with at least one block per row.
        cap: least mean cosine of keys 1, 3 and 7 apart for levels 2, 4 and 8; published 0.7, 0.65, 0.6 with a cap.
        seed: of the sampled places.

    Source: Pyramid Sparse Attention, arXiv 2512.04025.
    """

    mode: Literal["threshold", "quantile"] = field(default="threshold", metadata={"help": "how levels are given out"})
    thresholds: Four = field(
        default=(0.5, 0.6, 0.7, 0.8), metadata={"help": "running importance up to which each level goes"}
    )
    quantiles: Four = field(default=(0.1, 0.05, 0.0, 0.2), metadata={"help": "shares of the blocks for each level"})
    block: int = field(default=64, metadata={"help": "tokens per block, a multiple of 8"})
    order: Literal["gilbert", "box", "sequence"] = field(default="gilbert", metadata={"help": "order of the tokens"})
    importance: Literal["softmax", "row_max"] = field(default="softmax", metadata={"help": "how pairs are judged"})
    samples: float = field(default=0.25, metadata={"help": "sampled tokens, share of the block"})
    crossing: bool = field(default=True, metadata={"help": "the crossing block belongs to the finer level"})
    cap: tuple[float, float, float] | None = field(default=None, metadata={"help": "least cosine for levels 2, 4, 8"})
    seed: int = field(default=0, metadata={"help": "of the sampled places"})

    roles: ClassVar[tuple[str, ...]] = ("self", "joint")
    trainable: ClassVar[bool] = True
    by_data: ClassVar[bool] = True
    source: ClassVar[str] = "Pyramid Sparse Attention, arXiv 2512.04025"

    def __post_init__(self):
        super().__post_init__()
        for name, choices in (("mode", _MODES), ("order", _ORDERS), ("importance", _IMPORTANCE)):
            check_choice(_OWNER, name, getattr(self, name), choices)
        check_choice(_OWNER, "crossing", self.crossing, (True, False))
        check_int(_OWNER, "block", self.block, FACTORS[-1], 4096)
        check_int(_OWNER, "seed", self.seed, 0, 2**63 - 1)
        if self.block % FACTORS[-1]:
            raise UsageError(explain(f"{_OWNER}.block", self.block, f"a multiple of {FACTORS[-1]}"))
        self._check_row("thresholds", self.thresholds, 4)
        self._check_row("quantiles", self.quantiles, 4)
        if self.cap is not None:
            self._check_row("cap", self.cap, 3, low=-1.0)
        if list(self.thresholds) != sorted(self.thresholds) or not self.thresholds[-1]:
            raise UsageError(explain(f"{_OWNER}.thresholds", self.thresholds, "ascending numbers, the last above 0"))
        if not 0 < sum(self.quantiles) <= 1 + 1e-9:
            raise UsageError(
                explain(f"{_OWNER}.quantiles", self.quantiles, "shares that add up to more than 0, at most 1")
            )
        check_number(_OWNER, "samples", self.samples, 0, 1, above=True)
        check_used(self, ("thresholds", "crossing"), self.mode == "threshold", "mode='threshold'")
        check_used(self, ("quantiles",), self.mode == "quantile", "mode='quantile'")

    def _check_row(self, name: str, values: object, count: int, low: float = 0.0) -> None:
        good = isinstance(values, tuple) and len(values) == count
        for value in values if isinstance(values, tuple) else ():
            good = good and is_number(value) and low <= value <= 1
        if not good:
            raise UsageError(explain(f"{_OWNER}.{name}", values, f"{count} numbers from {low:g} to 1"))

    @property
    def heads_apart(self) -> bool:
        """See :attr:`Method.heads_apart`: heads share no budget."""
        return True

    @property
    def every_grid(self) -> bool:
        """See :attr:`Method.every_grid`: levels are chosen in each grid; not with a bias, which is one of distances in
        one grid."""
        return self.bias is None

    def recommended(self, steps: int, layers: int) -> dict[str, str]:
        """The first 30 % of the steps dense, as in the published settings; few-step models have none."""
        return {"steps": f"{math.ceil(0.3 * steps)}:"} if steps > 8 else {}

    def blocks_on(self, grid: tuple[int, int, int]) -> GridBlocks:
        """The blocks of a concrete grid."""
        if self.order == "gilbert":
            return GridBlocks(grid, self.block, (1, 1), walk=gilbert_order(grid))
        across = (1, 1) if self.order == "sequence" else auto_across(grid, self.block)
        return GridBlocks(grid, self.block, (min(across[0], grid[0]), min(across[1], grid[1])))

    def details(self, layout: TokenLayout) -> str:
        """See :meth:`Method.details`."""
        count = math.ceil(layout.grid_length / self.block)
        values = self.thresholds if self.mode == "threshold" else self.quantiles
        told = ", ".join(
            f"{value:g} as means of {p}" if p > 1 else f"{value:g} exact"
            for value, p in zip(values, FACTORS, strict=True)
        )
        up_to = "importance up to " if self.mode == "threshold" else "of the blocks "
        return f"{count} blocks of {self.block} tokens; {up_to}{told}"

    def levels(
        self, q: torch.Tensor, k: torch.Tensor, scale: float | None = None, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """int32 (B, H, M, M): tokens that a mean stands for, 0 = dropped; q, k (B, N, H, D) in the order of the
        blocks. No gradient. ``bias`` (1, H|1, M, M), the mean bias of two blocks, counts with the importance."""
        q, k = q.detach(), k.detach()
        count = max(1, round(self.samples * self.block))
        scores = sampled_scores(
            q, k, self.block, self.block, samples_q=count, samples_k=count,
            reduction="max" if self.importance == "softmax" else "row_max", seed=self.seed, scale=scale,
        )  # fmt: skip
        if bias is not None:
            scores = scores * (bias - bias.amax(-1, keepdim=True)).exp()
        if self.mode == "quantile":
            found = levels_by_share(scores, self.quantiles)
        else:
            found = levels_by_threshold(scores, self.thresholds, self.crossing)
        best = torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).bool()
        found = torch.where(best & (found == 0), 1, found)
        if self.cap is not None:
            most = similarity_cap(k, self.block, self.cap)
            most = most.repeat_interleave(q.shape[2] // k.shape[2], 1)[:, :, None]
            found = torch.minimum(found, most)
        return found

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """See :meth:`Method.attend`; one softmax over tokens and means."""
        self.require(site, cache)
        check_tokens(q, k, site)
        site = self.scaled(q, site)
        blocks = kept(cache, _blocks, self, site.layout.grid, device=q.device)

        def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            levels = self.levels(
                q, k, site.scale, self.block_bias(q, site, cache, blocks.permutation.order, self.block)
            )
            cache.measure((self, site.name), lambda: blocks.share(_weight(levels), site.layout))
            plan = BlockPlan.from_levels(
                levels, q.shape[1], k.shape[1], block_q=self.block, block_k=self.block, check=False, factors=FACTORS
            )
            bias = self.bias_terms(q, site, cache, blocks.permutation.order, pooled=True) or None
            return block_sparse_attention(q, k, v, plan, scale=site.scale, backend=cache.backend, bias=bias)

        return attend_grid(q, k, v, site, cache, run, blocks.permutation)

    def seen(self, q: torch.Tensor, k: torch.Tensor, site: Site, cache: PatchCache) -> torch.Tensor:
        """1 for keys that are read alone, 1/p for those read as means of p, the mean over heads; see
        :meth:`Method.seen`."""
        blocks = _blocks(self, site.layout.grid)
        start, stop = site.layout.grid_span
        q, k = (x[:, start:stop].index_select(1, blocks.permutation.order) for x in (q, k))
        site = self.scaled(q, site)
        levels = self.levels(q, k, site.scale, self.block_bias(q, site, cache, blocks.permutation.order, self.block))
        cache.measure((self, site.name), lambda: blocks.share(_weight(levels), site.layout))
        block_of = (torch.arange(stop - start) // self.block)[blocks.permutation.inverse]
        found = torch.ones(site.layout.length, site.layout.length)
        found[start:stop, start:stop] = _weight(levels).mean((0, 1)).float()[block_of][:, block_of]
        return found

    def density(self, site: Site, cache: PatchCache) -> Density | None:
        """Density of the last call at the site, a mean counting as one key; before any call None, but for shares."""
        share = cache.measured((self, site.name))
        if share is None:
            if self.mode == "threshold" or self.cap is not None:
                return None
            count = math.ceil(site.layout.grid_length / self.block)
            levels = levels_by_share(torch.arange(count).float()[None], self.quantiles)
            share = share_of_all(float(_weight(levels).mean()), site.layout)
        return Density(share, share)


def _blocks(method: Pyramid, grid: tuple[int, int, int]) -> GridBlocks:
    return method.blocks_on(grid)


def _weight(levels: torch.Tensor) -> torch.Tensor:
    return torch.where(levels > 0, 1.0 / levels.clamp(min=1).double(), 0.0)
