"""Wan 2.1 and 2.2, VACE's control blocks with them."""

from __future__ import annotations

from genkit.families.originals.base import Originals, layer, layers, same

_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
_IMAGE = {"k_img": "add_k_proj", "v_img": "add_v_proj"}


def _blocks(name: str):
    return (
        *layers(f"{name}.{{}}.self_attn", f"{name}.{{}}.attn1", _ATTENTION),
        *layers(f"{name}.{{}}.cross_attn", f"{name}.{{}}.attn2", _ATTENTION | _IMAGE),
        *layers(f"{name}.{{}}.ffn", f"{name}.{{}}.ffn.net", {"0": "0.proj", "2": "2"}),
    )


ORIGINALS = Originals(
    "Wan",
    "transformer",
    (
        *_blocks("blocks"),
        *_blocks("vace_blocks"),
        layer("vace_blocks.{}.before_proj", "vace_blocks.{}.proj_in"),
        layer("vace_blocks.{}.after_proj", "vace_blocks.{}.proj_out"),
        layer("time_projection.1", "condition_embedder.time_proj"),
        *layers("time_embedding", "condition_embedder.time_embedder", {"0": "linear_1", "2": "linear_2"}),
        *layers("text_embedding", "condition_embedder.text_embedder", {"0": "linear_1", "2": "linear_2"}),
        *layers("img_emb.proj", "condition_embedder.image_embedder.ff.net", {"1": "0.proj", "3": "2"}),
        layer("head.head", "proj_out"),
        *same("patch_embedding", "vace_patch_embedding"),
    ),
)
