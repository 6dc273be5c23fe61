"""A tiny LTX2Pipeline of the real classes without text encoder, after the working configuration of its card."""

from __future__ import annotations

from typing import Any

import torch


def build_tiny_av(seed: int = 0) -> Any:
    """The pipeline; call it with :func:`inputs`."""
    from diffusers import (
        AutoencoderKLLTX2Audio,
        AutoencoderKLLTX2Video,
        FlowMatchEulerDiscreteScheduler,
        LTX2Pipeline,
        LTX2VideoTransformer3DModel,
    )
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = LTX2VideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
            audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=4,
            audio_cross_attention_dim=8, num_layers=2, caption_channels=16, rope_double_precision=False,
            rope_type="split",
        )  # fmt: skip
        connectors = LTX2TextConnectors(
            caption_channels=16, text_proj_in_factor=3, video_connector_num_attention_heads=2,
            video_connector_attention_head_dim=8, video_connector_num_layers=1,
            video_connector_num_learnable_registers=None, audio_connector_num_attention_heads=2,
            audio_connector_attention_head_dim=8, audio_connector_num_layers=1,
            audio_connector_num_learnable_registers=None, connector_rope_base_seq_len=32, rope_double_precision=False,
            rope_type="split",
        )  # fmt: skip
        vae = AutoencoderKLLTX2Video(
            latent_channels=4, block_out_channels=(8,), decoder_block_out_channels=(8,), layers_per_block=(1,),
            decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,),
            decoder_inject_noise=(False, False), downsample_type=("spatial",), upsample_residual=(False,),
            upsample_factor=(1,), patch_size=1, patch_size_t=1, encoder_causal=True, decoder_causal=False,
        )  # fmt: skip
        vae.use_framewise_encoding = vae.use_framewise_decoding = False
        audio_vae = AutoencoderKLLTX2Audio(
            base_channels=4, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=8
        )
        vocoder = LTX2Vocoder(
            in_channels=16, hidden_channels=32, upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2],
            resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]], output_sampling_rate=16000,
        )  # fmt: skip
        for parameter in transformer.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.2)
    pipe = LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, audio_vae=audio_vae, text_encoder=None, tokenizer=None,
        connectors=connectors, transformer=transformer, vocoder=vocoder,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def inputs(**changes: Any) -> dict[str, Any]:
    """Arguments of one call: 5 frames of 32x32, two steps, latents out."""
    draw = torch.Generator().manual_seed(3)
    embeds = [torch.randn(1, 16, 48, generator=draw) for _ in range(2)]
    mask = torch.ones(1, 16, dtype=torch.long)
    return {
        "prompt_embeds": embeds[0], "prompt_attention_mask": mask, "negative_prompt_embeds": embeds[1],
        "negative_prompt_attention_mask": mask, "height": 32, "width": 32, "num_frames": 5, "frame_rate": 25.0,
        "num_inference_steps": 2, "stg_scale": 0.0, "audio_stg_scale": 0.0, "spatio_temporal_guidance_blocks": None,
        "modality_scale": 1.0, "audio_modality_scale": 1.0, "use_cross_timestep": False, "output_type": "latent",
        "generator": torch.Generator().manual_seed(5), **changes,
    }  # fmt: skip


def run(pipe: Any, **changes: Any) -> torch.Tensor:
    """Video and audio latents of one call in one vector."""
    out = pipe(**inputs(**changes))
    return torch.cat([out.frames.flatten(), out.audio.flatten()])
