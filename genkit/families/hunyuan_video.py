"""HunyuanVideo: joint attention, text last; a key mask hides text padding."""

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
from genkit.families.sizes import ReadConfig, Size, SizeRule


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    _, _, frames, height, width = shape(args, "hidden_states", 5, "HunyuanVideo")
    patch, patch_t = model.config.patch_size, model.config.patch_size_t
    grid = (frames // patch_t, height // patch, width // patch)
    return {MAIN: grid_with(grid, after=((TEXT, text_length(args, "HunyuanVideo")),))}


def _sizes(config: ReadConfig) -> SizeRule:
    return SizeRule(16, config("vae").get("temporal_compression_ratio", 4))


def _token(config: ReadConfig) -> Size:
    vae, transformer = config("vae"), config("transformer")
    spatial = vae.get("spatial_compression_ratio", 8) * transformer.get("patch_size", 2)
    return vae.get("temporal_compression_ratio", 4) * transformer.get("patch_size_t", 1), spatial, spatial


FAMILY = Family(
    name="HunyuanVideo",
    classes=("HunyuanVideoTransformer3DModel",),
    pipelines=("HunyuanVideoPipeline", "HunyuanVideoImageToVideoPipeline"),
    rules=(SiteRule(r"(?:single_)?transformer_blocks\.\d+\.attn", "joint"),),
    streams=_streams,
    reads=("hidden_states", "encoder_hidden_states"),
    sample="hidden_states",
    order=("transformer_blocks", "single_transformer_blocks"),
    grid="hidden_states (B, C, F, H, W) divided by patch_size_t and patch_size",
    text="last",
    video=True,
    branches=("cond", "uncond"),
    rotary=Rotary(),
    time_positions="shape",
    stack=BlockStack(
        ("transformer_blocks", "single_transformer_blocks"),
        rotary=("freqs_cis", "image_rotary_emb"),
        mask="attention_mask",
    ),
    facts=PipelineFacts(
        pattern="HunyuanVideo(?!15|Framepack).*",
        fps="24",
        sizes=_sizes,
        token=_token,
        codec=scaled("BCTHW"),
        text=TextRule(("encoder_hidden_states", "encoder_attention_mask", "pooled_projections"), 256),
        objective=Objective(FLOW, "thousand", even=True),
        lora_targets=r"(?:single_)?transformer_blocks\.\d+\.attn\.(?:to_[qkv]|to_out\.0)",
        architecture="hunyuan-video",
        tasks={"storyboard": "HunyuanVideoPipeline"},
    ),
    notes="Padding of the text is hidden by a key mask; a mask without padding is dropped. The text refiner keeps its "
    "own attention.",
)
