"""Lumina: Next-DiT with cross-attention, and Lumina 2 with joint attention after each sample's own text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.families.base import MAIN, TEXT, Family, Rotary, SiteRule, Streams, Untold, grid_with
from genkit.families.facts import PipelineFacts
from genkit.families.grids import alone, given, latent_grid
from genkit.families.sizes import packed_image, packed_image_token

LUMINA = Family(
    name="Lumina",
    classes=("LuminaNextDiT2DModel",),
    pipelines=("LuminaPipeline",),
    rules=(
        SiteRule(r"layers\.\d+\.attn1", "self"),
        SiteRule(r"layers\.\d+\.attn2", "cross", keys=("text",)),
    ),
    streams=alone(latent_grid("Lumina", "BCHW")),
    reads=("hidden_states",),
    sample="hidden_states",
    order=("layers",),
    grid="hidden_states (B, C, H, W) divided by patch_size",
    text="apart",
    video=False,
    facts=PipelineFacts(pattern=r"Lumina(?!2).*", sizes=packed_image, token=packed_image_token),
    notes="Padding of the text is hidden by a key mask. Both branches are computed in one call. No attention "
    "processors can be set, so use genkit.patch.",
)

_GRID2 = latent_grid("Lumina 2", "BCHW")


def _streams2(model: Any, args: Mapping[str, Any]) -> Streams:
    grid = _GRID2(model, args)
    lengths = sorted({int(length) for length in given(args, "encoder_attention_mask", "Lumina 2").sum(dim=1).tolist()})
    if len(lengths) == 1:
        return {MAIN: grid_with(grid, before=((TEXT, lengths[0]),)), "image": grid_with(grid)}
    reason = f"the batch's prompts have {lengths} tokens, and the image begins where its prompt ends"
    return {MAIN: Untold(reason), "image": grid_with(grid)}


LUMINA2 = Family(
    name="Lumina 2",
    classes=("Lumina2Transformer2DModel",),
    pipelines=("Lumina2Pipeline",),
    rules=(
        SiteRule(r"noise_refiner\.\d+\.attn", "self", queries="image"),
        SiteRule(r"layers\.\d+\.attn", "joint"),
    ),
    streams=_streams2,
    reads=("hidden_states", "encoder_attention_mask"),
    sample="hidden_states",
    order=("noise_refiner", "layers"),
    grid="hidden_states (B, C, H, W) divided by patch_size; it begins where the text ends",
    text="first",
    video=False,
    rotary=Rotary(),
    facts=PipelineFacts(pattern=r"Lumina2.*", sizes=packed_image, token=packed_image_token),
    notes="Where the prompts of a batch differ in length, joint attention stays the model's own. The pipelines call "
    "the model twice per step and announce nothing. No attention processors can be set, so use genkit.patch.",
)

FAMILIES = (LUMINA, LUMINA2)
