"""Stock pipelines that look at pictures with encoders of their own, with random weights, in memory."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import tiny
from tiny_pipelines import _seeded, clip, flow_scheduler, picture_vae, t5
from tiny_wan import WORDS, word_tokenizer

#: Parts of prompt templates that are one token each, whatever stands beside them.
MARKS = (
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>", "<|im_start|>", "<|im_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip


def chat_tokenizer(**more: Any) -> Any:
    """One token per word or sign, and one per mark of a template; unknown words as <unk>."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", *MARKS, *WORDS]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<|im_end|>", unk_token="<unk>",
        additional_special_tokens=list(MARKS), padding_side="right", **more,
    )  # fmt: skip


def _vision(kind: str, size: int, patch: int) -> Any:
    import transformers

    config = getattr(transformers, f"{kind}Config")
    return config(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=size,
        patch_size=patch, projection_dim=8,
    )  # fmt: skip


@_seeded
def hunyuan_image_to_video(interleaved: bool = True) -> Any:
    """Llava sees the picture as 576 tokens, as the prompt template of the class has it. ``interleaved``: the weights of
    the later release, whose first latent frame is the picture; else those with the picture in further channels."""
    from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoImageToVideoPipeline, HunyuanVideoTransformer3DModel
    from transformers import CLIPImageProcessor, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    tokenizer = chat_tokenizer()
    llama = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2, pad_token_id=0,
        max_position_embeddings=2048,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=_vision("CLIPVision", 48, 2), text_config=llama, vision_feature_select_strategy="default",
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), pad_token_id=0,
    )  # fmt: skip
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4,
        mid_block_add_attention=False,
    )  # fmt: skip
    changes = {"image_condition_type": "token_replace" if interleaved else "latent_concat"}
    if interleaved:
        changes["guidance_embeds"] = True
    else:
        changes |= {"in_channels": 2 * 4 + 1, "guidance_embeds": False}
    own = tiny.build("hunyuan_video").model.config
    made = {**{name: value for name, value in own.items() if not name.startswith("_")}, "out_channels": 4, **changes}
    text_encoder_2, tokenizer_2 = clip(8)
    return HunyuanVideoImageToVideoPipeline(
        text_encoder=LlavaForConditionalGeneration(config).eval(), tokenizer=tokenizer,
        transformer=HunyuanVideoTransformer3DModel(**made).eval(), vae=vae.eval(),
        scheduler=flow_scheduler(shift=7.0), text_encoder_2=text_encoder_2, tokenizer_2=tokenizer_2,
        image_processor=CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}),
    )  # fmt: skip


@_seeded
def flux_fill() -> Any:
    """The transformer gets the latents, the masked picture's and the mask, pixel by pixel."""
    from diffusers import FluxFillPipeline, FluxTransformer2DModel

    text_encoder, tokenizer = clip(8)
    transformer = FluxTransformer2DModel(
        in_channels=16 + 16 + 16, out_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )  # fmt: skip
    return FluxFillPipeline(
        scheduler=flow_scheduler(shift=3.0), vae=picture_vae(shift_factor=0.1159, scaling_factor=0.3611),
        text_encoder=text_encoder, tokenizer=tokenizer, text_encoder_2=t5(16), tokenizer_2=word_tokenizer(),
        transformer=transformer,
    )  # fmt: skip


@_seeded
def flux_redux(width: int = 16) -> Any:
    """The adapter alone, as its folder has it: without text encoders."""
    from diffusers import FluxPriorReduxPipeline
    from diffusers.pipelines.flux import ReduxImageEncoder
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    seen = SiglipVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    return FluxPriorReduxPipeline(
        image_encoder=SiglipVisionModel(seen).eval(),
        feature_extractor=SiglipImageProcessor(size={"height": 16, "width": 16}),
        image_embedder=ReduxImageEncoder(redux_dim=8, txt_in_features=width).eval(),
    )  # fmt: skip


@_seeded
def stable_video() -> Any:
    from diffusers import (
        AutoencoderKLTemporalDecoder,
        EulerDiscreteScheduler,
        StableVideoDiffusionPipeline,
        UNetSpatioTemporalConditionModel,
    )
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    unet = UNetSpatioTemporalConditionModel(
        sample_size=8, in_channels=8, out_channels=4, num_frames=4, cross_attention_dim=8, layers_per_block=1,
        block_out_channels=(32, 32), num_attention_heads=(2, 2), addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24, transformer_layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    )  # fmt: skip
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), layers_per_block=1, latent_channels=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction",
        timestep_spacing="leading", timestep_type="continuous", use_karras_sigmas=True, sigma_min=0.002,
        sigma_max=700.0,
    )  # fmt: skip
    return StableVideoDiffusionPipeline(
        vae=vae.eval(), unet=unet.eval(), scheduler=scheduler, feature_extractor=CLIPImageProcessor(),
        image_encoder=CLIPVisionModelWithProjection(_vision("CLIPVision", 224, 56)).eval(),
    )  # fmt: skip


@_seeded
def qwen_edit_several() -> Any:
    """Pictures are seen at 384 x 384 and encoded at 1024 x 1024 whatever their size: the autoencoder is a deep one."""
    import transformers
    from diffusers import AutoencoderKLQwenImage, QwenImageEditPlusPipeline
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
    )

    tokenizer = chat_tokenizer(model_max_length=4096)
    tokens = {mark: tokenizer.convert_tokens_to_ids(f"<|{mark}|>") for mark in (
        "vision_start", "vision_end", "image_pad", "video_pad")}  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
        },
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
            "fullatt_block_indexes": [1], "patch_size": 14, "window_size": 112,
        },
        vision_start_token_id=tokens["vision_start"], vision_end_token_id=tokens["vision_end"],
        image_token_id=tokens["image_pad"], video_token_id=tokens["video_pad"],
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1] * 6, num_res_blocks=1, temperal_downsample=[False] * 5,
        latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0],
    )  # fmt: skip
    videos = {"video_processor": transformers.Qwen2VLVideoProcessor()} if find_spec("torchvision") else {}
    return QwenImageEditPlusPipeline(
        scheduler=flow_scheduler(use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192), vae=vae.eval(),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config).eval(), tokenizer=tokenizer,
        processor=Qwen2VLProcessor(
            image_processor=Qwen2VLImageProcessor(), tokenizer=tokenizer, **videos, chat_template=""
        ),
        transformer=tiny.build("qwen_image_edit").model,
    )  # fmt: skip
