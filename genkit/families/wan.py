"""Wan: video self-attention, text cross-attention, image keys before text keys in image-to-video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.families.base import MAIN, Family, SiteRule, Streams, grid_with, shape


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    _, _, frames, height, width = shape(args, "hidden_states", 5, "Wan")
    t, h, w = model.config.patch_size
    return {MAIN: grid_with((frames // t, height // h, width // w))}


FAMILY = Family(
    name="Wan",
    classes=("WanTransformer3DModel", "WanVACETransformer3DModel"),
    pipelines=("WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline", "WanVACEPipeline"),
    rules=(
        SiteRule(r"(?:vace_)?blocks\.\d+\.attn1", "self"),
        SiteRule(r"(?:vace_)?blocks\.\d+\.attn2", "cross", keys=("text",), added_keys=("image", "text")),
    ),
    streams=_streams,
    reads=("hidden_states",),
    sample="hidden_states",
    order=("blocks", "vace_blocks"),
    grid="hidden_states (B, C, F, H, W) divided by patch_size",
    text="apart",
    video=True,
    branches=("cond", "uncond"),
    notes="Image-to-video attends the image tokens in a first cross-attention call and the text in a second. In VACE "
    "the layers of the control branch are numbered after the main ones.",
)
