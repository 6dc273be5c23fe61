"""JoyImage Edit: joint attention over pictures and text, text last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from genkit.errors import UnsupportedError
from genkit.families.base import MAIN, TEXT, Family, SiteRule, Streams, Untold, grid_with, shape, text_length
from genkit.families.facts import PipelineFacts
from genkit.families.grids import given
from genkit.families.sizes import ReadConfig, Size, SizeRule


def _edit(model: Any, args: Mapping[str, Any]) -> Streams:
    latents = given(args, "hidden_states", "JoyImage Edit")
    if latents.ndim not in (5, 6):
        raise UnsupportedError(
            f"JoyImage Edit: hidden_states should have 5 or 6 dimensions, got {tuple(latents.shape)}"
        )
    # (B, C, T, H, W), or pictures (B, n, C, T, H, W) that the model joins along time.
    frames = latents.shape[2] if latents.ndim == 5 else latents.shape[1] * latents.shape[3]
    t, h, w = model.config.patch_size
    grid = (frames // t, latents.shape[-2] // h, latents.shape[-1] // w)
    return {MAIN: grid_with(grid, after=((TEXT, text_length(args, "JoyImage Edit")),))}


def _token(config: ReadConfig) -> Size:
    side = config("vae").get("scale_factor_spatial", 8)
    _, h, w = config("transformer").get("patch_size", (1, 2, 2))
    return 1, side * h, side * w


def _sizes(config: ReadConfig) -> SizeRule:
    return SizeRule(_token(config)[1], 1)


EDIT = Family(
    name="JoyImage Edit",
    classes=("JoyImageEditTransformer3DModel",),
    pipelines=("JoyImageEditPipeline",),
    rules=(SiteRule(r"double_blocks\.\d+\.attn", "joint"),),
    streams=_edit,
    reads=("hidden_states", "encoder_hidden_states"),
    sample="hidden_states",
    order=("double_blocks",),
    grid="hidden_states divided by patch_size; given pictures and the image being made are frames of one grid",
    text="last",
    video=False,
    facts=PipelineFacts(pattern="JoyImageEditPipeline", sizes=_sizes, token=_token, needs_input=".*"),
    notes="Padding of the text takes part in attention. Queries, keys and values come from one projection. The "
    "pipeline calls the model twice per step and announces nothing.",
)


def _plus(model: Any, args: Mapping[str, Any]) -> Streams:
    tokens = shape(args, "hidden_states", 6, "JoyImage Edit Plus")[1]
    samples = given(args, "shape_list", "JoyImage Edit Plus")
    grids = {tuple(int(size) for size in sample[0]) for sample in samples}
    if len(grids) > 1:
        return {MAIN: Untold(f"the images of the batch have different sizes: {sorted(grids)}")}
    grid = grids.pop()
    references = ("reference", tokens - grid[0] * grid[1] * grid[2])
    return {MAIN: grid_with(grid, after=(references, (TEXT, text_length(args, "JoyImage Edit Plus"))))}


PLUS = replace(
    EDIT,
    name="JoyImage Edit Plus",
    classes=("JoyImageEditPlusTransformer3DModel",),
    pipelines=("JoyImageEditPlusPipeline",),
    streams=_plus,
    reads=("hidden_states", "encoder_hidden_states", "shape_list"),
    grid="the first of shape_list; given pictures after it are the segment 'reference'",
    facts=PipelineFacts(pattern="JoyImageEditPlusPipeline", sizes=_sizes, token=_token, needs_input=".*"),
    notes="Given pictures may have other sizes; what fills up a sample, and padding of the text, is hidden by a key "
    "mask. Queries, keys and values come from one projection. Both branches are computed in one call.",
)

FAMILIES = (EDIT, PLUS)
