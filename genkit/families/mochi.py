"""Mochi: joint attention per sample, valid text tokens last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.families.base import MAIN, TEXT, Family, SiteRule, Streams, grid_with, shape, text_length
from genkit.families.codec import standardised
from genkit.families.facts import PipelineFacts, TextRule
from genkit.families.sizes import ReadConfig, Size, SizeRule


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    _, _, frames, height, width = shape(args, "hidden_states", 5, "Mochi")
    patch = model.config.patch_size
    grid = (frames, height // patch, width // patch)
    return {MAIN: grid_with(grid, after=((TEXT, text_length(args, "Mochi")),))}


def _sizes(config: ReadConfig) -> SizeRule:
    return SizeRule(16, 6)


def _token(config: ReadConfig) -> Size:
    patch = config("transformer").get("patch_size", 2)
    return 6, 8 * patch, 8 * patch


FAMILY = Family(
    name="Mochi",
    classes=("MochiTransformer3DModel",),
    pipelines=("MochiPipeline",),
    rules=(SiteRule(r"transformer_blocks\.\d+\.attn1", "joint"),),
    streams=_streams,
    reads=("hidden_states", "encoder_hidden_states"),
    sample="hidden_states",
    order=("transformer_blocks",),
    grid="hidden_states (B, C, F, H, W); height and width divided by patch_size",
    text="last",
    video=True,
    branches=("cond_uncond",),
    varying_text=True,
    facts=PipelineFacts(
        pattern="Mochi.*",
        fps="30",
        sizes=_sizes,
        token=_token,
        codec=standardised("BCTHW"),
        text=TextRule(("encoder_hidden_states", "encoder_attention_mask"), 256),
        lora_targets=r"transformer_blocks\.\d+\.attn1\.(?:to_[qkv]|to_out\.0)",
    ),
    notes="Every sample is attended in a call of its own, with its valid text tokens only. No attention processors can "
    "be set, so use genkit.patch.",
)
