"""Cases of video models."""

from __future__ import annotations

from typing import Any

import torch

from zoo.case import Case

GRID = (3, 4, 5)


def _wan(**changes: Any) -> dict[str, Any]:
    return {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4,
        "out_channels": 4, "text_dim": 16, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2, "cross_attn_norm": True,
        "rope_max_seq_len": 32, **changes,
    }  # fmt: skip


def _latents(batch: int = 2, text: int = 7, **more: Any) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(batch, 4, 3, 8, 10), "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": torch.randn(batch, text, 16), **more,
    }  # fmt: skip


def chrono_edit() -> Case:
    from diffusers import ChronoEditTransformer3DModel

    return Case(ChronoEditTransformer3DModel(**_wan()), _latents(), GRID, {"self": 2, "cross": 2}, axes="BCTHW")


def chrono_edit_image() -> Case:
    """With image keys, which are attended in a call of their own; two frames, as the pipeline ends with."""
    from diffusers import ChronoEditTransformer3DModel

    model = ChronoEditTransformer3DModel(**_wan(image_dim=8, added_kv_proj_dim=24))
    args = _latents(text=512, encoder_hidden_states_image=torch.randn(2, 5, 8))
    args["hidden_states"] = args["hidden_states"][:, :, :2]
    return Case(model, args, (2, 4, 5), {"self": 2, "cross": 4}, axes="BCTHW")


def wan_animate() -> Case:
    """The face adapter keeps its own attention: it asks frame by frame for three face tokens."""
    from diffusers import WanAnimateTransformer3DModel

    model = WanAnimateTransformer3DModel(
        **_wan(in_channels=12, latent_channels=4, image_dim=8, added_kv_proj_dim=24),
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8}, motion_encoder_size=16, motion_style_dim=8,
        motion_dim=4, motion_encoder_dim=8, face_encoder_hidden_dim=16, face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )  # fmt: skip
    args = _latents(
        text=512, encoder_hidden_states_image=torch.randn(2, 5, 8), pose_hidden_states=torch.randn(2, 4, 2, 8, 10),
        face_pixel_values=torch.randn(2, 3, 5, 16, 16),
    )  # fmt: skip
    args["hidden_states"] = torch.randn(2, 12, 3, 8, 10)
    return Case(model, args, GRID, {"self": 2, "cross": 4}, axes="BCTHW")


def latte() -> Case:
    """Frames, and then places, are folded into the batch."""
    from diffusers import LatteTransformer3DModel

    model = LatteTransformer3DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=12, num_attention_heads=2, caption_channels=16,
        in_channels=4, cross_attention_dim=24, out_channels=8, attention_bias=True, activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
        video_length=3,
    )  # fmt: skip
    return Case(model, _latents(), (1, 4, 5), {"spatial": 2, "cross": 2, "temporal": 2})
