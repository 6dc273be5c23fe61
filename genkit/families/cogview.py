"""CogView 3 Plus, CogView 4 and GLM-Image: joint attention, text first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from genkit.attention.site import HALVES
from genkit.families.base import MAIN, Family, OpenLayout, Rotary, SiteRule, Streams
from genkit.families.facts import PipelineFacts
from genkit.families.grids import latent_grid, with_text
from genkit.families.sizes import ReadConfig, SizeRule, packed_image, packed_image_token
from genkit.layout import Segment, TokenLayout

COGVIEW3 = Family(
    name="CogView 3 Plus",
    classes=("CogView3PlusTransformer2DModel",),
    pipelines=("CogView3PlusPipeline",),
    rules=(SiteRule(r"transformer_blocks\.\d+\.attn1", "joint"),),
    streams=with_text(latent_grid("CogView 3 Plus", "BCHW"), "CogView 3 Plus", first=True),
    reads=("hidden_states", "encoder_hidden_states"),
    sample="hidden_states",
    order=("transformer_blocks",),
    grid="hidden_states (B, C, H, W) divided by patch_size",
    text="first",
    video=False,
    rotary=Rotary(""),
    facts=PipelineFacts(pattern="CogView3Plus.*", sizes=packed_image, token=packed_image_token),
    notes="Padding of the text takes part in attention. Both branches are computed in one call.",
)

COGVIEW4 = replace(
    COGVIEW3,
    name="CogView 4",
    classes=("CogView4Transformer2DModel",),
    pipelines=("CogView4Pipeline", "CogView4ControlPipeline"),
    streams=with_text(latent_grid("CogView 4", "BCHW"), "CogView 4", first=True),
    branches=("cond", "uncond"),
    rotary=Rotary(pairs=HALVES),
    facts=PipelineFacts(pattern="CogView4.*", sizes=packed_image, token=packed_image_token),
    notes="The pipelines hand in no mask; the model would add one to the scores as numbers 0 and 1. No attention "
    "processors can be set on the model, so use genkit.patch.",
)


ALL = "with_pictures"


def _glm(model: Any, args: Mapping[str, Any]) -> Streams:
    streams = _GLM_TEXT_IMAGE(model, args)
    own = streams[MAIN]
    assert isinstance(own, TokenLayout), "latents of one size and their text always tell a layout"
    cached = TokenLayout(own.grid, (Segment("reference", 0), *own.segments))
    return {MAIN: own, ALL: OpenLayout(cached, "reference")}


_GLM_TEXT_IMAGE = with_text(latent_grid("GLM-Image", "BCHW"), "GLM-Image", first=True)


def _glm_sizes(config: ReadConfig) -> SizeRule:
    return SizeRule(2 * packed_image(config).multiple, 1)


GLM_IMAGE = replace(
    COGVIEW3,
    name="GLM-Image",
    classes=("GlmImageTransformer2DModel",),
    pipelines=("GlmImagePipeline",),
    rules=(SiteRule(r"transformer_blocks\.\d+\.attn1", "joint", keys=(ALL,)),),
    streams=_glm,
    rotary=None,
    facts=PipelineFacts(pattern="GlmImage.*", sizes=_glm_sizes, token=packed_image_token),
    notes="The text is that of glyphs to draw. Given pictures put their keys before the model's own, from one further "
    "call of the model for each before the first step. No attention processors can be set, so use genkit.patch.",
)

FAMILIES = (COGVIEW3, COGVIEW4, GLM_IMAGE)
