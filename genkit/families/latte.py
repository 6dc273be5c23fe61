"""Latte: attention within frames and along frames in turns, with cross-attention to text within frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.families.base import Family, SiteRule, Streams, grid_with
from genkit.families.codec import scaled
from genkit.families.facts import Objective, PipelineFacts, TextRule
from genkit.families.grids import latent_grid

_grid = latent_grid("Latte")


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    t, h, w = _grid(model, args)
    return {"frame": grid_with((1, h, w)), "time": grid_with((t, 1, 1))}


FAMILY = Family(
    name="Latte",
    classes=("LatteTransformer3DModel",),
    pipelines=("LattePipeline",),
    rules=(
        SiteRule(r"transformer_blocks\.\d+\.attn1", "spatial", queries="frame"),
        SiteRule(r"transformer_blocks\.\d+\.attn2", "cross", queries="frame", keys=("text",)),
        SiteRule(r"temporal_transformer_blocks\.\d+\.attn1", "temporal", queries="time", places="frame"),
    ),
    streams=_streams,
    reads=("hidden_states",),
    sample="hidden_states",
    order=("transformer_blocks", "temporal_transformer_blocks"),
    grid="hidden_states (B, C, F, H, W); height and width divided by patch_size; frames, or places, sit in the batch",
    text="apart",
    video=True,
    halves=True,
    facts=PipelineFacts(
        pattern="Latte.*",
        fps="8",
        codec=scaled("BCTHW"),
        text=TextRule(("encoder_hidden_states",), 120),
        objective=Objective(None, "index"),
        lora_targets=r"(?:temporal_)?transformer_blocks\.\d+\.attn[12]\.(?:to_[qkv]|to_out\.0)",
    ),
    notes="Both branches are computed in one call. No attention processors can be set, so use genkit.patch.",
)
