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


def _helios(**changes: Any) -> dict[str, Any]:
    config = _wan(rope_dim=(4, 4, 4), **changes)
    config.pop("rope_max_seq_len")
    return config


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


def skyreels() -> Case:
    from diffusers import SkyReelsV2Transformer3DModel

    return Case(SkyReelsV2Transformer3DModel(**_wan()), _latents(), GRID, {"self": 2, "cross": 2}, axes="BCTHW")


def skyreels_image() -> Case:
    from diffusers import SkyReelsV2Transformer3DModel

    model = SkyReelsV2Transformer3DModel(**_wan(image_dim=8, added_kv_proj_dim=24))
    args = _latents(text=512, encoder_hidden_states_image=torch.randn(2, 5, 8))
    return Case(model, args, GRID, {"self": 2, "cross": 4}, axes="BCTHW")


def skyreels_diffusion_forcing() -> Case:
    """Frames have noise levels of their own, and frame rates are told."""
    from diffusers import SkyReelsV2Transformer3DModel

    model = SkyReelsV2Transformer3DModel(**_wan(inject_sample_info=True))
    args = _latents(batch=1, timestep=torch.tensor([[500, 500, 700]]), fps=torch.tensor([1]))
    return Case(model, args | {"enable_diffusion_forcing": True}, GRID, {"self": 2, "cross": 2}, axes="BCTHW")


def skyreels_causal() -> Case:
    """Blocks of frames see only earlier blocks: a mask that differs between queries of the grid."""
    from diffusers import SkyReelsV2Transformer3DModel

    model = SkyReelsV2Transformer3DModel(**_wan(num_frame_per_block=2))
    args = _latents() | {"hidden_states": torch.randn(2, 4, 4, 8, 10)}
    return Case(model, args, (4, 4, 5), {"self": 2, "cross": 2}, axes="BCTHW", paired=2)


def anyflow() -> Case:
    from diffusers import AnyFlowTransformer3DModel

    config = _wan()
    args = _latents(timestep=torch.full((2, 3), 500.0), r_timestep=torch.full((2, 3), 300.0))
    args["hidden_states"] = torch.randn(2, 3, 4, 8, 10)
    return Case(AnyFlowTransformer3DModel(**config), args, GRID, {"self": 2, "cross": 2}, axes="BTCHW")


def helios() -> Case:
    """Long, middle and short histories come before the grid; cross-attention is asked by the grid alone."""
    from diffusers import HeliosTransformer3DModel

    model = HeliosTransformer3DModel(
        **_helios(has_multi_term_memory_patch=True, guidance_cross_attn=True, zero_history_timestep=True)
    )
    args = _latents(batch=1, hidden_states=torch.randn(1, 4, 2, 16, 16), indices_hidden_states=torch.tensor([[6, 7]]))
    for name, frames, first in (("short", 1, 5), ("mid", 1, 4), ("long", 4, 0)):
        args[f"indices_latents_history_{name}"] = torch.arange(first, first + frames)[None]
        args[f"latents_history_{name}"] = torch.randn(1, 4, frames, 16, 16)
    return Case(model, args, (2, 8, 8), {"self": 2, "cross": 2}, axes="BCTHW")


def helios_first() -> Case:
    """The first section has no history."""
    from diffusers import HeliosTransformer3DModel

    model = HeliosTransformer3DModel(**_helios())
    return Case(model, _latents(), GRID, {"self": 2, "cross": 2}, axes="BCTHW")


def _hunyuan(**changes: Any) -> dict[str, Any]:
    return {
        "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 1,
        "num_single_layers": 1, "num_refiner_layers": 1, "patch_size": 2, "patch_size_t": 1, "text_embed_dim": 16,
        "rope_axes_dim": (2, 4, 4), **changes,
    }  # fmt: skip


def _valid(*lengths: int, of: int = 6) -> torch.Tensor:
    """A text mask (B, L) with so many valid tokens per row."""
    return (torch.arange(of) < torch.tensor(lengths)[:, None]).long()


