"""Cases of image models that take latents."""

from __future__ import annotations

from typing import Any

import torch

from zoo.case import Case

GRID = (1, 6, 7)
WORDS = {"text": "encoder_hidden_states"}


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


def glm_image_numbers() -> Case:
    """A mask of text: the model adds its ones and zeros to the scores."""
    case = glm_image()
    case.args["attention_mask"] = _mask(5, 3)
    return case


def glm_image_cache() -> Case:
    """Keys of a given picture, from a cache, before the model's own."""
    from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache

    case, cache = glm_image(), GlmImageKVCache(2)
    for layer in cache.caches:
        for _ in range(2):
            layer.store(torch.randn(1, 20, 2, 8), torch.randn(1, 20, 2, 8))
            layer.next_sample()
    cache.set_mode("read")
    case.args["kv_caches"], case.moves = cache, {}
    return case


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


def _lumina2(valid: int) -> Case:
    from diffusers import Lumina2Transformer2DModel

    model = Lumina2Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, hidden_size=32, num_layers=2, num_refiner_layers=2,
        num_attention_heads=4, num_kv_heads=2, multiple_of=16, axes_dim_rope=(4, 2, 2), axes_lens=(32, 16, 16),
        cap_feat_dim=16,
    )  # fmt: skip
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[:, valid:] = 0
    return Case(model, _latents(text=6, encoder_attention_mask=mask), GRID, {"self": 2, "joint": 2}, axes="BCHW")


def lumina2() -> Case:
    return _lumina2(6)


def lumina2_cut() -> Case:
    """The text is cut to the longest prompt."""
    return _lumina2(4)


def lumina2_unequal() -> Case:
    """Prompts of different lengths: the image begins at different places, so joint attention is the model's own."""
    case = _lumina2(6)
    case.args["encoder_attention_mask"][1, 4:] = 0
    case.calls, case.declined = {"self": 2}, {"prompts have [4, 6] tokens": 2}
    return case


def lumina_next() -> Case:
    from diffusers import LuminaNextDiT2DModel
    from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

    model = LuminaNextDiT2DModel(
        sample_size=16, patch_size=2, in_channels=4, hidden_size=32, num_layers=2, num_attention_heads=4,
        num_kv_heads=2, multiple_of=16, learn_sigma=False, cross_attention_dim=16,
    )  # fmt: skip
    args = _latents(
        timestep=torch.tensor([0.5, 0.5]), encoder_mask=_mask(5, 3), cross_attention_kwargs={},
        image_rotary_emb=get_2d_rotary_pos_embed_lumina(8, 16, 16),
    )  # fmt: skip
    return Case(model, args, GRID, {"self": 2, "cross": 2}, axes="BCHW")


def _z_image(**more: Any) -> Case:
    from diffusers import ZImageTransformer2DModel

    model = ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, cap_feat_dim=16, axes_dims=[4, 6, 6], axes_lens=[256, 32, 32],
        siglip_feat_dim=8 if "siglip_feats" in more else None,
    )  # fmt: skip
    return Case(model, {"t": torch.full((len(more["x"]),), 0.5), **more}, GRID, {"self": 1, "joint": 2})


def z_image() -> Case:
    """Texts that fill up to different lengths: a key mask hides the shorter one's end."""
    texts = [torch.randn(6, 16), torch.randn(40, 16)]
    case = _z_image(x=[torch.randn(4, 1, 12, 14) for _ in range(2)], cap_feats=texts)
    case.axes = "CTHW"
    return case


def z_image_sizes() -> Case:
    """Images of different sizes in one batch."""
    case = _z_image(x=[torch.randn(4, 1, 12, 14), torch.randn(4, 1, 8, 8)], cap_feats=[torch.randn(6, 16)] * 2)
    case.calls, case.declined = {}, {"different sizes": 3}
    return case


