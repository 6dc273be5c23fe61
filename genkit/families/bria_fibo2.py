"""Bria FIBO 2: joint attention over a gist of the text, image and context images; some layers ask the text itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.families.base import MAIN, TEXT, Family, Rotary, SiteRule, Streams, grid_with, shape
from genkit.families.facts import PipelineFacts
from genkit.families.grids import latent_grid
from genkit.families.sizes import packed_image, packed_image_token

_GRID = latent_grid("Bria FIBO 2", "BCHW")


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    grid, patch = _GRID(model, args), model.config.patch_size
    pictures = args.get("context_latents") or ()
    after = (("reference", sum((each.shape[2] // patch) * (each.shape[3] // patch) for each in pictures)),)
    counts = _gist(model, args)
    gist = ((TEXT, max(counts)),)
    if min(counts) == max(counts):
        main = grid_with(grid, before=gist, after=after)
    else:
        main = grid_with(grid, after=(*after, *gist))  # so that padding ends every row
    return {MAIN: main, "image": grid_with(grid, after=after)}


def _gist(model: Any, args: Mapping[str, Any]) -> list[int]:
    """Gist tokens of every prompt, by Diffusers' own rule of their number."""
    from diffusers.models.transformers.transformer_bria_fibo2 import compute_gist_count

    batch, _, length, _ = shape(args, "encoder_hidden_states", 4, "Bria FIBO 2")
    mask = args.get("encoder_attention_mask")
    lengths = [length] * batch if mask is None else mask.sum(dim=1).tolist()
    config = model.config
    return compute_gist_count(
        lengths,
        min_gist=config.min_num_gist_tokens,
        max_gist=config.max_num_gist_tokens,
        gist_step=config.gist_step,
        min_text_len=config.gist_min_text_len,
        max_text_len=config.gist_max_text_len,
    )


FAMILY = Family(
    name="Bria FIBO 2",
    classes=("BriaFibo2Transformer2DModel",),
    pipelines=("BriaFibo2Pipeline",),
    rules=(
        SiteRule(r"noise_refiner\.\d+\.attention", "self", queries="image"),
        SiteRule(r"layers\.\d+\.attention", "joint"),
        SiteRule(r"layers\.\d+\.cross_attention", "cross", keys=("text",)),
    ),
    streams=_streams,
    reads=("hidden_states", "encoder_hidden_states", "encoder_attention_mask", "context_latents"),
    sample="hidden_states",
    order=("noise_refiner", "layers"),
    grid="hidden_states (B, C, H, W) divided by patch_size; context_latents are the segment 'reference'",
    text="first",
    video=False,
    rotary=Rotary("freqs_cis"),
    facts=PipelineFacts(pattern="BriaFibo2.*", sizes=packed_image, token=packed_image_token),
    notes="The text of joint attention is a gist of the prompt, whose length follows the prompt's; it stands last when "
    "the prompts of a batch have gists of different lengths. The gist's own attention stays as it is.",
)
