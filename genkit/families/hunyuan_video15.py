"""HunyuanVideo 1.5: joint attention, image and text tokens last; padded tokens neither ask nor answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.families.base import MAIN, TEXT, Family, Rotary, SiteRule, Streams, grid_with, text_length
from genkit.families.facts import PipelineFacts
from genkit.families.grids import latent_grid

_NAME = "HunyuanVideo 1.5"
_grid = latent_grid(_NAME, patch_t="patch_size_t")
_TEXT = ("encoder_hidden_states", "encoder_hidden_states_2", "image_embeds")


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    text = sum(text_length(args, _NAME, name) for name in _TEXT if args.get(name) is not None)
    return {MAIN: grid_with(_grid(model, args), after=((TEXT, text),))}


FAMILY = Family(
    name=_NAME,
    classes=("HunyuanVideo15Transformer3DModel",),
    pipelines=("HunyuanVideo15Pipeline", "HunyuanVideo15ImageToVideoPipeline"),
    rules=(SiteRule(r"transformer_blocks\.\d+\.attn", "joint"),),
    streams=_streams,
    reads=("hidden_states", *_TEXT),
    sample="hidden_states",
    order=("transformer_blocks",),
    grid="hidden_states (B, C, F, H, W) divided by patch_size_t and patch_size",
    text="last",
    video=True,
    rotary=Rotary(),
    facts=PipelineFacts(
        pattern="HunyuanVideo15.*",
        fps="24",
        lora_targets=r"transformer_blocks\.\d+\.attn\.(?:to_[qkv]|to_out\.0)",
    ),
    notes="The segment 'text' holds image, glyph and text tokens, each sample's valid ones first. Queries that are "
    "padding see nothing and keep the model's own attention. The text refiner keeps its own attention.",
)
