"""Cases of image models."""

from __future__ import annotations

from typing import Any

import torch

from zoo.case import Case

GRID = (1, 6, 7)
WORDS = {"text": "encoder_hidden_states"}


def _ids(number: int, height: int, width: int, size: int = 3, start: int = 0, step: float = 1.0) -> torch.Tensor:
    """Positions (height * width, size): the number of the image, then row and column."""
    found = torch.zeros(height, width, size)
    found[..., 0] = number
    found[..., 1] += start + step * torch.arange(height)[:, None]
    found[..., 2] += start + step * torch.arange(width)[None]
    return found.reshape(-1, size)


def _flux_like(model: Any, positions: torch.Tensor, **more: Any) -> Case:
    args = {
        "hidden_states": torch.randn(2, positions.shape[-2], 4), "encoder_hidden_states": torch.randn(2, 5, 16),
        "timestep": torch.tensor([0.5, 0.5]), "img_ids": positions, "txt_ids": torch.zeros(5, positions.shape[-1]),
        **more,
    }  # fmt: skip
    return Case(model, args, GRID, {"joint": 3}, axes="BNC", moves=WORDS)


SMALL_FLUX = {
    "patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 16, "axes_dims_rope": [4, 4, 8],
}  # fmt: skip


def flux2() -> Case:
    from diffusers import Flux2Transformer2DModel

    model = Flux2Transformer2DModel(**SMALL_FLUX | {"axes_dims_rope": [4] * 4, "timestep_guidance_channels": 16})
    return _flux_like(model, _ids(0, 6, 7, 4), guidance=torch.tensor([1.0, 1.0]))


def flux2_references() -> Case:
    from diffusers import Flux2Transformer2DModel

    model = Flux2Transformer2DModel(**SMALL_FLUX | {"axes_dims_rope": [4] * 4, "timestep_guidance_channels": 16})
    positions = torch.cat([_ids(0, 6, 7, 4), _ids(10, 3, 4, 4), _ids(20, 2, 2, 4)])
    return _flux_like(model, positions[None].expand(2, -1, -1), txt_ids=torch.zeros(2, 5, 4))


def _flux3(references: int) -> Case:
    from diffusers import Flux3Transformer2DModel

    model = Flux3Transformer2DModel(
        in_channels=4, cond_in_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, timestep_channels=16, axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip
    more = {}
    if references:
        more = {"image_cond_hidden_states": torch.randn(2, 12, 4), "image_cond_ids": _ids(0, 3, 4, 4, step=0.5)}
    case = _flux_like(model, _ids(0, 6, 7, 4, step=0.5), **more)
    case.calls, case.moves = {"self": 1, "joint": 2}, {}
    return case


def flux3() -> Case:
    return _flux3(0)


def flux3_references() -> Case:
    return _flux3(12)


def _chroma(**more: Any) -> Case:
    from diffusers import ChromaTransformer2DModel

    model = ChromaTransformer2DModel(
        **SMALL_FLUX, approximator_hidden_dim=16, approximator_layers=1, approximator_num_channels=16
    )
    return _flux_like(model, _ids(0, 6, 7), **more)


def chroma() -> Case:
    return _chroma()


def bria() -> Case:
    from diffusers import BriaTransformer2DModel

    model = BriaTransformer2DModel(**SMALL_FLUX, pooled_projection_dim=None)
    return _flux_like(model, _ids(0, 6, 7))


def _bria_fibo(references: int) -> Case:
    from diffusers import BriaFiboTransformer2DModel

    model = BriaFiboTransformer2DModel(**SMALL_FLUX, text_encoder_dim=16)
    mask = torch.ones(2, 47 + references, dtype=torch.bool)
    mask[1, 3:5] = False
    layers = [torch.randn(2, 5, 16) for _ in range(3)]
    positions = torch.cat([_ids(0, 6, 7), _ids(1, 3, 4)[:references]])
    more = {"joint_attention_kwargs": {"attention_mask": mask[:, None, None]}, "text_encoder_layers": layers}
    return _flux_like(model, positions, **more)


def bria_fibo() -> Case:
    return _bria_fibo(0)


def bria_fibo_edit() -> Case:
    return _bria_fibo(12)


def ovis_image() -> Case:
    from diffusers import OvisImageTransformer2DModel

    model = OvisImageTransformer2DModel(**SMALL_FLUX, out_channels=4)
    return _flux_like(model, _ids(0, 6, 7))


def _longcat(references: int) -> Case:
    from diffusers import LongCatImageTransformer2DModel

    model = LongCatImageTransformer2DModel(**SMALL_FLUX, pooled_projection_dim=8)
    positions = torch.cat([_ids(1, 6, 7, start=512), _ids(2, 3, 4, start=512)[:references]])
    return _flux_like(model, positions)


def longcat_image() -> Case:
    return _longcat(0)


def longcat_image_edit() -> Case:
    return _longcat(12)


# --- latents cut into patches ------------------------------------------------------------------------------------


def _latents(height: int = 12, width: int = 14, text: int = 5, **more: Any) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 4, height, width), "encoder_hidden_states": torch.randn(2, text, 16),
        "timestep": torch.tensor([500, 500]), **more,
    }  # fmt: skip


