"""Motif-Video: joint attention, image tokens and text last, and cross-attention to text."""

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
from genkit.families.codec import standardised
from genkit.families.facts import FLOW, Objective, PipelineFacts, TextRule
from genkit.families.grids import latent_grid
from genkit.families.sizes import ReadConfig, Size, SizeRule

_grid = latent_grid("Motif-Video", patch_t="patch_size_t")


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    grid = _grid(model, args)
    embeds = args.get("image_embeds")
    image = shape(args, "image_embeds", 3, "Motif-Video")[1] if embeds is not None else 0
    video = grid_with(grid)
    return {
        MAIN: grid_with(grid, after=(("image", image), (TEXT, text_length(args, "Motif-Video")))),
        "decoder": grid_with(grid, after=(("encoded", video.length),), copies=("encoded",)),
        "video": video,
    }


def _decodes(model: Any, path: str, module: Any) -> bool:
    """Whether a single block is one of the last: their tokens are the video as it came, and as encoded so far."""
    return int(path.split(".")[1]) >= len(model.single_transformer_blocks) - model.config.num_decoder_layers


def _decoders(model: Any) -> int:
    """The decoder's blocks: their tokens are the embedded latents anew, and the encoded video."""
    return int(model.config.num_decoder_layers)


def _token(config: ReadConfig) -> Size:
    vae, model = config("vae"), config("transformer")
    side = vae.get("scale_factor_spatial", 8) * model.get("patch_size", 2)
    return vae.get("scale_factor_temporal", 4) * model.get("patch_size_t", 1), side, side


def _sizes(config: ReadConfig) -> SizeRule:
    time, side, _ = _token(config)
    return SizeRule(side, time)


FAMILY = Family(
    name="Motif-Video",
    classes=("MotifVideoTransformer3DModel",),
    pipelines=("MotifVideoPipeline", "MotifVideoImage2VideoPipeline"),
    rules=(
        SiteRule(r"single_transformer_blocks\.\d+\.attn", "joint", queries="decoder", text=False, applies=_decodes),
        SiteRule(r"(?:single_)?transformer_blocks\.\d+\.attn", "joint"),
        SiteRule(r"(?:single_)?transformer_blocks\.\d+\.cross_attn", "cross", queries="video", keys=("text",)),
    ),
    streams=_streams,
    reads=("hidden_states", "encoder_hidden_states", "image_embeds"),
    sample="hidden_states",
    order=("transformer_blocks", "single_transformer_blocks"),
    grid="hidden_states (B, C, F, H, W) divided by patch_size_t and patch_size",
    text="last",
    video=True,
    rotary=Rotary(),
    stack=BlockStack(("transformer_blocks", "single_transformer_blocks"), mask="attention_mask", other=_decoders),
    facts=PipelineFacts(
        pattern="MotifVideo.*",
        fps="24",
        sizes=_sizes,
        token=_token,
        codec=standardised("BCTHW"),
        text=TextRule(("encoder_hidden_states", "encoder_attention_mask"), 512),
        objective=Objective(FLOW, "thousand", even=True),
        lora_targets=r"(?:single_)?transformer_blocks\.\d+\.(?:cross_)?attn\.(?:to_[qkv]|to_out\.0)",
    ),
    notes="In the decoder, the last single blocks, the encoded video is the segment 'encoded', the grid once more: a "
    "method's pattern holds within and between the two.",
)
