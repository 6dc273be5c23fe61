"""Cases of video models with caches, tiles, packed sequences or layers of several kinds."""

from __future__ import annotations

from typing import Any

import torch

from zoo.case import Case


def _any_block_mask(queries: int, keys: int) -> Any:
    """A block mask of FlexAttention that shows everything; made without compiling."""
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(lambda b, h, q, k: q >= 0, None, None, queries, keys, device="cpu", _compile=False)


def _wan_animate2(mode: str) -> Case:
    from diffusers.models.transformers.transformer_wan_animate_2 import (
        WanAnimate2KVCache,
        WanAnimate2Transformer3DModel,
    )

    model = WanAnimate2Transformer3DModel(
        patch_size=(1, 2, 2), text_len=8, in_dim=10, dim=32, ffn_dim=32, freq_dim=16, text_dim=16, out_dim=4,
        num_heads=2, num_layers=2, use_img_emb=True,
    )  # fmt: skip
    frames = 2 if mode == "extract" else 3
    fixed = {
        "hidden_states": [torch.randn(4, frames, 8, 10)], "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": [torch.randn(6, 16)], "condition_latents": [torch.randn(6, frames, 8, 10)],
        "encoder_hidden_states_image": torch.randn(1, 4, 1280), "kv_cache_mode": mode, "seq_len": frames * 20,
    }  # fmt: skip
    reference = torch.tensor([[2, 4, 5]])
    if mode == "extract":
        fixed |= {"offset_grid_sizes": reference}
    else:
        fixed |= {"reference_grid_sizes": reference, "origin_len": 5, "origin_area": [64, 80]}
        model.block_masks[2, 20] = _any_block_mask(128, 256)
    keys = torch.randn(2, 1, 40, 2, 16)

    def args() -> dict[str, Any]:
        cache = WanAnimate2KVCache(2)
        if mode == "cached":
            for layer in cache.layer_caches:
                layer.store(*keys)
        return {**fixed, "kv_cache": cache}

    calls, declined = ({"self": 2, "cross": 4}, {}) if mode == "extract" else ({"cross": 4}, {"BlockMask": 2})
    return Case(model, args, (frames, 4, 5), calls, declined, axes="CTHW" if mode == "extract" else "")


def wan_animate2_reference() -> Case:
    """The pass that reads the reference into the cache."""
    return _wan_animate2("extract")


def wan_animate2() -> Case:
    """A pass that makes video: the model's own block mask over video and cached reference."""
    return _wan_animate2("cached")


def _anyflow_far(**changes: Any) -> Any:
    from diffusers import AnyFlowFARTransformer3DModel

    return AnyFlowFARTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=2, cross_attn_norm=True, rope_max_seq_len=32,
        compressed_patch_size=(1, 4, 4), full_chunk_limit=3, gate_value=0.25, deltatime_type="r",
    )  # fmt: skip


def anyflow_far() -> Case:
    """One chunk asks a cached chunk and itself; tokens are filled up to 128."""
    keys = torch.randn(2, 2, 1, 2, 20, 12)

    def args() -> dict[str, Any]:
        caches = [
            {"compressed_cache": torch.zeros(2, 1, 2, 20, 12), "full_cache": keys[layer].clone()} for layer in range(2)
        ]  # fmt: skip
        flag = {"is_cache_step": False, "num_cached_chunks": 1}
        return {**fixed, "kv_cache": caches, "kv_cache_flag": flag}

    fixed = {
        "hidden_states": torch.randn(1, 2, 4, 8, 10), "timestep": torch.full((1, 2), 500.0),
        "r_timestep": torch.full((1, 2), 300.0), "encoder_hidden_states": torch.randn(1, 7, 16),
        "chunk_partition": [1, 2],
    }  # fmt: skip
    return Case(_anyflow_far(), args, (2, 4, 5), {"self": 2, "cross": 2})


def anyflow_far_training() -> Case:
    """All chunks at once under the model's own block mask."""
    args = {
        "hidden_states": torch.randn(1, 3, 4, 8, 8), "timestep": torch.full((1, 3), 500.0),
        "r_timestep": torch.full((1, 3), 300.0), "encoder_hidden_states": torch.randn(1, 7, 16),
        "chunk_partition": [1, 2],
    }  # fmt: skip
    return Case(_anyflow_far(), args, (3, 4, 4), {"cross": 2}, {"BlockMask": 2})


