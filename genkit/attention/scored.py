"""What methods share that act on the scores: a factor of the softmax scale by length, and an additive bias."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from genkit.attention.bias_terms import TermRequest, TokenPlaces, block_means, operator_terms, split_tables
from genkit.attention.biases import BiasSpec, spec_of
from genkit.attention.cache import PatchCache
from genkit.attention.method import Method, check_used
from genkit.attention.score_scale import scale_of
from genkit.attention.site import Place, Site
from genkit.attention.weights import PatchWeights, like
from genkit.errors import UsageError
from genkit.kernels.plan.bias import Bias
from genkit.layout import TokenLayout


@dataclass(frozen=True)
class WithScale(Method):
    """A method whose softmax scale may follow the number of tokens.

    Args:
        length_scale: factor of the softmax scale: a number, ``log:TOKENS`` or ``entropy:TOKENS:SPREAD`` for a model
            trained on so many grid tokens (``4096``, ``30x52`` of a frame, ``21x30x52``); none = the model's own. It
            holds for all scores of a layer, of text too. See :mod:`genkit.attention.score_scale`.
    """

    length_scale: float | str | None = field(
        default=None,
        kw_only=True,
        metadata={"help": "factor of the softmax scale: a number, log:TOKENS or entropy:TOKENS:SPREAD"},
    )

    def __post_init__(self):
        super().__post_init__()
        scale_of(self.length_scale)

    def score_factor(self, layout: TokenLayout) -> float:
        """The factor on a layout."""
        scale = scale_of(self.length_scale)
        return 1.0 if scale is None else scale.factor(layout)

    def scaled(self, q: torch.Tensor, site: Site) -> Site:
        """The site with the softmax scale that the method wants there; q (B, N, H, D)."""
        factor = self.score_factor(site.layout)
        if factor == 1:
            return site
        scale = q.shape[-1] ** -0.5 if site.scale is None else site.scale
        return dataclasses.replace(site, scale=scale * factor)


class BiasWeights(nn.Module):
    """What a layer's bias has learned: parameters named ``TERM_NAME``, first values that of the settings."""

    def __init__(self, spec: BiasSpec, place: Place):
        super().__init__()
        kind = like(place.projections.q if place.projections.q is not None else place.module)
        for number, term in enumerate(spec.terms):
            for name, first in term.weights(place.heads).items():
                setattr(self, f"{number}_{name}", nn.Parameter(first.to(**kind)))

    def by_name(self) -> dict[str, torch.Tensor]:
        """As :meth:`BiasSpec.tables` wants them."""
        return {name.replace("_", ".", 1): value for name, value in self.named_parameters()}


