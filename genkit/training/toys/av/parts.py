"""The parts of toy-av: configurations of LTX-2's classes that fit into 20 MB, and a vocoder solved by formula."""

from __future__ import annotations

import math

import torch
from torch import nn

from genkit.training.toys.shared.text import build_word_tokenizer
from genkit.world.caption import sound_words
from genkit.world.sound import SAMPLE_RATE

FPS = 8.0
# 16x16 pixels and 4 frames per latent position: 4x4 pixels become channels, two halvings of space and time are learned.
VIDEO_VAE = {
    "latent_channels": 40,
    "block_out_channels": (64, 64),
    "down_block_types": ("LTX2VideoDownBlock3D",) * 2,
    "layers_per_block": (1, 1, 1),
    "spatio_temporal_scaling": (True, True),
    "downsample_type": ("spatiotemporal", "spatiotemporal"),
    "decoder_block_out_channels": (40, 64),
    "decoder_layers_per_block": (1, 1, 1),
    "decoder_spatio_temporal_scaling": (True, True),
    "decoder_inject_noise": (False, False, False),
    "upsample_type": ("spatiotemporal", "spatiotemporal"),
    "upsample_residual": (True, True),
    "upsample_factor": (1, 2),
    "patch_size": 4,
    "encoder_causal": True,
    "decoder_causal": False,
    "decoder_spatial_padding_mode": "zeros",
    "spatial_compression_ratio": 16,
    "temporal_compression_ratio": 4,
}
# Multiples of 100 Hz up to 2800, 10 ms each; four frames and four bins per latent position, which the class has fixed.
BINS, HOP = 28, 160
AUDIO_LATENTS = 4
AUDIO_VAE = {
    "base_channels": AUDIO_LATENTS * BINS // 4,
    "ch_mult": (1, 2, 2),
    "num_res_blocks": 1,
    "latent_channels": AUDIO_LATENTS,
    "resolution": BINS,
    "mel_bins": BINS,
    "sample_rate": SAMPLE_RATE,
    "mel_hop_length": HOP,
}
TOKENS_PER_SECOND = SAMPLE_RATE / HOP / 4
# Amplitudes up to this are silence: the autoencoder leaves a hiss.
GATE = 0.03
TEXT_WIDTH, TEXT_HEADS, TEXT_LAYERS = 96, 3, 2
HEADS, HEAD, AUDIO_HEAD = 3, 64, 32
# Positions count in seconds and pixels. The released models' 20 s, 2048 pixels and four decades of frequencies would
# put all of a small clip into one corner, or turn most frequencies faster than the tokens can tell.
SECONDS, PIXELS, THETA = 4, 128, 32.0
TRANSFORMER = {
    "in_channels": VIDEO_VAE["latent_channels"],
    "out_channels": VIDEO_VAE["latent_channels"],
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD,
    "cross_attention_dim": HEADS * HEAD,
    "vae_scale_factors": (4, 16, 16),
    "pos_embed_max_pos": SECONDS,
    "base_height": PIXELS,
    "base_width": PIXELS,
    "audio_in_channels": AUDIO_VAE["base_channels"],
    "audio_out_channels": AUDIO_VAE["base_channels"],
    "audio_num_attention_heads": HEADS,
    "audio_attention_head_dim": AUDIO_HEAD,
    "audio_cross_attention_dim": HEADS * AUDIO_HEAD,
    "audio_pos_embed_max_pos": SECONDS,
    "audio_sampling_rate": SAMPLE_RATE,
    "audio_hop_length": HOP,
    "num_layers": 6,
    "caption_channels": TEXT_WIDTH,
    "rope_theta": THETA,
    "rope_double_precision": False,
    "rope_type": "split",
}
CONNECTORS = {
    "caption_channels": TEXT_WIDTH,
    "text_proj_in_factor": TEXT_LAYERS + 1,
    **{
        f"{stream}_connector_{name}": value
        for stream in ("video", "audio")
        for name, value in (
            ("num_attention_heads", TEXT_HEADS),
            ("attention_head_dim", TEXT_WIDTH // TEXT_HEADS),
            ("num_layers", 1),
            ("num_learnable_registers", None),
        )
    },
    "connector_rope_base_seq_len": 32,
    "rope_theta": THETA,
    "rope_double_precision": False,
    "rope_type": "split",
}
# Strength of the residual branches at the start.
_FIRST_GATE = 0.3


def audio_tokens(frames: int) -> int:
    """Audio tokens beside a clip of ``frames`` frames, as the pipeline counts them."""
    return round(frames / FPS * TOKENS_PER_SECOND)


def spectrum_frames(tokens: int) -> int:
    """Frames of a spectrogram that encode to ``tokens`` audio tokens."""
    return 4 * (tokens - 1) + 1


def build_av_video_vae(config: dict | None = None) -> nn.Module:
    """An ``AutoencoderKLLTX2Video`` whose residual branches start at zero."""
    from diffusers import AutoencoderKLLTX2Video

    return _zero_branches(AutoencoderKLLTX2Video(**{**VIDEO_VAE, **(config or {})}), "LTX2VideoResnetBlock3d")


def build_audio_vae() -> nn.Module:
    """An ``AutoencoderKLLTX2Audio`` for two channels of tones, whose residual branches start at zero."""
    from diffusers import AutoencoderKLLTX2Audio

    return _zero_branches(AutoencoderKLLTX2Audio(**AUDIO_VAE), "LTX2AudioResnetBlock")


def _zero_branches(model: nn.Module, name: str) -> nn.Module:
    for child in model.modules():
        if type(child).__name__ == name:
            nn.init.zeros_(child.conv2.conv.weight)
            nn.init.zeros_(child.conv2.conv.bias)
    return model


@torch.no_grad()
def build_vocoder(bins: int = BINS, hop: int = HOP, sample_rate: int = SAMPLE_RATE, gate: float = GATE) -> nn.Module:
    """An ``LTX2Vocoder`` that plays the spectrogram ``families.sound_features.Tones``, filled in by formula.

    Its first layer takes every amplitude less ``gate`` and the negative of that; a leaky ReLU and the next layer make
    of the pair a plain ReLU, which ends the hiss in silence. A transposed convolution then adds up Hann-windowed
    cosines, whose phases fit from frame to frame since a frame holds whole periods. The pair of channels that it writes
    per side lets the last layer undo the last leaky ReLU.

    Args:
        bins: frequencies, multiples of ``sample_rate / hop``.
        hop: samples per frame, even.
        sample_rate: samples per second.
        gate: amplitudes up to this are silent, all others lose it.
    """
    from diffusers.pipelines.ltx2 import LTX2Vocoder

    tones = 2 * bins
    model = LTX2Vocoder(
        in_channels=tones,
        hidden_channels=2 * tones,
        out_channels=2,
        upsample_kernel_sizes=[1, 2 * hop],
        upsample_factors=[1, hop],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1]],
        final_act_fn=None,
        output_sampling_rate=sample_rate,
    )
    for parameter in model.parameters():
        parameter.zero_()
    each = torch.arange(tones)
    for part, sign in ((each, 1.0), (each + tones, -1.0)):
        model.conv_in.weight[part, each, 3] = sign / 4
        model.conv_in.bias[part] = sign * (0.25 - gate)
    slope = model.negative_slope
    above = 1 / (1 - slope**2)
    model.upsamplers[0].weight[each, each, 0] = above
    model.upsamplers[0].weight[each + tones, each, 0] = slope * above
    clock = torch.arange(2 * hop) - hop
    waves = torch.cos(2 * math.pi * torch.arange(1, bins + 1)[:, None] * clock / hop) * torch.hann_window(2 * hop)
    last = model.act_out.negative_slope
    for side in (0, 1):
        model.upsamplers[1].weight[side * bins : (side + 1) * bins, 2 * side] = waves
        model.upsamplers[1].weight[side * bins : (side + 1) * bins, 2 * side + 1] = -waves
        model.conv_out.weight[side, 2 * side, 3] = 1 / (1 + last)
        model.conv_out.weight[side, 2 * side + 1, 3] = -1 / (1 + last)
    return model


