"""Image models built like language models, one sequence with the image at its end: OmniGen and Ideogram 4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.families.base import MAIN, TEXT, Family, SiteRule, Streams, Untold, grid_with, shape
from genkit.families.facts import PipelineFacts
from genkit.families.grids import given, grid_of_ids, latent_grid
from genkit.families.inputs import Inputs
from genkit.families.sizes import packed_image, packed_image_token

_GRID = latent_grid("OmniGen", "BCHW")


def _omnigen(model: Any, args: Mapping[str, Any]) -> Streams:
    words = 0 if args.get("input_ids") is None else shape(args, "input_ids", 2, "OmniGen")[1]
    return {MAIN: grid_with(_GRID(model, args), before=((TEXT, words), ("time", 1)))}


OMNIGEN = Family(
    name="OmniGen",
    classes=("OmniGenTransformer2DModel",),
    pipelines=("OmniGenPipeline",),
    rules=(SiteRule(r"layers\.\d+\.self_attn", "joint"),),
    streams=_omnigen,
    reads=("hidden_states", "input_ids"),
    sample="hidden_states",
    order=("layers",),
    grid="hidden_states (B, C, H, W) divided by patch_size, at the end of the sequence",
    text="first",
    video=False,
    facts=PipelineFacts(
        pattern="OmniGen.*",
        sizes=packed_image,
        token=packed_image_token,
        inputs={"OmniGenPipeline": Inputs(looks=True, several=True)},
    ),
    notes="Given pictures are among the text. Text reads only what came before it, the image everything; a method "
    "serves the image's queries. All branches are computed in one call. No attention processors can be set, so use "
    "genkit.patch.",
)

_IMAGE = 2  # what ``indicator`` says of tokens of the image


def _ideogram(model: Any, args: Mapping[str, Any]) -> Streams:
    tokens = shape(args, "hidden_states", 3, "Ideogram 4")[1]
    images = given(args, "indicator", "Ideogram 4") == _IMAGE
    count = int(images[0].sum())
    if not bool(images[:, tokens - count :].all()) or int(images.sum()) != count * len(images):
        return {MAIN: Untold("its image tokens are not the end of every sequence of the batch")}
    places = given(args, "position_ids", "Ideogram 4")[0, tokens - count :]
    grid = grid_of_ids(places, places[0, 0].item(), "Ideogram 4", "position_ids")
    return {MAIN: grid_with(grid, before=((TEXT, tokens - count),))}


IDEOGRAM = Family(
    name="Ideogram 4",
    classes=("Ideogram4Transformer2DModel",),
    pipelines=("Ideogram4Pipeline",),
    rules=(SiteRule(r"layers\.\d+\.attention", "joint"),),
    streams=_ideogram,
    reads=("hidden_states", "indicator", "position_ids"),
    sample="hidden_states",
    order=("layers",),
    grid="position_ids where indicator is 2, at the end of the sequence",
    text="first",
    video=False,
    heads_attribute="num_heads",
    facts=PipelineFacts(pattern="Ideogram4.*", sizes=packed_image, token=packed_image_token),
    notes="The pipeline has a second model of this class for the unconditional branch, which gets the image alone; "
    "both are patched. Padding before the text is hidden by the mask.",
)

FAMILIES = (OMNIGEN, IDEOGRAM)
