"""What is trained to choose keys: a method that reads them as block_select does and is told how much each is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from genkit.attention.add_loss import AddLoss
from genkit.attention.block_select import BlockSelect
from genkit.attention.cache import PatchCache
from genkit.attention.grid_blocks import GridBlocks
from genkit.attention.method import Density, Method
from genkit.attention.site import Place, Site
from genkit.attention.weights import PatchWeights, like
from genkit.errors import UsageError

#: Queries of a call whose attention is computed to learn from.
QUERIES = 128


def key_mass(q: torch.Tensor, k: torch.Tensor, site: Site, blocks: GridBlocks, queries: torch.Tensor) -> torch.Tensor:
    """How much the grid's keys are read by queries of other blocks: (B, H, N), rows sum to 1. No gradient.

    Dense attention of some queries of the grid over all keys, what lies outside the grid included; of it the part that
    falls on keys outside of the query's own block, which is read in any case.

    Args:
        q, k: (B, n, H, D) and (B, n, Hk, D) of the whole sequence. queries: (m,) int64, tokens of the grid.
    """
    start, stop = site.layout.grid_span
    wide = torch.promote_types(q.dtype, torch.float32)
    some = q.detach()[:, start + queries].to(wide).transpose(1, 2)
    keys = k.detach().to(wide).transpose(1, 2).repeat_interleave(q.shape[2] // k.shape[2], 1)
    scores = some @ keys.mT * (q.shape[-1] ** -0.5 if site.scale is None else site.scale)
    if site.key_mask is not None:
        scores = scores.masked_fill(~site.key_mask[:, None, None], -torch.inf)
    number = blocks.permutation.inverse // blocks.block
    elsewhere = number[queries][:, None] != number
    mass = (scores.softmax(-1)[..., start:stop] * elsewhere).sum(2)
    return mass / mass.sum(-1, keepdim=True).clamp(min=torch.finfo(wide).tiny)


def choice_loss(mass: torch.Tensor, ranks: torch.Tensor, sharpness: torch.Tensor) -> torch.Tensor:
    """Mean over rows and heads of the Kullback-Leibler divergence from the mass (B, H, N) to ``softmax(s ranks)``.

    Args:
        ranks: (B, Hk, N); query heads that share a key head are averaged. sharpness: (Hk,) logarithm of s.
    """
    mass = mass.unflatten(1, (ranks.shape[1], -1)).mean(2)
    told = (sharpness.exp()[:, None] * ranks).log_softmax(-1)
    return (torch.special.xlogy(mass, mass) - mass * told).sum(-1).mean()


@dataclass(frozen=True)
class ChosenKeys(Method):
    """``block_select(score=keys)`` that learns from how much dense attention reads every key: only for training.

    The choice itself has no gradient. The map learns from the mass of every key, whose loss is added in the backward
    pass, and from the output, through the bias; the amplitude from the output alone: dense attention counts a key that
    is read much already, and a bias as large as its mass would count it twice.

    Args:
        method: with ``score="keys"`` and ``untrained``.
        factor: of the loss of the choice.
        sharpness: by layer, see :func:`choice_loss`; trained and then forgotten. errors: by layer, the last loss.

    Source: the start from measured mass and the loss are this project's; the bias: Trainable Dynamic Mask Sparse
    Attention, arXiv 2508.02124.
    """

    method: BlockSelect
    factor: float = 1.0
    sharpness: nn.ParameterDict = field(default_factory=nn.ParameterDict, compare=False, repr=False)
    errors: dict[str, torch.Tensor] = field(default_factory=dict, compare=False, repr=False)

    name: ClassVar[str] = "chosen_keys"
    roles: ClassVar[tuple[str, ...]] = BlockSelect.roles
    trainable: ClassVar[bool] = True

    def __post_init__(self):
        if self.method.score != "keys" or not self.method.untrained:
            raise UsageError(f"chosen_keys: {self.method.describe()} is not block_select(score=keys, untrained=True)")

    def why_not(self, site: Site) -> str | None:
        """As the method."""
        return self.method.why_not(site)

    def install(self, place: Place, cache: PatchCache) -> Iterable[Any]:
        """Make the weights of a layer, and what is trained beside them."""
        found = self.method.install(place, cache)
        own: Any = PatchWeights.of(cache).at(self.method.name, place.name)
        kind = like(own)
        self.sharpness[_plain(place.name)] = nn.Parameter(torch.zeros(len(own.amplitude), **kind))
        return found

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """See :meth:`Method.attend`."""
        out = self.method.attend(q, k, v, site, cache)
        if out is None or not torch.is_grad_enabled():
            return out
        blocks = self.method.grid_blocks(site, cache, q.device)
        start, stop = site.layout.grid_span
        count = stop - start
        queries = torch.arange(0, count, max(1, count // QUERIES), device=q.device)
        own: Any = PatchWeights.of(cache).at(self.method.name, site.name)
        ranks = own.ranks(v[:, start:stop].detach())
        loss = choice_loss(key_mass(q, k, site, blocks, queries), ranks, self.sharpness[_plain(site.name)])
        self.errors[site.name] = loss.detach()
        return AddLoss.apply(out, self.factor * loss)

    def density(self, site: Site, cache: PatchCache) -> Density | None:
        """As the method."""
        return self.method.density(site, cache)


def _plain(site: str) -> str:
    return site.replace(".", "/")
