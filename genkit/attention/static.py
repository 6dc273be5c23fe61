"""Running a method whose plan depends on the layout alone: build the plan once, look it up, execute it.

Keys that the model hides (text padding) enter exactly: in eager runs through a plan of their own, kept per mask; in
compiled graphs, where values must not steer the graph, as an additive bias of the hidden keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from genkit.attention.base import Density, Method, PatchCache, Site
from genkit.errors import UsageError
from genkit.kernels import block_sparse_attention
from genkit.kernels.block_sparse.bias import LowRank
from genkit.kernels.block_sparse.plan import BlockPlan
from genkit.layout import TokenLayout

_HIDDEN = -1e30  # added to the logit of a hidden key; finite, so that no row of a block is -inf minus -inf


@dataclass(frozen=True, eq=False)
class StaticPlan:
    """What runs at a site: a plan, or dense attention when ``plan`` is None (nothing is hidden)."""

    plan: BlockPlan | None
    density: Density


def executed_share(plan: BlockPlan) -> float:
    """Pairs in visited blocks, padding included, over all token pairs; averaged over batch entries and heads."""
    entries = float(plan.full_count.sum() + plan.partial_count.sum()) / (plan.batch * plan.heads)
    return entries * plan.block_q * plan.block_k / (plan.n_q * plan.n_k)


class StaticMethod(Method):
    """A method that knows everything from the layout; subclasses give :meth:`build_plan` and :meth:`mask`."""

    def build_plan(self, layout: TokenLayout, device: torch.device, key_mask: torch.Tensor | None = None) -> StaticPlan:
        """The plan of a layout on a device; ``key_mask`` bool (B, Nk), True = attend, hides keys per batch entry."""
        raise TypeError(f"{type(self).__name__} defines no build_plan()")

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """Exact attention over the visible pairs; see :meth:`Method.attend` for shapes."""
        self.require(site)
        if q.shape[1] != site.layout.length or k.shape[1] != site.key_layout.length:
            raise UsageError(
                f"layer {site.name}: {q.shape[1]} queries and {k.shape[1]} keys do not fit the layout of "
                f"{site.layout.length} and {site.key_layout.length} tokens"
            )
        if torch.compiler.is_dynamo_compiling():
            place = _shelve(cache.number, self, site.layout, q.device.type, q.device.index)
            plan = getattr(cache.shelf, place)
            bias = None if site.key_mask is None else hidden_key_bias(site.key_mask, q.shape[1])
        else:
            plan = lookup(self, site.layout, q.device, cache, site.key_mask).plan
            bias = None
        if plan is None:
            return dense_attention(q, k, v, site.scale, site.key_mask)
        out, _ = block_sparse_attention(q, k, v, plan, scale=site.scale, backend=cache.backend, bias=bias)
        return out

    def density(self, site: Site, cache: PatchCache) -> Density:
        """Densities of the plan that ran last at this layout, or that would run on this device."""
        return lookup(self, site.layout, cache.device, cache).density


def lookup(
    method: StaticMethod,
    layout: TokenLayout,
    device: torch.device,
    cache: PatchCache,
    key_mask: torch.Tensor | None = None,
) -> StaticPlan:
    """The plan of a layout from the cache, built on first use; one more per distinct key mask."""
    cache.device = device
    hidden = None
    if key_mask is not None:
        hidden = cache.of_tensor(key_mask)
    key = ("static", method, layout, str(device), hidden)
    return cache.get(key, lambda: method.build_plan(layout, device, key_mask))


@torch.compiler.assume_constant_result
def _shelve(number: int, method: StaticMethod, layout: TokenLayout, kind: str, index: int | None) -> str:
    """Put the plan where a graph that is being traced can read it; returns the attribute of the cache's shelf.

    Runs in Python while the graph is traced, and the name it returns is a constant of the graph. The plan itself cannot
    be one: the compiler follows its tables only through an attribute of an object it knows.
    """
    device = torch.device(kind) if index is None else torch.device(kind, index)
    cache = PatchCache.find(number)
    place = cache.get(("shelf", method, layout, str(device)), lambda: f"plan{len(vars(cache.shelf))}")
    setattr(cache.shelf, place, lookup(method, layout, device, cache).plan)
    return place


def hidden_key_bias(key_mask: torch.Tensor, queries: int) -> LowRank:
    """The hidden keys of a mask bool (B, Nk) as a rank-one bias: 0 where visible, very negative where hidden."""
    hidden = torch.where(key_mask, 0.0, _HIDDEN)[:, :, None, None]
    return LowRank(torch.ones(1, queries, 1, 1, dtype=torch.float32, device=key_mask.device), hidden)


def dense_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None, key_mask: torch.Tensor | None
) -> torch.Tensor:
    """Plain softmax attention of q (B, Nq, H, D) over k, v (B, Nk, Hk, D); ``key_mask`` bool (B, Nk) hides keys."""
    mask = None
    if key_mask is not None:
        mask = torch.where(key_mask, 0.0, float("-inf")).to(q.dtype)[:, None, None, :]
    options: dict[str, Any] = {"attn_mask": mask, "scale": scale, "enable_gqa": q.shape[2] != k.shape[2]}
    out = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), **options
    )
    return out.transpose(1, 2)