@dataclass(frozen=True)
class WithBias(WithScale):
    """A method that can add a bias to the scores of grid tokens.

    Args:
        bias: terms joined by ``+``: ``distance``, ``alibi``, ``frames``, ``table``, and ``svd`` for factors of low
            rank; see :mod:`genkit.attention.biases`. Objects of that module are taken too. None = no bias.
        weights: safetensors file with the weights of learned terms, read when the patch is made.
    """

    bias: str | None = field(
        default=None, kw_only=True, metadata={"help": "added to scores: distance, alibi, frames, table, ... with +"}
    )
    weights: str | None = field(default=None, kw_only=True, metadata={"help": "file with the weights of learned terms"})

    #: False where a method has another use for ``weights`` and no place for a bias
    takes_bias: ClassVar[bool] = True
    #: what weights belong to, for a message
    weights_of: ClassVar[str] = "a bias with learned terms (table, or learned=true)"

    def __post_init__(self):
        super().__post_init__()
        if not self.takes_bias:
            if self.bias is not None:
                raise UsageError(f"{self.name}.bias: got {self.bias!r}, and {self.name} takes none; leave it out")
            return
        if self.bias is not None:
            object.__setattr__(self, "bias", str(spec_of(self.bias)))
        check_used(self, ("weights",), self.has_weights, self.weights_of)

    @property
    def bias_spec(self) -> BiasSpec | None:
        """The bias as an object, or None."""
        return None if self.bias is None else spec_of(self.bias)

    @property
    def learns(self) -> bool:
        """Whether the bias has weights."""
        return self.bias is not None and spec_of(self.bias).trains

    @property
    def has_weights(self) -> bool:
        """Whether the method has weights, those of its bias or others."""
        return self.learns

    @property
    def needs_heads(self) -> bool:
        """See :attr:`Method.needs_heads`: with weights."""
        return self.has_weights

    def install(self, place: Place, cache: PatchCache) -> Iterable[Any]:
        """See :meth:`Method.install`: makes the weights of a learned bias."""
        spec = self.bias_spec
        if spec is not None and spec.trains:
            PatchWeights.of(cache).put(self.name, place.name, BiasWeights(spec, place), self.settings())
        return ()

    def bias_weights(self, site: Site, cache: PatchCache) -> Mapping[str, torch.Tensor]:
        """The weights of the bias at a layer; empty without any."""
        if not self.learns:
            return {}
        own = PatchWeights.of(cache).at(self.name, site.name)
        return own.by_name()  # type: ignore[operator]

    def bias_terms(
        self,
        q: torch.Tensor,
        site: Site,
        cache: PatchCache,
        order: torch.Tensor | None = None,
        pooled: bool = False,
    ) -> tuple[Bias, ...]:
        """The bias of a call for the operator; empty without one.

        Args:
            q: (B, N, H, D), the queries of the operator.
            order: (N,) the grid's tokens as the operator gets them; None = all tokens of the sequence. The same for
                all calls of this method on a grid.
            pooled: see :class:`TermRequest`.
        """
        spec = self.bias_spec
        if spec is None:
            return ()
        wide = torch.promote_types(q.dtype, torch.float32)
        heads = site.all_heads or q.shape[2]
        asked = TermRequest(heads, site.first_head, q.shape[2], q.device, wide, pooled)
        where = site.layout if order is None else site.layout.grid
        places = cache.get(("places", self, where, str(q.device)), lambda: _places(site.layout, order).to(q.device))
        self._note_error(spec, site, cache, heads)
        if spec.trains:
            return operator_terms(spec, places, asked, self.bias_weights(site, cache))
        key = ("bias", self, where, heads, site.first_head, q.shape[2], str(q.device), wide, pooled)
        return cache.get(key, lambda: operator_terms(spec, places, asked))

    def _note_error(self, spec: BiasSpec, site: Site, cache: PatchCache, heads: int) -> None:
        """Remember what an SVD costs at a layer, for the report."""
        if spec.svd is None:
            return
        key = ("bias error", self, site.layout.grid, site.name if spec.trains else "")

        def split() -> tuple[int, int, float]:
            with torch.no_grad():
                tables = spec.tables(site.layout.grid, heads, self.bias_weights(site, cache))
            found = split_tables(tables, site.layout.grid, spec.svd)
            return found.rank, found.full, found.error

        cache.hold(("bias errors", self), {**cache.held(("bias errors", self), {}), key: cache.get(key, split)})

    def remarks(self, cache: PatchCache) -> list[str]:
        """See :meth:`Method.remarks`: rank and error of a bias that runs as factors of low rank."""
        found = cache.held(("bias errors", self), {}).values()
        if not found:
            return []
        ranks = sorted({rank for rank, _, _ in found})
        told = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        return [
            f"{self.name}: bias {self.bias} ran with rank {told} of {max(full for _, full, _ in found)}, off by at "
            f"most {max(error for _, _, error in found):.3g} logits"
        ]

    def block_bias(
        self, q: torch.Tensor, site: Site, cache: PatchCache, order: torch.Tensor, block: int
    ) -> torch.Tensor | None:
        """(1, H|1, M, M) float32 mean bias of pairs of blocks, for methods that choose blocks; None without a bias."""
        spec = self.bias_spec
        if spec is None:
            return None
        heads, grid = site.all_heads or q.shape[2], site.layout.grid
        places = cache.get(("places", self, grid, str(q.device)), lambda: _places(site.layout, order).to(q.device))

        def means() -> torch.Tensor:
            with torch.no_grad():
                found = block_means(spec.tables(grid, heads, self.bias_weights(site, cache)), places, block)
            here = found if found.shape[0] == 1 else found[site.first_head : site.first_head + q.shape[2]]
            return here.float()[None]

        if spec.trains:
            return means()
        return cache.get(("block bias", self, grid, site.first_head, q.shape[2], str(q.device), block), means)


def _places(layout: TokenLayout, order: torch.Tensor | None) -> TokenPlaces:
    return TokenPlaces.of_layout(layout) if order is None else TokenPlaces.of_order(layout.grid, order)


def bias_rows(spec: BiasSpec, layout: TokenLayout, queries: torch.Tensor, heads: int) -> torch.Tensor:
    """(heads|1, n, N) float64: what a bias adds to the scores of some queries (n,) int64 with all keys of a layout,
    before anything is learned. For pictures and tests."""
    places = TokenPlaces.of_layout(layout)
    total = torch.zeros(1, len(queries), layout.length, dtype=torch.float64)
    for axis, table in enumerate(spec.tables(layout.grid, heads)):
        if table is not None:
            apart = places.at[queries, axis][:, None] - places.at[:, axis]
            total = total + table[:, apart + layout.grid[axis] - 1]
    return total * (places.inside[queries][:, None] & places.inside)
