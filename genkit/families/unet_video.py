"""UNets over video: attention within frames at several resolutions, and along the frames of each place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from genkit.families.base import Family, SiteRule, Streams, grid_with, shape
from genkit.families.facts import PipelineFacts
from genkit.families.grids import unet_levels
from genkit.families.sizes import ReadConfig, SizeRule

_TIME = "time"


def _pixels(config: ReadConfig) -> SizeRule:
    """What the pipelines check; frames may be any number."""
    return SizeRule(8, 1)


_PLACES = ((r"(down|up)_blocks\.(\d+)\.", "{1}{2}"), (r"mid_block\.", "mid"))


def _within_frames(keys: tuple[str, ...]) -> tuple[SiteRule, ...]:
    """Attention of the blocks of images, which get every frame as an image."""
    return tuple(
        SiteRule(
            rf"{place}attentions\.\d+\.transformer_blocks\.\d+\.attn{number}",
            role,
            queries=stream,
            keys=keys if role == "cross" else (),
        )
        for place, stream in _PLACES
        for number, role in ((1, "spatial"), (2, "cross"))
    )


def _along_frames(module: str) -> tuple[SiteRule, ...]:
    """Attention along the frames of every place. In the decoder the finer blocks have ``up_blocks.1`` as their guide,
    as published for AnimateDiff and VideoCrafter2; ``up_blocks.0`` stands apart."""
    decoder = SiteRule(
        rf"(up)_blocks\.([1-9]\d*)\.({module})", "temporal", _TIME, places="{1}{2}", guide="up_blocks.1.{3}"
    )
    others = (SiteRule(rf"{place}{module}", "temporal", _TIME, places=stream) for place, stream in _PLACES)
    return (decoder, *others)


def _sizes(family: str, axes: str) -> Callable[[Any, Mapping[str, Any]], Streams]:
    """Rule of ``sample``: the levels of one frame, and the time axis of one place."""

    def streams(model: Any, args: Mapping[str, Any]) -> Streams:
        size = dict(zip(axes, shape(args, "sample", 5, family), strict=True))
        levels = unet_levels(len(model.config.block_out_channels), size["H"], size["W"])
        return {**levels, _TIME: grid_with((size["T"], 1, 1))}

    return streams


TEXT_TO_VIDEO = Family(
    name="UNet3DCondition",
    classes=("UNet3DConditionModel",),
    pipelines=("TextToVideoSDPipeline", "VideoToVideoSDPipeline"),
    rules=(
        *_within_frames(("text",)),
        *_along_frames(r"temp_attentions\.\d+\.transformer_blocks\.\d+\.attn[12]"),
        SiteRule(r"transformer_in\.transformer_blocks\.\d+\.attn[12]", "temporal", _TIME, places="down0"),
    ),
    streams=_sizes("UNet3DCondition", "BCTHW"),
    reads=("sample",),
    sample="sample",
    order=("transformer_in", "down_blocks", "mid_block", "up_blocks"),
    grid="sample (B, C, F, H, W), halved (rounding up) at every downsampling; frames, or places, sit in the batch",
    text="apart",
    video=True,
    halves=True,
    facts=PipelineFacts(pattern="TextToVideoSD.*|VideoToVideoSD.*", fps="8", sizes=_pixels),
    notes="Layers are numbered in the order of execution: down, middle, up. Both attentions of a temporal block are "
    "along the frames. Both branches are computed in one call.",
)

I2VGEN = replace(
    TEXT_TO_VIDEO,
    name="I2VGen-XL",
    classes=("I2VGenXLUNet",),
    pipelines=("I2VGenXLPipeline",),
    rules=(
        *_within_frames(("text",)),
        *_along_frames(r"temp_attentions\.\d+\.transformer_blocks\.\d+\.attn[12]"),
        SiteRule(r"transformer_in\.transformer_blocks\.\d+\.attn[12]", "temporal", _TIME, places="down0"),
        SiteRule(r"image_latents_temporal_encoder\.attn1", "temporal", _TIME, places="down0"),
    ),
    streams=_sizes("I2VGen-XL", "BCTHW"),
    order=("image_latents_temporal_encoder", *TEXT_TO_VIDEO.order),
    facts=PipelineFacts(pattern="I2VGenXL.*", fps="8", sizes=_pixels, needs_input=".*"),
    notes="Keys of cross-attention are the text, then tokens of the image, in one call. Layers are numbered in the "
    "order of execution: down, middle, up. Both branches are computed in one call.",
)

MOTION = replace(
    TEXT_TO_VIDEO,
    name="AnimateDiff",
    classes=("UNetMotionModel",),
    pipelines=("AnimateDiffPipeline", "AnimateDiffSDXLPipeline", "AnimateDiffVideoToVideoPipeline"),
    rules=(
        *_within_frames(("text", "image")),
        *_along_frames(r"motion_modules\.\d+\.transformer_blocks\.\d+\.attn[12]"),
    ),
    streams=_sizes("AnimateDiff", "BCTHW"),
    facts=PipelineFacts(pattern="AnimateDiff.*|PIAPipeline", fps="8", sizes=_pixels),
    notes="Layers are numbered in the order of execution: down, middle, up. Both attentions of a motion module are "
    "along the frames. An image prompt adapter attends in further calls with keys named 'image'. Both branches are "
    "computed in one call.",
)

STABLE_VIDEO = replace(
    TEXT_TO_VIDEO,
    name="Stable Video Diffusion",
    classes=("UNetSpatioTemporalConditionModel",),
    pipelines=("StableVideoDiffusionPipeline",),
    rules=(
        *_within_frames(("image",)),
        *_along_frames(r"attentions\.\d+\.temporal_transformer_blocks\.\d+\.attn1"),
        SiteRule(
            r".+\.attentions\.\d+\.temporal_transformer_blocks\.\d+\.attn2", "cross", queries=_TIME, keys=("image",)
        ),
    ),
    streams=_sizes("Stable Video Diffusion", "BTCHW"),
    grid="sample (B, F, C, H, W), halved (rounding up) at every downsampling; frames, or places, sit in the batch",
    facts=PipelineFacts(pattern="StableVideoDiffusion.*", fps="7", sizes=_pixels, needs_input=".*"),
    notes="Cross-attention has one key, the image given. Layers are numbered in the order of execution: down, middle, "
    "up. Both branches are computed in one call.",
)

FAMILIES = (TEXT_TO_VIDEO, I2VGEN, MOTION, STABLE_VIDEO)