def build_av_tokenizer():
    """The word tokenizer, with the words that count bounces."""
    return build_word_tokenizer(1024, sound_words())


def build_gemma(vocabulary: int) -> nn.Module:
    """A ``Gemma3ForConditionalGeneration`` of two layers; its vision tower is there in name only and not trained.

    Embeddings have unit variance after the model's own scaling, so that words differ from the first step.
    """
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    text = {
        "vocab_size": vocabulary,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 2 * TEXT_WIDTH,
        "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": TEXT_HEADS,
        "num_key_value_heads": TEXT_HEADS,
        "head_dim": TEXT_WIDTH // TEXT_HEADS,
        "query_pre_attn_scalar": TEXT_WIDTH // TEXT_HEADS,
        "max_position_embeddings": 2048,
        "sliding_window": 1024,
        "layer_types": ["full_attention"] * TEXT_LAYERS,
        **special,
    }
    vision = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 16,
        "patch_size": 8,
    }
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **special)
    model = Gemma3ForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if "language_model" not in name:
            parameter.requires_grad_(False)
        elif "embed_tokens" in name:
            nn.init.normal_(parameter, std=TEXT_WIDTH**-0.5)
        elif parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    # In training mode the class asks for image token types; it has no dropout, so nothing else changes.
    return model.eval()


def build_transformer(config: dict | None = None) -> nn.Module:
    """An ``LTX2VideoTransformer3DModel`` that begins by predicting zero, with residual branches at a third."""
    from diffusers import LTX2VideoTransformer3DModel

    model = LTX2VideoTransformer3DModel(**{**TRANSFORMER, **(config or {})})
    with torch.no_grad():
        for layer in (model.proj_out, model.audio_proj_out):
            layer.weight.zero_()
            layer.bias.zero_()
        for block in model.transformer_blocks:
            for table, gates in (
                (block.scale_shift_table, (2, 5)),
                (block.audio_scale_shift_table, (2, 5)),
                (block.video_a2v_cross_attn_scale_shift_table, (4,)),
                (block.audio_a2v_cross_attn_scale_shift_table, (4,)),
            ):
                table.normal_(std=table.shape[1] ** -0.5)
                for row in gates:
                    table[row] += _FIRST_GATE
    return model
