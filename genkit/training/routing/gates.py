"""A gate per head between full and sparse attention: what is trained to find the heads that see far."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from genkit.attention.cache import PatchCache
from genkit.attention.method import Density, Method
from genkit.attention.site import Place, Site
from genkit.attention.static import dense_attention
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
class GatedHeads(Method):
    """``gate * full + (1 - gate) * sparse`` per head: only for training, since both branches run.

    Both see the layer's own queries, keys and values. (In DuoAttention's code the full branch of a layer is that of an
    untouched model, so that a layer with open gates repeats it whatever the layers before did.)

    Args:
        sparse: the method that heads with closed gates get; one without weights of its own.

    Source: DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming Heads, arXiv 2410.10819.
    """

    sparse: Method

    name: ClassVar[str] = "gated_heads"
    trainable: ClassVar[bool] = True
    source: ClassVar[str] = "DuoAttention, arXiv 2410.10819"

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

    def install(self, place: Place, cache: PatchCache) -> Iterable[Any]:
        """Make the gates of a layer."""
        PatchWeights.of(cache).put(self.name, place.name, Gates(place), {"sparse": self.sparse.describe()})
        return ()

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """See :meth:`Method.attend`."""
        sparse = self.sparse.attend(q, k, v, site, cache)
        if sparse is None:
            return None
        full = dense_attention(q, k, v, site.scale, site.key_mask)
        gates: Any = PatchWeights.of(cache).at(self.name, site.name)
        gate = gates.gate.to(q)[:, None]
        return gate * full + (1 - gate) * sparse

    def density(self, site: Site, cache: PatchCache) -> Density | None:
        """That of the sparse branch."""
        return self.sparse.density(site, cache)
