"""ERNIE-Image: joint attention, text last; a key mask hides text padding."""

from __future__ import annotations

from genkit.families.base import Family, SiteRule
from genkit.families.facts import PipelineFacts
from genkit.families.grids import latent_grid, with_text
from genkit.families.sizes import packed_image, packed_image_token

FAMILY = Family(
    name="ERNIE-Image",
    classes=("ErnieImageTransformer2DModel",),
    pipelines=("ErnieImagePipeline",),
    rules=(SiteRule(r"layers\.\d+\.self_attention", "joint"),),
    streams=with_text(latent_grid("ERNIE-Image", "BCHW"), "ERNIE-Image", argument="text_bth"),
    reads=("hidden_states", "text_bth"),
    sample="hidden_states",
    order=("layers",),
    grid="hidden_states (B, C, H, W) divided by patch_size",
    text="last",
    video=False,
    facts=PipelineFacts(pattern="ErnieImage.*", sizes=packed_image, token=packed_image_token),
    notes="Both branches are computed in one call. No attention processors can be set, so use genkit.patch.",
)
