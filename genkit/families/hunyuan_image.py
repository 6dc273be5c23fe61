"""HunyuanImage and HunyuanDiT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.families.base import MAIN, TEXT, Family, Rotary, SiteRule, Streams, grid_with, text_length
from genkit.families.facts import PipelineFacts
from genkit.families.grids import alone, given, latent_grid
from genkit.families.sizes import ReadConfig, Size, SizeRule, packed_image, packed_image_token


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    sizes = tuple(given(args, "hidden_states", "HunyuanImage").shape[2:])
    grid = (1, 1, *(size // patch for size, patch in zip(sizes, model.config.patch_size, strict=True)))[-3:]
    text = text_length(args, "HunyuanImage")
    if model.context_embedder_2 is not None and args.get("encoder_hidden_states_2") is not None:
        text += text_length(args, "HunyuanImage", "encoder_hidden_states_2")
    return {MAIN: grid_with(grid, after=((TEXT, text),))}


def _token(config: ReadConfig) -> Size:
    side = config("vae").get("spatial_compression_ratio", 32)
    patch = config("transformer").get("patch_size", (1, 1))
    return 1, side * patch[-2], side * patch[-1]


def _sizes(config: ReadConfig) -> SizeRule:
    return SizeRule(_token(config)[1], 1)


HUNYUAN_IMAGE = Family(
    name="HunyuanImage",
    classes=("HunyuanImageTransformer2DModel",),
    pipelines=("HunyuanImagePipeline", "HunyuanImageRefinerPipeline"),
    rules=(SiteRule(r"(?:single_)?transformer_blocks\.\d+\.attn", "joint"),),
    streams=_streams,
    reads=("hidden_states", "encoder_hidden_states", "encoder_hidden_states_2"),
    sample="hidden_states",
    order=("transformer_blocks", "single_transformer_blocks"),
    grid="hidden_states (B, C, H, W), of the refiner (B, C, F, H, W), divided by patch_size",
    text="last",
    video=False,
    branches=("pred_cond", "pred_uncond"),
    rotary=Rotary(),
    facts=PipelineFacts(
        pattern="HunyuanImage.*", sizes=_sizes, token=_token, needs_input="HunyuanImageRefinerPipeline"
    ),
    notes="Padding of the text is hidden by a key mask. The text refiner keeps its own attention.",
)

HUNYUAN_DIT = Family(
    name="HunyuanDiT",
    classes=("HunyuanDiT2DModel",),
    pipelines=("HunyuanDiTPipeline",),
    rules=(
        SiteRule(r"blocks\.\d+\.attn1", "self"),
        SiteRule(r"blocks\.\d+\.attn2", "cross", keys=("text",)),
    ),
    streams=alone(latent_grid("HunyuanDiT", "BCHW")),
    reads=("hidden_states",),
    sample="hidden_states",
    order=("blocks",),
    grid="hidden_states (B, C, H, W) divided by patch_size",
    text="apart",
    video=False,
    facts=PipelineFacts(pattern="HunyuanDiT.*", sizes=packed_image, token=packed_image_token),
    notes="Padding of the text is replaced by learned tokens, which take part in attention. Both branches are computed "
    "in one call.",
)

FAMILIES = (HUNYUAN_IMAGE, HUNYUAN_DIT)
