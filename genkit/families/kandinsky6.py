"""Kandinsky 6: video and sound in one block, each with attention of its own, to text and to the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.families.base import MAIN, Family, SiteRule, Streams, grid_with, shape
from genkit.families.facts import PipelineFacts
from genkit.families.grids import latent_grid
from genkit.layout import TokenLayout

AUDIO = "audio"
_grid = latent_grid("Kandinsky 6", "BTHWC")


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    streams: Streams = {MAIN: grid_with(_grid(model, args))}
    if args.get("audio_hidden_states") is not None:
        streams[AUDIO] = TokenLayout.sequence(shape(args, "audio_hidden_states", 3, "Kandinsky 6")[1], AUDIO)
    return streams


FAMILY = Family(
    name="Kandinsky 6",
    classes=("Kandinsky6Transformer3DModel",),
    pipelines=("Kandinsky6TI2VAPipeline",),
    rules=(
        SiteRule(r"visual_transformer_blocks\.\d+\.video_dec_block\.self_attention", "self"),
        SiteRule(r"visual_transformer_blocks\.\d+\.video_dec_block\.cross_attention", "cross", keys=("text",)),
        SiteRule(r"visual_transformer_blocks\.\d+\.audio_dec_block\.self_attention", "audio_self", queries=AUDIO),
        SiteRule(
            r"visual_transformer_blocks\.\d+\.audio_dec_block\.cross_attention",
            "audio_cross",
            queries=AUDIO,
            keys=("text",),
        ),
        SiteRule(r"visual_transformer_blocks\.\d+\.va_cross_attention", "audio_to_video", keys=(AUDIO,)),
        SiteRule(r"visual_transformer_blocks\.\d+\.av_cross_attention", "video_to_audio", queries=AUDIO, keys=(MAIN,)),
    ),
    streams=_streams,
    reads=("hidden_states", "audio_hidden_states"),
    sample="hidden_states",
    order=("visual_transformer_blocks",),
    grid="hidden_states (B, F, H, W, C) divided by patch_size",
    text="apart",
    video=True,
    branches=("cond", "uncond"),
    heads_attribute="num_heads",
    projection_names=("to_query", "to_key", "to_value"),
    facts=PipelineFacts(
        pattern="Kandinsky6TI2VA.*",
        needs_input=r".*",
        fps="24",
        lora_targets=r"visual_transformer_blocks\.\d+\.(?:(?:video|audio)_dec_block\.(?:self|cross)|va_cross|av_cross)"
        r"_attention\.(?:to_query|to_key|to_value|out_layer)",
    ),
    notes="Names go from source to target: audio_to_video has video queries and audio keys. Tokens have no times in "
    "seconds. Without sound its attention is left out. The text blocks keep their own attention.",
)
