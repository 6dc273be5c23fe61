"""Qwen-Image: its authors' names are Diffusers' own."""

from __future__ import annotations

from genkit.families.originals.base import Originals, same

_BLOCK = "transformer_blocks.{}"

ORIGINALS = Originals(
    "Qwen-Image",
    "transformer",
    same(
        *(
            f"{_BLOCK}.{name}"
            for name in (
                "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj",
                "attn.add_v_proj", "attn.to_add_out", "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj",
                "txt_mlp.net.2", "img_mod.1", "txt_mod.1",
            )
        ),
        "img_in",
        "txt_in",
        "proj_out",
        "norm_out.linear",
        "time_text_embed.timestep_embedder.linear_1",
        "time_text_embed.timestep_embedder.linear_2",
    ),
)  # fmt: skip
