"""Cases of image models that take packed tokens with a position each."""

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


def krea2() -> Case:
    from diffusers import Krea2Transformer2DModel

    model = Krea2Transformer2DModel(
        in_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=32, timestep_embed_dim=16, text_hidden_dim=16, num_text_layers=3, text_num_attention_heads=2,
        text_num_key_value_heads=1, text_intermediate_size=32, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    args = {
        "hidden_states": torch.randn(2, 42, 4), "encoder_hidden_states": torch.randn(2, 5, 3, 16),
        "timestep": torch.tensor([0.5, 0.5]), "position_ids": torch.cat([torch.zeros(5, 3), _ids(0, 6, 7)]),
        "encoder_attention_mask": mask,
    }  # fmt: skip
    return Case(model, args, GRID, {"joint": 2}, axes="BNC", moves=WORDS)
