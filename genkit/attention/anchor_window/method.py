"""Windows of frames with anchors that all frames see, moved from step to step: clips longer than in training."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from genkit.attention.anchor_window.frames import auto_period, visible
from genkit.attention.cache import PatchCache
from genkit.attention.dynamic import with_dense_rows
from genkit.attention.frame_lists import attend_frames, no_angles
from genkit.attention.frame_plan import frame_plan, frame_rows, pair_share
from genkit.attention.method import Density, check_choice, check_int
from genkit.attention.registry import register
from genkit.attention.site import Site
from genkit.attention.static import StaticMethod, StaticPlan, check_tokens
from genkit.errors import UsageError, explain
from genkit.layout import TokenLayout

_OWNER = "anchor_window"
_ONE = torch.zeros(1, dtype=torch.int64)  # all heads are of one kind


@register(_OWNER)
@dataclass(frozen=True)
class AnchorWindow(StaticMethod):
    """Every frame sees the frames near it and a sparse grid of anchors over the whole clip, which moves at every step.

    For clips two to six times as long as a model was trained on, without training: a row of attention never holds more
    frames than it knows, and the work grows with the length, not with its square. The clip's first frames are always
    anchors. Up to ``trained`` frames everything is dense. The unit is the latent frame; text stays dense.

    Args:
        trained: latent frames of the clips that the model was trained on: 21 for Wan (81 frames), 33 for HunyuanVideo,
            13 for CogVideoX, 7 for toy-video.
        window: frames seen on either side; at the ends the window moves inward.
        first: first frames that all frames see.
        period: frames from anchor to anchor; ``"auto"``: as many as make a row about ``trained`` frames long;
            ``"none"``: no anchors but the first frames.
        rotate: move the anchors by one frame per step, so that every frame is one of them in turn. Off: the same
            anchors in all steps. Calls outside of a loop count as step 0.
        positions: ``"model"``: frames keep their positions. ``"reindexed"``: the frames that a frame sees stand at 0,
            1, 2, ... in their order, so that no distance is longer than those of training (LongHeads). Needs a model
            whose rotary positions follow from the latents' shape (Wan, HunyuanVideo, SkyReels).
        offset: place of the anchors at step 0.

    Sources: LVSA, arXiv 2605.31057; positions: LongHeads, arXiv 2402.10685.
    """

    trained: int = field(default=21, metadata={"help": "latent frames of the clips in training"})
    window: int = field(default=3, metadata={"help": "frames seen on either side"})
    first: int = field(default=1, metadata={"help": "first frames that all see"})
    period: int | Literal["auto", "none"] = field(default="auto", metadata={"help": "frames from anchor to anchor"})
    rotate: bool = field(default=True, metadata={"help": "anchors move by a frame per step"})
    positions: Literal["model", "reindexed"] = field(
        default="model", metadata={"help": "positions in time of the frames that a frame sees"}
    )
    offset: int = field(default=0, metadata={"help": "place of the anchors at step 0"})

    roles: ClassVar[tuple[str, ...]] = ("self", "joint")
    trainable: ClassVar[bool] = True
    source: ClassVar[str] = "LVSA, arXiv 2605.31057; LongHeads, arXiv 2402.10685"

    def __post_init__(self):
        super().__post_init__()
        for name, low in (("trained", 1), ("window", 0), ("first", 0), ("offset", 0)):
            check_int(_OWNER, name, getattr(self, name), low)
        if self.period not in ("auto", "none"):
            check_int(_OWNER, "period", self.period, 1)
        check_choice(_OWNER, "rotate", self.rotate, (True, False))
        check_choice(_OWNER, "positions", self.positions, ("model", "reindexed"))
        if self.period == "none" and not self.first and not self.window:
            raise UsageError(explain(f"{_OWNER}.window", 0, "1 or more with first=0 and period=none"))
        if self.positions == "reindexed" and self.bias is not None:
            raise UsageError(f"{_OWNER}.bias has no place beside positions=reindexed; leave one of them out")

    def every(self, frames: int) -> int:
        """Frames from anchor to anchor in a clip; 0 = no grid of anchors."""
        if self.period == "none":
            return 0
        if self.period == "auto":
            return auto_period(frames, self.trained, self.window, self.first)
        return min(self.period, frames)

    def at(self, step: int | None, frames: int) -> AnchorWindow:
        """The method with the anchors of a step."""
        period = self.every(frames)
        moved = (self.offset + (step or 0) * self.rotate) % period if period else 0
        return self if moved == self.offset else dataclasses.replace(self, offset=moved)

    @property
    def hides_grid(self) -> bool:
        """See :attr:`Method.hides_grid`; lists of whole frames do not."""
        return self.positions == "model"

    def visible(self, layout: TokenLayout) -> torch.Tensor:
        """Frames that see each other at step 0, bool (1, f, f); all up to the trained length."""
        frames = layout.grid[0]
        if frames <= max(self.first + 1, self.trained):
            return torch.ones(1, frames, frames, dtype=torch.bool)
        return visible(frames, self.window, self.first, self.every(frames), self.offset)[None]

    @property
    def every_grid(self) -> bool:
        """See :attr:`Method.every_grid`: not with new positions, which copies without positions have none of."""
        return super().every_grid and self.positions == "model"

    def why_not(self, site: Site) -> str | None:
        """As :meth:`Method.why_not`; a real site also has to tell angles for new positions."""
        return super().why_not(site) or (no_angles(_OWNER, site) if self.positions == "reindexed" else None)

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor | None:
        """See :meth:`Method.attend`."""
        now = self.at(site.step, site.layout.grid[0])
        seen = now.visible(site.layout)
        if self.positions == "model" or bool(seen.all()):
            return super(AnchorWindow, now).attend(q, k, v, site, cache)
        self.require(site, cache)
        check_tokens(q, k, site)
        site = self.scaled(q, site)
        if k.shape[2] != q.shape[2]:
            k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], 2) for x in (k, v))
        grid = attend_frames(q, k, v, site, _lists(seen[0]).to(q.device), reindexed=True)
        return with_dense_rows(grid, q, k, v, site)

    def build_plan(self, layout: TokenLayout, kind: str = "cpu", key_mask: torch.Tensor | None = None) -> StaticPlan:
        """The plan of a layout at step 0; see :meth:`StaticMethod.build_plan`."""
        return frame_plan(self.visible(layout), _ONE, layout, key_mask)

    def density(self, site: Site, cache: PatchCache) -> Density:
        """Mean over the places of the anchors."""
        period = self.every(site.layout.grid[0]) if self.rotate else 1
        places = [self.at(step, site.layout.grid[0]) for step in range(max(1, period))]
        if self.positions == "model" or bool(self.visible(site.layout).all()):
            found = [super(AnchorWindow, each).density(site, cache) for each in places]
            wanted, executed = (
                sum(x) / len(found) for x in zip(*((d.computed, d.executed) for d in found), strict=True)
            )
            return Density(wanted, executed, all(each.dense for each in found))
        share = sum(pair_share(each.visible(site.layout), _ONE, site.layout) for each in places) / len(places)
        return Density(share, share)

    def mask_rows(self, layout: TokenLayout, queries: torch.Tensor) -> torch.Tensor:
        """See :meth:`Method.mask_rows`; those of step 0."""
        return frame_rows(self.visible(layout), layout, queries)[0]

    def pair_rows(
        self, q: torch.Tensor, k: torch.Tensor, site: Site, cache: PatchCache, queries: torch.Tensor
    ) -> torch.Tensor:
        """See :meth:`Method.pair_rows`; those of the call's step."""
        now = self.at(site.step, site.layout.grid[0])
        return now.mask_rows(site.layout, queries.cpu())[None, None].to(q.device)

    def mask(self, layout: TokenLayout) -> torch.Tensor:
        """See :meth:`Method.mask`; the visible pairs at step 0."""
        return self.mask_rows(layout, torch.arange(layout.length))

    def details(self, layout: TokenLayout) -> str:
        """See :meth:`Method.details`."""
        frames, seen = layout.grid[0], int(self.visible(layout)[0, 0].sum())
        if seen == frames:
            return f"{frames} latent frames, trained on {self.trained}: dense"
        period = self.every(frames)
        grid = f"anchors every {period} frames" if period else "no anchors but the first frames"
        return f"{grid};  a frame sees {seen} of {frames} frames, the model was trained on {self.trained}"


def _lists(seen: torch.Tensor) -> torch.Tensor:
    """(1, 1, f, n) int64: the frames that each sees, as many for all."""
    return seen.nonzero()[:, 1].view(1, 1, len(seen), -1)
