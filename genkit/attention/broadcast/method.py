"""Attention broadcast over sampling steps: computed at every n-th one, its output serves those between."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from genkit.attention.broadcast.turns import Turns
from genkit.attention.cache import PatchCache
from genkit.attention.method import Density, Method, check_int
from genkit.attention.registry import register
from genkit.attention.site import Site
from genkit.attention.static import check_tokens, dense_attention
from genkit.layout import TokenLayout

_OWNER = "broadcast"


@register(_OWNER)
@dataclass(frozen=True)
class Broadcast(Method):
    """Dense attention at every n-th sampling step; its output serves the steps between.

    From one step to the next the output of attention changes little, but for the first steps. It is computed at the
    first step that the schedule covers, kept, and computed anew ``every`` steps later; queries, keys, values and the
    output projection are computed at every step. Each branch of guidance keeps its own. Nothing is trained.

    Args:
        every: steps that an output serves, its own included; 1 = dense attention.

    Without the number of the step (a bare denoiser outside of a loop), and where gradients are wanted, every call is
    computed. Several ``every`` in one run: several parts with schedules, such as 2 for steps 2:10 and 4 for 10:.

    Cost: the products of attention times 1 / ``every``. Memory: one output (B, N, H, D) a layer and branch as long as
    the patch is there: 2 x 75,600 x 5,120 numbers a layer of Wan 14B at 81 frames of 720p, 1.5 GB in bfloat16.

    Sources: Real-Time Video Generation with Pyramid Attention Broadcast, arXiv 2408.12588; attention sharing across
    timesteps of DiTFastAttn, arXiv 2406.08552.
    """

    every: int = field(default=2, metadata={"help": "steps that an output serves, its own included"})

    roles: ClassVar[tuple[str, ...]] = ("self", "joint")
    needs_grid: ClassVar[bool] = False
    across_steps: ClassVar[bool] = True
    source: ClassVar[str] = "Pyramid Attention Broadcast, arXiv 2408.12588; DiTFastAttn, arXiv 2406.08552"

    def __post_init__(self):
        super().__post_init__()
        check_int(_OWNER, "every", self.every, 1)

    @property
    def heads_apart(self) -> bool:
        """See :attr:`Method.heads_apart`: dense attention of a head is that of the head."""
        return True

    @property
    def hides_grid(self) -> bool:
        """See :attr:`Method.hides_grid`: as dense attention does."""
        return True

    def recommended(self, steps: int, layers: int) -> dict[str, str]:
        """All but the first fifth and the last tenth, about the published part of the noise levels; few-step models
        have none."""
        return {"steps": f"{math.ceil(0.2 * steps)}:-{math.ceil(0.1 * steps)}"} if steps > 8 else {}

    def details(self, layout: TokenLayout) -> str:
        """See :meth:`Method.details`."""
        return "all pairs where it is computed" + (f", one step in {self.every}" if self.every > 1 else "")

    def mask(self, layout: TokenLayout) -> torch.Tensor:
        """See :meth:`Method.mask`: all pairs, where it is computed."""
        return torch.ones(layout.length, layout.length, dtype=torch.bool)

    def mask_rows(self, layout: TokenLayout, queries: torch.Tensor) -> torch.Tensor:
        """See :meth:`Method.mask_rows`."""
        return torch.ones(len(queries), layout.length, dtype=torch.bool)

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """See :meth:`Method.attend`."""
        self.require(site, cache)
        check_tokens(q, k, site)
        turns = self._turns(site, cache)
        free = site.step is not None and not (torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)))
        kept = None
        if free:
            turns.begin(site)
            kept = turns.found(q, v.shape[3], self.every)
        turns.count(kept is None)
        if kept is not None:
            return kept.clone()  # what comes after may write into it
        out = dense_attention(q, k, v, site.scale, site.key_mask).to(q.dtype)
        if free and self.every > 1:
            turns.keep(out.detach().clone())
        return out

    def density(self, site: Site, cache: PatchCache) -> Density | None:
        """Of a site at a step: 1 or 0, as its latest call was. Of a site without one: the share of its calls that were
        computed, before any call 1 / ``every``."""
        found = [turns for turns in cache.held((_OWNER, self, site.name), {}).values() if turns.calls]
        if not found:
            share = 1 / self.every
        elif site.step is not None:
            share = float(self._turns(site, cache).fresh)
        else:
            share = sum(turns.computed for turns in found) / sum(turns.calls for turns in found)
        return Density(share, share, dense=self.every == 1)

    def remarks(self, cache: PatchCache) -> list[str]:
        """See :meth:`Method.remarks`: where nothing was used again."""
        found = [turns for turns in cache.held((_OWNER, self), ()) if turns.calls]
        if self.every == 1 or not found or any(turns.computed < turns.calls for turns in found):
            return []
        return [
            f"{_OWNER}: every call was computed: none came at the next step of the same run. The schedule covers "
            "single steps, the step is not known, or gradients were wanted"
        ]

    def _turns(self, site: Site, cache: PatchCache) -> Turns:
        """What a layer keeps in this branch; of a part of the heads, apart from other parts."""
        key = (_OWNER, self, site.name)
        of_layer: dict[object, Turns] = cache.held(key, {})
        branch = (site.branch, site.first_head, site.role)
        if branch not in of_layer:
            of_layer = {**of_layer, branch: Turns()}
            cache.hold(key, of_layer)
            cache.hold((_OWNER, self), (*cache.held((_OWNER, self), ()), of_layer[branch]))
        return of_layer[branch]
