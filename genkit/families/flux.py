"""Flux: joint attention, text first, reference images (Kontext) after the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.errors import UnsupportedError
from genkit.families.base import MAIN, TEXT, Family, SiteRule, Streams, grid_with, shape, text_length
from genkit.families.codec import scaled
from genkit.families.facts import FLOW, Objective, PipelineFacts, TextRule
from genkit.families.sizes import packed_image, packed_image_token


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    tokens = shape(args, "hidden_states", 3, "Flux")[1]
    ids = args.get("img_ids")
    if ids is None:
        raise UnsupportedError("Flux: the token grid follows from img_ids, which this call of the model lacks")
    ids = (ids[0] if ids.ndim == 3 else ids).detach().float().cpu()
    # The first coordinate numbers the images: 0 is the one being made, references have others.
    image = ids[ids[:, 0] == 0]
    height, width = (int(image[:, axis].max() - image[:, axis].min()) + 1 for axis in (1, 2))
    if height * width != len(image) or not bool((ids[: len(image), 0] == 0).all()):
        raise UnsupportedError(
            f"Flux: img_ids tell of {len(image)} tokens of the image within {height}x{width} positions; genkit needs "
            f"a full grid that comes before the reference tokens"
        )
    main = grid_with(
        (1, height, width), before=((TEXT, text_length(args, "Flux")),), after=(("reference", tokens - len(image)),)
    )
    return {MAIN: main}


FAMILY = Family(
    name="Flux",
    classes=("FluxTransformer2DModel",),
    pipelines=("FluxPipeline", "FluxKontextPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"),
    rules=(SiteRule(r"(?:single_)?transformer_blocks\.\d+\.attn", "joint"),),
    streams=_streams,
    reads=("hidden_states", "encoder_hidden_states", "img_ids"),
    sample="hidden_states",
    order=("transformer_blocks", "single_transformer_blocks"),
    grid="img_ids with first coordinate 0; further tokens are the segment 'reference'",
    text="first",
    video=False,
    branches=("cond", "uncond"),
    time_positions="img_ids (another first coordinate)",
    facts=PipelineFacts(
        pattern="Flux.*",
        needs_input=r"Flux.*(?:Img2Img|Inpaint|Fill|Kontext|Control).*",
        sizes=packed_image,
        token=packed_image_token,
        codec=scaled("packed"),
        text=TextRule(("encoder_hidden_states", "pooled_projections", "txt_ids"), 512),
        objective=Objective(FLOW, "sigma"),
        lora_targets=r"(?:single_)?transformer_blocks\.\d+\.attn\.(?:to_[qkv]|to_out\.0)",
        architecture="flux-1-dev",
    ),
    notes="Single blocks are numbered after double blocks. Image prompt adapters' extra attention stays as it is.",
)
