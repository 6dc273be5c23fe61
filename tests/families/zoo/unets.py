"""Cases of UNets."""

from __future__ import annotations

from typing import Any

import torch

from zoo.case import Case

SMALL = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "norm_num_groups": 4}


def unet_2d() -> Case:
    """Self-attention at the inner level alone, on pixels."""
    from diffusers import UNet2DModel

    model = UNet2DModel(
        **SMALL | {"in_channels": 3, "out_channels": 3}, block_out_channels=(8, 16), attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    args = {"sample": torch.randn(2, 3, 12, 16), "timestep": torch.tensor(500)}
    return Case(model, args, (1, 6, 8), {"self": 4})


def _unet_alone(down: str, up: str, middle: str | None, **changes: Any) -> Case:
    """A UNet whose attention stands outside of transformer blocks."""
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        **SMALL, block_out_channels=(8, 16), cross_attention_dim=16, attention_head_dim=4, mid_block_type=middle,
        down_block_types=(down, "DownBlock2D"), up_block_types=("UpBlock2D", up), **changes,
    )  # fmt: skip
    args = {
        "sample": torch.randn(2, 4, 6, 10), "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 6, 16),
    }  # fmt: skip
    return Case(model, args, (1, 6, 10))


SIMPLE = ("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D", "UNetMidBlock2DSimpleCrossAttn")


def unet_added_keys() -> Case:
    """Pixels ask the text and themselves; padding of the text is hidden."""
    case = _unet_alone(*SIMPLE)
    case.args["encoder_attention_mask"] = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    case.calls, case.moves = {"joint": 4}, {"text": "encoder_hidden_states"}
    return case


def unet_picture_keys() -> Case:
    """Kandinsky 2.2: the text of the keys is a projected embedding of a picture."""
    case = _unet_alone(
        *SIMPLE, encoder_hid_dim=8, encoder_hid_dim_type="image_proj", addition_embed_type="image",
        class_embed_type=None,
    )  # fmt: skip
    case.args |= {"encoder_hidden_states": None, "added_cond_kwargs": {"image_embeds": torch.randn(2, 8)}}
    case.calls = {"joint": 4}
    return case


def unet_text_keys() -> Case:
    """The same blocks asking the text alone."""
    case = _unet_alone(*SIMPLE, only_cross_attention=True, mid_block_only_cross_attention=True)
    case.calls = {"cross": 4}
    return case


def unet_pixels() -> Case:
    """Plain self-attention beside a middle with transformer blocks."""
    case = _unet_alone("AttnDownBlock2D", "AttnUpBlock2D", "UNetMidBlock2DCrossAttn")
    case.calls = {"self": 4, "cross": 1}
    return case


def unet_upscaler() -> Case:
    """The latent upscaler's blocks: cross-attention everywhere, self-attention at the innermost level."""
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, norm_num_groups=None, act_fn="gelu",
        block_out_channels=(32, 32, 64, 64), cross_attention_dim=16, attention_head_dim=16, mid_block_type=None,
        down_block_types=("KDownBlock2D", *["KCrossAttnDownBlock2D"] * 3),
        up_block_types=(*["KCrossAttnUpBlock2D"] * 3, "KUpBlock2D"), resnet_time_scale_shift="scale_shift",
        conv_in_kernel=1, conv_out_kernel=1, time_embedding_dim=64,
    )  # fmt: skip
    args = {
        "sample": torch.randn(2, 4, 32, 48), "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 6, 16),
    }  # fmt: skip
    return Case(model, args, (1, 16, 24), {"self": 2, "cross": 6})


def dream_lite() -> Case:
    from diffusers import DreamLiteUNetModel

    model = DreamLiteUNetModel(
        **SMALL, block_out_channels=(16, 32, 64), cross_attention_dim=16, attention_head_dim=8,
        use_linear_projection=True, ff_mult=2,
    )  # fmt: skip
    args = {
        "sample": torch.randn(2, 4, 12, 16), "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 6, 16),
    }  # fmt: skip
    return Case(model, args, (1, 12, 16), {"self": 4, "cross": 8})


def kandinsky3() -> Case:
    """Four levels; a side that cannot be halved is cut."""
    from diffusers import Kandinsky3UNet

    model = Kandinsky3UNet(
        in_channels=4, time_embedding_dim=16, groups=2, attention_head_dim=4, layers_per_block=2,
        block_out_channels=(8, 8, 16, 16), cross_attention_dim=8, encoder_hid_dim=16,
    )  # fmt: skip
    mask = torch.ones(2, 6)
    mask[1, 4:] = 0
    args = {
        "sample": torch.randn(2, 4, 32, 48), "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 6, 16), "encoder_attention_mask": mask,
    }  # fmt: skip
    return Case(model, args, (1, 16, 24), {"self": 6, "cross": 12}, tolerance=2e-5)


