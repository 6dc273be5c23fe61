"""AnyFlow-FAR: video chunk by chunk, each attending to cached chunks and itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.families.base import MAIN, Family, OpenLayout, SiteRule, Streams, grid_with
from genkit.families.facts import PipelineFacts
from genkit.families.grids import latent_grid
from genkit.layout import GRID, Segment, TokenLayout

_grid = latent_grid("AnyFlow-FAR", "BTCHW")
_BLOCK = 128  # the model fills its queries, and its keys by as many, up to a multiple of this


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    flag = args.get("kv_cache_flag") or {}
    if args.get("kv_cache") is None or flag.get("is_cache_step"):
        return {}  # training and filling the cache: several grids of two kinds under the model's own block mask
    grid = _grid(model, args)
    tokens = grid[0] * grid[1] * grid[2]
    pad = -tokens % _BLOCK
    keys = TokenLayout(grid, (Segment("cached", 0), Segment(GRID, tokens), *((Segment("pad", pad),) if pad else ())))
    return {
        MAIN: grid_with(grid, after=(("pad", pad),)),
        "keys": OpenLayout(keys, "cached"),
        "video": grid_with(grid),
    }


FAMILY = Family(
    name="AnyFlow-FAR",
    classes=("AnyFlowFARTransformer3DModel",),
    pipelines=("AnyFlowFARPipeline",),
    rules=(
        SiteRule(r"blocks\.\d+\.attn1", "self", keys=("keys",)),
        SiteRule(r"blocks\.\d+\.attn2", "cross", queries="video", keys=("text",), added_keys=("image", "text")),
    ),
    streams=_streams,
    reads=("hidden_states", "kv_cache", "kv_cache_flag"),
    sample="hidden_states",
    order=("blocks",),
    grid="hidden_states (B, F, C, H, W) of the chunk divided by patch_size; cached chunks before it are 'cached'",
    text="apart",
    video=True,
    facts=PipelineFacts(
        pattern="AnyFlowFAR.*", fps="16", lora_targets=r"blocks\.\d+\.attn[12]\.(?:to_[qkv]|to_out\.0)"
    ),
    notes="Calls that fill the cache, and training, attend by the model's own block mask, which stays as it is. The "
    "model fills tokens up to a multiple of 128 (segment 'pad') and lets them take part; so does a patch. No "
    "attention processors can be set, so use genkit.patch.",
)
