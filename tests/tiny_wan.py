"""A WanPipeline folder of real classes with random weights, under 2 MB, for the loading and command-line tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch

WORDS = (
    "a an the red green blue circle square triangle moves left right up down on in background still video of and"
).split()
DEFAULTS = {
    "height": 32,
    "width": 48,
    "num_frames": 5,
    "fps": 8,
    "steps": 2,
    "guidance_scale": 2.0,
    "max_sequence_length": 16,
}


def build_tiny_wan(folder: Path, seed: int = 0) -> Path:
    """Save the pipeline with save_pretrained, and genkit.json beside it."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(seed)
    vae = AutoencoderKLWan(
        base_dim=4, decoder_base_dim=4, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[True, True],
        is_residual=True, patch_size=2, in_channels=12, out_channels=12, scale_factor_spatial=8,
        scale_factor_temporal=4,
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    text_encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=64, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu",
            pad_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=32,
        freq_dim=16, ffn_dim=64, num_layers=2, cross_attn_norm=True, rope_max_seq_len=64,
    )  # fmt: skip
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipeline = WanPipeline(
        tokenizer=word_tokenizer(), text_encoder=text_encoder, vae=vae, transformer=transformer, scheduler=scheduler
    )
    pipeline.save_pretrained(folder)
    sidecar = {"description": "random weights", "defaults": DEFAULTS, "limits": {"max_frames": 17}}
    (folder / "genkit.json").write_text(json.dumps(sidecar))
    return folder


def word_tokenizer():
    """One token per word, an end token always, unknown words as <unk>."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", *WORDS]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation("removed"), pre_tokenizers.Whitespace()])
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
