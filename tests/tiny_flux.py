"""A FluxPipeline folder of the real classes with random weights, under 1 MB."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_sd import tiny_clip
from tiny_wan import word_tokenizer


def build_tiny_flux(folder: Path, guidance_embeds: bool = False, seed: int = 0) -> Path:
    """Save the pipeline with save_pretrained; it makes 16x16 images, with or without a guidance input."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(seed)
    text_encoder, tokenizer = tiny_clip()
    text_encoder_2 = T5EncoderModel(
        T5Config(vocab_size=64, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, pad_token_id=0, eos_token_id=1)
    )
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=guidance_embeds,
    )  # fmt: skip
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.2)
    vae = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=16, shift_factor=0.0,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae, text_encoder=text_encoder, tokenizer=tokenizer,
        text_encoder_2=text_encoder_2, tokenizer_2=word_tokenizer(), transformer=transformer,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder
