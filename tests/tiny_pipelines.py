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
def latent_consistency(folder: Any) -> Any:
    """A pipeline whose UNet takes a guidance scale, with its scheduler, from the folder of a tiny Stable Diffusion."""
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    pipe = StableDiffusionPipeline.from_pretrained(folder)
    unet = UNet2DConditionModel.from_config({**pipe.unet.config, "time_cond_proj_dim": 8}).eval()
    parts = {**pipe.components, "unet": unet, "scheduler": LCMScheduler.from_config(pipe.scheduler.config)}
    parts.pop("image_encoder", None)
    return LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)


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


def _wan_parts(**scheduler: Any) -> dict[str, Any]:
    from diffusers import AutoencoderKLWan
    from transformers import UMT5Config, UMT5EncoderModel

    vae = AutoencoderKLWan(
        base_dim=4, decoder_base_dim=4, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[True, True],
        is_residual=True, patch_size=2, in_channels=12, out_channels=12, scale_factor_spatial=8,
        scale_factor_temporal=4, latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0],
    )  # fmt: skip
    config = UMT5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu",
        pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return {
        "tokenizer": word_tokenizer(), "text_encoder": UMT5EncoderModel(config).eval(), "vae": vae.eval(),
        "scheduler": flow_scheduler(shift=3.0, **scheduler),
    }  # fmt: skip


def _wan_model(channels: int, **changes: Any) -> Any:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=channels, out_channels=4,
        text_dim=16, freq_dim=16, ffn_dim=32, num_layers=1, cross_attn_norm=True, rope_max_seq_len=32, **changes,
    ).eval()  # fmt: skip


@_seeded
def wan(experts: bool = False, **config: Any) -> Any:
    from diffusers import WanPipeline

    parts = {"transformer": _wan_model(4), "transformer_2": _wan_model(4) if experts else None}
    return WanPipeline(**_wan_parts(), **parts, **config)


@_seeded
def wan_image(kind: str) -> Any:
    """WanImageToVideoPipeline as 2.1 has it, its model of first and last frames, 2.2 with experts, or 2.2 5B."""
    from diffusers import WanImageToVideoPipeline
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    if kind == "5B":
        return WanImageToVideoPipeline(**_wan_parts(), transformer=_wan_model(4), expand_timesteps=True)
    if kind == "A14B":
        models = {"transformer": _wan_model(12), "transformer_2": _wan_model(12)}
        return WanImageToVideoPipeline(**_wan_parts(), **models, boundary_ratio=0.9)
    seen = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    size = {"height": 16, "width": 16}
    model = _wan_model(
        12, image_dim=8, added_kv_proj_dim=24, pos_embed_seq_len=10 if kind == "first and last" else None
    )
    return WanImageToVideoPipeline(
        **_wan_parts(), transformer=model, image_encoder=CLIPVisionModel(seen).eval(),
        image_processor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size),
    )  # fmt: skip


@_seeded
def hunyuan_video() -> Any:
    from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline

    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4,
        mid_block_add_attention=False,
    )  # fmt: skip
    text_encoder_2, tokenizer_2 = clip(8)
    tokenizer = word_tokenizer()
    tokenizer.padding_side = "right"
    return HunyuanVideoPipeline(
        text_encoder=Language(16), tokenizer=tokenizer, transformer=tiny.build("hunyuan_video").model, vae=vae.eval(),
        scheduler=flow_scheduler(shift=7.0), text_encoder_2=text_encoder_2, tokenizer_2=tokenizer_2,
    )  # fmt: skip


def t5gemma2(width: int) -> Any:
    """An encoder of text with a vision tower of width 8, for the word tokenizer."""
    from transformers import T5Gemma2Encoder, T5Gemma2EncoderConfig

    text = {
        "hidden_size": width, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 64, "pad_token_id": 0, "eos_token_id": 1,
        "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16, "dropout_rate": 0.0,
    }  # fmt: skip
    seen = {
        "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
        "patch_size": 8, "vision_use_head": False,
    }  # fmt: skip
    return T5Gemma2Encoder(
        T5Gemma2EncoderConfig(
            text_config=text, vision_config=seen, mm_tokens_per_image=4, image_token_index=63, boi_token_index=61,
            eoi_token_index=62,
        ),
        eoi_token_index=62,
    ).eval()  # fmt: skip


@_seeded
def motif_video(pictures: bool = False, layers: int = 1, **scheduler: Any) -> Any:
    """Motif-Video with its own cross-attention in single blocks and one block of the decoder; a guider of one call."""
    from diffusers import (
        ClassifierFreeGuidance,
        MotifVideoImage2VideoPipeline,
        MotifVideoPipeline,
        MotifVideoTransformer3DModel,
    )
    from transformers import SiglipImageProcessor

    model = MotifVideoTransformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=layers,
        num_single_layers=layers + 1, num_decoder_layers=1, text_embed_dim=16, image_embed_dim=8,
        rope_axes_dim=(4, 4, 4), enable_text_cross_attention_single=True,
    )  # fmt: skip
    parts = {**_wan_parts(), "scheduler": flow_scheduler(**(scheduler or {"shift": 15.0}))}
    kind = MotifVideoImage2VideoPipeline if pictures else MotifVideoPipeline
    return kind(
        **{**parts, "text_encoder": t5gemma2(16)}, transformer=model.eval(),
        guider=ClassifierFreeGuidance(guidance_scale=1.0),
        feature_extractor=SiglipImageProcessor(size={"height": 16, "width": 16}),
    )  # fmt: skip


def _cogvideox_parts() -> dict[str, Any]:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler

    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=4,
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        scaling_factor=0.7, temporal_compression_ratio=4, invert_scale_latents=True,
    )  # fmt: skip
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=1.0, beta_schedule="scaled_linear",
        beta_start=0.00085, beta_end=0.012, timestep_spacing="trailing", clip_sample=False,
    )  # fmt: skip
    return {"tokenizer": word_tokenizer(), "text_encoder": t5(16), "vae": vae.eval(), "scheduler": scheduler}


@_seeded
def cogvideox(variant: str) -> Any:
    from diffusers import CogVideoXPipeline

    return CogVideoXPipeline(**_cogvideox_parts(), transformer=tiny.build(variant).model)


@_seeded
def cogvideox_image() -> Any:
    from diffusers import CogVideoXImageToVideoPipeline, CogVideoXTransformer3DModel

    model = CogVideoXTransformer3DModel.from_config(
        tiny.build("cogvideox_15").model.config, in_channels=8, out_channels=4, ofs_embed_dim=8
    )
    return CogVideoXImageToVideoPipeline(**_cogvideox_parts(), transformer=model.eval())


@_seeded
def ltx(pictures: bool = False) -> Any:
    from diffusers import AutoencoderKLLTXVideo, LTXImageToVideoPipeline, LTXPipeline

    vae = AutoencoderKLLTXVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1), patch_size=4,
    )  # fmt: skip
    return (LTXImageToVideoPipeline if pictures else LTXPipeline)(
        scheduler=flow_scheduler(
            use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, shift_terminal=0.1
        ),
        vae=vae.eval(), text_encoder=t5(16), tokenizer=word_tokenizer(), transformer=tiny.build("ltx").model,
    )  # fmt: skip


@_seeded
def ltx_conditions() -> Any:
    """LTXPipeline with a scheduler that does not shift by the size, as later checkpoints have it."""
    pipeline = ltx()
    pipeline.register_modules(scheduler=flow_scheduler(shift=3.0))
    return pipeline


def wan_21_vae() -> Any:
    """An autoencoder without patches, as Wan 2.1 has it."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0],
    ).eval()  # fmt: skip


@_seeded
def wan_vace() -> Any:
    from diffusers import WanVACEPipeline, WanVACETransformer3DModel

    transformer = WanVACETransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=2, cross_attn_norm=True, rope_max_seq_len=32, vace_layers=[0, 1],
        vace_in_channels=2 * 4 + 8 * 8,
    )  # fmt: skip
    return WanVACEPipeline(**{**_wan_parts(), "vae": wan_21_vae()}, transformer=transformer.eval())


@_seeded
def stable_diffusion_controlnet(folder: Any) -> Any:
    """A pipeline with a control branch, from the folder of a tiny Stable Diffusion."""
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder)
    controlnet = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 4))
    for parameter in controlnet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return StableDiffusionControlNetPipeline(**pipe.components, controlnet=controlnet, requires_safety_checker=False)
