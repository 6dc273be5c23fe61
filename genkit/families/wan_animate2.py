"""Wan-Animate 2: a pass that reads a reference into a cache, and passes that make video beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.errors import UnsupportedError
from genkit.families.base import MAIN, Family, SiteRule, Streams, Untold, grid_with
from genkit.families.facts import PipelineFacts


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    samples = args.get("hidden_states")
    if not isinstance(samples, (list, tuple)) or not samples:
        raise UnsupportedError(
            "Wan-Animate 2: the token grid follows from hidden_states, a list of latents (C, F, H, W)"
        )
    t, h, w = model.config.patch_size
    grids = {(each.shape[1] // t, each.shape[2] // h, each.shape[3] // w) for each in samples}
    if len(grids) > 1:
        return {MAIN: Untold(f"the samples of one batch have different token grids: {sorted(grids)}")}
    return {MAIN: grid_with(grids.pop())}


FAMILY = Family(
    name="Wan-Animate 2",
    classes=("WanAnimate2Transformer3DModel",),
    pipelines=("WanAnimate2ModularPipeline",),
    rules=(
        SiteRule(r"blocks\.\d+\.self_attn", "self"),
        SiteRule(r"blocks\.\d+\.cross_attn", "cross", keys=("text", "image")),
    ),
    streams=_streams,
    reads=("hidden_states",),
    sample="hidden_states",
    order=("blocks",),
    grid="hidden_states, a list of latents (C, F, H, W), divided by patch_size",
    text="apart",
    video=True,
    facts=PipelineFacts(
        pattern="WanAnimate2.*",
        fps="16",
        lora_targets=r"blocks\.\d+\.(?:self|cross)_attn\.(?:to_[qkv]|to_out\.0)",
    ),
    notes="Self-attention can be patched in the pass that reads the reference. The passes that make video attend by "
    "the model's own block mask over video and reference, which stays as it is.",
)
