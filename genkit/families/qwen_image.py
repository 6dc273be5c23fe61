"""Qwen-Image: joint attention, text first, reference images (edit) after the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.errors import UnsupportedError
from genkit.families.base import MAIN, TEXT, Family, Rotary, SiteRule, Streams, Untold, grid_with, shape, text_length
from genkit.families.codec import standardised
from genkit.families.facts import FLOW, Objective, PipelineFacts, TextRule
from genkit.families.grids import given
from genkit.families.inputs import Inputs, Other
from genkit.families.sizes import ReadConfig, Size, SizeRule, packed_image, packed_image_token


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
    return tuple((int(frames), int(height), int(width)) for frames, height, width in images)


QWEN_IMAGE = Family(
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
    rotary=Rotary(),
    time_positions="img_shapes",
    facts=PipelineFacts(
        pattern=r"QwenImage(?!21).*",
        needs_input=r"QwenImage(?:Img2Img|Inpaint|Edit|ControlNet).*",
        inputs={
            "QwenImageEditPipeline": Inputs(looks=True),
            "QwenImageEditPlusPipeline": Inputs(looks=True, several=True),
        },
        others={
            "QwenImagePipeline": (
                Other("QwenImageImg2ImgPipeline"),
                Other("QwenImageInpaintPipeline"),
                Other("QwenImageControlNetPipeline", controlnet=True),
            ),
            "QwenImageEditPipeline": (Other("QwenImageEditInpaintPipeline"),),
        },
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


BOTH = "context_image"
_SLOT = 4  # image tokens behind one image slot of the language model


def _later(model: Any, args: Mapping[str, Any]) -> Streams:
    """Text and given pictures in turns, then the image, which asks them all."""
    shapes = given(args, "img_shapes", "Qwen-Image 2.1")
    if len({_as_sizes(sample) for sample in shapes}) > 1:
        return {MAIN: Untold("the samples of the batch have different img_shapes")}
    grid = _as_sizes(shapes[0])[-1]
    slots = given(args, "img_mask", "Qwen-Image 2.1")[0]
    images = int(slots.sum())
    before = len(slots) - images + _SLOT * images - grid[0] * grid[1] * grid[2]
    return {MAIN: grid_with(grid), BOTH: grid_with(grid, before=(("context", before),))}


def _later_sizes(config: ReadConfig) -> SizeRule:
    return SizeRule(32, 1)


def _later_token(config: ReadConfig) -> Size:
    return 1, 16, 16


QWEN_IMAGE_21 = Family(
    name="Qwen-Image 2.1",
    classes=("QwenImage21Transformer2DModel",),
    pipelines=("QwenImage21Pipeline",),
    rules=(SiteRule(r"transformer_blocks\.\d+\.attn", "joint", keys=(BOTH,), some_calls=True),),
    streams=_later,
    reads=("img_shapes", "img_mask"),
    sample="hidden_states",
    order=("transformer_blocks",),
    grid="the last of img_shapes; text and given pictures before it are the segment 'context'",
    text="first",
    video=False,
    branches=("cond", "uncond"),
    facts=PipelineFacts(
        pattern="QwenImage21.*",
        sizes=_later_sizes,
        token=_later_token,
        inputs={"QwenImage21Pipeline": Inputs(looks=True, several=True)},
    ),
    notes="The image asks everything before it, from a cache after the first step. Attention of text and given "
    "pictures among themselves stays the model's own, and so does all of it with the model's flex processor.",
)

FAMILIES = (QWEN_IMAGE, QWEN_IMAGE_21)
