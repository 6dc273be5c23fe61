"""Mixture of heads: some heads always run, of the others a trained router gives every token a few."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from genkit.attention.add_loss import AddLoss
from genkit.attention.cache import PatchCache
from genkit.attention.dynamic import attend_grid
from genkit.attention.grid_blocks import GridBlocks, auto_across
from genkit.attention.keep import kept
from genkit.attention.method import Density, check_amount, check_flag, check_int, check_number
from genkit.attention.mixture_of_heads.router import Routers
from genkit.attention.registry import register
from genkit.attention.scored import WithScale
from genkit.attention.site import Place, Site
from genkit.attention.static import check_tokens, dense_attention
from genkit.attention.weights import PatchWeights
from genkit.errors import UsageError, explain
from genkit.kernels import BlockPlan, block_sparse_attention
from genkit.layout import TokenLayout

_OWNER = "mixture_of_heads"


@register(_OWNER)
@dataclass(frozen=True)
class MixtureOfHeads(WithScale):
    """Attention in a part of the heads, which a trained router chooses for every token or block of tokens.

    The first heads of a layer are shared: every token uses them. Of the others it uses those with the largest gates.
    What a head gives is multiplied by its weight before the output projection. Text and other extra tokens use all
    heads. Routers begin at zero, where every kept head has the weight 1: train them (``scripts/train_patch.py
    mixture_of_heads``), best together with a LoRA.

    Args:
        shared: heads that every token uses: a number, or a share of the layer's heads (rounded).
        keep: of the other heads, those a token uses: a number, or a share of them (rounded, at least one).
        block: tokens that choose together, neighbours on the grid; their other heads are not computed. 1 = every token
            for itself, as published: then all heads are computed.
        balance: weight of the loss that keeps all heads in use, added to whatever is trained. Published 0.01.
        weights: file with trained routers.
        untrained: begin with routers that choose nothing sensible, to train them.

    Source: MoH: Multi-Head Attention as Mixture-of-Head Attention, arXiv 2410.11842; routers that read values, and
    blocks of tokens that choose together, are this project's.
    """

    shared: int | float = field(default=0.25, metadata={"help": "heads that every token uses: number or share"})
    keep: int | float = field(default=0.67, metadata={"help": "of the others, those a token uses: number or share"})
    block: int = field(default=64, metadata={"help": "tokens that choose together; 1 = each for itself"})
    balance: float = field(default=0.01, metadata={"help": "weight of the loss that keeps heads in use"})
    weights: str | None = field(default=None, metadata={"help": "file with trained routers"})
    untrained: bool = field(default=False, metadata={"help": "begin with untrained routers"})

    roles: ClassVar[tuple[str, ...]] = ("self", "joint")
    trainable: ClassVar[bool] = True
    by_data: ClassVar[bool] = True
    trained_with: ClassVar[tuple[str, ...]] = ("shared", "keep")
    source: ClassVar[str] = "MoH, arXiv 2410.11842"

    def __post_init__(self):
        super().__post_init__()
        check_amount(_OWNER, "shared", self.shared, 0)
        check_amount(_OWNER, "keep", self.keep)
        check_int(_OWNER, "block", self.block, 1, 4096)
        if 1 < self.block < 8:
            raise UsageError(explain(f"{_OWNER}.block", self.block, "1, or a whole number from 8 to 4096"))
        check_number(_OWNER, "balance", self.balance, 0)
        check_flag(_OWNER, "untrained", self.untrained)
        if self.untrained and self.weights is not None:
            raise UsageError(f"{_OWNER}: weights and untrained=true exclude each other; give one of them")

    def split(self, heads: int) -> tuple[int, int]:
        """Shared heads of a layer, and how many of the others a token uses."""
        shared = self.shared if isinstance(self.shared, int) else round(self.shared * heads)
        if shared > heads:
            raise UsageError(f"{_OWNER}.shared: got {self.shared}, this layer has {heads} heads")
        others = heads - shared
        keep = self.keep if isinstance(self.keep, int) else max(1, round(self.keep * others))
        if others and keep > others:
            raise UsageError(
                f"{_OWNER}.keep: got {self.keep}, of {heads} heads {shared} are shared, so that {others} are left"
            )
        return shared, min(keep, others)

    def active(self, heads: int) -> int:
        """Heads that a token uses."""
        return sum(self.split(heads))

    @property
    def needs_heads(self) -> bool:
        """See :attr:`Method.needs_heads`."""
        return True

    def check_weights(self) -> None:
        """See :meth:`Method.check_weights`."""
        if self.weights is None and not self.untrained:
            raise UsageError(
                f"{_OWNER}: its routers must be trained; give weights=FILE (made by scripts/train_patch.py {_OWNER}), "
                f"or untrained=true to train them"
            )

    def install(self, place: Place, cache: PatchCache) -> Iterable[Any]:
        """Make the routers of a layer; refused without trained ones, unless they are to be trained."""
        self.check_weights()
        routers = Routers(place, self.split(place.heads)[0])
        PatchWeights.of(cache).put(self.name, place.name, routers, self.settings())
        return ()

    def details(self, layout: TokenLayout) -> str:
        """See :meth:`Method.details`."""
        who = "every token" if self.block == 1 else f"{self.block} tokens together"
        return f"{who} use {self.shared} of the heads and choose {self.keep} of the others"

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """See :meth:`Method.attend`; dense attention in the chosen heads, times their weights."""
        self.require(site, cache)
        check_tokens(q, k, site)
        site = self.scaled(q, site)
        weight, chosen, loss = self._routed(q, v, site, cache)
        cache.measure((self, site.name), lambda: _share(chosen, site.layout))
        if self.block == 1:
            out = dense_attention(q, k, v, site.scale, site.key_mask)
        else:
            out = self._in_blocks(q, k, v, chosen, site, cache)
        start, stop = site.layout.grid_span
        parts = [out[:, :start], out[:, start:stop] * weight[..., None].to(out.dtype), out[:, stop:]]
        out = torch.cat([part for part in parts if part.shape[1]], 1)
        if loss is not None and self.balance and torch.is_grad_enabled() and loss.requires_grad:
            out = AddLoss.apply(out, self.balance * loss)
        return out

    def _routed(
        self, q: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Weights (B, n, H) and choice, bool, of grid tokens, and the loss of balance."""
        start, stop = site.layout.grid_span
        heads = q.shape[2]
        shared, keep = self.split(heads)
        own = PatchWeights.of(cache)
        if not own.has(self.name, site.name):  # outside a patch: as routers of zeros
            chosen = torch.arange(heads, device=q.device).expand(len(q), stop - start, -1) < shared + keep
            return chosen.to(q.dtype), chosen, None
        block = None
        if self.block > 1:
            block = kept(cache, _block_of, site.layout.grid, self.block, device=q.device).numbers
        weight, chosen, decision = own.at(self.name, site.name)(v[:, start:stop], keep, block)
        return weight, chosen, None if decision is None else decision.balance()

    def _in_blocks(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, chosen: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor:
        blocks = kept(cache, _blocks, site.layout.grid, self.block, device=q.device)
        first = blocks.permutation.order[:: self.block]
        off = ~chosen[:, first].transpose(1, 2)  # (B, H, M): blocks that leave a head out

        def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            seen = (~off)[..., None].expand(*off.shape, off.shape[-1]).contiguous()
            plan = BlockPlan.from_dense_blocks(
                seen, q.shape[1], k.shape[1], block_q=self.block, block_k=self.block, off=off
            )  # fmt: skip
            return block_sparse_attention(q, k, v, plan, scale=site.scale, backend=cache.backend)

        out = attend_grid(q, k, v, site, cache, run, blocks.permutation)
        assert out is not None, "the run never declines"
        return out

    def pair_rows(
        self, q: torch.Tensor, k: torch.Tensor, site: Site, cache: PatchCache, queries: torch.Tensor
    ) -> torch.Tensor:
        """All keys of the heads a token uses; see :meth:`Method.pair_rows`. Routers read values: here those of keys."""
        _, chosen, _ = self._routed(q, k.detach(), site, cache)
        cache.measure((self, site.name), lambda: _share(chosen, site.layout))
        start, stop = site.layout.grid_span
        inside = (queries >= start) & (queries < stop)
        found = chosen.new_ones(len(q), q.shape[2], len(queries), site.layout.length)
        found[:, :, inside] = chosen[:, queries[inside] - start].transpose(1, 2)[..., None]
        return found

    def read_rows(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache, queries: torch.Tensor
    ) -> torch.Tensor:
        """See :meth:`Method.read_rows`."""
        return self.pair_rows(q, v, site, cache, queries)

    def density(self, site: Site, cache: PatchCache) -> Density:
        """The share of (token, head) pairs that are used; with ``block=1`` all are executed."""
        heads = site.all_heads or site.heads
        grid = site.layout.grid_length / site.layout.length
        share = 1 - grid * (1 - self.active(heads) / heads)
        return Density(share, 1.0 if self.block == 1 else share)


class _BlockOf:
    """The block of every grid token, (N,) int64, in the order of the sequence."""

    def __init__(self, numbers: torch.Tensor):
        self.numbers = numbers

    def to(self, device: torch.device) -> _BlockOf:
        """The same on ``device``."""
        return _BlockOf(self.numbers.to(device))


def _blocks(grid: tuple[int, int, int], block: int) -> GridBlocks:
    frames, rows = auto_across(grid, block)
    return GridBlocks(grid, block, (min(frames, grid[0]), min(rows, grid[1])))


def _block_of(grid: tuple[int, int, int], block: int) -> _BlockOf:
    inverse = _blocks(grid, block).permutation.inverse
    return _BlockOf(inverse // block)


def _share(chosen: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
    grid = layout.grid_length / layout.length
    return 1 - grid * (1 - chosen.double().mean())
