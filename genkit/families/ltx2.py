"""LTX-2: video and audio streams with six attentions per block, both in one clock of seconds."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping
from typing import Any

from genkit.errors import UnsupportedError
from genkit.families.base import MAIN, Family, SiteRule, Streams, grid_with, shape
from genkit.families.codec import standardised
from genkit.families.facts import FLOW, Objective, PipelineFacts, TextRule
from genkit.families.inputs import Inputs, Other
from genkit.families.sizes import ReadConfig, Size, SizeRule
from genkit.layout import Segment, TokenLayout

AUDIO = "audio"
_FPS = 24.0  # the default of the model's forward
Intervals = tuple[tuple[float, float], ...]
# Pipelines hand in the same coordinate tensor in every step; reading it anew would wait for the device each time.
_READ: dict[int, tuple[weakref.ref[Any], int, Intervals]] = {}


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
    video = grid_with(grid, after=(("keyframe", extra),))
    return {
        MAIN: _layout(grid, video.segments, _video_intervals(model, args, grid, tokens)),
        AUDIO: _layout((0, 0, 0), (Segment(AUDIO, audio),), _audio_intervals(model, args, audio)),
    }


@functools.lru_cache(maxsize=16)
def _layout(grid: tuple[int, ...], segments: tuple[Segment, ...], intervals: Intervals | None) -> TokenLayout:
    """The same object for the same call, so that plans kept by layout are found without comparing all times."""
    return TokenLayout(grid, segments, intervals=intervals)


def _video_intervals(model: Any, args: Mapping[str, Any], grid: tuple[int, ...], tokens: int) -> Intervals | None:
    """Start and end in seconds of every video token: as handed in, or as the model computes them itself."""
    coords = args.get("video_coords")
    if coords is None:
        if model is None or tokens != grid[0] * grid[1] * grid[2]:
            return None  # nobody tells where appended tokens sit in time
        fps = float(args.get("fps", _FPS))
        return _of_tensor(model.rope.prepare_video_coords(1, *grid, "cpu", fps=fps), keep=False)
    return _of_tensor(coords)


def _audio_intervals(model: Any, args: Mapping[str, Any], tokens: int) -> Intervals | None:
    coords = args.get("audio_coords")
    if coords is not None:
        return _of_tensor(coords)
    return None if model is None else _of_tensor(model.audio_rope.prepare_audio_coords(1, tokens, "cpu"), keep=False)


def _of_tensor(coords: Any, keep: bool = True) -> Intervals:
    """The time axis of coordinates (B, axes, N, 2); every row of a batch has the same."""
    version = 0 if coords.is_inference() else coords._version  # inference tensors never change
    known = _READ.get(id(coords))
    if known is not None and known[0]() is coords and known[1] == version:
        return known[2]
    found = tuple(map(tuple, coords[0, 0].detach().double().cpu().tolist()))
    if keep:
        for stale, (tensor, _, _) in list(_READ.items()):
            if tensor() is None:
                _READ.pop(stale, None)
        _READ[id(coords)] = (weakref.ref(coords), version, found)
    return found


def _sizes(config: ReadConfig) -> SizeRule:
    return SizeRule(32, config("vae").get("temporal_compression_ratio", 8) or 8)


def _token(config: ReadConfig) -> Size:
    vae, transformer = config("vae"), config("transformer")
    spatial = (vae.get("spatial_compression_ratio") or 32) * transformer.get("patch_size", 1)
    return (vae.get("temporal_compression_ratio") or 8) * transformer.get("patch_size_t", 1), spatial, spatial


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
    reads=(
        "hidden_states", "audio_hidden_states", "num_frames", "height", "width", "fps", "video_coords", "audio_coords",
        "audio_timestep", "isolate_modalities",
    ),
    sample="hidden_states",
    order=("transformer_blocks",),
    grid="num_frames x height x width; tokens after it are 'keyframe'",
    text="apart",
    video=True,
    branches=("cond_uncond", "uncond_stg", "uncond_modality"),
    time_positions="video_coords",
    timed=True,
    facts=PipelineFacts(
        pattern="LTX2.*",
        needs_input=r"LTX2ImageToVideo.*",
        inputs={
            "LTX2ConditionPipeline": Inputs(
                takes={
                    "image": ("conditions",), "last_image": ("conditions",), "source_video": ("conditions",),
                    "strength": (),
                }
            ),
        },
        others={
            "LTX2Pipeline": (Other("LTX2ImageToVideoPipeline"), Other("LTX2ConditionPipeline")),
            "LTX2ImageToVideoPipeline": (Other("LTX2ConditionPipeline"),),
        },
        fps="24",
        sizes=_sizes,
        token=_token,
        codec=standardised("packed"),
        text=TextRule(("encoder_hidden_states", "audio_encoder_hidden_states", "encoder_attention_mask"), 1024),
        objective=Objective(FLOW, "thousand"),
        lora_targets=r"transformer_blocks\.\d+\.(?:audio_)?(?:attn[12]|(?:audio_to_video|video_to_audio)_attn)"
        r"\.(?:to_[qkv]|to_out\.0)",
        architecture="ltx-2",
        tasks={"given_half": "LTX2Pipeline", "train_cross_modal_context": "LTX2Pipeline"},
    ),
    notes="Names go from source to target: audio_to_video has video queries and audio keys. Both cross-modal "
    "attentions are skipped when a pass isolates the modalities. Every token has its time in seconds.",
)  # fmt: skip
