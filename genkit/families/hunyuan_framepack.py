"""HunyuanVideo FramePack: joint attention over a history, the section that is made, image tokens and text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.families.base import MAIN, TEXT, Family, Rotary, SiteRule, Streams, grid_with, shape, text_length
from genkit.families.facts import PipelineFacts
from genkit.families.grids import latent_grid

_grid = latent_grid("FramePack", patch_t="patch_size_t")
# Forward argument -> how many latents along time, height and width one of its tokens stands for.
_HISTORY = {"latents_clean": (1, 2, 2), "latents_history_2x": (2, 4, 4), "latents_history_4x": (4, 8, 8)}


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    history = sum(_tokens(args, name, box) for name, box in _HISTORY.items() if args.get(name) is not None)
    embeds = args.get("image_embeds")
    image = shape(args, "image_embeds", 3, "FramePack")[1] if embeds is not None else 0
    text = text_length(args, "FramePack")
    after = (("image", image), (TEXT, text))
    return {MAIN: grid_with(_grid(model, args), before=(("history", history),), after=after)}


def _tokens(args: Mapping[str, Any], name: str, box: tuple[int, int, int]) -> int:
    """Tokens of a history; the coarser ones are padded to whole boxes."""
    sizes = shape(args, name, 5, "FramePack")[2:]
    t, h, w = (-(-size // step) for size, step in zip(sizes, box, strict=True))
    return t * h * w


FAMILY = Family(
    name="HunyuanVideo FramePack",
    classes=("HunyuanVideoFramepackTransformer3DModel",),
    pipelines=("HunyuanVideoFramepackPipeline",),
    rules=(SiteRule(r"(?:single_)?transformer_blocks\.\d+\.attn", "joint"),),
    streams=_streams,
    reads=("hidden_states", "encoder_hidden_states", "image_embeds", *_HISTORY),
    sample="hidden_states",
    order=("transformer_blocks", "single_transformer_blocks"),
    grid="hidden_states (B, C, F, H, W) divided by patch_size_t and patch_size, after the segment 'history'",
    text="last",
    video=True,
    varying_text=True,
    rotary=Rotary(),
    facts=PipelineFacts(
        pattern="HunyuanVideoFramepack.*",
        fps="30",
        lora_targets=r"(?:single_)?transformer_blocks\.\d+\.attn\.(?:to_[qkv]|to_out\.0)",
    ),
    notes="A single sample's text is cut to its length; padding in a batch is hidden by a key mask. Clean and coarser "
    "histories are plain tokens for methods. No attention processors can be set, so use genkit.patch.",
)