def _cascade(**changes: Any) -> Case:
    from diffusers import StableCascadeUNet

    model = StableCascadeUNet(
        in_channels=4, out_channels=4, timestep_ratio_embedding_dim=8, patch_size=1, conditioning_dim=16,
        block_out_channels=(16, 16), num_attention_heads=(2, 2), down_num_layers_per_block=(1, 1),
        clip_text_in_channels=12, clip_text_pooled_in_channels=8,
        clip_image_in_channels=8, clip_seq=2, **{"up_num_layers_per_block": (1, 1), **changes},
    )  # fmt: skip
    args = {
        "sample": torch.randn(2, 4, 6, 8), "timestep_ratio": torch.tensor([0.5, 0.5]),
        "clip_text_pooled": torch.randn(2, 1, 8), "clip_text": torch.randn(2, 6, 12), "clip_img": torch.randn(2, 1, 8),
    }  # fmt: skip
    return Case(model, args, (1, 6, 8), {"joint": 4})


def stable_cascade() -> Case:
    """Pixels ask pixels, text, pooled text and a picture; both levels have one size."""
    return _cascade(switch_level=(False,))


def stable_cascade_halved() -> Case:
    return _cascade()


def stable_cascade_text_alone() -> Case:
    """The inner level asks the text alone."""
    case = _cascade(self_attn=(True, False), up_num_layers_per_block=(1, 2))
    case.calls, case.declined = {"joint": 3}, {"keys are the text alone": 2}
    return case


SMALL_VIDEO = SMALL | {"block_out_channels": (8, 16), "cross_attention_dim": 16}
CROSS_3D = {
    "down_block_types": ("CrossAttnDownBlock3D", "CrossAttnDownBlock3D"),
    "up_block_types": ("CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
}


def unet_3d() -> Case:
    """Odd sides: each level rounds up."""
    from diffusers import UNet3DConditionModel

    model = UNet3DConditionModel(**SMALL_VIDEO, **CROSS_3D, attention_head_dim=4)
    args = {
        "sample": torch.randn(2, 4, 3, 7, 8), "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 6, 16),
    }  # fmt: skip
    return Case(model, args, (3, 1, 1), {"spatial": 7, "cross": 7, "temporal": 16})


def i2vgen_xl() -> Case:
    """Keys of cross-attention: text, tokens of the image's latents, an embedding of the image."""
    from diffusers import I2VGenXLUNet

    model = I2VGenXLUNet(**SMALL_VIDEO, **CROSS_3D, attention_head_dim=4)
    args = {
        "sample": torch.randn(2, 4, 3, 6, 8), "timestep": torch.tensor(500), "fps": torch.tensor([8, 8]),
        "image_latents": torch.randn(2, 4, 3, 6, 8), "image_embeddings": torch.randn(2, 16),
        "encoder_hidden_states": torch.randn(2, 6, 16),
    }  # fmt: skip
    return Case(model, args, (3, 1, 1), {"spatial": 7, "cross": 7, "temporal": 17})


def unet_motion() -> Case:
    """The pipelines give one text per frame."""
    from diffusers import UNetMotionModel

    model = UNetMotionModel(
        **SMALL_VIDEO, num_attention_heads=2, motion_num_attention_heads=2,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
    )  # fmt: skip
    args = {
        "sample": torch.randn(2, 4, 3, 6, 8), "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(6, 6, 16),
    }  # fmt: skip
    return Case(model, args, (1, 6, 8), {"spatial": 4, "cross": 4, "temporal": 14})


def stable_video() -> Case:
    from diffusers import UNetSpatioTemporalConditionModel

    model = UNetSpatioTemporalConditionModel(
        sample_size=8, in_channels=8, out_channels=4, layers_per_block=1, block_out_channels=(32, 64),
        cross_attention_dim=16, num_attention_heads=2, num_frames=3, addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    )  # fmt: skip
    args = {
        "sample": torch.randn(2, 3, 8, 6, 8), "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 1, 16), "added_time_ids": torch.randn(2, 3),
    }  # fmt: skip
    return Case(model, args, (1, 6, 8), {"spatial": 4, "cross": 8, "temporal": 4})