def _mask(text: int, valid: int) -> torch.Tensor:
    """Of two rows, the second hides the tail."""
    mask = torch.ones(2, text)
    mask[1, valid:] = 0
    return mask


def auraflow() -> Case:
    from diffusers import AuraFlowTransformer2DModel

    model = AuraFlowTransformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=2, attention_head_dim=8,
        num_attention_heads=2, caption_projection_dim=16, joint_attention_dim=16, out_channels=4, pos_embed_max_size=64,
    )  # fmt: skip
    return Case(model, _latents(), GRID, {"joint": 3}, axes="BCHW", moves=WORDS)


SMALL_COGVIEW = {
    "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8,
    "num_attention_heads": 2, "text_embed_dim": 16, "time_embed_dim": 8, "condition_dim": 4,
}  # fmt: skip


def _places(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([[96.0, 112.0]] * 2) for name in names}


def cogview3plus() -> Case:
    from diffusers import CogView3PlusTransformer2DModel

    model = CogView3PlusTransformer2DModel(**SMALL_COGVIEW, pos_embed_max_size=16, sample_size=16)
    args = _latents(**_places("original_size", "target_size", "crop_coords"))
    return Case(model, args, GRID, {"joint": 2}, axes="BCHW", moves=WORDS)


def cogview4() -> Case:
    from diffusers import CogView4Transformer2DModel

    model = CogView4Transformer2DModel(**SMALL_COGVIEW, pos_embed_max_size=16, sample_size=16, rope_axes_dim=(16, 16))
    args = _latents(**_places("original_size", "target_size", "crop_coords"))
    return Case(model, args, GRID, {"joint": 2}, axes="BCHW", moves=WORDS)


def glm_image() -> Case:
    from diffusers import GlmImageTransformer2DModel

    model = GlmImageTransformer2DModel(**SMALL_COGVIEW, prior_vq_quantizer_codebook_size=64)
    args = _latents(**_places("target_size", "crop_coords"))
    args |= {"prior_token_id": torch.randint(64, (2, 42)), "prior_token_drop": torch.zeros(2, 42, dtype=torch.bool)}
    return Case(model, args, GRID, {"joint": 2}, axes="BCHW", moves=WORDS)


