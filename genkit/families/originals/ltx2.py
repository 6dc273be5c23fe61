"""LTX-2: its blocks have Diffusers' names, what stands before them has not."""

from __future__ import annotations

from genkit.families.originals.base import Originals, layer, layers, same

_EMBEDDER = ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "to_gate_logits")
_KINDS = ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")
_HIDDEN = ("ff", "audio_ff")
_EMBEDDERS = {
    "adaln_single": "time_embed",
    "audio_adaln_single": "audio_time_embed",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
    "prompt_adaln_single": "prompt_adaln",
    "audio_prompt_adaln_single": "audio_prompt_adaln",
}

ORIGINALS = Originals(
    "LTX-2",
    "transformer",
    (
        *same(*(f"transformer_blocks.{{}}.{kind}.{name}" for kind in _KINDS for name in _ATTENTION)),
        *same(
            *(f"transformer_blocks.{{}}.{kind}.net.{name}" for kind in ("ff", "audio_ff") for name in ("0.proj", "2"))
        ),
        layer("patchify_proj", "proj_in"),
        layer("audio_patchify_proj", "audio_proj_in"),
        *(
            each
            for there, here in _EMBEDDERS.items()
            for each in layers(there, here, {name: name for name in _EMBEDDER})
        ),
        *same(*(f"{kind}caption_projection.linear_{number}" for kind in ("", "audio_") for number in (1, 2))),
        *same("proj_out", "audio_proj_out"),
    ),
)
