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


def _flux2_kv(mode: str) -> Case:
    """Klein KV: the first step puts references before the image and fills the cache, later ones read it."""
    from diffusers import Flux2Transformer2DModel
    from diffusers.models.transformers import transformer_flux2 as parts

    model = Flux2Transformer2DModel(**SMALL_FLUX | {"axes_dims_rope": [4] * 4, "timestep_guidance_channels": 16})
    for block in model.transformer_blocks:
        block.attn.set_processor(parts.Flux2KVAttnProcessor())
    for block in model.single_transformer_blocks:
        block.attn.set_processor(parts.Flux2KVParallelSelfAttnProcessor())
    positions = torch.cat([_ids(10, 3, 4, 4), _ids(0, 6, 7, 4)])[0 if mode == "extract" else 12 :]
    more = {"kv_cache_mode": mode, "guidance": torch.tensor([1.0, 1.0])}
    if mode == "extract":
        return _flux_like(model, positions, num_ref_tokens=12, **more)
    cache = parts.Flux2KVCache(1, 2)
    cache.num_ref_tokens = 12
    for layer in (*cache.double_block_caches, *cache.single_block_caches):
        layer.store(torch.randn(2, 12, 2, 16), torch.randn(2, 12, 2, 16))
    return _flux_like(model, positions, kv_cache=cache, **more)


def flux2_kv_extract() -> Case:
    case = _flux2_kv("extract")
    case.declined, case.axes = {"12 queries and 12 keys": 3}, ""
    return case


def flux2_kv_cached() -> Case:
    return _flux2_kv("cached")


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


def _chroma_mask(dtype: torch.dtype) -> Case:
    mask = torch.ones(2, 47, dtype=torch.bool)
    mask[1, 3:5] = False
    return _chroma(attention_mask=mask.to(dtype))


def chroma_numbers() -> Case:
    """The mask as the pipelines hand it in: the model adds its ones and zeros to the scores."""
    return _chroma_mask(torch.float32)


def chroma_mask() -> Case:
    """A mask that hides padding from all but itself: rows of padding see nothing."""
    return _chroma_mask(torch.bool)


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


def _nucleus(valid: int) -> Case:
    from diffusers import NucleusMoEImageTransformer2DModel

    model = NucleusMoEImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=4,
        num_key_value_heads=2, joint_attention_dim=16, axes_dims_rope=(8, 4, 4), moe_enabled=False,
        capacity_factors=[8.0, 8.0],
    )  # fmt: skip
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, valid:] = False
    args = {
        "hidden_states": torch.randn(2, 42, 16), "encoder_hidden_states": torch.randn(2, 5, 16),
        "encoder_hidden_states_mask": mask, "timestep": torch.tensor([0.5, 0.5]), "img_shapes": [GRID] * 2,
    }  # fmt: skip
    return Case(model, args, GRID, {"joint": 2}, axes="BNC")


def nucleus_moe() -> Case:
    """The image asks image and text."""
    return _nucleus(5)


def nucleus_moe_padded() -> Case:
    return _nucleus(3)


def ideogram4() -> Case:
    """Text before the image in one sequence, the second row's text shorter and padded before it."""
    from diffusers import Ideogram4Transformer2DModel

    model = Ideogram4Transformer2DModel(
        in_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2, intermediate_size=32, adaln_dim=8,
        llm_features_dim=16, mrope_section=(4, 2, 2),
    )  # fmt: skip
    places = torch.zeros(2, 47, 3, dtype=torch.long)
    places[:, :5] = torch.arange(5)[:, None]
    places[:, 5:] = _ids(0, 6, 7).long() + 65536
    indicator = torch.tensor([3] * 5 + [2] * 42).repeat(2, 1)
    segments = torch.ones(2, 47, dtype=torch.long)
    indicator[1, :2], segments[1, :2] = 0, -1
    args = {
        "hidden_states": torch.randn(2, 47, 4), "timestep": torch.tensor([0.5, 0.5]),
        "encoder_hidden_states": torch.randn(2, 47, 16), "position_ids": places, "segment_ids": segments,
        "indicator": indicator,
    }  # fmt: skip
    return Case(model, args, GRID, {"joint": 2}, moves=WORDS)


def _qwen_image21(cached: bool, valid: int = 11) -> Case:
    """A given picture of 4x4 tokens between texts, then the image of 4x6; one slot stands for 2x2 tokens."""
    from diffusers import QwenImage21Transformer2DModel
    from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache

    model = QwenImage21Transformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        context_in_dim=16, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    slots = torch.zeros(2, 17, dtype=torch.bool)
    slots[:, 3:7] = slots[:, 11:] = True
    mask = torch.ones(2, 11)
    mask[1, valid:] = 0
    args = {
        "hidden_states": torch.randn(2, 40, 4), "encoder_hidden_states": torch.randn(2, 11, 16),
        "encoder_hidden_states_mask": mask, "timestep": torch.tensor([0.5, 0.5]), "img_mask": slots,
        "img_shapes": [[(1, 4, 4), (1, 4, 6)]] * 2,
    }  # fmt: skip
    if not cached:
        return Case(model, args, (1, 4, 6), {"joint": 2}, {"are not the token grid's": 6})
    cache = QwenImage21KVCache(2)
    for layer in cache.layer_caches:
        layer.store(torch.randn(2, 23, 2, 16), torch.randn(2, 23, 2, 16))
    args |= {"kv_cache": cache, "kv_cache_mode": "cached"}
    return Case(model, args, (1, 4, 6), {"joint": 2})


def qwen_image21() -> Case:
    return _qwen_image21(False)


def qwen_image21_padded() -> Case:
    return _qwen_image21(False, 9)


def qwen_image21_cached() -> Case:
    return _qwen_image21(True)
