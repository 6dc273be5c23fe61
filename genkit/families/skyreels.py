"""SkyReels-V2: video self-attention, text cross-attention, image keys before text keys in image-to-video."""

from __future__ import annotations

from genkit.families.base import Family, SiteRule
from genkit.families.facts import PipelineFacts
from genkit.families.grids import alone, latent_grid

FAMILY = Family(
    name="SkyReels-V2",
    classes=("SkyReelsV2Transformer3DModel",),
    pipelines=("SkyReelsV2Pipeline", "SkyReelsV2ImageToVideoPipeline", "SkyReelsV2DiffusionForcingPipeline"),
    rules=(
        SiteRule(r"blocks\.\d+\.attn1", "self"),
        SiteRule(r"blocks\.\d+\.attn2", "cross", keys=("text",), added_keys=("image", "text")),
    ),
    streams=alone(latent_grid("SkyReels-V2")),
    reads=("hidden_states",),
    sample="hidden_states",
    order=("blocks",),
    grid="hidden_states (B, C, F, H, W) divided by patch_size",
    text="apart",
    video=True,
    branches=("cond", "uncond"),
    facts=PipelineFacts(pattern="SkyReels.*", fps="24", lora_targets=r"blocks\.\d+\.attn[12]\.(?:to_[qkv]|to_out\.0)"),
    notes="Models whose blocks of frames see only earlier ones (num_frame_per_block above 1) mask self-attention per "
    "query: it keeps the model's own attention. Image-to-video attends the image in a first cross-attention call.",
)
