"""Allegro: video self-attention, text cross-attention; masks hide padded pixels and text."""

from __future__ import annotations

from genkit.families.base import Family, SiteRule
from genkit.families.facts import PipelineFacts
from genkit.families.grids import alone, latent_grid

FAMILY = Family(
    name="Allegro",
    classes=("AllegroTransformer3DModel",),
    pipelines=("AllegroPipeline",),
    rules=(
        SiteRule(r"transformer_blocks\.\d+\.attn1", "self"),
        SiteRule(r"transformer_blocks\.\d+\.attn2", "cross", keys=("text",)),
    ),
    streams=alone(latent_grid("Allegro", patch_t="patch_size_t")),
    reads=("hidden_states",),
    sample="hidden_states",
    order=("transformer_blocks",),
    grid="hidden_states (B, C, F, H, W) divided by patch_size_t and patch_size",
    text="apart",
    video=True,
    facts=PipelineFacts(
        pattern="Allegro.*", fps="15", lora_targets=r"transformer_blocks\.\d+\.attn[12]\.(?:to_[qkv]|to_out\.0)"
    ),
    notes="Both branches are computed in one call. No attention processors can be set, so use genkit.patch.",
)
