"""Tiny models of the real Diffusers classes with random weights, one per family, and inputs that fit.

``build("flux")`` gives a :class:`Tiny`: a model in eval mode, its forward arguments, the token grid and how
many attention layers of each role it has. Every model has at least two layers, odd sizes and a batch of two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

_BUILDERS: dict[str, Callable[[], Tiny]] = {}


@dataclass
class Tiny:
    """A tiny denoiser.

    Args:
        model: the Diffusers model, seeded weights, eval mode.
        args: keyword arguments of one forward, with ``return_dict=False``.
        grid: (T, H, W) tokens of the main stream (of the first level for the UNet).
        text: text tokens in joint attention, 0 without.
        roles: role -> number of attention layers.
        calls: attention calls of one forward that pass the gate.
        extra: reference or keyframe tokens in the main stream.
        axes: of the latents that are not packed into tokens, from the family's record.
    """

    model: Any
    args: dict[str, Any]
    grid: tuple[int, int, int]
    text: int
    roles: dict[str, int]
    calls: int
    extra: int = 0

    @property
    def axes(self) -> str:
        """Order of the axes of unpacked latents, by the number of their dimensions."""
        from genkit.families.lookup import family_of

        told = family_of(self.model).facts.codec.axes
        return told if len(told) == self.args["hidden_states"].ndim else "BCHW"

    def run(self, **changes: Any) -> torch.Tensor:
        """One forward without gradients; every output flattened into one vector."""
        with torch.no_grad():
            return self.forward(**changes)

    def forward(self, **changes: Any) -> torch.Tensor:
        """One forward; every output flattened into one vector."""
        outputs = self.model(**{**self.args, **changes})
        return torch.cat([output.flatten() for output in outputs])


def names() -> list[str]:
    """Every variant."""
    return list(_BUILDERS)


FAMILIES = (
    "wan",
    "flux",
    "sd3",
    "hunyuan_video",
    "cogvideox",
    "mochi",
    "ltx",
    "ltx2",
    "qwen_image",
    "unet",
    "kandinsky5",
)


def build(name: str, seed: int = 0) -> Tiny:
    """A fresh tiny model; the same seed gives the same weights and inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tiny = _BUILDERS[name]()
        # Zero-initialised projections would hide what attention does.
        for parameter in tiny.model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.2)
    tiny.model.eval()
    return tiny


def _tiny(builder: Callable[[], Tiny]) -> Callable[[], Tiny]:
    _BUILDERS[builder.__name__] = builder
    return builder


def _wan(**changes: Any) -> dict[str, Any]:
    return {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4,
        "out_channels": 4, "text_dim": 16, "freq_dim": 16, "ffn_dim": 32, "num_layers": 3, "cross_attn_norm": True,
        "rope_max_seq_len": 32, **changes,
    }  # fmt: skip


def _wan_args(text: int = 7) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 4, 3, 8, 10), "timestep": torch.tensor([500, 500]),
        "encoder_hidden_states": torch.randn(2, text, 16), "return_dict": False,
    }  # fmt: skip


@_tiny
def wan() -> Tiny:
    from diffusers import WanTransformer3DModel

    return Tiny(WanTransformer3DModel(**_wan()), _wan_args(), (3, 4, 5), 0, {"self": 3, "cross": 3}, 6)


@_tiny
def wan_i2v() -> Tiny:
    from diffusers import WanTransformer3DModel

    # The processor takes the last 512 context tokens for text, whatever comes before for image tokens.
    model = WanTransformer3DModel(**_wan(image_dim=8, added_kv_proj_dim=24))
    args = _wan_args(512) | {"encoder_hidden_states_image": torch.randn(2, 5, 8)}
    return Tiny(model, args, (3, 4, 5), 0, {"self": 3, "cross": 3}, 9)


@_tiny
def wan_vace() -> Tiny:
    from diffusers import WanVACETransformer3DModel

    model = WanVACETransformer3DModel(**_wan(vace_layers=[0, 2], vace_in_channels=6))
    args = _wan_args() | {
        "control_hidden_states": torch.randn(2, 6, 3, 8, 10), "control_hidden_states_scale": torch.ones(2),
    }  # fmt: skip
    return Tiny(model, args, (3, 4, 5), 0, {"self": 5, "cross": 5}, 10)


def _flux(references: int) -> Tiny:
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=8, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    ids = torch.cat([_image_ids(0, 6, 7), _image_ids(1, 4, 3)[: 12 * references]])
    args = {
        "hidden_states": torch.randn(2, len(ids), 4), "encoder_hidden_states": torch.randn(2, 5, 16),
        "pooled_projections": torch.randn(2, 8), "timestep": torch.tensor([0.5, 0.5]), "img_ids": ids,
        "txt_ids": torch.zeros(5, 3), "return_dict": False,
    }  # fmt: skip
    return Tiny(model, args, (1, 6, 7), 5, {"joint": 3}, 3, extra=12 * references)


