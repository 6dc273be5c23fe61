"""HunyuanVideo. The single blocks of its authors make queries, keys, values and the hidden layer in one product."""

from __future__ import annotations

from genkit.families.originals.base import Originals, layer, layers

_DOUBLE, _SINGLE = "transformer_blocks.{}", "single_transformer_blocks.{}"
_REFINER, _THERE = "context_embedder.token_refiner.refiner_blocks.{}", "txt_in.individual_token_refiner.blocks.{}"
_MLP = {"mlp.0": "linear_1", "mlp.2": "linear_2"}
_TEXT = "context_embedder.time_text_embed"
_QKV = ("to_q", "to_k", "to_v")

ORIGINALS = Originals(
    "HunyuanVideo",
    "transformer",
    (
        layer("double_blocks.{}.img_attn_qkv", *(f"{_DOUBLE}.attn.{name}" for name in _QKV)),
        layer(
            "double_blocks.{}.txt_attn_qkv",
            *(f"{_DOUBLE}.attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj")),
        ),
        *layers(
            "double_blocks.{}",
            _DOUBLE,
            {
                "img_attn_proj": "attn.to_out.0",
                "txt_attn_proj": "attn.to_add_out",
                "img_mlp.fc1": "ff.net.0.proj",
                "img_mlp.fc2": "ff.net.2",
                "txt_mlp.fc1": "ff_context.net.0.proj",
                "txt_mlp.fc2": "ff_context.net.2",
                "img_mod.linear": "norm1.linear",
                "txt_mod.linear": "norm1_context.linear",
            },
        ),
        layer(
            "single_blocks.{}.linear1",
            *(f"{_SINGLE}.attn.{name}" for name in _QKV),
            f"{_SINGLE}.proj_mlp",
            sizes=(1, 1, 1, 4),
        ),
        *layers("single_blocks.{}", _SINGLE, {"linear2": "proj_out", "modulation.linear": "norm.linear"}),
        layer(f"{_THERE}.self_attn_qkv", *(f"{_REFINER}.attn.{name}" for name in _QKV)),
        *layers(
            _THERE,
            _REFINER,
            {
                "self_attn_proj": "attn.to_out.0",
                "mlp.fc1": "ff.net.0.proj",
                "mlp.fc2": "ff.net.2",
                "adaLN_modulation.1": "norm_out.linear",
            },
        ),
        layer("txt_in.input_embedder", "context_embedder.proj_in"),
        *layers("txt_in.t_embedder", f"{_TEXT}.timestep_embedder", _MLP),
        *layers("txt_in.c_embedder", f"{_TEXT}.text_embedder", {"linear_1": "linear_1", "linear_2": "linear_2"}),
        *layers("time_in", "time_text_embed.timestep_embedder", _MLP),
        *layers("guidance_in", "time_text_embed.guidance_embedder", _MLP),
        *layers("vector_in", "time_text_embed.text_embedder", {"in_layer": "linear_1", "out_layer": "linear_2"}),
        layer("img_in.proj", "x_embedder.proj"),
        layer("final_layer.linear", "proj_out"),
        layer("final_layer.adaLN_modulation.1", "norm_out.linear", swapped=True),
    ),
)
