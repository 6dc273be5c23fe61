"""The frame of methods that look at queries and keys: cut out the grid, permute, run, undo, meet text, dense rows.

Such a method computes attention of grid tokens among themselves in its own way. Everything around that is the same for
all of them: tokens outside the grid (text, reference, keyframes) see everything and are seen by everything, and keys
that the model hides (text padding) stay hidden exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.keep import kept
from genkit.attention.site import Site
from genkit.attention.static import dense_attention, every_pair, hidden_key_bias
from genkit.errors import UnsupportedError
from genkit.kernels import BlockPlan, block_sparse_attention, merge
from genkit.kernels.block_lists import Budget, Kept

Spans = tuple[tuple[int, int], ...]
Run = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor | None] | None]


@dataclass(frozen=True)
class BlockChoice:
    """From scores to a plan, without a mask of all blocks in between: for methods that score key blocks.

    ``block_select`` goes by masks: its rankings and budgets may be shared by heads, and blocks are kept by their data.

    A method brings scores (B|1, H|1, query blocks, key blocks) in any way, on the device of its tensors, and gets a
    plan whose lists stay there: their width follows from the budget and the lengths, and only the device knows how much
    of it is used. Nothing here waits for it, in the forward pass or the backward pass, with :func:`torch.compile` or
    without.

    Args:
        budget: how many key blocks a query block keeps, and in which sense: a number or a share (top-k), or a share of
            the scores' mass with a floor and a cap (top-p).
        block_q, block_k: tokens per block.
        beside: blocks on either side of a query block's own that it always keeps, besides its own.
        sinks: key blocks at the beginning that every query block keeps.
    """

    budget: Budget
    block_q: int = 128
    block_k: int = 64
    beside: int = 0
    sinks: int = 0

    def always(self, n_q: int, n_k: int) -> Kept:
        """What is kept in any case, made on the host from lengths. Every row keeps its own blocks, so none is empty."""
        kept = Kept.diagonal(n_q, n_k, self.block_q, self.block_k, self.beside)
        return kept.with_columns(list(range(min(self.sinks, kept.blocks)))) if self.sinks else kept

    def plan(self, scores: torch.Tensor, n_q: int, n_k: int, cache: PatchCache) -> BlockPlan:
        """The plan of the best blocks.

        Args:
            scores: larger means keep, ``-inf`` = forbidden, NaN = as large as can be, ties go to the lower block; see
                :func:`genkit.kernels.block_lists.select`. No gradient flows through them.
            n_q, n_k: queries and keys the plan is for.
            cache: of the patch; keeps what depends on lengths alone.
        """
        always = kept(cache, _always, self, n_q, n_k, device=scores.device)
        return BlockPlan.from_scores(
            scores, self.budget, always, n_q, n_k, block_q=self.block_q, block_k=self.block_k
        )  # fmt: skip


def _always(choice: BlockChoice, n_q: int, n_k: int) -> Kept:
    return choice.always(n_q, n_k)


class Permutation:
    """Another order of the grid's tokens, and the way back.

    Attributes:
        order: (N,) int64, grid token at every place. inverse: (N,) int64. identity: whether nothing moves.
    """

    def __init__(self, order: torch.Tensor):
        self.order = order
        self.inverse = order.argsort()
        self.identity = bool((order == torch.arange(len(order), device=order.device)).all())

    def to(self, device: torch.device) -> Permutation:
        """The same with its tables on ``device``."""
        self.order, self.inverse = self.order.to(device), self.inverse.to(device)
        return self


def attend_grid(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    site: Site,
    cache: PatchCache,
    run: Run,
    permutation: Permutation | None = None,
) -> torch.Tensor | None:
    """Attention of a whole sequence whose grid tokens attend to grid tokens by ``run``.

    Where the grid stands in the sequence several times (:attr:`TokenLayout.copies`, C grids in all), ``run`` is asked
    once for all pairs of them, C x C times the batch; what a query gets from each grid is merged by log-sum-exp. Such a
    method says so by :attr:`Method.every_grid`.

    Args:
        q, k, v: (B, N, H, D) and (B, N, Hk, D), the sequence of the site.
        run: gets the grid's q, k, v and returns (out, lse): out (B, T*H*W, H, D), lse (B, H, T*H*W). With lse the
            attention to tokens outside the grid is merged in; with lse None the run has seen to them, or grid tokens
            read none. None instead of the pair declines the call.
        permutation: order in which ``run`` wants the grid's tokens; undone on what it returns.

    Returns:
        (B, N, H, D), or None when ``run`` declined.
    """
    spans = site.layout.grid_spans
    asked, keys, values = _grids(q, k, v, spans)
    if permutation is not None and permutation.identity:
        permutation = None
    if permutation is not None:
        asked, keys, values = (x.index_select(1, permutation.order) for x in (asked, keys, values))
    found = run(asked, keys, values)
    if found is None:
        return None
    out, lse = found
    if permutation is not None:
        out = out.index_select(1, permutation.inverse)
        lse = None if lse is None else lse.index_select(2, permutation.inverse)
    if len(spans) > 1:
        if lse is None:
            raise UnsupportedError(
                f"layer {site.name}: attention to several grids cannot be merged without its log-sum-exp"
            )
        out, lse = _merged(out, lse, len(spans))
    if site.layout.length == out.shape[1]:
        return out
    if lse is not None:
        asking = q[:, slice(*spans[0])] if len(spans) == 1 else torch.cat([q[:, slice(*span)] for span in spans], 1)
        out, _ = merge([(out, lse), attend_outside(asking, k, v, site, cache)])
    return with_dense_rows(out, q, k, v, site)


def _grids(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spans: Spans
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The grid's q, k, v; with C grids those of all pairs of grids, (C keys, C queries, B) in the batch."""
    if len(spans) == 1:
        start, stop = spans[0]
        return q[:, start:stop], k[:, start:stop], v[:, start:stop]
    asking = torch.cat([q[:, start:stop] for start, stop in spans])
    keys, values = (torch.cat([x[:, start:stop] for start, stop in spans for _ in spans]) for x in (k, v))
    return torch.cat([asking] * len(spans)), keys, values


