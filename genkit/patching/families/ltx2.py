"""LTX-2: video and audio streams with six attentions per block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.errors import UnsupportedError
from genkit.layout import TokenLayout
from genkit.patching.families.base import MAIN, Family, SiteRule, Streams, grid_with, shape

AUDIO = "audio"


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    tokens = shape(args, "hidden_states", 3, "LTX-2")[1]
    sizes = [args.get(name) for name in ("num_frames", "height", "width")]
    if None in sizes:
        raise UnsupportedError(
            "LTX-2: the token grid follows from num_frames, height and width, which this call of the model lacks"
        )
    grid = tuple(int(size) for size in sizes)
    extra = tokens - grid[0] * grid[1] * grid[2]
    if extra < 0:
        raise UnsupportedError(f"LTX-2: a grid of {grid} has more than the {tokens} tokens that came")
    audio = shape(args, "audio_hidden_states", 3, "LTX-2")[1]
    return {MAIN: grid_with(grid, after=(("keyframe", extra),)), AUDIO: TokenLayout.sequence(audio, AUDIO)}


FAMILY = Family(
    name="LTX-2",
    classes=("LTX2VideoTransformer3DModel",),
    pipelines=("LTX2Pipeline", "LTX2ImageToVideoPipeline", "LTX2ConditionPipeline"),
    rules=(
        SiteRule(r"transformer_blocks\.\d+\.attn1", "self"),
        SiteRule(r"transformer_blocks\.\d+\.attn2", "cross", keys=("text",)),
        SiteRule(r"transformer_blocks\.\d+\.audio_attn1", "audio_self", queries=AUDIO),
        SiteRule(r"transformer_blocks\.\d+\.audio_attn2", "audio_cross", queries=AUDIO, keys=("text",)),
        SiteRule(r"transformer_blocks\.\d+\.audio_to_video_attn", "audio_to_video", keys=(AUDIO,)),
        SiteRule(r"transformer_blocks\.\d+\.video_to_audio_attn", "video_to_audio", queries=AUDIO, keys=(MAIN,)),
    ),
    streams=_streams,
    reads=("hidden_states", "audio_hidden_states", "num_frames", "height", "width"),
    sample="hidden_states",
    order=("transformer_blocks",),
    grid="num_frames x height x width; tokens after it are 'keyframe'",
    text="apart",
    video=True,
    branches=("cond_uncond", "uncond_stg", "uncond_modality"),
    notes="Names go from source to target: audio_to_video has video queries and audio keys. Both cross-modal "
    "attentions are skipped when a pass isolates the modalities.",
)
