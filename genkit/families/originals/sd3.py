"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from genkit.families.originals.base import Originals, layer, layers

_BLOCK, _THERE = "transformer_blocks.{}", "joint_blocks.{}"
_MLP = {"mlp.0": "linear_1", "mlp.2": "linear_2"}
_QKV = ("to_q", "to_k", "to_v")

ORIGINALS = Originals(
    "SD3",
    "transformer",
    (
        layer(f"{_THERE}.x_block.attn.qkv", *(f"{_BLOCK}.attn.{name}" for name in _QKV)),
        layer(f"{_THERE}.x_block.attn2.qkv", *(f"{_BLOCK}.attn2.{name}" for name in _QKV)),
        layer(
            f"{_THERE}.context_block.attn.qkv",
            *(f"{_BLOCK}.attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj")),
        ),
        *layers(
            _THERE,
            _BLOCK,
            {
                "x_block.attn.proj": "attn.to_out.0",
                "x_block.attn2.proj": "attn2.to_out.0",
                "context_block.attn.proj": "attn.to_add_out",
                "x_block.mlp.fc1": "ff.net.0.proj",
                "x_block.mlp.fc2": "ff.net.2",
                "context_block.mlp.fc1": "ff_context.net.0.proj",
                "context_block.mlp.fc2": "ff_context.net.2",
                "x_block.adaLN_modulation.1": "norm1.linear",
            },
        ),
        layer("x_embedder.proj", "pos_embed.proj"),
        layer("context_embedder", "context_embedder"),
        *layers("t_embedder", "time_text_embed.timestep_embedder", _MLP),
        *layers("y_embedder", "time_text_embed.text_embedder", _MLP),
        layer("final_layer.linear", "proj_out"),
        layer("final_layer.adaLN_modulation.1", "norm_out.linear", swapped=True),
    ),
)
