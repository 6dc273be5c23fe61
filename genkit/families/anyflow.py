"""AnyFlow: video self-attention, text cross-attention; frames come before channels."""

from __future__ import annotations

from genkit.families.base import Family, SiteRule
from genkit.families.facts import PipelineFacts
from genkit.families.grids import alone, latent_grid

FAMILY = Family(
    name="AnyFlow",
    classes=("AnyFlowTransformer3DModel",),
    pipelines=("AnyFlowPipeline",),
    rules=(
        SiteRule(r"blocks\.\d+\.attn1", "self"),
        SiteRule(r"blocks\.\d+\.attn2", "cross", keys=("text",), added_keys=("image", "text")),
    ),
    streams=alone(latent_grid("AnyFlow", "BTCHW")),
    reads=("hidden_states",),
    sample="hidden_states",
    order=("blocks",),
    grid="hidden_states (B, F, C, H, W) divided by patch_size",
    text="apart",
    video=True,
    facts=PipelineFacts(
        pattern="AnyFlow(?!FAR).*", fps="16", lora_targets=r"blocks\.\d+\.attn[12]\.(?:to_[qkv]|to_out\.0)"
    ),
    notes="Both branches are computed in one call. No attention processors can be set, so use genkit.patch.",
)
