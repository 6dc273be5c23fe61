"""SANA-Video: cross-attention to text; its self-attention is linear."""

from __future__ import annotations

from genkit.families.base import Family, SiteRule
from genkit.families.facts import PipelineFacts
from genkit.families.grids import alone, latent_grid

FAMILY = Family(
    name="SANA-Video",
    classes=("SanaVideoTransformer3DModel",),
    pipelines=("SanaVideoPipeline", "SanaImageToVideoPipeline"),
    rules=(SiteRule(r"transformer_blocks\.\d+\.attn2", "cross", keys=("text",)),),
    streams=alone(latent_grid("SANA-Video")),
    reads=("hidden_states",),
    sample="hidden_states",
    order=("transformer_blocks",),
    grid="hidden_states (B, C, F, H, W) divided by patch_size",
    text="apart",
    video=True,
    unserved={"self": "its self-attention is linear (ReLU features), so there is no softmax to make sparse"},
    facts=PipelineFacts(
        pattern="SanaVideo.*|SanaImageToVideo.*",
        fps="16",
        lora_targets=r"transformer_blocks\.\d+\.attn2\.(?:to_[qkv]|to_out\.0)",
    ),
    notes="Both branches are computed in one call. Self-attention is linear already and stays as it is.",
)
