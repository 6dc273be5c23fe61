"""DiT, PixArt and SANA: image patches with self-attention, and cross-attention to text where there is text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from genkit.errors import UnsupportedError
from genkit.families.base import MAIN, Family, SiteRule, Streams, grid_with, shape
from genkit.families.facts import PipelineFacts
from genkit.families.grids import alone, latent_grid
from genkit.families.sizes import ReadConfig, Size, SizeRule, packed_image, packed_image_token

PIXART = Family(
    name="PixArt",
    classes=("PixArtTransformer2DModel",),
    pipelines=("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
    rules=(
        SiteRule(r"transformer_blocks\.\d+\.attn1", "self"),
        SiteRule(r"transformer_blocks\.\d+\.attn2", "cross", keys=("text",)),
    ),
    streams=alone(latent_grid("PixArt", "BCHW")),
    reads=("hidden_states",),
    sample="hidden_states",
    order=("transformer_blocks",),
    grid="hidden_states (B, C, H, W) divided by patch_size",
    text="apart",
    video=False,
    facts=PipelineFacts(pattern="PixArt.*", sizes=packed_image, token=packed_image_token),
    notes="Padding of the text is hidden by a key mask. Both branches are computed in one call.",
)

_PATCHES = latent_grid("DiT", "BCHW")


def _patches_or_pixels(model: Any, args: Mapping[str, Any]) -> Streams:
    """The older class takes patches, or one token per pixel (the blocks of UNets)."""
    if getattr(model, "is_input_vectorized", False):
        raise UnsupportedError("DiT: the model's input is a sequence of codes, whose rows and columns nothing tells")
    if getattr(model, "is_input_continuous", False):
        _, _, height, width = shape(args, "hidden_states", 4, "DiT")
        return {MAIN: grid_with((1, height, width))}
    return {MAIN: grid_with(_PATCHES(model, args))}


DIT = replace(
    PIXART,
    name="DiT",
    classes=("DiTTransformer2DModel", "Transformer2DModel"),
    pipelines=("DiTPipeline",),
    rules=(
        SiteRule(r"transformer_blocks\.\d+\.attn1", "self", keys=("text",), ask_module=True),
        SiteRule(r"transformer_blocks\.\d+\.attn2", "cross", keys=("text",), ask_module=True),
    ),
    streams=_patches_or_pixels,
    grid="hidden_states (B, C, H, W) divided by patch_size, or one token per pixel",
    facts=PipelineFacts(pattern="DiTPipeline"),
    notes="Pictures of class numbers have no cross-attention. A UNet's own record serves the blocks inside it. Both "
    "branches are computed in one call. No attention processors can be set, so use genkit.patch.",
)


def _sana_token(config: ReadConfig) -> Size:
    levels = config("vae").get("encoder_block_out_channels", (1, 1, 1, 1, 1, 1))
    side = 2 ** (len(levels) - 1) * config("transformer").get("patch_size", 1)
    return 1, side, side


SANA = replace(
    PIXART,
    name="SANA",
    classes=("SanaTransformer2DModel",),
    pipelines=("SanaPipeline", "SanaSprintPipeline"),
    rules=(SiteRule(r"transformer_blocks\.\d+\.attn2", "cross", keys=("text",)),),
    streams=alone(latent_grid("SANA", "BCHW")),
    unserved={"self": "its self-attention is linear (ReLU features), so there is no softmax to make sparse"},
    facts=PipelineFacts(
        pattern="Sana(?:ControlNet|Sprint|SprintImg2Img|PAG)?Pipeline",
        sizes=lambda config: SizeRule(32, 1),
        token=_sana_token,
    ),
    notes="Self-attention is linear already and stays as it is. Padding of the text is hidden by a key mask. Both "
    "branches are computed in one call.",
)

FAMILIES = (PIXART, DIT, SANA)
