"""LTX-Video: video self-attention and text cross-attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.errors import UnsupportedError
from genkit.families.base import MAIN, Family, SiteRule, Streams, grid_with, shape
from genkit.families.codec import standardised
from genkit.families.facts import FLOW, Objective, PipelineFacts, TextRule
from genkit.families.inputs import Inputs, Other
from genkit.families.sizes import ReadConfig, Size, SizeRule


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    tokens = shape(args, "hidden_states", 3, "LTX-Video")[1]
    sizes = [args.get(name) for name in ("num_frames", "height", "width")]
    grid = _grid_of_coordinates(args, tokens) if None in sizes else tuple(int(size) for size in sizes)
    extra = tokens - grid[0] * grid[1] * grid[2]
    if extra < 0:
        raise UnsupportedError(f"LTX-Video: a grid of {grid} has more than the {tokens} tokens that came")
    return {MAIN: grid_with(grid, before=(("keyframe", extra),))}


def _grid_of_coordinates(args: Mapping[str, Any], tokens: int) -> tuple[int, int, int]:
    """The grid at the end of the sequence, read from ``video_coords`` (B, 3, N) in raster order.

    The condition pipeline puts tokens of later frames before the video. The video's first frame has the lowest time
    of all, so going backwards it ends where time does not fall any more.
    """
    coords = args.get("video_coords")
    if coords is None:
        raise UnsupportedError(
            "LTX-Video: the token grid follows from num_frames, height and width, or from video_coords; this call of "
            "the model has neither"
        )
    time, row, _ = coords[0].detach().float().cpu().unbind(0)
    last_row = (time == time[-1]) & (row == row[-1])
    width = _run_length(last_row)
    frame = _run_length(time == time[-1])
    frames = 1
    while (frames + 1) * frame <= tokens and time[-1 - frames * frame] < time[-1 - (frames - 1) * frame]:
        frames += 1
    if frame % width:
        raise UnsupportedError(f"LTX-Video: video_coords tell of {frame} tokens a frame and {width} a row: no grid")
    return frames, frame // width, width


def _run_length(same: Any) -> int:
    """How many entries at the end are true in a row."""
    broken = (~same).nonzero()
    return len(same) - (int(broken[-1]) + 1 if len(broken) else 0)


def _sizes(config: ReadConfig) -> SizeRule:
    return SizeRule(32, config("vae").get("temporal_compression_ratio", 8) or 8)


def _token(config: ReadConfig) -> Size:
    vae, transformer = config("vae"), config("transformer")
    spatial = (vae.get("spatial_compression_ratio") or 32) * transformer.get("patch_size", 1)
    return (vae.get("temporal_compression_ratio") or 8) * transformer.get("patch_size_t", 1), spatial, spatial


def _unshifted(config: ReadConfig) -> bool:
    """The pipeline of conditions hands its scheduler no length of sequence, which a dynamic shift needs."""
    return not config("scheduler").get("use_dynamic_shifting")


FAMILY = Family(
    name="LTX-Video",
    classes=("LTXVideoTransformer3DModel",),
    pipelines=("LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline"),
    rules=(
        SiteRule(r"transformer_blocks\.\d+\.attn1", "self"),
        SiteRule(r"transformer_blocks\.\d+\.attn2", "cross", keys=("text",)),
    ),
    streams=_streams,
    reads=("hidden_states", "num_frames", "height", "width", "video_coords"),
    sample="hidden_states",
    order=("transformer_blocks",),
    grid="num_frames x height x width, or the full grid at the end of video_coords; tokens before it are 'keyframe'",
    text="apart",
    video=True,
    branches=("cond_uncond",),
    time_positions="video_coords",
    facts=PipelineFacts(
        pattern="LTX(?!2).*",
        needs_input=r"LTXImageToVideo.*",
        inputs={
            "LTXConditionPipeline": Inputs(
                takes={
                    "image": ("conditions",),
                    "last_image": ("conditions",),
                    "source_video": ("conditions",),
                    "strength": (),
                }
            ),
        },
        others={
            "LTXPipeline": (Other("LTXImageToVideoPipeline"), Other("LTXConditionPipeline", _unshifted)),
            "LTXImageToVideoPipeline": (Other("LTXConditionPipeline", _unshifted),),
        },
        fps="24",
        sizes=_sizes,
        token=_token,
        codec=standardised("packed"),
        text=TextRule(("encoder_hidden_states", "encoder_attention_mask"), 128),
        objective=Objective(FLOW, "thousand"),
        lora_targets=r"transformer_blocks\.\d+\.attn[12]\.(?:to_[qkv]|to_out\.0)",
        architecture="ltx-video",
        tasks={"second_pass": "LTX(ImageToVideo)?Pipeline"},
    ),
    notes="Both branches are computed in one call.",
)