def z_image_omni() -> Case:
    """A picture before the image being made, with features of the picture."""
    pictures = [torch.randn(4, 1, 8, 8), torch.randn(4, 1, 12, 14)]
    return _z_image(
        x=[pictures], cap_feats=[[torch.randn(6, 16), torch.randn(3, 16)]], siglip_feats=[[torch.randn(2, 2, 8), None]],
        image_noise_mask=[[0, 1]],
    )  # fmt: skip


def _bria_fibo2(lengths: tuple[int, int], pictures: int = 0) -> Case:
    from diffusers import BriaFibo2Transformer2DModel

    model = BriaFibo2Transformer2DModel(
        in_channels=4, patch_size=2, dim=32, n_layers=3, n_refiner_layers=1, n_heads=2, cap_feat_dim=16,
        injection_layer_ids=(1,), perceiver_num_layers=1, min_num_gist_tokens=4, max_num_gist_tokens=8, gist_step=2,
        gist_min_text_len=4, gist_max_text_len=16, axes_dims=(4, 6, 6), axes_lens=(64, 32, 32),
    )  # fmt: skip
    mask = torch.ones(2, 12, dtype=torch.bool)
    for row, length in enumerate(lengths):
        mask[row, length:] = 0
    args = _latents(
        timestep=torch.tensor([0.5, 0.5]), encoder_hidden_states=torch.randn(2, 2, 12, 16), encoder_attention_mask=mask,
        context_latents=[torch.randn(2, 4, 6, 8)] * pictures,
    )  # fmt: skip
    return Case(model, args, GRID, {"self": 1, "joint": 3, "cross": 1}, axes="BCHW")


def bria_fibo2() -> Case:
    return _bria_fibo2((12, 12))


def bria_fibo2_unequal() -> Case:
    """Prompts of other lengths: their gist goes last and is masked."""
    return _bria_fibo2((12, 4), 1)


SMALL_JOY = {
    "patch_size": [1, 2, 2], "in_channels": 4, "hidden_size": 32, "num_attention_heads": 2, "text_dim": 16,
    "num_layers": 2, "rope_dim_list": [4, 6, 6],
}  # fmt: skip


def joy_image() -> Case:
    """The picture and the image being made are frames."""
    from diffusers import JoyImageEditTransformer3DModel

    args = _latents(hidden_states=torch.randn(2, 4, 2, 8, 10))
    model = JoyImageEditTransformer3DModel(**SMALL_JOY)
    return Case(model, args, (2, 4, 5), {"joint": 2}, axes="BCTHW", moves=WORDS)


def joy_image_pictures() -> Case:
    """Pictures in an axis of their own; the model puts the last one first."""
    from diffusers import JoyImageEditTransformer3DModel

    args = _latents(hidden_states=torch.randn(2, 3, 4, 1, 8, 10))
    return Case(JoyImageEditTransformer3DModel(**SMALL_JOY), args, (3, 4, 5), {"joint": 2}, moves=WORDS)


def joy_image_plus() -> Case:
    """Given pictures of different sizes; the shorter sample is filled up and masked."""
    from diffusers import JoyImageEditPlusTransformer3DModel

    args = _latents(
        hidden_states=torch.randn(2, 54, 4, 1, 2, 2), encoder_hidden_states_mask=_mask(5, 3),
        shape_list=[[(1, 6, 7), (1, 3, 4)], [(1, 6, 7), (1, 2, 3)]],
    )  # fmt: skip
    model = JoyImageEditPlusTransformer3DModel(**SMALL_JOY)
    return Case(model, args, GRID, {"joint": 2}, axes="BNC", moves=WORDS)


def joy_image_plus_sizes() -> Case:
    case = joy_image_plus()
    case.args["shape_list"] = [[(1, 6, 7), (1, 3, 4)], [(1, 6, 6), (1, 2, 3)]]
    case.calls, case.declined, case.axes, case.moves = {}, {"different sizes": 2}, "", {}
    return case


