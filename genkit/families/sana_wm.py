"""SANA-WM: softmax attention in every few blocks, gated delta nets in the others, and its LTX-2 refiner."""

from __future__ import annotations

from typing import Any

from genkit.families.base import MAIN, Family, SiteRule, Streams, Untold, grid_with
from genkit.families.facts import PipelineFacts
from genkit.families.grids import latent_grid

_grid = latent_grid("SANA-WM")


def _streams(model: Any, args: Any) -> Streams:
    if getattr(model, "pack_latents", False):
        return {MAIN: Untold("its latents are packed two by two, an order that is not known")}
    return {MAIN: grid_with(_grid(model, args))}


def _softmax(model: Any, path: str, module: Any) -> bool:
    """Whether an attention module of a block is softmax attention; in the other blocks it is a gated delta net."""
    return "Softmax" in type(module).__name__


FAMILY = Family(
    name="SANA-WM",
    classes=("SanaWMTransformer3DModel",),
    pipelines=("SanaWMPipeline",),
    rules=(
        SiteRule(r"blocks\.\d+\.attn\.(?:attn|cam_attn)", "self", applies=_softmax),
        SiteRule(r"blocks\.\d+\.cross_attn", "cross", keys=("text",)),
    ),
    streams=_streams,
    reads=("hidden_states",),
    sample="hidden_states",
    order=("blocks",),
    grid="hidden_states (B, C, F, H, W) divided by patch_size",
    text="apart",
    video=True,
    projection_names=("q_linear", "k_linear", "v_linear"),
    facts=PipelineFacts(pattern="SanaWM.*", fps="16"),
    notes="Only every softmax_every_n-th block has softmax attention, once for the tokens and once for the camera; it "
    "computes in bfloat16. Gated delta nets stay as they are. No attention processors can be set.",
)