def _merged(out: torch.Tensor, lse: torch.Tensor, grids: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the queries of all grids get from the keys of all grids: out (B, C*N, H, D), lse (B, H, C*N)."""
    out, lse = merge(list(zip(out.chunk(grids), lse.chunk(grids), strict=True)))
    return torch.cat(out.chunk(grids), 1), torch.cat(lse.chunk(grids), 2)


def outside(x: torch.Tensor, site: Site) -> torch.Tensor:
    """The tokens of (B, N, ...) outside the grid and its copies."""
    return torch.cat([x[:, start:stop] for start, stop in _between(site)], 1)


def with_dense_rows(grid: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site) -> torch.Tensor:
    """The output of the grid in its place, (B, T*H*W, H, D), or of the grid and its copies one after the other; rows
    outside the grids attend to the whole sequence."""
    if grid.shape[1] != site.layout.all_grids_length:
        raise UnsupportedError(
            f"layer {site.name}: {grid.shape[1]} tokens were served, the sequence has "
            f"{len(site.layout.grid_spans)} grids of {site.layout.grid_length}"
        )
    found = []
    for (start, stop), served in zip_longest(_between(site), grid.split(site.layout.grid_length, 1)):
        if stop > start:
            found.append(dense_attention(q[:, start:stop], k, v, site.scale, site.key_mask))
        if served is not None:  # behind the last grid there is none
            found.append(served)
    return torch.cat(found, 1)


def _between(site: Site) -> Spans:
    """Token ranges before, between and after the grids of a sequence, some of them empty."""
    edges = [0, *(edge for span in site.layout.grid_spans for edge in span), site.layout.length]
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def attend_outside(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of queries (B, Nq, H, D) over the keys outside the grid only, as (out, lse) to merge.

    Args:
        k, v: (B, Nk, Hk, D), the whole sequence of the site. Its key mask is respected.
    """
    k, v = outside(k, site), outside(v, site)
    mask = None if site.key_mask is None else outside(site.key_mask, site)
    sizes = (q.shape[1], k.shape[1])
    bias = None
    if mask is None or not on_host(q):
        plan = kept(cache, every_pair, *sizes, device=q.device)
        if mask is not None:
            # A rule would have to be made from values; these keys are few, and a bias hides them without a look.
            bias = hidden_key_bias(mask, q.shape[1])
    else:
        key = ("others", *sizes, str(q.device), cache.of_tensor(mask))
        plan = cache.recent(key, lambda: every_pair(*sizes, mask))
    return block_sparse_attention(q, k, v, plan, scale=site.scale, backend=cache.backend, bias=bias)


def on_host(x: torch.Tensor) -> bool:
    """Whether a value can be looked at without waiting for a device."""
    return x.device.type == "cpu"
