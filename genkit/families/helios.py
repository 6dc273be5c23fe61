"""Helios: self-attention over a history of earlier frames and the video, cross-attention to text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.families.base import MAIN, Family, OpenLayout, SiteRule, Streams
from genkit.families.facts import History, PipelineFacts
from genkit.families.grids import latent_grid
from genkit.layout import GRID, Segment, TokenLayout

_grid = latent_grid("Helios")


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    t, h, w = _grid(model, args)
    closed = TokenLayout((t, h, w), (Segment("history", 0), Segment(GRID, t * h * w)))
    return {MAIN: OpenLayout(closed, "history")}


FAMILY = Family(
    name="Helios",
    classes=("HeliosTransformer3DModel",),
    pipelines=("HeliosPipeline", "HeliosPyramidPipeline"),
    rules=(
        SiteRule(r"blocks\.\d+\.attn1", "self"),
        SiteRule(r"blocks\.\d+\.attn2", "cross", keys=("text",)),
    ),
    streams=_streams,
    reads=("hidden_states",),
    sample="hidden_states",
    order=("blocks",),
    grid="hidden_states (B, C, F, H, W) divided by patch_size; tokens before it are 'history'",
    text="apart",
    video=True,
    branches=("cond", "uncond"),
    facts=PipelineFacts(
        pattern="Helios.*",
        fps="24",
        lora_targets=r"blocks\.\d+\.attn[12]\.(?:to_[qkv]|to_out\.0)",
        streaming=History(chunk=9, recent=19),
        tasks={"stream": "Helios(?:Pyramid)?Pipeline"},
    ),
    notes="The long, middle and short histories are plain tokens for methods: their coarser grids are not used.",
)
