"""Krea 2: joint attention, text first; a key mask hides text padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.families.base import MAIN, TEXT, Family, Rotary, SiteRule, Streams, grid_with, shape
from genkit.families.facts import PipelineFacts
from genkit.families.grids import given, grid_of_ids
from genkit.families.sizes import packed_image, packed_image_token


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    tokens = shape(args, "hidden_states", 3, "Krea 2")[1]
    places = given(args, "position_ids", "Krea 2")
    grid = grid_of_ids(places[-tokens:], places[-1, 0].item(), "Krea 2", "position_ids")
    text = shape(args, "encoder_hidden_states", 4, "Krea 2")[1]
    return {MAIN: grid_with(grid, before=((TEXT, text),))}


FAMILY = Family(
    name="Krea 2",
    classes=("Krea2Transformer2DModel",),
    pipelines=("Krea2Pipeline",),
    rules=(SiteRule(r"transformer_blocks\.\d+\.attn", "joint"),),
    streams=_streams,
    reads=("hidden_states", "encoder_hidden_states", "position_ids"),
    sample="hidden_states",
    order=("transformer_blocks",),
    grid="position_ids of the last tokens",
    text="first",
    video=False,
    heads_attribute="num_heads",
    rotary=Rotary(),
    facts=PipelineFacts(pattern="Krea2.*", sizes=packed_image, token=packed_image_token),
    notes="Padding of the text is hidden by a key mask. The blocks that fuse text layers keep their own attention. The "
    "pipelines call the model twice per step and announce nothing.",
)
