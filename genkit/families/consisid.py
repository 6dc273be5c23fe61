"""ConsisID: the joint attention of CogVideoX, text first; face tokens are attended out of sight."""

from __future__ import annotations

from genkit.families.base import Family, Rotary, SiteRule
from genkit.families.facts import PipelineFacts
from genkit.families.grids import latent_grid, with_text

FAMILY = Family(
    name="ConsisID",
    classes=("ConsisIDTransformer3DModel",),
    pipelines=("ConsisIDPipeline",),
    rules=(SiteRule(r"transformer_blocks\.\d+\.attn1", "joint"),),
    streams=with_text(latent_grid("ConsisID", "BTCHW"), "ConsisID", first=True),
    reads=("hidden_states", "encoder_hidden_states"),
    sample="hidden_states",
    order=("transformer_blocks",),
    grid="hidden_states (B, F, C, H, W); height and width divided by patch_size",
    text="first",
    video=True,
    rotary=Rotary(),
    facts=PipelineFacts(
        pattern="ConsisID.*", fps="8", lora_targets=r"transformer_blocks\.\d+\.attn1\.(?:to_[qkv]|to_out\.0)"
    ),
    notes="Both branches are computed in one call. The attention to face tokens keeps its own computation.",
)
