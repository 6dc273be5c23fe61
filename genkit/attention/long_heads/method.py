"""Every head reads as many frames as the model was trained on, and chooses them itself (LongHeads over frames)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.dynamic import with_dense_rows
from genkit.attention.frame_lists import attend_frames, no_angles, turned
from genkit.attention.frame_plan import frame_rows
from genkit.attention.method import Density, check_choice, check_int
from genkit.attention.registry import register
from genkit.attention.scored import WithScale
from genkit.attention.site import Site
from genkit.attention.static import check_tokens, dense_attention
from genkit.errors import UsageError
from genkit.layout import TokenLayout

_OWNER = "long_heads"


@register(_OWNER)
@dataclass(frozen=True)
class LongHeads(WithScale):
    """For every frame each head chooses as many frames as the model was trained on; heads together reach far.

    For clips longer than in training, without training. The clip's first frames, a frame's own and its neighbours are
    always among the chosen; the rest are those whose mean key fits the mean query of the frame best, head by head. Up
    to ``trained`` frames everything is dense. The unit is the latent frame; text stays dense. No gradient flows through
    the choice.

    Args:
        trained: latent frames of the clips that the model was trained on, and frames that a head reads: 21 for Wan (81
            frames), 33 for HunyuanVideo, 13 for CogVideoX, 7 for toy-video.
        near: neighbours on either side that are always read.
        first: first frames of the clip that are always read.
        positions: ``"model"``: frames keep their positions. ``"reindexed"``: the chosen stand at 0, 1, 2, ... in their
            order, as published, so that no distance is longer than those of training; frames are then chosen by queries
            and keys without their rotation along time. Needs a model whose rotary positions follow from the latents'
            shape (Wan, HunyuanVideo, SkyReels).

    Source: LongHeads: Multi-Head Attention is Secretly a Long Context Processor, arXiv 2402.10685. Frames as chunks and
    their mean keys are this project's.
    """

    trained: int = field(default=21, metadata={"help": "latent frames of the clips in training, which a head reads"})
    near: int = field(default=1, metadata={"help": "neighbours on either side that are always read"})
    first: int = field(default=1, metadata={"help": "first frames that are always read"})
    positions: Literal["model", "reindexed"] = field(
        default="model", metadata={"help": "positions in time of the chosen frames"}
    )

    roles: ClassVar[tuple[str, ...]] = ("self", "joint")
    by_data: ClassVar[bool] = True
    source: ClassVar[str] = "LongHeads, arXiv 2402.10685"

    def __post_init__(self):
        super().__post_init__()
        check_int(_OWNER, "trained", self.trained, 1)
        for name in ("near", "first"):
            check_int(_OWNER, name, getattr(self, name), 0)
        check_choice(_OWNER, "positions", self.positions, ("model", "reindexed"))
        forced = self.first + 2 * self.near + 1
        if forced > self.trained:
            raise UsageError(
                f"{_OWNER}: first={self.first} and near={self.near} always read up to {forced} frames, more than "
                f"trained={self.trained}; make one of them smaller"
            )

    @property
    def heads_apart(self) -> bool:
        """See :attr:`Method.heads_apart`."""
        return True

    def why_not(self, site: Site) -> str | None:
        """As :meth:`Method.why_not`; a real site also has to tell angles for new positions."""
        return super().why_not(site) or (no_angles(_OWNER, site) if self.positions == "reindexed" else None)

    def chosen(self, q: torch.Tensor, k: torch.Tensor, site: Site) -> torch.Tensor:
        """The frames that heads read, int64 (B, H, f, n), ascending; q, k (B, N, H, D) of the site."""
        (start, stop), (f, h, w) = site.layout.grid_span, site.layout.grid
        with torch.no_grad():
            means = [x[:, start:stop].float().unflatten(1, (f, h * w)).mean(2).transpose(1, 2) for x in (q, k)]
            if self.positions == "reindexed" and site.angles is not None:
                cos, sin = site.angles(f, q.device)
                means = [turned(x, cos, -sin) for x in means]
            score = means[0] @ means[1].transpose(-1, -2)
            number = torch.arange(f, device=q.device)
            forced = ((number[:, None] - number).abs() <= self.near) | (number < self.first)
            score = score.masked_fill(forced, torch.inf)
            return score.topk(min(self.trained, f), dim=-1).indices.sort(-1).values

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """See :meth:`Method.attend`."""
        self.require(site, cache)
        check_tokens(q, k, site)
        site = self.scaled(q, site)
        if site.layout.grid[0] <= self.trained:
            return dense_attention(q, k, v, site.scale, site.key_mask)
        if k.shape[2] != q.shape[2]:
            k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], 2) for x in (k, v))
        lists = self.chosen(q, k, site)
        cache.get((self, "layers"), set).add(site.name)
        cache.measure((self, site.name), lambda: _union(lists))
        grid = attend_frames(q, k, v, site, lists, self.positions == "reindexed")
        return with_dense_rows(grid, q, k, v, site)

    def density(self, site: Site, cache: PatchCache) -> Density:
        """The share of the frames, whatever the data."""
        return self._density(site.layout)

    def _density(self, layout: TokenLayout) -> Density:
        frames, own = layout.grid[0], layout.frame_tokens
        read = min(self.trained, frames)
        others = layout.length - layout.grid_length
        share = (frames * own * (read * own + others) + others * layout.length) / layout.length**2
        return Density(share, share, dense=read == frames)

    def pairs(self, q: torch.Tensor, k: torch.Tensor, site: Site, cache: PatchCache) -> torch.Tensor:
        """See :meth:`Method.pairs`."""
        return self.pair_rows(q, k, site, cache, torch.arange(site.layout.length))

    def pair_rows(
        self, q: torch.Tensor, k: torch.Tensor, site: Site, cache: PatchCache, queries: torch.Tensor
    ) -> torch.Tensor:
        """See :meth:`Method.pair_rows`: every head its own."""
        if k.shape[2] != q.shape[2]:
            k = k.repeat_interleave(q.shape[2] // k.shape[2], 2)
        lists = self.chosen(q, k, site)
        batch, heads, f, _ = lists.shape
        seen = torch.zeros(batch, heads, f, f, dtype=torch.bool, device=q.device).scatter(-1, lists, True)
        rows = frame_rows(seen.flatten(0, 1).cpu(), site.layout, queries.cpu())
        return rows.unflatten(0, (batch, heads)).to(q.device)

    def details(self, layout: TokenLayout) -> str:
        """See :meth:`Method.details`."""
        frames = layout.grid[0]
        if frames <= self.trained:
            return f"{frames} latent frames, trained on {self.trained}: dense"
        free = self.trained - self.first - 2 * self.near - 1
        return f"a head reads {self.trained} of {frames} frames, at least {free} of them by its own choice"

    def remarks(self, cache: PatchCache) -> list[str]:
        """Says how much of the clip the heads of a layer read together, in the layer where it is least."""
        found = [(cache.measured((self, name)) or 0.0, name) for name in cache.get((self, "layers"), set)]
        if not found:
            return []
        least, name = min(found)
        return [f"{_OWNER}: the heads of a layer together read at least {least:.0%} of the pairs of frames ({name})"]


def _union(lists: torch.Tensor) -> torch.Tensor:
    """Share of the pairs of frames that some head reads, of lists (B, H, f, n)."""
    batch, _, f, _ = lists.shape
    seen = torch.zeros(batch, f, f, device=lists.device)
    merged = lists.transpose(1, 2).flatten(2)
    return seen.scatter(-1, merged, 1.0).mean()