def transformer_2d() -> Case:
    from diffusers import Transformer2DModel

    model = Transformer2DModel(
        sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4,
        cross_attention_dim=16, out_channels=8, num_embeds_ada_norm=8, norm_type="ada_norm_single",
        norm_elementwise_affine=False, use_additional_conditions=False, caption_channels=16,
    )  # fmt: skip
    more = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    return Case(model, _latents(encoder_attention_mask=_mask(5, 3), **more), GRID, {"self": 2, "cross": 2}, axes="BCHW")


def transformer_2d_pixels() -> Case:
    """The block of a UNet alone."""
    from diffusers import Transformer2DModel

    model = Transformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=16, num_layers=2, norm_num_groups=4,
        cross_attention_dim=16,
    )  # fmt: skip
    args = _latents(hidden_states=torch.randn(2, 16, 6, 7))
    return Case(model, args, GRID, {"self": 2, "cross": 2})


def _uvit(downsample: bool) -> Case:
    from diffusers import UVit2DModel

    model = UVit2DModel(
        hidden_size=16, cond_embed_dim=8, micro_cond_encode_dim=4, micro_cond_embed_dim=20, encoder_hidden_size=16,
        vocab_size=32, codebook_size=24, in_channels=16, block_out_channels=16, num_res_blocks=1, block_num_heads=2,
        num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, downsample=downsample, upsample=downsample,
    )  # fmt: skip
    side = 2 if downsample else 1
    args = {
        "input_ids": torch.randint(24, (2, 6 * side, 7 * side)), "encoder_hidden_states": torch.randn(2, 5, 16),
        "pooled_text_emb": torch.randn(2, 8), "micro_conds": torch.randn(2, 5),
    }  # fmt: skip
    return Case(model, args, GRID, {"self": 2, "cross": 6})


def uvit() -> Case:
    return _uvit(False)


def uvit_downsample() -> Case:
    return _uvit(True)


def _prx(valid: int) -> Case:
    from diffusers import PRXTransformer2DModel

    model = PRXTransformer2DModel(
        in_channels=4, patch_size=2, context_in_dim=16, hidden_size=32, mlp_ratio=2.0, num_heads=2, depth=2,
        axes_dim=[8, 8],
    )  # fmt: skip
    args = _latents(timestep=torch.tensor([0.5, 0.5]), attention_mask=_mask(5, valid).bool())
    return Case(model, args, GRID, {"joint": 2}, axes="BCHW")


def prx() -> Case:
    """The image asks text and image."""
    return _prx(5)


def prx_padded() -> Case:
    return _prx(3)


def _omnigen(words: bool) -> Case:
    from diffusers import OmniGenTransformer2DModel

    model = OmniGenTransformer2DModel(
        in_channels=4, patch_size=2, hidden_size=16, num_attention_heads=2, num_key_value_heads=2, intermediate_size=32,
        num_layers=2, pad_token_id=0, vocab_size=32, max_position_embeddings=128, original_max_position_embeddings=64,
        rope_scaling={"long_factor": [1.0] * 4, "short_factor": [1.0] * 4}, pos_embed_max_size=16, time_step_dim=8,
    )  # fmt: skip
    text = 6 if words else 0
    tokens = text + 1 + 42
    mask = torch.ones(2, tokens, tokens).tril()
    mask[:, text + 1 :] = 1
    mask[1, :, :2] = 0  # padding of the second row
    args = {
        "hidden_states": torch.randn(2, 4, 12, 14), "timestep": torch.tensor([0.5, 0.5]),
        "input_ids": torch.randint(1, 32, (2, 6)) if words else None, "input_img_latents": [],
        "input_image_sizes": {}, "attention_mask": mask if words else None,
        "position_ids": torch.arange(tokens).repeat(2, 1),
    }  # fmt: skip
    return Case(model, args, GRID, {"joint": 2}, axes="BCHW")


def omnigen() -> Case:
    """Text is causal, the image sees everything but padding."""
    return _omnigen(True)


def omnigen_image_alone() -> Case:
    return _omnigen(False)