def _framepack(batch: int, mask: torch.Tensor) -> Case:
    from diffusers import HunyuanVideoFramepackTransformer3DModel

    model = HunyuanVideoFramepackTransformer3DModel(
        **_hunyuan(), guidance_embeds=True, pooled_projection_dim=8, has_image_proj=True, image_proj_dim=16,
        has_clean_x_embedder=True,
    )  # fmt: skip
    args = _latents(batch, 6) | {
        "hidden_states": torch.randn(batch, 4, 3, 8, 8), "encoder_attention_mask": mask,
        "pooled_projections": torch.randn(batch, 8), "guidance": torch.full((batch,), 6000.0),
        "image_embeds": torch.randn(batch, 5, 16), "indices_latents": torch.arange(7, 10),
        "latents_clean": torch.randn(batch, 4, 2, 8, 8), "indices_latents_clean": torch.tensor([0, 6]),
        "latents_history_2x": torch.randn(batch, 4, 2, 8, 8), "indices_latents_history_2x": torch.arange(4, 6),
        "latents_history_4x": torch.randn(batch, 4, 4, 8, 8), "indices_latents_history_4x": torch.arange(4),
    }  # fmt: skip
    return Case(
        model, args, (3, 4, 4), {"joint": 2}, axes="BCTHW", moves={"image": "image_embeds"}
    )  # fmt: skip


def framepack() -> Case:
    """One sample: its text is cut to its length."""
    return _framepack(1, _valid(4))


def framepack_batch() -> Case:
    return _framepack(2, _valid(6, 4))


def _hunyuan15(image: torch.Tensor) -> Case:
    from diffusers import HunyuanVideo15Transformer3DModel

    config = _hunyuan(patch_size=1, text_embed_2_dim=8, image_embed_dim=12, num_layers=2, target_size=16)
    config.pop("num_single_layers")
    args = _latents(2, 6) | {
        "hidden_states": torch.randn(2, 4, 3, 4, 5), "timestep": torch.full((2,), 500.0),
        "encoder_attention_mask": _valid(6, 4).float(),
        "encoder_hidden_states_2": torch.randn(2, 3, 8), "encoder_attention_mask_2": _valid(3, 1, of=3).float(),
        "image_embeds": image,
    }  # fmt: skip
    return Case(HunyuanVideo15Transformer3DModel(**config), args, GRID, {"joint": 2}, axes="BCTHW")


def hunyuan15() -> Case:
    """Text to video: the image embeddings are zeros, and hidden."""
    return _hunyuan15(torch.zeros(2, 4, 12))


def hunyuan15_image() -> Case:
    return _hunyuan15(torch.randn(2, 4, 12))


def consisid() -> Case:
    from diffusers import ConsisIDTransformer3DModel

    model = ConsisIDTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, time_embed_dim=8,
        text_embed_dim=16, num_layers=2, sample_width=10, sample_height=8, sample_frames=9, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=5, cross_attn_interval=1, is_train_face=True,
        cross_attn_dim_head=8, cross_attn_num_heads=2, LFE_id_dim=8, LFE_vit_dim=8, LFE_depth=5, LFE_dim_head=8,
        LFE_num_heads=2, LFE_num_id_token=1, LFE_num_querie=3, LFE_output_dim=32, LFE_ff_mult=1, LFE_num_scale=1,
    )  # fmt: skip
    args = _latents(text=5, id_cond=torch.randn(2, 8), id_vit_hidden=[torch.randn(2, 4, 8)])
    args["hidden_states"] = torch.randn(2, 3, 4, 8, 10)
    return Case(model, args, GRID, {"joint": 2}, axes="BTCHW", moves={"text": "encoder_hidden_states"})


def _allegro(masked: bool) -> Case:
    from diffusers import AllegroTransformer3DModel

    model = AllegroTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, num_layers=2,
        cross_attention_dim=48, sample_width=10, sample_height=8, sample_frames=3, caption_channels=16,
    )  # fmt: skip
    t, h, w = GRID
    places = torch.cartesian_prod(*(torch.arange(n) for n in GRID)).T.reshape(3, 1, -1)
    tables = [(torch.randn(n, 8), torch.randn(n, 8)) for n in GRID]
    args = _latents(text=6, image_rotary_emb=(tables, tuple(places)))
    if masked:
        args |= {"attention_mask": torch.ones(2, 3, 8, 10), "encoder_attention_mask": _valid(6, 4)}
        args["attention_mask"][1, :, :, 8:] = 0
    return Case(model, args, GRID, {"self": 2, "cross": 2}, axes="BCTHW")


def allegro() -> Case:
    return _allegro(False)


def allegro_masked() -> Case:
    """A part of the pixels and of the text is padding."""
    case = _allegro(True)
    case.padded = True
    return case


def _easyanimate(**changes: Any) -> Case:
    from diffusers import EasyAnimateTransformer3DModel

    model = EasyAnimateTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, patch_size=2, time_embed_dim=8,
        num_layers=2, mmdit_layers=1, text_embed_dim=16, sample_width=10, sample_height=8, **changes,
    )  # fmt: skip
    args = _latents(text=6)
    return Case(model, args, GRID, {"joint": 2}, axes="BCTHW", moves={"text": "encoder_hidden_states"})


