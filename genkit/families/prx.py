"""PRX and NucleusMoE-Image: the image asks the image and the text in one attention; the text asks nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.errors import UnsupportedError
from genkit.families.base import MAIN, TEXT, Family, OpenLayout, SiteRule, Streams, grid_with, shape, text_length
from genkit.families.facts import PipelineFacts
from genkit.families.grids import given, latent_grid
from genkit.families.sizes import ReadConfig, Size, SizeRule, halvings, packed_image, packed_image_token
from genkit.layout import GRID, Segment, TokenLayout

BOTH = "image_text"
_GRID = latent_grid("PRX", "BCHW")


def _prx(model: Any, args: Mapping[str, Any]) -> Streams:
    grid = _GRID(model, args)
    return {MAIN: grid_with(grid), BOTH: grid_with(grid, before=((TEXT, text_length(args, "PRX")),))}


def _token(config: ReadConfig) -> Size:
    vae = config("vae")
    if not vae:
        side = 1  # the form that works on pixels
    elif "encoder_block_out_channels" in vae:
        side = 2 ** (len(vae["encoder_block_out_channels"]) - 1)
    else:
        side = halvings(config)
    side *= config("transformer").get("patch_size", 2)
    return 1, side, side


def _sizes(config: ReadConfig) -> SizeRule:
    return SizeRule(_token(config)[1], 1)


PRX = Family(
    name="PRX",
    classes=("PRXTransformer2DModel",),
    pipelines=("PRXPipeline", "PRXPixelPipeline"),
    rules=(SiteRule(r"blocks\.\d+\.attention", "joint", keys=(BOTH,)),),
    streams=_prx,
    reads=("hidden_states", "encoder_hidden_states"),
    sample="hidden_states",
    order=("blocks",),
    grid="hidden_states (B, C, H, W) divided by patch_size",
    text="first",
    video=False,
    facts=PipelineFacts(pattern="PRX.*", sizes=_sizes, token=_token),
    notes="Text tokens are keys only; a key mask hides their padding. Projections are fused. Both branches are "
    "computed in one call.",
)


def _nucleus(model: Any, args: Mapping[str, Any]) -> Streams:
    tokens = shape(args, "hidden_states", 3, "NucleusMoE-Image")[1]
    shapes = given(args, "img_shapes", "NucleusMoE-Image")
    grids = {tuple(int(size) for size in each) for each in ([shapes] if isinstance(shapes[0], int) else shapes)}
    grid = min(grids)
    if len(grids) > 1 or grid[0] * grid[1] * grid[2] != tokens:
        raise UnsupportedError(f"NucleusMoE-Image: img_shapes {sorted(grids)} do not tell one grid of {tokens} tokens")
    # A cache may hand in the keys of the text instead of its tokens.
    keys = TokenLayout(grid, (Segment(GRID, tokens), Segment(TEXT, 0)))
    return {MAIN: grid_with(grid), BOTH: OpenLayout(keys, TEXT)}


NUCLEUS = Family(
    name="NucleusMoE-Image",
    classes=("NucleusMoEImageTransformer2DModel",),
    pipelines=("NucleusMoEImagePipeline",),
    rules=(SiteRule(r"transformer_blocks\.\d+\.attn", "joint", keys=(BOTH,)),),
    streams=_nucleus,
    reads=("hidden_states", "img_shapes"),
    sample="hidden_states",
    order=("transformer_blocks",),
    grid="img_shapes",
    text="last",
    video=False,
    facts=PipelineFacts(pattern="NucleusMoEImage.*", sizes=packed_image, token=packed_image_token),
    notes="Text tokens are keys only; a key mask hides their padding. The pipeline calls the model twice per step and "
    "announces nothing.",
)

FAMILIES = (PRX, NUCLEUS)