def ernie_image() -> Case:
    from diffusers import ErnieImageTransformer2DModel

    model = ErnieImageTransformer2DModel(
        hidden_size=32, num_attention_heads=2, num_layers=2, ffn_hidden_size=32, in_channels=4, out_channels=4,
        patch_size=1, text_in_dim=16, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    args = {
        "hidden_states": torch.randn(2, 4, 6, 7), "timestep": torch.tensor([500, 500]),
        "text_bth": torch.randn(2, 6, 16), "text_lens": torch.tensor([6, 4]),
    }  # fmt: skip
    return Case(model, args, GRID, {"joint": 2}, axes="BCHW", moves={"text": "text_bth"})


def _hidream(height: int, width: int) -> Case:
    from diffusers import HiDreamImageTransformer2DModel

    model = HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=2, caption_channels=[8, 4], text_emb_dim=8, num_routed_experts=2, num_activated_experts=2,
        axes_dims_rope=(4, 2, 2), max_resolution=(16, 16), llama_layers=(0, 1), force_inference_output=True,
    )  # fmt: skip
    args = {
        "hidden_states": torch.randn(2, 4, height, width), "timesteps": torch.tensor([500, 500]),
        "encoder_hidden_states_t5": torch.randn(2, 5, 8), "encoder_hidden_states_llama3": torch.randn(2, 2, 5, 4),
        "pooled_embeds": torch.randn(2, 8),
    }  # fmt: skip
    return Case(model, args, (1, height // 2, width // 2), {"joint": 2}, axes="BCHW")


def hidream() -> Case:
    return _hidream(12, 12)


def hidream_wide() -> Case:
    return _hidream(12, 14)


def _hunyuan_image(**more: Any) -> Case:
    from diffusers import HunyuanImageTransformer2DModel

    model = HunyuanImageTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1, num_single_layers=2,
        num_refiner_layers=1, patch_size=more.pop("patch", (2, 2)), text_embed_dim=16,
        rope_axes_dim=more.pop("axes", (4, 4)), text_embed_2_dim=8 if "encoder_hidden_states_2" in more else None,
    )  # fmt: skip
    args = _latents(text=6, encoder_attention_mask=_mask(6, 4), timestep=torch.tensor([500.0, 500.0]), **more)
    return Case(model, args, GRID, {"joint": 3}, axes="BCHW")


def hunyuan_image() -> Case:
    return _hunyuan_image()


def hunyuan_image_glyphs() -> Case:
    return _hunyuan_image(encoder_hidden_states_2=torch.randn(2, 5, 8), encoder_attention_mask_2=_mask(5, 2))


def hunyuan_image_refiner() -> Case:
    case = _hunyuan_image(patch=(1, 2, 2), axes=(2, 2, 4), hidden_states=torch.randn(2, 4, 2, 8, 10))
    case.grid, case.axes = (2, 4, 5), "BCTHW"
    return case


def hunyuan_dit() -> Case:
    from diffusers import HunyuanDiT2DModel
    from diffusers.models.embeddings import get_2d_rotary_pos_embed

    model = HunyuanDiT2DModel(
        sample_size=12, patch_size=2, in_channels=4, num_layers=4, attention_head_dim=8, num_attention_heads=2,
        cross_attention_dim=8, cross_attention_dim_t5=8, pooled_projection_dim=4, hidden_size=16, text_len=4,
        text_len_t5=4,
    )  # fmt: skip
    args = {
        "hidden_states": torch.randn(2, 4, 12, 14), "encoder_hidden_states": torch.randn(2, 4, 8),
        "text_embedding_mask": _mask(4, 2), "encoder_hidden_states_t5": torch.randn(2, 4, 8),
        "text_embedding_mask_t5": _mask(4, 3), "timestep": torch.tensor([500.0, 500.0]),
        "image_meta_size": torch.randn(2, 6), "style": torch.zeros(2, dtype=torch.long),
        "image_rotary_emb": get_2d_rotary_pos_embed(8, ((0, 0), (6, 7)), (6, 7), output_type="pt"),
    }  # fmt: skip
    return Case(model, args, GRID, {"self": 4, "cross": 4}, axes="BCHW")


def dit() -> Case:
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        in_channels=4, out_channels=8, num_attention_heads=2, attention_head_dim=8, num_layers=2, num_embeds_ada_norm=8,
        patch_size=2, sample_size=12,
    )  # fmt: skip
    args = {
        "hidden_states": torch.randn(2, 4, 12, 12), "timestep": torch.tensor([500, 500]),
        "class_labels": torch.tensor([1, 2]),
    }  # fmt: skip
    return Case(model, args, (1, 6, 6), {"self": 2}, axes="BCHW")


def pixart() -> Case:
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4,
        cross_attention_dim=16, out_channels=8, num_embeds_ada_norm=8, use_additional_conditions=False,
        caption_channels=16,
    )  # fmt: skip
    args = _latents(encoder_attention_mask=_mask(5, 3), added_cond_kwargs={"resolution": None, "aspect_ratio": None})
    return Case(model, args, GRID, {"self": 2, "cross": 2}, axes="BCHW")


def sana() -> Case:
    from diffusers import SanaTransformer2DModel

    model = SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=16,
        sample_size=8,
    )  # fmt: skip
    return Case(model, _latents(6, 7, encoder_attention_mask=_mask(5, 3)), GRID, {"cross": 2})
