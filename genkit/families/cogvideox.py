"""CogVideoX: joint attention, text first."""

from __future__ import annotations

from collections.abc import Mapping
from math import lcm
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
from genkit.families.facts import Objective, PipelineFacts, TextRule
from genkit.families.inputs import Other
from genkit.families.sizes import ReadConfig, Size, SizeRule, halvings


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    _, frames, _, height, width = shape(args, "hidden_states", 5, "CogVideoX")
    patch, patch_t = model.config.patch_size, model.config.patch_size_t or 1
    grid = (frames // patch_t, height // patch, width // patch)
    return {MAIN: grid_with(grid, before=((TEXT, text_length(args, "CogVideoX")),))}


def _sizes(config: ReadConfig) -> SizeRule:
    patch = config("transformer").get("patch_size", 2)
    return SizeRule(lcm(8, halvings(config) * patch), config("vae").get("temporal_compression_ratio", 4))


def _token(config: ReadConfig) -> Size:
    transformer = config("transformer")
    spatial = halvings(config) * transformer.get("patch_size", 2)
    time = config("vae").get("temporal_compression_ratio", 4) * (transformer.get("patch_size_t") or 1)
    return time, spatial, spatial


def _states(pipeline: Any, prompts: list[str], slots: int) -> Any:
    return pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=slots)[0]


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
    rotary=Rotary(),
    stack=BlockStack(("transformer_blocks",)),
    facts=PipelineFacts(
        pattern="CogVideoX.*",
        fps="8",
        others={"CogVideoXPipeline": (Other("CogVideoXVideoToVideoPipeline"),)},
        sizes=_sizes,
        token=_token,
        codec=scaled("BTCHW"),
        text=TextRule(("encoder_hidden_states",), 226, _states),
        objective=Objective(None, "index"),
        lora_targets=r"transformer_blocks\.\d+\.attn1\.(?:to_[qkv]|to_out\.0)",
        tasks={"storyboard": "CogVideoXPipeline"},
    ),
    notes="Both branches are computed in one call.",
)