def _cosmos3(sound: bool) -> Case:
    from diffusers import Cosmos3OmniTransformer

    model = Cosmos3OmniTransformer(
        head_dim=16, hidden_size=32, intermediate_size=32, latent_channel=4, latent_patch_size=2, num_attention_heads=2,
        num_hidden_layers=2, num_key_value_heads=1, patch_latent_dim=16, vocab_size=32, rope_axes_dim=(4, 2, 2),
        sound_gen=sound, sound_dim=6 if sound else None,
    )  # fmt: skip
    text, grid, audio = 6, (3, 4, 5), 7 if sound else 0
    tokens = grid[0] * grid[1] * grid[2]
    total = text + tokens + audio
    places = torch.arange(text, text + tokens)
    args = {
        "input_ids": torch.arange(text), "text_indexes": torch.arange(text),
        "position_ids": torch.arange(total).expand(3, -1), "und_len": text, "sequence_length": total,
        "vision_tokens": [torch.randn(1, 4, 3, 8, 10)], "vision_token_shapes": [grid],
        "vision_sequence_indexes": places, "vision_mse_loss_indexes": places,
        "vision_timesteps": torch.full((tokens,), 500.0), "vision_noisy_frame_indexes": [torch.arange(3)],
    }  # fmt: skip
    if sound:
        heard = torch.arange(text + tokens, total)
        args |= {
            "sound_tokens": [torch.randn(6, audio)], "sound_token_shapes": [(audio, 1, 1)],
            "sound_sequence_indexes": heard, "sound_mse_loss_indexes": heard,
            "sound_timesteps": torch.full((audio,), 500.0), "sound_noisy_frame_indexes": [torch.arange(audio)],
        }  # fmt: skip
    return Case(model, args, grid, {"joint": 2}, {"causal": 2}, axes="BCTHW")


def cosmos3() -> Case:
    return _cosmos3(False)


def cosmos3_sound() -> Case:
    return _cosmos3(True)


def sana_wm() -> Case:
    """Softmax attention in every second block, which computes in bfloat16."""
    from diffusers import SanaWMTransformer3DModel

    model = SanaWMTransformer3DModel(
        in_channels=4, num_layers=4, hidden_size=32, num_attention_heads=2, patch_size=(1, 1, 1), softmax_every_n=2,
        linear_head_dim=16, t_kernel_size=3, chunk_plucker_channels=6, chunk_plucker_post_attn_blocks=4, image_size=64,
        caption_channels=16, mixed_precision="fp32",
    )  # fmt: skip
    args = {
        "hidden_states": torch.randn(1, 4, 3, 4, 5), "timestep": torch.full((1, 1, 3), 500.0),
        "encoder_hidden_states": torch.randn(1, 1, 6, 16), "encoder_attention_mask": torch.ones(1, 1, 1, 6),
        "camera_conditions": torch.randn(1, 3, 20), "chunk_plucker": torch.randn(1, 6, 3, 4, 5),
    }  # fmt: skip
    return Case(model, args, (3, 4, 5), {"self": 4, "cross": 4}, tolerance=5e-4)


def sana_wm_refiner() -> Case:
    from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMLTX2RefinerTransformer3DModel

    model = SanaWMLTX2RefinerTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=4,
        audio_cross_attention_dim=8, num_layers=2, caption_channels=16, rope_double_precision=False,
        rope_type="split",
    )  # fmt: skip
    turn = torch.randn(2, 2, 60, 4)
    args = {
        "hidden_states": torch.randn(2, 60, 4), "encoder_hidden_states": torch.randn(2, 6, 16),
        "timestep": torch.full((2, 60), 500.0), "video_rotary_emb": (turn.cos(), turn.sin()),
        "encoder_attention_mask": torch.tensor([[1.0] * 6, [1.0] * 4 + [0.0] * 2]),
    }  # fmt: skip
    return Case(model, args, (3, 4, 5), {"cross": 2})