def easyanimate() -> Case:
    return _easyanimate()


def easyanimate_t5() -> Case:
    """A second text encoder's tokens come after the first one's."""
    case = _easyanimate(text_embed_dim_t5=8)
    case.args["encoder_hidden_states_t5"] = torch.randn(2, 3, 8)
    case.moves = {}
    return case


def _cosmos(**changes: Any) -> dict[str, Any]:
    return {
        "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2,
        "mlp_ratio": 2, "text_embed_dim": 16, "adaln_lora_dim": 4, "max_size": (4, 16, 16), "patch_size": (1, 2, 2),
        "concat_padding_mask": False, **changes,
    }  # fmt: skip


def cosmos() -> Case:
    """A mask of ones is added to every score of a row, which changes nothing."""
    from diffusers import CosmosTransformer3DModel

    args = _latents(text=6, attention_mask=torch.ones(2, 6), fps=24)
    return Case(CosmosTransformer3DModel(**_cosmos()), args, GRID, {"self": 2, "cross": 2}, axes="BCTHW")


def cosmos_image_context() -> Case:
    """Two cross-attention calls with queries of their own: text, then image (2.5 transfer)."""
    from diffusers import CosmosTransformer3DModel

    config = _cosmos(
        extra_pos_embed_type=None, img_context_dim_in=8, img_context_num_tokens=3, img_context_dim_out=24
    )  # fmt: skip
    args = _latents(fps=24) | {"encoder_hidden_states": (torch.randn(2, 6, 16), torch.randn(2, 3, 8))}
    return Case(CosmosTransformer3DModel(**config), args, GRID, {"self": 2, "cross": 4}, axes="BCTHW")


def _kandinsky6(sound: bool, mask: torch.Tensor | None = None) -> Case:
    from diffusers import Kandinsky6Transformer3DModel

    model = Kandinsky6Transformer3DModel(
        in_visual_dim=4, out_visual_dim=4, in_text_dim=16, in_text_dim2=8, time_dim=16, model_dim=24, ff_dim=32,
        num_text_blocks=1, num_visual_blocks=2, axes_dims=(4, 4, 4), visual_cond=False, in_audio_dim=6,
        out_audio_dim=6,
    )  # fmt: skip
    args = _latents(text=6, pooled_projections=torch.randn(2, 8), encoder_attention_mask=mask)
    args["hidden_states"] = torch.randn(2, 3, 8, 10, 4)
    calls = {"self": 2, "cross": 2}
    if sound:
        args["audio_hidden_states"] = torch.randn(2, 7, 6)
        calls |= dict.fromkeys(("audio_self", "audio_cross", "audio_to_video", "video_to_audio"), 2)
    return Case(model, args, GRID, calls, silent=0 if sound else 8, axes="BTHWC")


def kandinsky6() -> Case:
    return _kandinsky6(True, _valid(6, 4).bool())


def kandinsky6_silent() -> Case:
    """Without sound: its modules are not called at all."""
    return _kandinsky6(False)


def _sana_video(mask: torch.Tensor | None) -> Case:
    from diffusers import SanaVideoTransformer3DModel

    model = SanaVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=16,
        sample_size=8, rope_max_seq_len=32,
    )  # fmt: skip
    return Case(model, _latents(text=6, encoder_attention_mask=mask), GRID, {"cross": 2})


def sana_video() -> Case:
    return _sana_video(None)


def sana_video_masked() -> Case:
    return _sana_video(_valid(6, 4))


def _motif(image: bool, decoders: int) -> Case:
    from diffusers import MotifVideoTransformer3DModel

    model = MotifVideoTransformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=1,
        num_single_layers=2, num_decoder_layers=decoders, patch_size=2, patch_size_t=1, text_embed_dim=16,
        image_embed_dim=8, rope_axes_dim=(4, 4, 4), enable_text_cross_attention_dual=True,
        enable_text_cross_attention_single=True,
    )  # fmt: skip
    args = _latents(text=6, encoder_attention_mask=_valid(6, 4))
    args["hidden_states"] = torch.randn(2, 9, 3, 8, 10)
    if image:
        args["image_embeds"] = torch.randn(2, 5, 8)
    moves = {"text": "encoder_hidden_states"} | ({"image": "image_embeds"} if image else {})
    return Case(model, args, GRID, {"joint": 3, "cross": 3 - decoders}, skipped=0, axes="BCTHW", moves=moves)


def motif_video() -> Case:
    """The last single block's tokens are the video twice and no text."""
    return _motif(True, 1)


def motif_video_text() -> Case:
    return _motif(False, 0)
