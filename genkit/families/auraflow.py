"""AuraFlow: joint attention over learned register tokens, text and image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.families.base import MAIN, TEXT, Family, Rotary, SiteRule, Streams, grid_with, text_length
from genkit.families.facts import PipelineFacts
from genkit.families.grids import latent_grid
from genkit.families.sizes import packed_image, packed_image_token

_GRID = latent_grid("AuraFlow", "BCHW")


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    before = (("register", model.register_tokens.shape[1]), (TEXT, text_length(args, "AuraFlow")))
    return {MAIN: grid_with(_GRID(model, args), before=before)}


FAMILY = Family(
    name="AuraFlow",
    classes=("AuraFlowTransformer2DModel",),
    pipelines=("AuraFlowPipeline",),
    rules=(SiteRule(r"(?:joint|single)_transformer_blocks\.\d+\.attn", "joint"),),
    streams=_streams,
    reads=("hidden_states", "encoder_hidden_states"),
    sample="hidden_states",
    order=("joint_transformer_blocks", "single_transformer_blocks"),
    grid="hidden_states (B, C, H, W) divided by patch_size; learned tokens before the text are 'register'",
    text="first",
    video=False,
    rotary=Rotary(""),
    facts=PipelineFacts(pattern="AuraFlow.*", sizes=packed_image, token=packed_image_token),
    notes="Single blocks are numbered after joint blocks. Both branches are computed in one call.",
)
