"""Stable Diffusion 3 and 3.5: joint attention, text last; dual blocks add image-only self-attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.families.base import (
    MAIN,
    TEXT,
    BlockStack,
    Family,
    Rotary,
    SiteRule,
    Streams,
    grid_with,
    shape,
    text_length,
)
from genkit.families.codec import scaled
from genkit.families.facts import FLOW, Objective, PipelineFacts, TextRule
from genkit.families.inputs import Other
from genkit.families.sizes import packed_image, packed_image_token


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    _, _, height, width = shape(args, "hidden_states", 4, "SD3")
    patch = model.config.patch_size
    grid = (1, height // patch, width // patch)
    return {MAIN: grid_with(grid, after=((TEXT, text_length(args, "SD3")),)), "image": grid_with(grid)}


FAMILY = Family(
    name="SD3",
    classes=("SD3Transformer2DModel",),
    pipelines=("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
    rules=(
        SiteRule(r"transformer_blocks\.\d+\.attn", "joint"),
        SiteRule(r"transformer_blocks\.\d+\.attn2", "self", queries="image"),
    ),
    streams=_streams,
    reads=("hidden_states", "encoder_hidden_states"),
    sample="hidden_states",
    order=("transformer_blocks",),
    grid="hidden_states (B, C, H, W) divided by patch_size",
    text="last",
    video=False,
    rotary=Rotary(""),
    stack=BlockStack(("transformer_blocks",), rotary=(), output=1),
    facts=PipelineFacts(
        pattern="StableDiffusion3.*",
        others={
            "StableDiffusion3Pipeline": (
                Other("StableDiffusion3Img2ImgPipeline"),
                Other("StableDiffusion3InpaintPipeline"),
                Other("StableDiffusion3ControlNetPipeline", controlnet=True),
            )
        },
        sizes=packed_image,
        token=packed_image_token,
        codec=scaled("BCHW"),
        text=TextRule(("encoder_hidden_states", "pooled_projections"), 256),
        objective=Objective(FLOW, "thousand"),
        lora_targets=r"transformer_blocks\.\d+\.attn2?\.(?:to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)",
        architecture="stable-diffusion-3-medium",
    ),
    notes="The pipelines compute both branches in one call and announce none. attn2 exists in the dual blocks of 3.5.",
)
