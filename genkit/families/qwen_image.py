"""Qwen-Image: joint attention, text first, reference images (edit) after the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.errors import UnsupportedError
from genkit.families.base import MAIN, TEXT, Family, SiteRule, Streams, grid_with, shape, text_length
from genkit.families.codec import standardised
from genkit.families.facts import FLOW, Objective, PipelineFacts, TextRule
from genkit.families.sizes import packed_image, packed_image_token


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    tokens = shape(args, "hidden_states", 3, "Qwen-Image")[1]
    shapes = args.get("img_shapes")
    if not shapes:
        raise UnsupportedError("Qwen-Image: the token grid follows from img_shapes, which this call of the model lacks")
    samples = {_as_sizes(sample) for sample in shapes}
    if len(samples) > 1:
        raise UnsupportedError(f"Qwen-Image: the samples of one batch have different img_shapes: {sorted(samples)}")
    grid = samples.pop()[0]
    extra = tokens - grid[0] * grid[1] * grid[2]
    if extra < 0:
        raise UnsupportedError(f"Qwen-Image: a grid of {grid} has more than the {tokens} tokens that came")
    text = text_length(args, "Qwen-Image")
    return {MAIN: grid_with(grid, before=((TEXT, text),), after=(("reference", extra),))}


def _as_sizes(sample: Any) -> tuple[tuple[int, int, int], ...]:
    """``img_shapes`` of one sample: one (T, H, W), or a list of them."""
    images = [sample] if isinstance(sample[0], int) else sample
    return tuple(tuple(int(size) for size in image) for image in images)


FAMILY = Family(
    name="Qwen-Image",
    classes=("QwenImageTransformer2DModel",),
    pipelines=("QwenImagePipeline", "QwenImageEditPipeline", "QwenImageEditPlusPipeline", "QwenImageImg2ImgPipeline"),
    rules=(SiteRule(r"transformer_blocks\.\d+\.attn", "joint"),),
    streams=_streams,
    reads=("hidden_states", "encoder_hidden_states", "img_shapes"),
    sample="hidden_states",
    order=("transformer_blocks",),
    grid="the first of img_shapes; further images are the segment 'reference'",
    text="first",
    video=False,
    branches=("cond", "uncond"),
    time_positions="img_shapes",
    facts=PipelineFacts(
        pattern="QwenImage.*",
        needs_input=r"QwenImage(?:Img2Img|Inpaint|Edit|ControlNet).*",
        sizes=packed_image,
        token=packed_image_token,
        codec=standardised("packed"),
        text=TextRule(("encoder_hidden_states", "encoder_hidden_states_mask"), 512),
        objective=Objective(FLOW, "sigma"),
        lora_targets=r"transformer_blocks\.\d+\.attn\.(?:to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)",
        architecture="qwen-image",
    ),
    notes="A text mask that hides nothing is dropped.",
)
