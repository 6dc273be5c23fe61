"""Further UNets over images: Kandinsky 3, Stable Cascade."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.families.base import Family, OpenLayout, SiteRule, Streams, Untold, grid_with, shape
from genkit.families.facts import PipelineFacts
from genkit.families.grids import unet_levels
from genkit.layout import TEXT, Segment, TokenLayout

_ORDER = ("down_blocks", "mid_block", "up_blocks")
_LEVELS = "sample (B, C, H, W), halved (rounding up) at every downsampling"


def _kandinsky3(model: Any, args: Mapping[str, Any]) -> Streams:
    _, _, height, width = shape(args, "sample", 4, "Kandinsky 3")
    return unet_levels(model.num_levels, height, width, round_up=False)


KANDINSKY3 = Family(
    name="Kandinsky 3",
    classes=("Kandinsky3UNet",),
    pipelines=("Kandinsky3Pipeline", "Kandinsky3Img2ImgPipeline"),
    rules=(
        SiteRule(r"(down|up)_blocks\.(\d+)\.attentions\.0\.attention", "self", queries="{1}{2}"),
        SiteRule(r"(down|up)_blocks\.(\d+)\.attentions\.[1-9]\d*\.attention", "cross", "{1}{2}", keys=("text",)),
    ),
    streams=_kandinsky3,
    reads=("sample",),
    sample="sample",
    order=_ORDER,
    grid="sample (B, C, H, W), halved at every downsampling",
    text="apart",
    video=False,
    facts=PipelineFacts(pattern="Kandinsky3.*"),
    notes="Padding of the text is hidden by a key mask. The attention that pools the text stays as it is. Both "
    "branches are computed in one call.",
)


def _cascade(model: Any, args: Mapping[str, Any]) -> Streams:
    """A level's pixels ask themselves and the text, whose length the call tells."""
    _, _, height, width = shape(args, "sample", 4, "Stable Cascade")
    config = model.config
    levels = len(config.block_out_channels)
    alone = config.self_attn if isinstance(config.self_attn, (list, tuple)) else (config.self_attn,) * levels
    height, width = height // config.patch_size, width // config.patch_size
    streams: Streams = {}
    for level in range(levels):
        if level and (config.switch_level is None or config.switch_level[level - 1]):
            height, width = height // 2, width // 2
        queries = grid_with((1, height, width))
        both: Any = OpenLayout(TokenLayout(queries.grid, (*queries.segments, Segment(TEXT, 0))), TEXT)
        if not alone[level]:
            both = Untold("its keys are the text alone, though its layer is one of image and text")
        for name in (f"down{level}", f"up{levels - 1 - level}"):
            streams[name], streams[f"{name}_text"] = queries, both
    return streams


CASCADE = Family(
    name="Stable Cascade",
    classes=("StableCascadeUNet",),
    pipelines=("StableCascadePriorPipeline", "StableCascadeDecoderPipeline", "StableCascadeCombinedPipeline"),
    rules=(SiteRule(r"(down|up)_blocks\.(\d+)\.\d+\.attention", "joint", queries="{1}{2}", keys=("{1}{2}_text",)),),
    streams=_cascade,
    reads=("sample",),
    sample="sample",
    timestep="timestep_ratio",
    order=_ORDER,
    grid="sample (B, C, H, W) divided by patch_size, halved at every level that the configuration switches",
    text="last",
    video=False,
    facts=PipelineFacts(pattern="StableCascade.*"),
    notes="Text tokens (text, pooled text and picture) are keys only. Both branches are computed in one call. No "
    "attention processors can be set, so use genkit.patch.",
)

FAMILIES = (KANDINSKY3, CASCADE)