def _image_ids(number: int, height: int, width: int) -> torch.Tensor:
    ids = torch.zeros(height, width, 3)
    ids[..., 0] = number
    ids[..., 1] += torch.arange(height)[:, None]
    ids[..., 2] += torch.arange(width)[None]
    return ids.reshape(-1, 3)


@_tiny
def flux() -> Tiny:
    return _flux(0)


@_tiny
def flux_kontext() -> Tiny:
    return _flux(1)


def _sd3(dual: tuple[int, ...]) -> Tiny:
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=8, out_channels=4,
        pos_embed_max_size=16, dual_attention_layers=dual, qk_norm="rms_norm" if dual else None,
    )  # fmt: skip
    args = {
        "hidden_states": torch.randn(2, 4, 12, 14), "encoder_hidden_states": torch.randn(2, 5, 16),
        "pooled_projections": torch.randn(2, 8), "timestep": torch.tensor([500, 500]), "return_dict": False,
    }  # fmt: skip
    roles = {"joint": 3, "self": len(dual)} if dual else {"joint": 3}
    return Tiny(model, args, (1, 6, 7), 5, roles, 3 + len(dual))


@_tiny
def sd3() -> Tiny:
    return _sd3(())


@_tiny
def sd35() -> Tiny:
    return _sd3((0, 1))


def _hunyuan(valid: int) -> Tiny:
    from diffusers import HunyuanVideoTransformer3DModel

    model = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1, num_single_layers=2,
        num_refiner_layers=1, patch_size=2, patch_size_t=1, guidance_embeds=True, text_embed_dim=16,
        pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    mask = torch.ones(2, 6)
    mask[1, valid:] = 0
    args = {
        "hidden_states": torch.randn(2, 4, 3, 8, 10), "timestep": torch.tensor([500, 500]),
        "encoder_hidden_states": torch.randn(2, 6, 16), "encoder_attention_mask": mask,
        "pooled_projections": torch.randn(2, 8), "guidance": torch.tensor([6000, 6000]), "return_dict": False,
    }  # fmt: skip
    return Tiny(model, args, (3, 4, 5), 6, {"joint": 3}, 3)


@_tiny
def hunyuan_video() -> Tiny:
    return _hunyuan(6)


@_tiny
def hunyuan_video_padded() -> Tiny:
    return _hunyuan(4)


def _cogvideox(patch_t: int | None) -> Tiny:
    from diffusers import CogVideoXTransformer3DModel

    model = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8,
        text_embed_dim=16, num_layers=2, sample_width=10, sample_height=8, sample_frames=9, patch_size=2,
        patch_size_t=patch_t, temporal_compression_ratio=4, max_text_seq_length=5,
        use_rotary_positional_embeddings=patch_t is not None, patch_bias=patch_t is None,
    )  # fmt: skip
    frames = 3 if patch_t is None else 6
    args = {
        "hidden_states": torch.randn(2, frames, 4, 8, 10), "timestep": torch.tensor([500, 500]),
        "encoder_hidden_states": torch.randn(2, 5, 16), "return_dict": False,
    }  # fmt: skip
    return Tiny(model, args, (3, 4, 5), 5, {"joint": 2}, 2)


@_tiny
def cogvideox() -> Tiny:
    return _cogvideox(None)


@_tiny
def cogvideox_15() -> Tiny:
    return _cogvideox(2)


@_tiny
def mochi() -> Tiny:
    from diffusers import MochiTransformer3DModel

    model = MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16,
        in_channels=4, text_embed_dim=16, time_embed_dim=4, max_sequence_length=6,
    )  # fmt: skip
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    args = {
        "hidden_states": torch.randn(2, 4, 3, 8, 10), "timestep": torch.tensor([500, 500]),
        "encoder_hidden_states": torch.randn(2, 6, 16), "encoder_attention_mask": mask, "return_dict": False,
    }  # fmt: skip
    return Tiny(model, args, (3, 4, 5), 6, {"joint": 2}, 4)


def _ltx(valid: int) -> Tiny:
    from diffusers import LTXVideoTransformer3DModel

    model = LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        num_layers=2, caption_channels=16,
    )  # fmt: skip
    mask = torch.ones(2, 6)
    mask[1, valid:] = 0
    args = {
        "hidden_states": torch.randn(2, 60, 4), "timestep": torch.tensor([500, 500]),
        "encoder_hidden_states": torch.randn(2, 6, 16), "encoder_attention_mask": mask, "num_frames": 3, "height": 4,
        "width": 5, "return_dict": False,
    }  # fmt: skip
    return Tiny(model, args, (3, 4, 5), 0, {"self": 2, "cross": 2}, 4)


