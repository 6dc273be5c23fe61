"""Stock pipelines around the denoisers of :mod:`tiny`, with random text encoders and autoencoders, in memory."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import tiny
import torch
from tiny_sd import tiny_clip
from tiny_wan import word_tokenizer
from torch import nn


def flow_scheduler(**changes: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**changes)


def _seeded(build: Callable[..., Any]) -> Callable[..., Any]:
    def seeded(*args: Any, **kwargs: Any) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            pipeline = build(*args, **kwargs)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return seeded


def clip(width: int, projection: int | None = None) -> tuple[Any, Any]:
    """A CLIP text encoder of two layers, with a projection where its width is given, and its tokenizer."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = tiny_clip()[1]
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, bos_token_id=512, eos_token_id=513, pad_token_id=513,
        projection_dim=projection or width,
    )  # fmt: skip
    return (CLIPTextModel if projection is None else CLIPTextModelWithProjection)(config).eval(), tokenizer


def t5(width: int) -> Any:
    """A T5 encoder for the word tokenizer."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=64, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0, eos_token_id=1
    )
    return T5EncoderModel(config).eval()


class Language(nn.Module):
    """A language model that gives hidden states: embeddings that know how many tokens came before."""

    def __init__(self, width: int, layers: int = 4):
        super().__init__()
        self.embedding = nn.Embedding(64, width)
        self.layers = layers

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **more: Any) -> Any:
        states = self.embedding(input_ids).cumsum(1)
        return SimpleNamespace(hidden_states=[states * (index + 1) for index in range(self.layers)])


def picture_vae(channels: int = 4, **changes: Any) -> Any:
    """An autoencoder of pictures with two by two pixels a latent."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=channels, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **changes,
    ).eval()  # fmt: skip


@_seeded
def stable_diffusion_xl() -> Any:
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline

    (first, tokenizer), (second, tokenizer_2) = clip(8), clip(8, 8)
    return StableDiffusionXLPipeline(
        vae=picture_vae(), text_encoder=first, text_encoder_2=second, tokenizer=tokenizer, tokenizer_2=tokenizer_2,
        unet=tiny.build("unet_xl").model, add_watermarker=False,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False),
    )  # fmt: skip


@_seeded
def stable_diffusion_3() -> Any:
    from diffusers import StableDiffusion3Pipeline

    (first, tokenizer), (second, tokenizer_2) = clip(4, 4), clip(8, 4)
    return StableDiffusion3Pipeline(
        transformer=tiny.build("sd3").model, scheduler=flow_scheduler(shift=3.0),
        vae=picture_vae(shift_factor=0.1), text_encoder=first, tokenizer=tokenizer, text_encoder_2=second,
        tokenizer_2=tokenizer_2, text_encoder_3=t5(16), tokenizer_3=word_tokenizer(),
    )  # fmt: skip


@_seeded
def flux_kontext() -> Any:
    from diffusers import FluxKontextPipeline, FluxTransformer2DModel

    text_encoder, tokenizer = clip(8)
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    return FluxKontextPipeline(
        scheduler=flow_scheduler(shift=3.0), vae=picture_vae(shift_factor=0.1159, scaling_factor=0.3611),
        text_encoder=text_encoder, tokenizer=tokenizer, text_encoder_2=t5(16), tokenizer_2=word_tokenizer(),
        transformer=transformer,
    )  # fmt: skip


@_seeded
def qwen_image() -> Any:
    from diffusers import AutoencoderKLQwenImage, QwenImagePipeline

    vae = AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0],
    )  # fmt: skip
    pipeline = QwenImagePipeline(
        scheduler=flow_scheduler(use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192), vae=vae.eval(),
        text_encoder=Language(16), tokenizer=word_tokenizer(), transformer=tiny.build("qwen_image").model,
    )  # fmt: skip
    pipeline.prompt_template_encode, pipeline.prompt_template_encode_start_idx = "the image is {} now", 2
    return pipeline
