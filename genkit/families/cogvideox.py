"""CogVideoX: joint attention, text first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.families.base import MAIN, TEXT, Family, SiteRule, Streams, grid_with, shape, text_length


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    _, frames, _, height, width = shape(args, "hidden_states", 5, "CogVideoX")
    patch, patch_t = model.config.patch_size, model.config.patch_size_t or 1
    grid = (frames // patch_t, height // patch, width // patch)
    return {MAIN: grid_with(grid, before=((TEXT, text_length(args, "CogVideoX")),))}


FAMILY = Family(
    name="CogVideoX",
    classes=("CogVideoXTransformer3DModel",),
    pipelines=("CogVideoXPipeline", "CogVideoXImageToVideoPipeline", "CogVideoXVideoToVideoPipeline"),
    rules=(SiteRule(r"transformer_blocks\.\d+\.attn1", "joint"),),
    streams=_streams,
    reads=("hidden_states", "encoder_hidden_states"),
    sample="hidden_states",
    order=("transformer_blocks",),
    grid="hidden_states (B, F, C, H, W) divided by patch_size_t (1.5 only) and patch_size",
    text="first",
    video=True,
    branches=("cond_uncond",),
    notes="Both branches are computed in one call.",
)
