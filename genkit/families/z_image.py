"""Z-Image: lists of samples, joint attention, image and text each filled up to a multiple of 32 tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.errors import UnsupportedError
from genkit.families.base import MAIN, TEXT, Family, Rotary, SiteRule, Streams, Untold, grid_with
from genkit.families.facts import PipelineFacts
from genkit.families.grids import given
from genkit.families.inputs import Inputs, Other
from genkit.families.sizes import packed_image, packed_image_token

_MULTIPLE = 32


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    samples, words = given(args, "x", "Z-Image"), given(args, "cap_feats", "Z-Image")
    if isinstance(samples[0], (list, tuple)):
        return _with_pictures(args, samples, words)
    grids = {_grid(sample, args) for sample in samples}
    if len(grids) > 1:
        return _untold("sizes", grids)
    grid = grids.pop()
    pad = (("image_pad", _filled(_tokens(grid)) - _tokens(grid)),)
    text = (TEXT, max(_filled(len(sample)) for sample in words))
    return {MAIN: grid_with(grid, after=(*pad, text)), "image": grid_with(grid, after=pad)}


def _with_pictures(args: Mapping[str, Any], samples: Any, words: Any) -> Streams:
    """Texts, then the given pictures and the image being made last, then the pictures' features."""
    texts = {sum(_filled(len(part)) for part in sample) for sample in words}
    pictures = {tuple(None if part is None else _grid(part, args) for part in sample) for sample in samples}
    if len(texts) > 1 or len(pictures) > 1:
        return _untold("lengths of text or sizes of pictures", texts | pictures)
    *before, grid = pictures.pop()
    if grid is None:
        raise UnsupportedError("Z-Image: the last picture of a sample is the one that is made; it is missing")
    # A picture that is missing is filled up like one.
    references = ("reference", sum(_MULTIPLE if each is None else _filled(_tokens(each)) for each in before))
    pad = ("image_pad", _filled(_tokens(grid)) - _tokens(grid))
    features = ("features", max(_features(sample) for sample in args.get("siglip_feats") or (None,)))
    return {
        MAIN: grid_with(grid, before=((TEXT, texts.pop()), references), after=(pad, features)),
        "image": grid_with(grid, before=(references,), after=(pad,)),
    }


def _untold(what: str, found: set[Any]) -> Streams:
    reason = f"the samples of the batch have different {what} ({', '.join(sorted(map(str, found)))})"
    return {MAIN: Untold(reason), "image": Untold(reason)}


def _features(parts: Any) -> int:
    """Tokens of one sample's features of pictures (H, W, C); they stand last, and a mask hides what is shorter."""
    return sum(_MULTIPLE if part is None else _filled(part.shape[0] * part.shape[1]) for part in parts or ())


def _grid(latents: Any, args: Mapping[str, Any]) -> tuple[int, int, int]:
    """The grid of one picture (C, F, H, W)."""
    patch, patch_t = args.get("patch_size", 2), args.get("f_patch_size", 1)
    _, frames, height, width = latents.shape
    return frames // patch_t, height // patch, width // patch


def _tokens(grid: tuple[int, int, int]) -> int:
    return grid[0] * grid[1] * grid[2]


def _filled(length: int) -> int:
    return -(-length // _MULTIPLE) * _MULTIPLE


FAMILY = Family(
    name="Z-Image",
    classes=("ZImageTransformer2DModel",),
    pipelines=("ZImagePipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline", "ZImageOmniPipeline"),
    rules=(
        SiteRule(r"noise_refiner\.\d+\.attention", "self", queries="image"),
        SiteRule(r"layers\.\d+\.attention", "joint"),
    ),
    streams=_streams,
    reads=("x", "cap_feats", "siglip_feats", "patch_size", "f_patch_size"),
    sample="x",
    timestep="t",
    order=("noise_refiner", "layers"),
    grid="x, a list of (C, F, H, W), divided by patch_size; tokens that fill it up to a multiple of 32 are 'image_pad'",
    text="last",
    video=False,
    rotary=Rotary("freqs_cis"),
    facts=PipelineFacts(
        pattern="ZImage.*",
        sizes=packed_image,
        token=packed_image_token,
        inputs={"ZImageOmniPipeline": Inputs(looks=True, several=True)},
        others={"ZImagePipeline": (Other("ZImageImg2ImgPipeline"), Other("ZImageInpaintPipeline"))},
    ),
    notes="Tokens that fill up image and text take part in attention. With given pictures (omni) the order is text, "
    "pictures ('reference'), image, their 'features'. Both branches are computed in one call. No attention processors "
    "can be set, so use genkit.patch.",
)
