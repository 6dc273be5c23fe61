"""The UNets of Stable Diffusion 1, 2 and XL: two residual layers a level, as all published ones have.

Kohya's files have Diffusers' names for Stable Diffusion 1 and either for XL; both are read, Diffusers' are written.
"""

from __future__ import annotations

from collections.abc import Iterator

from genkit.families.originals.base import Layer, Originals, layer, layers

_LEVELS = range(4)
_BLOCK = "transformer_blocks.{}"
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_TRANSFORMER = (
    "proj_in",
    "proj_out",
    *(f"{_BLOCK}.{kind}.{name}" for kind in ("attn1", "attn2") for name in _ATTENTION),
    f"{_BLOCK}.ff.net.0.proj",
    f"{_BLOCK}.ff.net.2",
)
_RESIDUAL = {
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def _pair(there: str, here: str, number: int) -> Iterator[Layer]:
    """A residual layer and the attention behind it."""
    yield from layers(f"{there}.0", f"{here}.resnets.{number}", _RESIDUAL)
    yield from layers(f"{there}.1", f"{here}.attentions.{number}", {name: name for name in _TRANSFORMER})


def _all() -> Iterator[Layer]:
    for level in _LEVELS:
        for number in range(2):
            yield from _pair(f"input_blocks.{1 + 3 * level + number}", f"down_blocks.{level}", number)
        yield layer(f"input_blocks.{3 + 3 * level}.0.op", f"down_blocks.{level}.downsamplers.0.conv")
        for number in range(3):
            yield from _pair(f"output_blocks.{3 * level + number}", f"up_blocks.{level}", number)
        # Behind attention, or at once in the levels without: one name here, two there.
        yield layer(f"output_blocks.{3 * level + 2}.2.conv", f"up_blocks.{level}.upsamplers.0.conv")
        yield layer(f"output_blocks.{3 * level + 2}.1.conv", f"up_blocks.{level}.upsamplers.0.conv")
    yield from layers("middle_block.0", "mid_block.resnets.0", _RESIDUAL)
    yield from layers("middle_block.1", "mid_block.attentions.0", {name: name for name in _TRANSFORMER})
    yield from layers("middle_block.2", "mid_block.resnets.1", _RESIDUAL)
    yield layer("input_blocks.0.0", "conv_in")
    yield layer("out.2", "conv_out")
    yield from layers("time_embed", "time_embedding", {"0": "linear_1", "2": "linear_2"})
    yield from layers("label_emb.0", "add_embedding", {"0": "linear_1", "2": "linear_2"})


ORIGINALS = Originals("UNet2DCondition", "unet", tuple(_all()), kohya_ours=True)
