"""Keys chosen by trained weights, the same for all queries of a head (Dynamic Mask Attention): weights and calls."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from genkit.attention.dynamic import attend_grid
from genkit.attention.grid_blocks import GridBlocks, share_of_all
from genkit.attention.keep import kept
from genkit.attention.site import Place, Site, base_layer
from genkit.attention.weights import PatchWeights, like
from genkit.errors import UnsupportedError
from genkit.kernels import BlockPlan, block_sparse_attention
from genkit.kernels.plan.bias import LowRank
from genkit.layout import TokenLayout

if TYPE_CHECKING:
    from genkit.attention.block_select.method import BlockSelect
    from genkit.attention.cache import PatchCache

#: Added to the logit of a key that is already in the list of chosen ones: its weight there is exactly zero.
_TWICE = -1e4


def key_bias(amplitude: torch.Tensor, weight: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """``A_h softplus(w_h . v_j)``, (B, Hk, N): how much key j matters to the queries of head h.

    Args:
        amplitude: (Hk,) A. weight: (Hk, C) w. v: (B, N, Hk, D), C = Hk D.
    """
    wide = torch.promote_types(v.dtype, weight.dtype)
    found = torch.nn.functional.softplus(v.flatten(2).to(wide) @ weight.to(v.device, wide).T)
    return (found * amplitude.to(v.device, wide)).transpose(1, 2)


class KeyWeights(nn.Module):
    """Trainable weights of a layer: ``amplitude`` (Hk,), 0.1 at first, and ``map`` (Hk, C), zero at first.

    What they give is counted from its value at ``map = 0``, so that untrained weights change nothing and keys without
    a bias (text) keep their share.
    """

    def __init__(self, place: Place):
        super().__init__()
        queries, values = (base_layer(each) for each in (place.projections.q, place.projections.v))
        if values is None or not hasattr(values, "out_features"):
            raise UnsupportedError(
                f"layer {place.name}: block_select with score=keys reads its sizes from the projection "
                f"{place.projections.names[2]}, which {type(place.module).__name__} lacks"
            )
        channels = values.out_features
        heads = place.heads * channels // getattr(queries, "out_features", channels)
        kind = like(values)
        self.amplitude = nn.Parameter(torch.full((heads,), 0.1, **kind))
        self.map = nn.Parameter(torch.zeros(heads, channels, **kind))

    def ranks(self, v: torch.Tensor) -> torch.Tensor:
        """(B, Hk, N): what orders keys as the bias does, and of the amplitude knows the sign alone."""
        return key_bias(self.amplitude.detach().sign(), self.map, v)

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        """The bias (B, Hk, N) of keys with the values v (B, N, Hk, D)."""
        rest = math.log(2) * self.amplitude.to(v.device)[:, None]
        found = key_bias(self.amplitude, self.map, v)
        return found - rest.to(found)


def bias_of(method: BlockSelect, v: torch.Tensor, site: Site, cache: PatchCache) -> torch.Tensor:
    """(B, Hk, N) bias of the keys with the values v (B, N, Hk, D); outside a patch as of untrained weights."""
    own = PatchWeights.of(cache)
    if not own.has(method.name, site.name):
        wide = torch.promote_types(v.dtype, torch.float32)
        return v.new_zeros(v.shape[0], v.shape[2], v.shape[1], dtype=wide)
    return own.at(method.name, site.name)(v)


def choose(bias: torch.Tensor, count: int) -> torch.Tensor:
    """(B, Hk, count) int64, ascending: the keys with the largest bias (B, Hk, N), of equal ones the earlier."""
    order = bias.detach().sort(dim=-1, descending=True, stable=True).indices
    return order[..., :count].sort(dim=-1).values


@dataclass(frozen=True)
class KeyLists:
    """Attention of a grid over a list of chosen keys per head, and over the row's own block.

    Args:
        method: its settings. blocks: of the grid. wanted: blocks that every row reads, its own included. cache: of the
            patch, which has the weights.
    """

    method: BlockSelect
    blocks: GridBlocks
    wanted: int
    cache: PatchCache

    def count(self) -> int:
        """Tokens of the list."""
        tokens = len(self.blocks.permutation.order)
        return tokens if self.wanted >= self.blocks.count else (self.wanted - 1) * self.method.block

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site) -> torch.Tensor | None:
        """See :meth:`Method.attend`."""

        def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self._grid(q, k, v, site)

        return attend_grid(q, k, v, site, self.cache, run, self.blocks.permutation)

    def _grid(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site) -> tuple[torch.Tensor, torch.Tensor]:
        """The grid's tokens in the order of the blocks: out like q, lse (B, H, N).

        Keys and values of the chosen tokens are copied into a list in front of all others, with their bias; a row reads
        the list and its own block, where what the list holds is hidden. One softmax, one plan for all calls of a grid.
        """
        tokens, heads = q.shape[1], q.shape[2]
        count = self.count()
        bias = bias_of(self.method, v, site, self.cache)
        if count < tokens:
            chosen = choose(bias, count)
            at = chosen.transpose(1, 2)[..., None].expand(-1, -1, -1, k.shape[3])  # (B, count, Hk, D)
            k, v = (torch.cat([x.gather(1, at), x], 1) for x in (k, v))
            twice = torch.zeros_like(bias, dtype=torch.bool).scatter(-1, chosen, True)
            self.cache.measure((self.method, site.name), lambda: self._share(twice, site))
            bias = torch.cat([bias.gather(-1, chosen), bias.masked_fill(twice, _TWICE)], -1)
        side = bias.transpose(1, 2).repeat_interleave(heads // bias.shape[1], 2)[..., None]
        plan = kept(self.cache, _plan, tokens, self.method.block, count, device=q.device)
        ones = torch.ones(1, tokens, 1, 1, device=q.device, dtype=side.dtype)
        backend = self.cache.backend
        return block_sparse_attention(q, k, v, plan, scale=site.scale, backend=backend, bias=(LowRank(ones, side),))

    def rows(self, v: torch.Tensor, heads: int, site: Site, queries: torch.Tensor) -> torch.Tensor:
        """What some queries read, bool (B, heads, n, N), when the values are v (B, N, Hk, D)."""
        start, stop = site.layout.grid_span
        order, inverse = self.blocks.permutation.order, self.blocks.permutation.inverse
        bias = bias_of(self.method, v[:, start:stop].index_select(1, order), site, self.cache)
        chosen = choose(bias, self.count())
        listed = torch.zeros_like(bias, dtype=torch.bool).scatter(-1, chosen, True)[..., inverse]
        self.cache.measure((self.method, site.name), lambda: self._share(listed[..., order], site))
        number = inverse // self.method.block
        inside = (queries >= start) & (queries < stop)
        own = number[queries[inside] - start][:, None] == number
        rows = (listed[:, :, None] | own).repeat_interleave(heads // listed.shape[1], 1)
        found = listed.new_ones(len(v), heads, len(queries), site.layout.length)
        found[:, :, inside, start:stop] = rows
        return found

    def executed(self, layout: TokenLayout) -> float:
        """The share of all pairs that is computed: the list and the own block, also where they meet."""
        sizes = self.blocks.sizes
        if self.wanted >= self.blocks.count:
            return 1.0
        return float(share_of_all((sizes * (self.count() + sizes)).sum() / sizes.sum() ** 2, layout))

    def _share(self, listed: torch.Tensor, site: Site) -> torch.Tensor:
        """The share of all pairs that is read; listed (B, Hk, N) in the order of the blocks."""
        sizes = self.blocks.sizes.to(listed.device)
        number = torch.arange(listed.shape[-1], device=listed.device) // self.method.block
        inside = sizes.new_zeros(len(sizes)).index_add_(0, number, listed.double().mean((0, 1)))
        read = (sizes * (self.count() + sizes - inside)).sum() / sizes.sum() ** 2
        return share_of_all(read, site.layout)


def _plan(tokens: int, block: int, count: int) -> BlockPlan:
    """Rows read ``count`` keys in front, and their own block behind them; with ``count = tokens`` all, once."""
    rows = math.ceil(tokens / block)
    own = torch.eye(rows, dtype=torch.bool) if count < tokens else torch.zeros(rows, 0, dtype=torch.bool)
    seen = torch.cat([torch.ones(rows, math.ceil(count / block), dtype=torch.bool), own], 1)[None, None]
    keys = count + tokens if count < tokens else tokens
    return BlockPlan.from_dense_blocks(seen, tokens, keys, block_q=block, block_k=block)
