"""Gates between full and sparse attention, per head or per layer: what is trained to find those that see far."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from genkit.attention.cache import PatchCache
from genkit.attention.method import Density, Method
from genkit.attention.site import Place, Site
from genkit.attention.static import dense_attention
from genkit.attention.straight_through import OPEN, Draws
from genkit.attention.weights import PatchWeights, like
from genkit.errors import UsageError


class Gates(nn.Module):
    """The gates of a layer: ``gate`` (heads,), 1 at first, which is full attention. ``layer``: its number."""

    def __init__(self, place: Place):
        super().__init__()
        self.layer = place.layer
        source = place.projections.q if place.projections.q is not None else place.module
        self.gate = nn.Parameter(torch.ones(place.heads, **like(source)))


@dataclass(frozen=True)
class Mixed(Method):
    """``gate * full + (1 - gate) * sparse``: only for training, since both branches run. Both see the layer's own
    queries, keys and values. Subclasses give :meth:`install` and :meth:`gate`.

    Args:
        sparse: the method behind closed gates; one without weights of its own.
    """

    sparse: Method

    trainable: ClassVar[bool] = True

    def __post_init__(self):
        if not self.sparse.trainable or self.sparse.needs_heads or self.sparse.adds:
            raise UsageError(
                f"gates: {self.sparse.describe()} cannot be the sparse branch; it takes a method with gradients and "
                f"without weights of its own"
            )

    @property
    def roles(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the sparse branch in which a layer's queries and keys are the same tokens."""
        return tuple(role for role in self.sparse.roles if role in ("self", "joint"))

    def why_not(self, site: Site) -> str | None:
        """As the sparse branch."""
        return super().why_not(site) or self.sparse.why_not(site)

    def gate(self, q: torch.Tensor, own: Any) -> torch.Tensor:
        """The gates of a call from the weights of its layer, broadcast to q (B, N, H, D)."""
        raise TypeError(f"{type(self).__name__} defines no gate()")

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """See :meth:`Method.attend`."""
        sparse = self.sparse.attend(q, k, v, site, cache)
        if sparse is None:
            return None
        full = dense_attention(q, k, v, site.scale, site.key_mask)
        gate = self.gate(q, PatchWeights.of(cache).at(self.name, site.name)).to(q)
        return gate * full + (1 - gate) * sparse

    def density(self, site: Site, cache: PatchCache) -> Density | None:
        """That of the sparse branch."""
        return self.sparse.density(site, cache)


@dataclass(frozen=True)
class GatedHeads(Mixed):
    """A gate per head, see :class:`Mixed`. (In DuoAttention's code the full branch of a layer is that of an untouched
    model, so that a layer with open gates repeats it whatever the layers before did.)

    Source: DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming Heads, arXiv 2410.10819.
    """

    name: ClassVar[str] = "gated_heads"
    source: ClassVar[str] = "DuoAttention, arXiv 2410.10819"

    def install(self, place: Place, cache: PatchCache) -> Iterable[Any]:
        """Make the gates of a layer."""
        PatchWeights.of(cache).put(self.name, place.name, Gates(place), {"sparse": self.sparse.describe()})
        return ()

    def gate(self, q: torch.Tensor, own: Any) -> torch.Tensor:
        """See :meth:`Mixed.gate`."""
        return own.gate[:, None]


class LayerGate(nn.Module):
    """The gate of a layer: ``logit``, a scalar for full attention over sparse. ``layer``: its number."""

    def __init__(self, place: Place):
        super().__init__()
        self.layer = place.layer
        source = place.projections.q if place.projections.q is not None else place.module
        self.logit = nn.Parameter(torch.full((), OPEN, **like(source)))


@dataclass(frozen=True)
class GatedLayers(Mixed):
    """A gate per layer, open or closed for every sample: drawn with Gumbel noise, its gradient that of the soft
    decision (straight-through).

    Args:
        sparse: see :class:`Mixed`.
        draws: temperature and noise.

    Source: Flux Attention: Context-Aware Hybrid Attention for Efficient LLMs Inference. There a small network decides
    from a layer's queries; here a number per layer, which a recipe can hold.
    """

    draws: Draws = field(default_factory=Draws, compare=False, repr=False)

    name: ClassVar[str] = "gated_layers"
    source: ClassVar[str] = "Flux Attention"

    def install(self, place: Place, cache: PatchCache) -> Iterable[Any]:
        """Make the gate of a layer."""
        PatchWeights.of(cache).put(self.name, place.name, LayerGate(place), {"sparse": self.sparse.describe()})
        return ()

    def gate(self, q: torch.Tensor, own: Any) -> torch.Tensor:
        """See :meth:`Mixed.gate`: ones and zeros."""
        return self.decided(own, len(q))[:, None, None, None]

    def decided(self, own: LayerGate, count: int) -> torch.Tensor:
        """(B,) ones for full attention and zeros for sparse, with the gradient of the soft decision."""
        return self.draws.decide(own.logit.expand(count), own.layer)
