"""Flux.1. The single blocks of its authors make queries, keys, values and the hidden layer in one product."""

from __future__ import annotations

from genkit.families.originals.base import Originals, layer, layers

_DOUBLE, _SINGLE = "transformer_blocks.{}", "single_transformer_blocks.{}"
_IN_OUT = {"in_layer": "linear_1", "out_layer": "linear_2"}

ORIGINALS = Originals(
    "Flux",
    "transformer",
    (
        layer("double_blocks.{}.img_attn.qkv", *(f"{_DOUBLE}.attn.{name}" for name in ("to_q", "to_k", "to_v"))),
        layer(
            "double_blocks.{}.txt_attn.qkv",
            *(f"{_DOUBLE}.attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj")),
        ),
        *layers(
            "double_blocks.{}",
            _DOUBLE,
            {
                "img_attn.proj": "attn.to_out.0",
                "txt_attn.proj": "attn.to_add_out",
                "img_mlp.0": "ff.net.0.proj",
                "img_mlp.2": "ff.net.2",
                "txt_mlp.0": "ff_context.net.0.proj",
                "txt_mlp.2": "ff_context.net.2",
                "img_mod.lin": "norm1.linear",
                "txt_mod.lin": "norm1_context.linear",
            },
        ),
        layer(
            "single_blocks.{}.linear1",
            *(f"{_SINGLE}.{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
            sizes=(1, 1, 1, 4),
        ),
        *layers("single_blocks.{}", _SINGLE, {"linear2": "proj_out", "modulation.lin": "norm.linear"}),
        *layers("guidance_in", "time_text_embed.guidance_embedder", _IN_OUT),
        *layers("time_in", "time_text_embed.timestep_embedder", _IN_OUT),
        *layers("vector_in", "time_text_embed.text_embedder", _IN_OUT),
        layer("img_in", "x_embedder"),
        layer("txt_in", "context_embedder"),
        layer("final_layer.linear", "proj_out"),
        layer("final_layer.adaLN_modulation.1", "norm_out.linear", swapped=True),
    ),
)
