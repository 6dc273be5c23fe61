"""HiDream-Image: joint attention, text last; images that are not square are filled up with further tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.families.base import MAIN, TEXT, Family, SiteRule, Streams, Untold, grid_with, shape
from genkit.families.facts import PipelineFacts
from genkit.families.grids import given, latent_grid
from genkit.families.sizes import packed_image, packed_image_token

_GRID = latent_grid("HiDream-Image", "BCHW")


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    latents = given(args, "hidden_states", "HiDream-Image")
    if args.get("hidden_states_masks") is None and latents.ndim == 4:
        grid = _GRID(model, args)
        tokens = grid[1] * grid[2] if latents.shape[2] == latents.shape[3] else model.max_seq
    else:
        sizes = {tuple(int(side) for side in size) for size in given(args, "img_sizes", "HiDream-Image")}
        if len(sizes) > 1:
            return {MAIN: Untold(f"the images of the batch have different sizes: {sorted(sizes)}")}
        height, width = sizes.pop()
        grid, tokens = (1, height, width), shape(args, "hidden_states", 3, "HiDream-Image")[1]
    words = shape(args, "encoder_hidden_states_t5", 3, "HiDream-Image")[1]
    # Every block reads the last layer of the language model and one of its own.
    words += 2 * shape(args, "encoder_hidden_states_llama3", 4, "HiDream-Image")[2]
    return {MAIN: grid_with(grid, after=(("pad", tokens - grid[1] * grid[2]), (TEXT, words)))}


FAMILY = Family(
    name="HiDream-Image",
    classes=("HiDreamImageTransformer2DModel",),
    pipelines=("HiDreamImagePipeline",),
    rules=(SiteRule(r"(?:double|single)_stream_blocks\.\d+\.block\.attn1", "joint"),),
    streams=_streams,
    reads=(
        "hidden_states", "hidden_states_masks", "img_sizes", "encoder_hidden_states_t5",
        "encoder_hidden_states_llama3",
    ),
    sample="hidden_states",
    timestep="timesteps",
    order=("double_stream_blocks", "single_stream_blocks"),
    grid="hidden_states (B, C, H, W) divided by patch_size, or img_sizes; tokens up to the largest size are 'pad'",
    text="last",
    video=False,
    facts=PipelineFacts(pattern="HiDreamImage.*", sizes=packed_image, token=packed_image_token),
    notes="Text is that of T5, then the language model's last layer, then its layer for the block. The keys of 'pad' "
    "are zero and not masked: they take part in attention. No attention processors can be set, so use genkit.patch.",
)  # fmt: skip
