"""Attention in groups of frames, shifted by half a group in a part of the heads: a cheap way to train on long clips."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, Literal

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.frame_plan import frame_plan, frame_rows
from genkit.attention.method import check_choice, check_flag, check_int, check_number
from genkit.attention.registry import register
from genkit.attention.shifted_groups.groups import layers_to_reach, visible_frames
from genkit.attention.site import Site
from genkit.attention.static import StaticMethod, StaticPlan
from genkit.layout import TokenLayout

SINKS = ("first_frame", "none")


@register("shifted_groups")
@dataclass(frozen=True)
class ShiftedGroups(StaticMethod):
    """Attention inside groups of frames, which half of the heads have moved by half a group.

    For training a LoRA on clips longer than the model knows, at a fraction of the cost; the LoRA is then used with
    dense attention, or any other. Information crosses groups through the moved heads. The unit is the latent frame: the
    tokens of a frame always see each other. Nothing wraps: with moved groups the first and the last group are shorter.
    Text in joint models stays dense. A picture (one frame) is dense.

    Args:
        group: frames of a group. ``"quarter"``: a quarter of the clip, rounded up, as the papers have it; cost then
            still grows with the square of the length. With the length that the model was trained at, every group is of
            a kind that the model knows, and cost grows with the length alone.
        shifted_heads: share of the heads with moved groups, 0 to 1; between them at least one head of each kind.
            LongLoRA: 0.5. 0 and 1: no information crosses groups but through the sink.
        sink: ``"first_frame"``: frame 0 is seen by all frames; ``"none"``: groups may drift apart in colour.
        sink_rows: frame 0 also sees all frames: two layers then connect every frame with every other.

    Source: LongLoRA, arXiv 2309.12307, and SinkLoRA, arXiv 2406.05678; frames as the unit and cuts without wrapping
    are this project's.
    """

    group: int | Literal["quarter"] = field(default="quarter", metadata={"help": "frames of a group"})
    shifted_heads: float = field(default=0.5, metadata={"help": "share of the heads whose groups are moved"})
    sink: Literal["first_frame", "none"] = field(
        default="first_frame", metadata={"help": "what all frames see besides their group"}
    )
    sink_rows: bool = field(default=False, metadata={"help": "the first frame sees all frames"})

    roles: ClassVar[tuple[str, ...]] = ("self", "joint")
    trainable: ClassVar[bool] = True
    by_head: ClassVar[bool] = True
    source: ClassVar[str] = "LongLoRA, arXiv 2309.12307; SinkLoRA, arXiv 2406.05678"

    def __post_init__(self):
        super().__post_init__()
        if self.group != "quarter":
            check_int("shifted_groups", "group", self.group, 1)
        check_number("shifted_groups", "shifted_heads", self.shifted_heads, 0, 1)
        check_choice("shifted_groups", "sink", self.sink, SINKS)
        check_flag("shifted_groups", "sink_rows", self.sink_rows)

    def frames(self, layout: TokenLayout) -> int:
        """Frames of a group on a layout."""
        return -(-layout.grid[0] // 4) if self.group == "quarter" else self.group

    def moved(self, heads: int) -> int:
        """How many heads have moved groups: the last ones."""
        count = int(self.shifted_heads * heads + 0.5)
        return min(max(count, 1), heads - 1) if 0 < self.shifted_heads < 1 and heads > 1 else count

    def visible(self, layout: TokenLayout) -> torch.Tensor:
        """Frames that see each other, bool (2, f, f): heads in place, heads with moved groups."""
        return _visible(layout.grid[0], self.frames(layout), self.sink == "first_frame", self.sink_rows)

    def why_not(self, site: Site) -> str | None:
        """As :meth:`Method.why_not`; also refuses layers of one head, which cannot be of two kinds."""
        reason, heads = super().why_not(site), site.all_heads or site.heads
        if reason is None and heads == 1 and 0 < self.shifted_heads < 1 and site.layout.grid[0] > 1:
            return (
                f"shifted_groups with shifted_heads={self.shifted_heads} needs two heads or more, this layer has one; "
                "use shifted_heads=0 or 1, or leave the layer to the model's own attention"
            )
        return reason

    def build_plan(
        self, layout: TokenLayout, kind: str = "cpu", key_mask: torch.Tensor | None = None, heads: int = 2
    ) -> StaticPlan:
        """The plan of a layout for ``heads`` heads; see :meth:`StaticMethod.build_plan`."""
        return frame_plan(self.visible(layout), self._kinds(heads), layout, key_mask)

    def _kinds(self, heads: int) -> torch.Tensor:
        """(heads,) int64: 0 in place, 1 moved."""
        return (torch.arange(heads) >= heads - self.moved(heads)).long()

    def shares(self, layout: TokenLayout, queries: torch.Tensor, heads: int) -> torch.Tensor:
        """See :meth:`Method.shares`."""
        weight = torch.bincount(self._kinds(heads), minlength=2).double() / heads
        return sum(part * rows.double() for part, rows in zip(weight, self._rows(layout, queries), strict=True))

    def mask_rows(self, layout: TokenLayout, queries: torch.Tensor) -> torch.Tensor:
        """See :meth:`Method.mask_rows`: what heads of any kind see; O(n N) memory."""
        used = [kind for kind, share in enumerate((1 - self.shifted_heads, self.shifted_heads)) if share]
        return self._rows(layout, queries)[used].any(0)

    def pair_rows(
        self, q: torch.Tensor, k: torch.Tensor, site: Site, cache: PatchCache, queries: torch.Tensor
    ) -> torch.Tensor:
        """See :meth:`Method.pair_rows`: every head its own."""
        first = site.first_head
        kinds = self._kinds(site.all_heads or q.shape[2])[first : first + q.shape[2]]
        return self._rows(site.layout, queries.cpu())[kinds][None].to(q.device)

    def mask(self, layout: TokenLayout) -> torch.Tensor:
        """The pairs visible to heads of any kind, bool (N, N). O(N^2) memory."""
        return self.mask_rows(layout, torch.arange(layout.length))

    def masks(self, layout: TokenLayout) -> torch.Tensor:
        """The visible pairs of heads in place and of heads with moved groups, bool (2, N, N). O(N^2) memory."""
        return self._rows(layout, torch.arange(layout.length))

    def _rows(self, layout: TokenLayout, queries: torch.Tensor) -> torch.Tensor:
        """(2, n, N) bool: the keys that some queries see, by kind of heads."""
        return frame_rows(self.visible(layout), layout, queries)

    def details(self, layout: TokenLayout) -> str:
        """See :meth:`Method.details`."""
        if layout.grid[0] == 1:
            return "one frame: dense"
        visible, group = self.visible(layout), self.frames(layout)
        used = visible[[kind for kind, share in enumerate((1 - self.shifted_heads, self.shifted_heads)) if share]]
        layers = layers_to_reach(used)
        text = (
            "no number of layers connects all frames"
            if layers is None
            else f"all frames are connected after {layers} layer{'s'[: layers > 1]}"
        )
        return f"groups of {group} of {layout.grid[0]} frames;  {text}"


@lru_cache(maxsize=64)
def _visible(frames: int, group: int, sink: bool, sink_rows: bool) -> torch.Tensor:
    """(2, f, f) bool by kind of heads. Shared: not to be written to."""
    return torch.stack([visible_frames(frames, group, shifted, sink, sink_rows) for shifted in (False, True)])
