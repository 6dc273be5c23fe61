"""Kandinsky 5: self-attention over video or image, cross-attention to text; its sparse form keeps tokens in tiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.families.base import MAIN, Family, SiteRule, Streams, grid_with, shape
from genkit.families.codec import scaled
from genkit.families.facts import FLOW, Objective, PipelineFacts, TextRule
from genkit.families.sizes import ReadConfig, Size


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    _, frames, height, width, _ = shape(args, "hidden_states", 5, "Kandinsky 5")
    t, h, w = model.config.patch_size
    return {MAIN: grid_with((frames // t, height // h, width // w))}


def _tiles(model: Any, args: Mapping[str, Any]) -> dict[str, Size]:
    """With ``to_fractal`` the tokens of a frame come in tiles of 8 x 8."""
    told = args.get("sparse_params") or {}
    return {MAIN: (1, 8, 8)} if told.get("to_fractal") else {}


def _token(config: ReadConfig) -> Size:
    vae, patch = config("vae"), config("transformer").get("patch_size", (1, 2, 2))
    spatial = vae.get("spatial_compression_ratio", 8)
    return vae.get("temporal_compression_ratio", 4) * patch[0], spatial * patch[1], spatial * patch[2]


FAMILY = Family(
    name="Kandinsky 5",
    classes=("Kandinsky5Transformer3DModel",),
    pipelines=("Kandinsky5T2VPipeline", "Kandinsky5I2VPipeline", "Kandinsky5T2IPipeline", "Kandinsky5I2IPipeline"),
    rules=(
        SiteRule(r"visual_transformer_blocks\.\d+\.self_attention", "self"),
        SiteRule(r"visual_transformer_blocks\.\d+\.cross_attention", "cross", keys=("text",)),
    ),
    streams=_streams,
    reads=("hidden_states", "sparse_params"),
    sample="hidden_states",
    order=("visual_transformer_blocks",),
    grid="hidden_states (B, F, H, W, C) divided by patch_size",
    text="apart",
    video=True,
    heads_attribute="num_heads",
    projection_names=("to_query", "to_key", "to_value"),
    tiles=_tiles,
    facts=PipelineFacts(
        pattern="Kandinsky5.*",
        fps="24",
        token=_token,
        codec=scaled("BTHWC"),
        text=TextRule(("encoder_hidden_states", "pooled_projections"), 512),
        objective=Objective(FLOW, "thousand"),
        lora_targets=r"visual_transformer_blocks\.\d+\.(?:self|cross)_attention\.(?:to_query|to_key|to_value|out_layer)",
    ),
    notes="The pipelines call the model twice per step and announce nothing. Where the model's own sparse attention "
    "(nabla) is on, self-attention is left to it. The text blocks keep their own attention.",
)
