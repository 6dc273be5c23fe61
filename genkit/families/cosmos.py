"""Cosmos 1, 2 and 2.5: video self-attention, cross-attention to text and then to image tokens."""

from __future__ import annotations

from genkit.families.base import Family, SiteRule
from genkit.families.facts import PipelineFacts
from genkit.families.grids import alone, latent_grid
from genkit.families.inputs import Inputs

FAMILY = Family(
    name="Cosmos",
    classes=("CosmosTransformer3DModel",),
    pipelines=(
        "CosmosTextToWorldPipeline",
        "CosmosVideoToWorldPipeline",
        "Cosmos2TextToImagePipeline",
        "Cosmos2VideoToWorldPipeline",
        "Cosmos2_5_PredictBasePipeline",
        "Cosmos2_5_TransferPipeline",
    ),
    rules=(
        SiteRule(r"transformer_blocks\.\d+\.attn1", "self"),
        SiteRule(r"transformer_blocks\.\d+\.attn2", "cross", keys=("text", "image")),
    ),
    streams=alone(latent_grid("Cosmos")),
    reads=("hidden_states",),
    sample="hidden_states",
    order=("transformer_blocks",),
    grid="hidden_states (B, C, F, H, W) divided by patch_size",
    text="apart",
    video=True,
    facts=PipelineFacts(
        pattern="Cosmos(?!3).*",
        needs_input=r"Cosmos2?VideoToWorld.*|.*Transfer.*",
        inputs={r"Cosmos2?VideoToWorld.*": Inputs(needs=())},  # a picture or a clip, either will do
        lora_targets=r"transformer_blocks\.\d+\.attn[12]\.(?:to_[qkv]|to_out\.0)",
    ),
    notes="The pipelines call the model twice per step and announce nothing. With image context (2.5) a second "
    "cross-attention call has the image tokens. No attention processors can be set, so use genkit.patch.",
)
