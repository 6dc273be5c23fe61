"""A tiny Helios pipeline of the real classes with random weights."""

from __future__ import annotations

from typing import Any

import tiny_pipelines
import torch


def build_tiny_helios(pyramid: bool = False) -> Any:
    """Helios' pipeline, which makes long videos chunk by chunk; ``pyramid``: over three sizes of latents."""
    from diffusers import HeliosPipeline, HeliosPyramidPipeline, HeliosScheduler, HeliosTransformer3DModel

    parts = tiny_pipelines.wan().components
    names = ("patch_size", "num_attention_heads", "in_channels", "out_channels", "text_dim", "freq_dim", "ffn_dim")
    config = {name: parts["transformer"].config[name] for name in names}
    torch.manual_seed(1)
    model = HeliosTransformer3DModel(
        **config, attention_head_dim=12, num_layers=2, rope_dim=(4, 4, 4), cross_attn_norm=True,
        has_multi_term_memory_patch=True, guidance_cross_attn=True, zero_history_timestep=True,
    ).eval()  # fmt: skip
    kept = {name: parts[name] for name in ("tokenizer", "text_encoder", "vae")}
    if pyramid:
        pipe = HeliosPyramidPipeline(transformer=model, scheduler=HeliosScheduler(gamma=0.25), **kept)
    else:
        pipe = HeliosPipeline(transformer=model, scheduler=HeliosScheduler(stages=1), **kept)
    pipe.set_progress_bar_config(disable=True)
    return pipe
