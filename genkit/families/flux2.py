"""Flux 2 and 3: joint attention, text first; positions have four coordinates, reference images come after the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.families.base import MAIN, TEXT, Family, Rotary, SiteRule, Streams, grid_with, shape, text_length
from genkit.families.facts import PipelineFacts
from genkit.families.grids import given, grid_of_ids, text_image_references
from genkit.families.inputs import Inputs, Other
from genkit.families.sizes import packed_image, packed_image_token

ALL = "with_references"


def _flux2(model: Any, args: Mapping[str, Any]) -> Streams:
    """Text, image, references; with a cache the references stand between them and read nothing but themselves."""
    mode = args.get("kv_cache_mode")
    if mode is None:
        streams = _WHOLE(model, args)
        return {MAIN: streams[MAIN], ALL: streams[MAIN]}
    ids, references = given(args, "img_ids", "Flux 2"), int(args.get("num_ref_tokens") or 0)
    ids = (ids[0] if ids.ndim == 3 else ids)[references:]
    grid = grid_of_ids(ids, 0, "Flux 2")
    text = (TEXT, text_length(args, "Flux 2"))
    if mode == "cached":
        references = given(args, "kv_cache", "Flux 2").num_ref_tokens
    return {MAIN: grid_with(grid, before=(text,)), ALL: grid_with(grid, before=(text, ("reference", references)))}


_WHOLE = text_image_references("Flux 2")

FLUX2 = Family(
    name="Flux 2",
    classes=("Flux2Transformer2DModel",),
    pipelines=("Flux2Pipeline", "Flux2KleinPipeline", "Flux2KleinInpaintPipeline", "Flux2KleinKVPipeline"),
    rules=(SiteRule(r"(?:single_)?transformer_blocks\.\d+\.attn", "joint", keys=(ALL,), some_calls=True),),
    streams=_flux2,
    reads=("hidden_states", "encoder_hidden_states", "img_ids", "kv_cache_mode", "num_ref_tokens", "kv_cache"),
    sample="hidden_states",
    order=("transformer_blocks", "single_transformer_blocks"),
    grid="img_ids with first coordinate 0; further tokens are the segment 'reference'",
    text="first",
    video=False,
    branches=("cond", "uncond"),
    rotary=Rotary(),
    facts=PipelineFacts(
        pattern="Flux2.*",
        needs_input="Flux2KleinInpaint.*",
        sizes=packed_image,
        token=packed_image_token,
        inputs={r"Flux2(?:Klein(?:KV)?)?Pipeline": Inputs(looks=True, several=True)},
        others={"Flux2KleinPipeline": (Other("Flux2KleinInpaintPipeline"),)},
    ),
    notes="Single blocks are numbered after double blocks; their projections are fused with the feed-forward's. "
    "With a cache of references (Klein KV) text and image ask them too; the references' own attention stays as it is.",
)


def _flux3(model: Any, args: Mapping[str, Any]) -> Streams:
    """The image alone, references alone, and both after the text."""
    grid = grid_of_ids(given(args, "img_ids", "Flux 3"), 0, "Flux 3")
    references = 0
    if args.get("image_cond_hidden_states") is not None:
        references = shape(args, "image_cond_hidden_states", 3, "Flux 3")[1]
    text = text_length(args, "Flux 3")
    return {
        MAIN: grid_with(grid, before=((TEXT, text),), after=(("reference", references),)),
        "image": grid_with(grid),
    }


FLUX3 = Family(
    name="Flux 3",
    classes=("Flux3Transformer2DModel",),
    pipelines=("Flux3ModularPipeline", "Flux3DistilledModularPipeline"),
    rules=(
        SiteRule(r"mode_blocks\.image\.\d+\.attn", "self", queries="image"),
        SiteRule(r"single_transformer_blocks\.\d+\.attn", "joint"),
    ),
    streams=_flux3,
    reads=("hidden_states", "encoder_hidden_states", "img_ids", "image_cond_hidden_states"),
    sample="hidden_states",
    order=("mode_blocks", "single_transformer_blocks"),
    grid="img_ids; image_cond_hidden_states are the segment 'reference'",
    text="first",
    video=False,
    rotary=Rotary(),
    facts=PipelineFacts(pattern="Flux3.*", sizes=packed_image, token=packed_image_token),
    notes="The blocks of text and of reference images alone keep their own attention. The pipelines are modular and "
    "announce no branches.",
)

FAMILIES = (FLUX2, FLUX3)