@_tiny
def ltx() -> Tiny:
    return _ltx(6)


@_tiny
def ltx_padded() -> Tiny:
    return _ltx(4)


@_tiny
def ltx2() -> Tiny:
    from diffusers import LTX2VideoTransformer3DModel

    model = LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=4,
        audio_cross_attention_dim=8, num_layers=2, caption_channels=16, rope_double_precision=False, rope_type="split",
    )  # fmt: skip
    args = {
        "hidden_states": torch.randn(2, 60, 4), "audio_hidden_states": torch.randn(2, 5, 4),
        "encoder_hidden_states": torch.randn(2, 6, 16), "audio_encoder_hidden_states": torch.randn(2, 6, 16),
        "timestep": torch.tensor([500, 500]), "encoder_attention_mask": torch.ones(2, 6),
        "audio_encoder_attention_mask": torch.ones(2, 6), "num_frames": 3, "height": 4, "width": 5,
        "audio_num_frames": 5, "return_dict": False,
    }  # fmt: skip
    roles = ("self", "cross", "audio_self", "audio_cross", "audio_to_video", "video_to_audio")
    return Tiny(model, args, (3, 4, 5), 0, dict.fromkeys(roles, 2), 12)


def _qwen(valid: int, references: int = 0) -> Tiny:
    from diffusers import QwenImageTransformer2DModel

    model = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, valid:] = False
    shapes = [(1, 6, 7), (1, 4, 3)][: 1 + references]
    extra = 12 * references
    args = {
        "hidden_states": torch.randn(2, 42 + extra, 16), "encoder_hidden_states": torch.randn(2, 6, 16),
        "encoder_hidden_states_mask": mask, "timestep": torch.tensor([0.5, 0.5]), "img_shapes": [shapes] * 2,
        "return_dict": False,
    }  # fmt: skip
    return Tiny(model, args, (1, 6, 7), 6, {"joint": 2}, 2, extra=extra)


@_tiny
def qwen_image() -> Tiny:
    return _qwen(6)


@_tiny
def qwen_image_padded() -> Tiny:
    return _qwen(4)


@_tiny
def qwen_image_edit() -> Tiny:
    return _qwen(6, references=1)


@_tiny
def unet() -> Tiny:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=16, attention_head_dim=4,
        norm_num_groups=4,
    )  # fmt: skip
    args = {
        "sample": torch.randn(2, 4, 9, 7), "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 6, 16), "return_dict": False,
    }  # fmt: skip
    return Tiny(model, args, (1, 9, 7), 0, {"self": 7, "cross": 7}, 14)


@_tiny
def unet_added_keys() -> Tiny:
    """Transformer blocks outside, and in the middle attention that asks the text and the pixels at once."""
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=16,
        attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip
    args = {
        "sample": torch.randn(2, 4, 10, 14), "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 6, 16), "return_dict": False,
    }  # fmt: skip
    return Tiny(model, args, (1, 10, 14), 6, {"self": 3, "cross": 3, "joint": 3}, 9)


@_tiny
def unet_xl() -> Tiny:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2), norm_num_groups=4,
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=32,
    )  # fmt: skip
    args = {
        "sample": torch.randn(2, 4, 10, 14), "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 6, 16), "return_dict": False,
        "added_cond_kwargs": {"text_embeds": torch.randn(2, 8), "time_ids": torch.randn(2, 6)},
    }  # fmt: skip
    return Tiny(model, args, (1, 5, 7), 0, {"self": 8, "cross": 8}, 16)


@_tiny
def kandinsky5() -> Tiny:
    from diffusers import Kandinsky5Transformer3DModel

    model = Kandinsky5Transformer3DModel(
        in_visual_dim=4, in_text_dim=16, in_text_dim2=8, time_dim=16, out_visual_dim=4, patch_size=(1, 2, 2),
        model_dim=24, ff_dim=32, num_text_blocks=1, num_visual_blocks=2, axes_dims=(4, 4, 4),
    )  # fmt: skip
    args = {
        "hidden_states": torch.randn(2, 3, 8, 10, 4), "encoder_hidden_states": torch.randn(2, 6, 16),
        "timestep": torch.tensor([500.0, 500.0]), "pooled_projections": torch.randn(2, 8),
        "visual_rope_pos": [torch.arange(3), torch.arange(4), torch.arange(5)], "text_rope_pos": torch.arange(6),
        "return_dict": False,
    }  # fmt: skip
    return Tiny(model, args, (3, 4, 5), 0, {"self": 2, "cross": 2}, 4)


def open_projections(weights, scale=0.5):
    """Trained-looking weights: whatever starts at zero becomes noise.

    Args:
        weights: of a patch. scale: standard deviation of the noise.
    """
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in weights.parameters():
            if not parameter.any():
                parameter.copy_(scale * torch.randn(parameter.shape, generator=draw))
