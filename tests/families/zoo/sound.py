"""Cases of sound models."""

from __future__ import annotations

import torch

from zoo.case import Case


def stable_audio() -> Case:
    from diffusers import StableAudioDiTModel
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    model = StableAudioDiTModel(
        sample_size=20, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        num_key_value_attention_heads=2, out_channels=4, cross_attention_dim=16, time_proj_dim=8,
        global_states_input_dim=12, cross_attention_input_dim=10,
    )  # fmt: skip
    args = {
        "hidden_states": torch.randn(2, 4, 20), "timestep": torch.tensor([0.5, 0.5]),
        "encoder_hidden_states": torch.randn(2, 6, 10), "global_hidden_states": torch.randn(2, 1, 12),
        "rotary_embedding": get_1d_rotary_pos_embed(4, 21, use_real=True, repeat_interleave_real=False),
    }  # fmt: skip
    return Case(model, args, (20, 1, 1), {"self": 2, "cross": 2}, axes="BCT")


def _stable_audio3(differential: bool) -> Case:
    from diffusers import StableAudio3DiTModel

    model = StableAudio3DiTModel(
        io_channels=4, patch_size=1, embed_dim=32, depth=2, num_heads=2, cond_token_dim=16, global_cond_dim=12,
        local_add_cond_dim=5, timestep_features_dim=8, num_memory_tokens=3, use_differential_attention=differential,
    )  # fmt: skip
    mask = torch.ones(2, 6)
    mask[1, 4:] = 0
    args = {
        "hidden_states": torch.randn(2, 4, 20), "timestep": torch.tensor([0.5, 0.5]),
        "encoder_hidden_states": torch.randn(2, 6, 16), "global_hidden_states": torch.randn(2, 12),
        "encoder_attention_mask": mask, "local_add_cond": torch.randn(2, 5, 20),
    }  # fmt: skip
    calls = 4 if differential else 2
    return Case(model, args, (20, 1, 1), {"self": calls, "cross": calls}, axes="BCT")


def stable_audio3() -> Case:
    """Two calls per layer, whose outputs are subtracted."""
    return _stable_audio3(True)


def stable_audio3_plain() -> Case:
    return _stable_audio3(False)


def _ace_step(window: int) -> Case:
    from diffusers import AceStepTransformer1DModel

    model = AceStepTransformer1DModel(
        hidden_size=32, intermediate_size=32, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, in_channels=12, audio_acoustic_hidden_dim=4, patch_size=2, sliding_window=window,
    )  # fmt: skip
    args = {
        "hidden_states": torch.randn(2, 31, 4), "timestep": torch.tensor([0.5, 0.5]),
        "timestep_r": torch.tensor([0.5, 0.5]), "encoder_hidden_states": torch.randn(2, 6, 32),
        "context_latents": torch.randn(2, 31, 8),
    }  # fmt: skip
    return Case(model, args, (16, 1, 1), {"self": 6, "cross": 6})


def ace_step() -> Case:
    """The window of every second layer covers the whole sound; an odd length is filled up."""
    return _ace_step(128)


def ace_step_window() -> Case:
    case = _ace_step(4)
    case.paired = 3
    return case


def _longcat_audio(sounding: int) -> Case:
    from diffusers import LongCatAudioDiTTransformer

    model = LongCatAudioDiTTransformer(dit_dim=32, dit_depth=2, dit_heads=2, dit_text_dim=16, latent_dim=4)
    sound, text = torch.ones(2, 20, dtype=torch.bool), torch.ones(2, 6, dtype=torch.bool)
    sound[1, sounding:], text[1, 4:] = False, False
    args = {
        "hidden_states": torch.randn(2, 20, 4), "timestep": torch.tensor([0.5, 0.5]),
        "encoder_hidden_states": torch.randn(2, 6, 16), "encoder_attention_mask": text, "attention_mask": sound,
    }  # fmt: skip
    return Case(model, args, (20, 1, 1), {"self": 2, "cross": 2})


def longcat_audio() -> Case:
    return _longcat_audio(20)


def longcat_audio_padded() -> Case:
    """Sounds of different lengths in one batch."""
    case = _longcat_audio(15)
    case.calls, case.declined = {"cross": 2}, {"end of some sounds": 2}
    return case


def minimax_music3() -> Case:
    from diffusers import MiniMaxMusic3Transformer1DModel

    model = MiniMaxMusic3Transformer1DModel(
        in_channels=4, condition_dim=8, num_layers=2, num_attention_heads=2, attention_head_dim=16, ff_inner_dim=32,
        rotary_dim=8, fourier_embedding_dim=8,
    )  # fmt: skip
    args = {
        "hidden_states": torch.randn(2, 4, 20), "timestep": torch.tensor([0.5, 0.5]),
        "encoder_hidden_states": torch.randn(2, 20, 8),
    }  # fmt: skip
    return Case(model, args, (20, 1, 1), {"self": 2}, axes="BCT")
