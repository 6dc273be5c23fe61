"""UVit2D (Amused): one token per code of a picture; nothing is a time step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.families.base import MAIN, Family, SiteRule, Streams, grid_with, shape
from genkit.families.facts import PipelineFacts


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    _, height, width = shape(args, "input_ids", 3, "UVit2D")
    fewer = 2 if model.config.downsample else 1
    return {MAIN: grid_with((1, height // fewer, width // fewer))}


FAMILY = Family(
    name="UVit2D",
    classes=("UVit2DModel",),
    pipelines=("AmusedPipeline", "AmusedImg2ImgPipeline", "AmusedInpaintPipeline"),
    rules=(
        SiteRule(r"transformer_layers\.\d+\.attn1", "self"),
        SiteRule(r"transformer_layers\.\d+\.attn2", "cross", keys=("text",)),
        SiteRule(r"(?:down|up)_block\.attention_blocks\.\d+\.attn[12]", "cross", keys=("text",)),
    ),
    streams=_streams,
    reads=("input_ids",),
    sample="input_ids",
    timestep="",
    order=("down_block", "transformer_layers", "up_block"),
    grid="input_ids (B, H, W), halved where the configuration says downsample",
    text="apart",
    video=False,
    facts=PipelineFacts(pattern="Amused.*"),
    notes="Both attentions of the outer blocks ask the text. Both branches are computed in one call.",
)
