"""What other trainers call the settings of this one: sd-scripts and musubi-tuner, ai-toolkit, SimpleTuner, OneTrainer,
diffusion-pipe, DiffSynth-Studio, FastVideo and Diffusers' own scripts.

A configuration written for one of them is not translated, for defaults and meanings differ; every name of it is
answered with its name here, or with why there is none.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from genkit.errors import shown

#: Setting here -> names elsewhere. A name with a dot is a key inside a section, the last part alone is known too.
NAMES: dict[str, str] = {
    "model": "pretrained_model_name_or_path base_model_name base_model dit ckpt ckpt_path unet sd_model diffusers_path "
    "transformer_path model.name_or_path name_or_path model_family model_id model_id_with_origin_paths model_paths",
    "data": "train_data_dir instance_data_dir instance_data_root data_root data_dir data_path dataset_config datasets "
    "dataset directory image_directory video_directory folder_path data_backend_config concepts dataset_base_path "
    "training_dataset_config image_jsonl_file video_jsonl_file dataset_metadata_path dataset_name in_json",
    "output": "output_dir output_name output_path output_model_destination training_folder save_path logging_dir",
    "component": "train_high_noise train_low_noise dit_high_noise timestep_boundary max_timestep_boundary",
    "dtype": "model.dtype model_dtype weight_dtype transformer_dtype unet_dtype vae_dtype",
    "quantization": "fp8_base fp8_scaled fp8 quantize quantize_te base_model_precision bnb_quantization_config_path "
    "fp8_llm fp8_t5 fp8_vl nf4 qtype do_fp8_training",
    "adapter": "network_module network.type lora_type adapter.type peft_type training_method lycoris_config algo",
    "rank": "network_dim lora_rank network.linear linear lora.rank adapter.rank lora_dim dim r lora_r",
    "lora_alpha": "network_alpha linear_alpha network.linear_alpha lora.alpha alpha",
    "lora_dropout": "network_dropout rank_dropout module_dropout adapter.dropout",
    "use_dora": "dora dora_wd lora_decompose decompose",
    "use_rslora": "rslora rank_stabilized",
    "lokr_factor": "factor lokr_decompose_factor decompose_factor",
    "target_modules": "network_args lora_layers peft_lora_target_modules only_if_contains layer_filter lora_target "
    "lora_target_modules include_patterns network.network_kwargs.only_if_contains flux_lora_target lora_base_model",
    "exclude_modules": "ignore_if_contains exclude_patterns exclude adapter.exclude_linear_modules",
    "learn_words": "placeholder_token initializer_token modifier_token placeholder_tokens initializer_tokens",
    "init_lora": "network_weights init_from_existing lora_path lora_checkpoint pretrained_lora_path lora_model_name",
    "resolution": "resolutions resolution_type height width max_bucket_reso min_bucket_reso video_reshape_mode "
    "max_pixels num_height num_width id_token_resolution",
    "num_frames": "target_frames frame_buckets frames num_latent_t max_num_frames min_frames video.num_frames",
    "fps": "source_fps target_fps framerate frame_rate train_fps",
    "frame_extraction": "video_clip_mode shrink_video_to_frames frame_sampling",
    "frame_samples": "frame_sample",
    "aspect_buckets": "enable_bucket enable_ar_bucket aspect_ratio_bucketing min_ar max_ar num_ar_buckets ar_buckets "
    "aspect bucket_reso_steps center_crop crop crop_aspect",
    "upscale": "bucket_no_upscale no_upscale",
    "caption": "instance_prompt default_caption class_tokens caption_strategy prompt",
    "caption_extension": "caption_ext caption_column",
    "caption_dropout": "caption_dropout_rate caption_dropout_probability caption_dropout_every_n_epochs cfg_rate "
    "training_cfg_rate proportion_empty_prompts unconditional_prob",
    "trigger_word": "id_token trigger trigger_phrase",
    "num_repeats": "repeats dataset_repeat",
    "masks": "mask_path masked_loss masked_training alpha_mask conditioning_data_dir mask_directory mask_dir",
    "unmasked_weight": "unmasked_probability masked_loss_weight",
    "control": "control_directory control_path control_image cond_image conditioning_image extra_inputs",
    "first_frame": "image_conditioning first_frame_conditioning i2v",
    "max_sequence_length": "max_token_length tokenizer_max_length max_text_length",
    "held_out": "eval_datasets validation_split validation_data_dir",
    "cache_dir": "cache_directory cache_dir_vae cache_path vae_cache_dir",
    "learning_rate": "lr unet_lr train.lr optimizer.lr transformer_lr base_learning_rate unet_learning_rate",
    "train_batch_size": "batch_size train.batch_size micro_batch_size_per_gpu micro_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation gradient_accum_steps accumulate_grad_batches",
    "max_train_steps": "steps train.steps max_steps max_training_steps iterations train_steps",
    "num_train_epochs": "max_train_epochs epochs num_epochs",
    "minutes": "max_minutes",
    "optimizer": "optimizer_type optimizer.type use_8bit_adam use_prodigy",
    "optimizer_args": "optimizer_params optimizer_config adam_beta1 adam_beta2 adam_epsilon betas eps prodigy_beta3 "
    "prodigy_decouple prodigy_use_bias_correction prodigy_safeguard_warmup",
    "weight_decay": "adam_weight_decay optimizer_weight_decay",
    "max_grad_norm": "gradient_clipping clip_grad_norm grad_clip",
    "lr_scheduler": "learning_rate_scheduler lr_scheduler_type lr_schedule",
    "lr_warmup_steps": "warmup_steps warmup learning_rate_warmup_steps lr_warmup",
    "lr_num_cycles": "lr_scheduler_num_cycles learning_rate_cycles",
    "lr_power": "lr_scheduler_power",
    "use_ema": "ema ema_config.use_ema train.ema_config.use_ema",
    "ema_decay": "ema_config.ema_decay",
    "seed": "random_seed",
    "mixed_precision": "train.dtype train_dtype precision full_bf16 full_fp16",
    "gradient_checkpointing": "activation_checkpointing use_gradient_checkpointing activation_checkpoint "
    "enable_gradient_checkpointing",
    "offload": "blocks_to_swap block_swap low_vram layer_offload_fraction enable_model_cpu_offload group_offload "
    "gradient_checkpointing_cpu_offload use_gradient_checkpointing_offload",
    "compile": "torch_compile dynamo_backend compile_model",
    "threads": "num_cpu_threads_per_process",
    "timestep_sampling": "timestep_type timestep_sample_method timestep_distribution flow_use_uniform_schedule "
    "flow_weighting_scheme flow_use_beta_schedule content_or_style",
    "logit_mean": "noising_bias flow_logit_mean",
    "logit_std": "noising_weight sigmoid_scale flow_sigmoid_scale flow_logit_std",
    "flow_shift": "discrete_flow_shift flow_schedule_shift timestep_shift shift flow_schedule_auto_shift "
    "dynamic_timestep_shifting",
    "min_level": "min_timestep min_t min_noising_strength min_timestep_boundary",
    "max_level": "max_timestep max_t max_noising_strength",
    "loss_weighting": "weighting_scheme loss_weight_strategy loss_weight_fn linear_timesteps",
    "loss_type": "loss_function mse_strength",
    "huber_delta": "huber_c huber_strength",
    "snr_gamma": "min_snr_gamma min_snr snr_loss_gamma",
    "noise_offset": "offset_noise offset_noise_weight",
    "guidance": "guidance_scale guidance_embedding_scale flux_guidance_value embedded_guidance_scale",
    "audio_weight": "audio_loss_weight audio_loss_multiplier",
    "checkpointing_steps": "save_every_n_steps save_every_n_epochs save_every save.save_every save_steps backup_after "
    "save_every_n_minutes checkpoint_every_n_minutes checkpoint_every_n_epochs checkpoint_step_interval",
    "checkpoints_total_limit": "save_last_n_steps save_last_n_epochs max_step_saves_to_keep rolling_backup_count "
    "save_n_epoch_ratio",
    "resume_from_checkpoint": "resume continue_last_backup auto_resume save_state save_state_on_train_end",
    "report_to": "log_with tracker_name tensorboard use_tensorboard use_wandb wandb_run_name log_tracker_name",
    "push_to_hub": "huggingface_repo_id save.push_to_hub",
    "hub_model_id": "hub_repo_id repo_id hf_repo_id",
    "validation_prompts": "validation_prompt sample_prompts sample.prompts prompts sample_definition_file_name "
    "user_prompt_library",
    "validation_steps": "validation_epochs sample_every_n_steps sample_every_n_epochs sample_every sample_after "
    "sample_at_first eval_every_n_epochs eval_every_n_steps eval_steps_interval validation_step_interval",
    "num_validation_samples": "num_validation_images num_validation_videos validation_num_images",
    "validation_seed": "sample.seed walk_seed sample_seed",
    "validation_num_inference_steps": "sample_steps validation_sampling_steps",
    "validation_guidance_scale": "validation_guidance sample.guidance_scale",
    "validation_negative_prompt": "sample.neg negative_prompt",
    "validation_images": "validation_image",
    "attention": "attention_mechanism sdpa flash_attn flash3 sage_attn xformers split_attn attn_mode attention_mode "
    "enable_xformers_memory_efficient_attention attention_backend training.vsa",
    "attention_args": "sla_config vsa_sparsity training.vsa.sparsity attn_config",
}  # fmt: skip

#: What has no counterpart: names elsewhere -> why.
WITHOUT: dict[str, str] = {
    "vae vae_path t5 clip clip_l clip_g text_encoder text_encoder1 text_encoder2 tokenizer gemma llm_path t5_path": "a "
    "Diffusers folder holds all parts of a model",
    "train_text_encoder text_encoder_lr network_train_text_encoder_only text_encoder_learning_rate": "text "
    "encoders stay as they are",
    "network_train_unet_only train_unet train.train_unet": "the denoiser alone is trained anyway",
    "cache_latents cache_latents_to_disk cache_text_encoder_outputs cache_text_encoder_outputs_to_disk "
    "vae_cache_ondemand latent_caching cache_text_embeddings": "latents and text are cached anyway, see cache_dir",
    "max_data_loader_n_workers dataloader_num_workers persistent_data_loader_workers num_workers": "samples come from "
    "the cache, without workers",
    "shuffle_caption shuffle_tokens keep_tokens tag_shuffling caption_tag_dropout_rate token_dropout_rate": "captions "
    "are used as they are written",
    "flip_aug color_aug random_flip random_crop": "samples are not changed; put changed copies into the folder",
    "reg_data_dir prior_loss_weight with_prior_preservation class_data_dir class_prompt num_class_images is_reg "
    "prior_generation": "pictures of the class go into a further folder of data",
    "save_model_as save_format save_precision": "the result is one safetensors file; genkit lora convert writes others",
    "noise_scheduler model_prediction_type prediction_type v_parameterization v2 zero_terminal_snr": "the model's "
    "scheduler tells what is predicted",
    "arch model_type is_flux is_xl is_sd3": "the model's folder tells its class",
    "scale_lr scale_weight_norms ip_noise_gamma multires_noise_iterations input_perturbation": "it is not offered",
    "local_rank num_processes deepspeed pipeline_stages num_machines hybrid_shard_dim": "accelerate launch tells it: "
    "accelerate launch scripts/train_lora_video.py --config lora.yaml",
    "hub_token hf_token huggingface_token": "log in with 'hf auth login' instead",
    "allow_tf32 tf32 highvram lowram cpu_offload_checkpointing": "it is not offered",
    "lora_plus_ratio loraplus_lr_ratio": "it is not offered",
}  # fmt: skip

#: Sections whose keys are settings of ai-toolkit, diffusion-pipe or FastVideo; a mapping under another name is one too.
_SECTIONS = ("config", "process", "train", "network", "save", "sample", "model", "datasets", "optimizer", "adapter")
#: Keys of a foreign file that a message names.
MOST = 8


def _table(rows: Mapping[str, str], swapped: bool = False) -> dict[str, str]:
    found: dict[str, str] = {}
    for here, there in rows.items():
        for name in (here if swapped else there).split():
            found.setdefault(name, there if swapped else here)
    return found


_HERE = _table(NAMES)
_NONE = _table(WITHOUT, swapped=True)


def known(name: str) -> bool:
    """Whether another trainer has an option of this name."""
    plain = _plain(name)
    return plain in _HERE or plain in _NONE


def counterpart(name: str, known: list[str]) -> str:
    """What a name that is no setting of this trainer means here, in a few words.

    Args:
        name: as written: ``network_dim``, ``--network-dim``, ``train.steps``.
        known: the settings here, for the nearest name.

    Returns:
        ``"'network_dim' is rank here"``, ``"'flip_aug': samples are not changed; ..."``, or the nearest name.
    """
    plain = _plain(name)
    parts = plain.split(".")
    for tried in (".".join(parts[-count:]) for count in range(len(parts), 0, -1)):
        if tried in _HERE:
            return f"{shown(name)} is {_HERE[tried]} here"
        if tried in _NONE:
            return f"{shown(name)}: {_NONE[tried]}"
        if len(parts) > 1 and tried in known:
            return f"{shown(name)} is {tried} here, without a section"
    close = difflib.get_close_matches(plain[:200], known, n=1)
    return f"{shown(name)} is no setting" + (f" (did you mean {close[0]!r}?)" if close else "")


def _plain(name: str) -> str:
    return name.strip().lstrip("-").replace("-", "_").lower()


def flattened(values: Mapping[str, Any], known: list[str]) -> Iterator[str]:
    """The names in a mapping that are no settings; those inside sections as ``train.steps``."""
    for key, value in values.items():
        name = str(key)
        if name.replace("-", "_") in known:
            continue
        yield from _names_in(name, value) if isinstance(value, Mapping | list) else (name,)


def _names_in(section: str, value: Any, depth: int = 8) -> Iterator[str]:
    inner = value if isinstance(value, list) else [value]
    mappings = [each for each in inner if isinstance(each, Mapping)]
    if not mappings or depth == 0 or section in _HERE and section not in _SECTIONS:
        yield section
        return
    for each in mappings:
        for key, part in each.items():
            name = f"{section}.{key}"
            yield from _names_in(name, part, depth - 1) if isinstance(part, Mapping | list) else (name,)


def foreign(origin: str, values: Mapping[str, Any], known: list[str]) -> str:
    """The message about names in a file or on the command line that are no settings; it tells up to :data:`MOST`."""
    names = list(dict.fromkeys(flattened(values, known)))
    told = "; ".join(counterpart(name, known) for name in names[:MOST])
    more = f"; and {len(names) - MOST} more" if len(names) > MOST else ""
    return f"unknown setting in {origin}: {told}{more}. All settings: genkit train lora --help"