def _minimax_h3(reference: bool) -> Case:
    from diffusers.models.transformers.transformer_minimax_h3 import MiniMaxH3Transformer3DModel

    model = MiniMaxH3Transformer3DModel(
        num_attention_heads=2, attention_head_dim=16, hidden_size=32, num_layers=2, num_refiner_layers=1, ffn_dim=32,
        in_channels=4, audio_in_channels=6, text_dim=16, freq_dim=16, time_embed_hidden_dim=32, time_embed_dim=16,
        rope_freq_dim=2,
    )  # fmt: skip
    text, shown, heard, grid = 6, 20 if reference else 0, 7, (3, 4, 5)
    start = text + shown + heard
    made = torch.cartesian_prod(torch.arange(3) * 0.7 + 6, torch.arange(4) - 1.5, torch.arange(5) - 2.0)
    picture = torch.cartesian_prod(torch.tensor([6.0]), torch.arange(4) - 1.5, torch.arange(5) - 2.0)
    positions = torch.cat([torch.zeros(text, 3), picture[:shown], torch.zeros(heard, 3), made])
    positions[:text, 0] = torch.arange(text)
    video = torch.cat([torch.arange(text, text + shown), torch.arange(start, start + 60)])
    tags, levels = torch.full((start + 60,), 2), torch.ones(start + 60, dtype=torch.long)
    tags[:text], tags[video] = 1, 0
    levels[: text + shown] = 0
    args = {
        "hidden_states": torch.randn(2, len(video), 16), "audio_hidden_states": torch.randn(2, heard, 6),
        "encoder_hidden_states": torch.randn(2, text, 16), "timestep": torch.tensor([0.1, 0.8]),
        "timestep_indices": levels, "token_tags": tags, "position_ids": positions, "video_indices": video,
        "audio_indices": torch.arange(text + shown, start), "text_indices": torch.arange(text),
    }  # fmt: skip
    moves = {"text": "encoder_hidden_states", "audio": "audio_hidden_states"}
    return Case(model, args, grid, {"joint": 2}, axes="" if reference else "BNC", moves=moves)


def minimax_h3() -> Case:
    return _minimax_h3(False)


def minimax_h3_reference() -> Case:
    """A picture of the video's own size before the sound."""
    return _minimax_h3(True)


def kandinsky5_tiles() -> Case:
    """Nabla: tokens in tiles of 8 x 8, and a block mask of the model's own."""
    from diffusers import Kandinsky5Transformer3DModel

    model = Kandinsky5Transformer3DModel(
        in_visual_dim=4, in_text_dim=16, in_text_dim2=8, time_dim=16, out_visual_dim=4, patch_size=(1, 2, 2),
        model_dim=32, ff_dim=32, num_text_blocks=1, num_visual_blocks=2, axes_dims=(4, 6, 6), attention_type="nabla",
    )  # fmt: skip
    told = {
        "sta_mask": torch.ones(1, 1, 2, 2, dtype=torch.bool), "attention_type": "nabla", "to_fractal": True, "P": 0.9,
        "wT": 1, "wW": 1, "wH": 1, "add_sta": True, "visual_shape": (1, 8, 16), "method": "topcdf",
    }  # fmt: skip
    args = {
        "hidden_states": torch.randn(1, 1, 16, 32, 4), "encoder_hidden_states": torch.randn(1, 6, 16),
        "timestep": torch.tensor([500.0]), "pooled_projections": torch.randn(1, 8),
        "visual_rope_pos": [torch.arange(1), torch.arange(8), torch.arange(16)], "text_rope_pos": torch.arange(6),
        "sparse_params": told,
    }  # fmt: skip
    for block in model.visual_transformer_blocks:
        # As set_attention_backend("flex") does, which would also make it every other model's backend.
        block.self_attention.processor._attention_backend = "flex"
    return Case(model, args, (1, 8, 16), {"cross": 2}, {"BlockMask": 2})


def kandinsky6_sr() -> Case:
    from diffusers import Kandinsky6SRTransformer3DModel

    model = Kandinsky6SRTransformer3DModel(
        in_visual_dim=2, out_visual_dim=2, time_dim=16, patch_size=(1, 1, 1), model_dim=32, ff_dim=32,
        num_visual_blocks=2, axes_dims=(4, 6, 6), nabla_window=(3, 3, 3),
    )  # fmt: skip
    return Case(model, {}, (2, 8, 16), refused="block-sparse already")
