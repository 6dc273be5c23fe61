"""LTX-Video: its blocks have Diffusers' names, what stands before them has not."""

from __future__ import annotations

from genkit.families.originals.base import Originals, layer, layers, same

_EMBEDDER = ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")

ORIGINALS = Originals(
    "LTX-Video",
    "transformer",
    (
        *same(*(f"transformer_blocks.{{}}.{kind}.{name}" for kind in ("attn1", "attn2") for name in _ATTENTION)),
        *same("transformer_blocks.{}.ff.net.0.proj", "transformer_blocks.{}.ff.net.2"),
        layer("patchify_proj", "proj_in"),
        *layers("adaln_single", "time_embed", {name: name for name in _EMBEDDER}),
        *same("caption_projection.linear_1", "caption_projection.linear_2", "proj_out"),
    ),
)
