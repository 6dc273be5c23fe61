"""EasyAnimate: joint attention, text first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.families.base import MAIN, TEXT, Family, Rotary, SiteRule, Streams, grid_with, text_length
from genkit.families.facts import PipelineFacts
from genkit.families.grids import latent_grid

_grid = latent_grid("EasyAnimate")


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    names = ("encoder_hidden_states", "encoder_hidden_states_t5")
    text = sum(text_length(args, "EasyAnimate", name) for name in names if args.get(name) is not None)
    return {MAIN: grid_with(_grid(model, args), before=((TEXT, text),))}


FAMILY = Family(
    name="EasyAnimate",
    classes=("EasyAnimateTransformer3DModel",),
    pipelines=("EasyAnimatePipeline", "EasyAnimateControlPipeline", "EasyAnimateInpaintPipeline"),
    rules=(SiteRule(r"transformer_blocks\.\d+\.attn1", "joint"),),
    streams=_streams,
    reads=("hidden_states", "encoder_hidden_states", "encoder_hidden_states_t5"),
    sample="hidden_states",
    order=("transformer_blocks",),
    grid="hidden_states (B, C, F, H, W); height and width divided by patch_size",
    text="first",
    video=True,
    rotary=Rotary(),
    facts=PipelineFacts(
        pattern="EasyAnimate.*", fps="8", lora_targets=r"transformer_blocks\.\d+\.attn1\.(?:to_[qkv]|to_out\.0)"
    ),
    notes="Both branches are computed in one call. No attention processors can be set, so use genkit.patch.",
)
