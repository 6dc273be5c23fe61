"""SkyReels-V2: video self-attention, text cross-attention, image keys before text keys in image-to-video."""

from __future__ import annotations

from typing import Any

from genkit.families.base import Family, SiteRule
from genkit.families.codec import standardised
from genkit.families.facts import FLOW, Objective, PipelineFacts, Streaming
from genkit.families.grids import alone, latent_grid

_FORCING = "SkyReelsV2DiffusionForcingPipeline"


def _levels(model: Any, levels: Any, tokens: int, fps: float) -> dict[str, Any]:
    """Every frame has a timestep of its own; the frame rate is told by a number, 0 for 16 and 1 for any other."""
    return {"timestep": levels, "enable_diffusion_forcing": True, "fps": [int(fps != 16)] * levels.shape[0]}


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
    time_positions="shape",
    facts=PipelineFacts(
        pattern="SkyReels.*",
        fps="24",
        codec=standardised("BCTHW"),
        objective=Objective(FLOW, "thousand"),
        lora_targets=r"blocks\.\d+\.attn[12]\.(?:to_[qkv]|to_out\.0)",
        streaming=Streaming(97, _levels, forcing=_FORCING, carry=5),
        tasks={"stream": _FORCING},
    ),
    notes="Models whose blocks of frames see only earlier ones (num_frame_per_block above 1) mask self-attention per "
    "query: it keeps the model's own attention. Image-to-video attends the image in a first cross-attention call.",
)
