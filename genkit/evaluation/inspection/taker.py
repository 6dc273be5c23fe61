"""A method that computes nothing: it is shown queries, keys and values of a run, and the model goes on by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.method import Method
from genkit.attention.site import Site

if TYPE_CHECKING:
    Take = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Site], None]


@dataclass(frozen=True)
class Taker(Method):
    """Shows every self and joint attention call among grid tokens to a function and declines it.

    Where both halves of guidance come together and the family's record tells so, the half with the prompt is shown.

    Args:
        take: called with q (B, N, H, D), k, v (B, N, Hk, D) and the site, whose ``key_mask`` is that of the same rows.
        wanted: asked first, with the site, so that other calls cost nothing.
        negative: show calls that are of the negative prompt alone, too.
    """

    take: Take = field(compare=False)
    wanted: Callable[[Site], bool] = field(default=lambda site: True, compare=False)
    negative: bool = False

    name: ClassVar[str] = "inspection"
    roles: ClassVar[tuple[str, ...]] = ("self", "joint")
    declines: ClassVar[str] = "it is only looked at"

    @property
    def hides_grid(self) -> bool:
        """See :attr:`Method.hides_grid`: the function shown the call gets the mask."""
        return True

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """Show the call; None, so that the model's own attention runs."""
        if (site.branch == "uncond" and not self.negative) or not self.wanted(site):
            return None
        if site.both and len(q) > 1:
            rows = slice(len(q) // 2, None)
            q, k, v = (x[rows] for x in (q, k, v))
            mask = site.key_mask
            site = dataclasses.replace(site, key_mask=mask[rows] if mask is not None and len(mask) > 1 else mask)
        site = dataclasses.replace(site, both=False)
        with torch.no_grad():
            self.take(q.detach(), k.detach(), v.detach(), site)
        return None
