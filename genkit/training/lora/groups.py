"""Groups of settings for training a LoRA, under Diffusers' names; nothing here needs torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from genkit.errors import UsageError, explain
from genkit.pipelines.request import NEVER, WHEN_GIVEN, Settings, option
from genkit.pipelines.settings import DTYPE_CHOICES, MODEL, AttentionSettings, as_dtype, as_rate
from genkit.pipelines.text import as_pairs, as_texts
from genkit.schema import Rule
from genkit.training.data.source import (
    FRAME_EXTRACTIONS,
    REFUSE,
    SILENCE,
    VIDEO_ONLY,
    DataSource,
    as_numbers,
    as_sizes,
    as_sources,
)
from genkit.training.lora.route import as_route

LORA, LOKR = "lora", "lokr"
KAIMING, GAUSSIAN = "kaiming", "gaussian"
QUANTIZATIONS = ("bitsandbytes_8bit", "bitsandbytes_4bit", "quanto", "torchao")
ACTIVATIONS = "activations"
OFFLOADS = ("none", "model", ACTIVATIONS)
UNIFORM, LOGIT_NORMAL, MODE = "uniform", "logit_normal", "mode"
SAMPLINGS = (UNIFORM, LOGIT_NORMAL, MODE)
WEIGHTINGS = ("none", "sigma_sqrt", "cosmap", "bell")
MSE, HUBER = "mse", "huber"
RESTARTS, POLYNOMIAL = "cosine_with_restarts", "polynomial"
LR_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", RESTARTS, POLYNOMIAL)
PRECISIONS = ("no", "bf16", "fp16")
TRACKERS = ("none", "tensorboard", "wandb")
LATEST = "latest"
LARGEST_RANK = 65_536
#: Value of ``first_frame``: the picture told to the model is the clip's own first frame.
CLIP = "clip"
BUDGETS = ("max_train_steps", "num_train_epochs", "minutes")


def _as_path(value: Any, what: str) -> Any:
    """A path with ``~`` as the home folder, as a shell would have it."""
    return os.path.expanduser(value) if isinstance(value, str) else value


def _above(high: float) -> Rule:
    return Rule(low=1e-30, high=high, says=f"a number above 0, at most {high:g}")


def _count(high: int = 1_000_000_000) -> Rule:
    return Rule(low=1, high=high)


_SHARE = Rule(low=0, high=1)


@dataclass(frozen=True)
class ModelSettings(Settings):
    """What is trained, on what, and where it goes."""

    model: str = option("", MODEL, group="What is trained")
    parts_from: str | None = option(
        None, "For a whole model in one file as --model: Diffusers folder or hub id of a model of its kind, with the "
        "configurations and what the file does not hold.", group="What is trained", stored=WHEN_GIVEN,
    )  # fmt: skip
    data: tuple[DataSource, ...] = option(
        (), "Folder of media with captions, or a .toml file that lists data sets as musubi-tuner and sd-scripts do. "
        "Repeatable; in a file also a list of mappings (path, num_repeats, weight, caption, ...).",
        group="What is trained", parse=as_sources,
    )  # fmt: skip
    output: str = option(
        "", "Folder for pytorch_lora_weights.safetensors, checkpoints, log and samples.", group="What is trained",
        stored=NEVER, parse=_as_path,
    )  # fmt: skip
    component: str | None = option(
        None, "Denoiser to train of a model with several, such as transformer_2 of Wan 2.2 (noise levels below its "
        "boundary).", group="What is trained",
    )  # fmt: skip
    dtype: str = option(
        "auto", "Of the frozen model: auto, float32, bfloat16 or float16 (fp32, bf16, fp16). The LoRA is float32.",
        group="What is trained", parse=as_dtype, rule=Rule(choices=DTYPE_CHOICES),
    )  # fmt: skip
    quantization: str | None = option(
        None, "Quantise the frozen denoiser with this backend of Diffusers: bitsandbytes_8bit, bitsandbytes_4bit, "
        "quanto or torchao.", group="What is trained", rule=Rule(choices=QUANTIZATIONS),
    )  # fmt: skip
    quantization_args: dict[str, Any] = option(
        dict, "Settings of the quantisation backend: key=value,key=value.", group="What is trained", parse=as_pairs,
        belongs="quantization",
    )  # fmt: skip
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps, ...", group="What is trained", stored=NEVER)


@dataclass(frozen=True)
class AdapterSettings(Settings):
    """The adapter: its kind, size and place."""

    adapter: str = option(LORA, "Kind of adapter: lora or lokr.", group="Adapter", rule=Rule(choices=(LORA, LOKR)))
    rank: int = option(16, "Rank of the adapter's matrices.", group="Adapter", rule=_count(LARGEST_RANK))
    lora_alpha: float | None = option(
        None, "The LoRA is scaled by lora_alpha / rank; the rank when left out.", group="Adapter", rule=_above(1e6)
    )
    lora_dropout: float = option(
        0.0, "Share of the adapter's inputs that are dropped in training.", group="Adapter",
        rule=Rule(low=0, high=0.99),
    )  # fmt: skip
    use_rslora: bool = option(False, "Scale by lora_alpha / sqrt(rank) (rank-stabilised LoRA).", group="Adapter")
    use_dora: bool = option(
        False, "Train the length of every weight column besides (DoRA): a third slower.", group="Adapter"
    )
    lokr_factor: int = option(
        -1, "LoKr: side of the smaller Kronecker factor; -1 for the most even split.", group="Adapter",
        rule=Rule(low=-1, high=65_536),
    )  # fmt: skip
    target_modules: tuple[str, ...] = option(
        (), "Layers that get an adapter: ends of their names (to_q,to_k) or one regular expression for whole names. "
        "The family's own when left out. Repeatable.", group="Adapter", parse=as_texts,
    )  # fmt: skip
    exclude_modules: tuple[str, ...] = option(
        (), "Layers that get none, written likewise. Repeatable.", group="Adapter", parse=as_texts
    )
    rank_pattern: dict[str, Any] = option(
        dict, "Other ranks for some layers, by their names or by regular expressions: to_v=32,to_out.0=8.",
        group="Adapter", parse=as_pairs,
    )  # fmt: skip
    alpha_pattern: dict[str, Any] = option(
        dict, "Other lora_alpha for some layers, written likewise.", group="Adapter", parse=as_pairs
    )
    init_lora_weights: str = option(
        KAIMING, "Start of the lower matrices: kaiming or gaussian. The upper ones are zero.", group="Adapter",
        rule=Rule(choices=(KAIMING, GAUSSIAN)),
    )  # fmt: skip
    init_lora: str | None = option(
        None, "LoRA file to begin with instead of zero; optimizer and step count begin anew.", group="Adapter"
    )


@dataclass(frozen=True)
class MixSettings(Settings):
    """Several finished LoRAs and a router that learns which of them a token takes."""

    mix: tuple[str, ...] = option(
        (), "Train no LoRA, but a router over these finished ones (two or more files or folders, with @0.8 for a "
        "strength): which of them, or none, every token takes in every layer. Repeatable.", group="Mixture",
        parse=as_texts,
    )  # fmt: skip
    mix_balance: float = option(
        0.01, "Weight of spreading tokens over the LoRAs; 0 where the data need them unevenly.", group="Mixture",
        rule=Rule(low=0, high=100),
    )  # fmt: skip
    mix_certainty: float = option(
        0.01, "Weight of making choices certain, after a fifth of the steps.", group="Mixture",
        rule=Rule(low=0, high=100),
    )  # fmt: skip


@dataclass(frozen=True)
class DataSettings(Settings):
    """How media and captions become samples."""

    resolution: tuple[str, ...] = option(
        (), "Pixels of a sample: 512 (area of this square, in the aspect ratio of every file) or 480x832 (height x "
        "width of all). The model's own when left out. Repeatable.", group="Data", parse=as_sizes,
    )  # fmt: skip
    num_frames: tuple[int, ...] = option(
        (), "Frames of a clip; several (9,17) make a bucket of each. The model's own when left out.", group="Data",
        parse=as_numbers,
    )  # fmt: skip
    fps: str | None = option(
        None, "Frames per second that clips are brought to by leaving out or repeating frames; the family's when left "
        "out.", group="Data", parse=as_rate,
    )  # fmt: skip
    frame_extraction: str = option(
        "head", "Which frames of a longer clip: head (the first), chunk (one after the other), slide (every "
        "frame_stride), uniform (frame_samples spread evenly) or full.", group="Data",
        rule=Rule(choices=FRAME_EXTRACTIONS),
    )  # fmt: skip
    frame_stride: int = option(1, "Frames between two cuts of slide.", group="Data", rule=_count(100_000))
    frame_samples: int = option(1, "Cuts of uniform.", group="Data", rule=_count(100_000))
    aspect_buckets: bool = option(
        True, "Bucket files by their aspect ratio; off: cut a square out of each, where resolution is one number.",
        group="Data",
    )  # fmt: skip
    upscale: bool = option(
        False, "Enlarge files smaller than the resolution; off: each gets a bucket of its own size.", group="Data"
    )
    caption: str | None = option(None, "Caption of all samples that have no own one.", group="Data", prose=True)
    caption_extension: str = option(".txt", "Ending of the caption file beside every sample.", group="Data")
    caption_dropout: float = option(
        0.1, "Share of samples whose caption is emptied, so that guidance keeps working.", group="Data", rule=_SHARE
    )
    trigger_word: str | None = option(
        None, "Put before captions that do not have it, and where they say [trigger].", group="Data", prose=True
    )
    num_repeats: int = option(
        1, "How often every sample comes in an epoch.", group="Data", rule=_count(1_000_000)
    )  # fmt: skip
    masks: str | None = option(
        None, "Folder of masks with the names of the samples: the loss counts where they are white.", group="Data"
    )
    unmasked_weight: float = option(0.0, "Weight of the loss where a mask is black.", group="Data", rule=_SHARE)
    control: str | None = option(
        None, "Folder of pictures to edit or follow, with the names of the samples.", group="Data"
    )
    first_frame: str | None = option(
        None, "First frames for image-to-video models: a folder with the names of the samples, or 'clip' for each "
        "clip's own (their default).", group="Data",
    )  # fmt: skip
    last_frame: str | None = option(None, "Last frames, for models that are told them: likewise.", group="Data")
    missing_audio: str = option(
        VIDEO_ONLY, "Clips without sound, for models with sound: video (train the video alone with them), silence, or "
        "refuse.", group="Data", rule=Rule(choices=(VIDEO_ONLY, SILENCE, REFUSE)),
    )  # fmt: skip
    max_sequence_length: int | None = option(
        None, "Text tokens of a caption; the family's own when left out.", group="Data", rule=_count(1_000_000)
    )
    held_out: float = option(
        0.0, "Share (below 1) or number of files kept out of training for a loss at fixed noise, chosen by their "
        "content.",
        group="Data", rule=Rule(low=0, high=1_000_000),
    )  # fmt: skip
    cache_dir: str | None = option(
        None, "Folder of encoded media and captions, may be shared between runs; OUTPUT/cache when left out.",
        group="Data", stored=NEVER, parse=_as_path,
    )  # fmt: skip


@dataclass(frozen=True)
class OptimizationSettings(Settings):
    """How long, how fast, and with what the adapter is trained."""

    max_train_steps: int | None = option(
        None, "Budget in optimizer steps. One of the three budgets is needed.", group="Optimization", rule=_count()
    )
    num_train_epochs: int | None = option(
        None, "Budget in passes over the data.", group="Optimization", rule=_count(1_000_000)
    )  # fmt: skip
    minutes: float | None = option(
        None, "Budget in minutes of training time; such a run does not repeat bit for bit.", group="Optimization",
        rule=_above(1e6),
    )  # fmt: skip
    learning_rate: float = option(1e-4, "Peak learning rate.", group="Optimization", rule=_above(100))
    train_batch_size: int = option(
        1, "Samples of a process in a micro-batch.", group="Optimization", rule=_count(65_536)
    )  # fmt: skip
    gradient_accumulation_steps: int = option(
        1, "Micro-batches of a step: the gradient of a larger batch at the memory of one.", group="Optimization",
        rule=_count(65_536),
    )  # fmt: skip
    optimizer: str = option(
        "adamw", "adamw, adamw_8bit (bitsandbytes), prodigy (prodigyopt), muon, or a class by its name, such as "
        "torch.optim.SGD.",
        group="Optimization",
    )  # fmt: skip
    optimizer_args: dict[str, Any] = option(
        dict, "Further arguments of the optimizer: key=value,key=value.", group="Optimization", parse=as_pairs,
        belongs="optimizer",
    )  # fmt: skip
    weight_decay: float = option(
        0.01, "Share of the learning rate by which weights shrink.", group="Optimization", rule=Rule(low=0, high=100)
    )
    max_grad_norm: float = option(
        1.0, "Largest norm of all gradients together; longer ones are shortened.", group="Optimization",
        rule=_above(1e9),
    )  # fmt: skip
    lr_scheduler: str = option(
        "constant", f"Course of the learning rate after the warm-up: {', '.join(LR_SCHEDULERS)}.",
        group="Optimization", rule=Rule(choices=LR_SCHEDULERS),
    )  # fmt: skip
    lr_warmup_steps: int = option(
        0, "Steps in which the learning rate grows to its peak.", group="Optimization", rule=Rule(low=0, high=10**9)
    )
    lr_num_cycles: int = option(1, "Restarts of cosine_with_restarts.", group="Optimization", rule=_count(10_000))
    lr_power: float = option(1.0, "Power of polynomial.", group="Optimization", rule=_above(100))
    use_ema: bool = option(False, "Average the adapter's weights and save the average.", group="Optimization")
    ema_decay: float = option(
        0.998, "Largest decay of the average.", group="Optimization", rule=Rule(low=0, high=0.999999)
    )  # fmt: skip
    seed: int = option(0, "Of everything drawn.", group="Optimization", rule=Rule(low=0, high=2**63 - 1))
    mixed_precision: str | None = option(
        None, "Of the computation: no, bf16 or fp16; what accelerate's configuration says when left out.",
        group="Optimization", rule=Rule(choices=PRECISIONS),
    )  # fmt: skip
    gradient_checkpointing: bool = option(
        False, "Compute blocks again in the backward pass: a third slower, far less memory.", group="Optimization"
    )
    offload: str = option(
        "none", "Kept in main memory until needed: none, model (text encoders and autoencoder) or activations (what "
        "the backward pass needs, besides).", group="Optimization", rule=Rule(choices=OFFLOADS),
    )  # fmt: skip
    compile: bool = option(False, "Compile the denoiser's blocks with torch.compile.", group="Optimization")
    threads: int | None = option(
        None, "Threads of the CPU.", group="Optimization", rule=_count(4096), stored=NEVER
    )  # fmt: skip


@dataclass(frozen=True)
class RoutingSettings(Settings):
    """Tokens that skip blocks in training."""

    route: str | None = option(
        None, "Token routing (TREAD): START:END:RATIO, such as 2:-2:0.5. In training this share of the tokens, drawn "
        "anew every time, skips these blocks: cheaper steps. Text never does; samples and held-out losses have all.",
        group="Optimization", parse=as_route,
    )  # fmt: skip


@dataclass(frozen=True)
class LossSettings(Settings):
    """At which noise levels the model is trained, and how errors count. A level is 0 for clean latents and 1 for noise
    alone, whatever the family."""

    timestep_sampling: str | None = option(
        None, "How noise levels are drawn before the shift: uniform, logit_normal or mode. logit_normal for flow "
        "models, uniform for others when left out.", group="Noise and loss", rule=Rule(choices=SAMPLINGS),
    )  # fmt: skip
    logit_mean: float = option(
        0.0, "Of logit_normal: above 0 means more noise.", group="Noise and loss", rule=Rule(low=-20, high=20)
    )
    logit_std: float = option(1.0, "Of logit_normal.", group="Noise and loss", rule=_above(20))
    mode_scale: float = option(1.29, "Of mode.", group="Noise and loss", rule=Rule(low=-1, high=1.75))
    flow_shift: float | None = option(
        None, "Shift of the noise levels of a flow model: above 1 means more noise. The family's own when left out.",
        group="Noise and loss", rule=Rule(low=0.01, high=100),
    )  # fmt: skip
    min_level: float = option(0.0, "Lowest noise level that is trained.", group="Noise and loss", rule=_SHARE)
    max_level: float = option(1.0, "Highest noise level that is trained.", group="Noise and loss", rule=_SHARE)
    loss_weighting: str = option(
        "none", "Weight of a noise level in the loss of flow models: none, sigma_sqrt, cosmap or bell.",
        group="Noise and loss", rule=Rule(choices=WEIGHTINGS),
    )  # fmt: skip
    loss_type: str = option(
        MSE, "Error of an answer: mse, or huber (large errors count less).", group="Noise and loss",
        rule=Rule(choices=(MSE, HUBER)),
    )  # fmt: skip
    huber_delta: float = option(
        0.1, "Error from which huber is linear.", group="Noise and loss", rule=_above(1e6)
    )  # fmt: skip
    snr_gamma: float | None = option(
        None, "Min-SNR weighting with this gamma (5 is usual), for epsilon and v prediction.", group="Noise and loss",
        rule=_above(1e6),
    )  # fmt: skip
    noise_offset: float = option(
        0.0, "Offset noise of this strength (0.05 to 0.1 is usual), for epsilon and v prediction.",
        group="Noise and loss", rule=_SHARE,
    )  # fmt: skip
    guidance: float | None = option(
        None, "Value for models with an embedded guidance scale (Flux-dev, HunyuanVideo); the family's own when "
        "left out.",
        group="Noise and loss", rule=Rule(low=0, high=1000),
    )  # fmt: skip
    condition_dropout: float | None = option(
        None, "Share of samples whose told picture is emptied (CogVideoX image-to-video; 0.05 when left out).",
        group="Noise and loss", rule=_SHARE,
    )  # fmt: skip
    condition_noise: float | None = option(
        None, "Noise on the told picture's latents (CogVideoX image-to-video): of about this strength, drawn anew "
        "every time; none when left out.", group="Noise and loss", rule=Rule(low=0, high=10),
    )  # fmt: skip
    tasks: dict[str, Any] = option(
        dict, "For models of video and sound: what samples are trained to do, with weights: t2av=0.5,i2av=0.1,"
        "av2av=0.1,a2v=0.15,v2a=0.15 (also t2v, i2v, t2a). All make both from text when left out.",
        group="Noise and loss", parse=as_pairs,
    )  # fmt: skip
    audio_weight: float = option(
        1.0, "Weight of the sound's loss beside the video's.", group="Noise and loss", rule=Rule(low=0, high=1000)
    )


@dataclass(frozen=True)
class CheckpointSettings(Settings):
    """What is kept on the way."""

    checkpointing_steps: int = option(
        500, "Steps between checkpoints OUTPUT/checkpoint-N.", group="Checkpoints", rule=_count(), stored=NEVER
    )
    checkpoints_total_limit: int | None = option(
        None, "Checkpoints to keep, the newest; all when left out.", group="Checkpoints", rule=_count(), stored=NEVER
    )
    resume_from_checkpoint: str | None = option(
        None, "Go on from a checkpoint: 'latest' of the output folder, or a folder.", group="Checkpoints", stored=NEVER
    )
    report_to: str = option(
        "none", "Besides log.jsonl: none, tensorboard or wandb.", group="Checkpoints", rule=Rule(choices=TRACKERS),
        stored=NEVER,
    )  # fmt: skip
    push_to_hub: bool = option(False, "Upload the result to the Hugging Face hub.", group="Checkpoints", stored=NEVER)
    hub_model_id: str | None = option(
        None, "Repository owner/name for it; your account and the output folder's name when left out.",
        group="Checkpoints", stored=NEVER,
    )  # fmt: skip


@dataclass(frozen=True)
class ValidationSettings(Settings):
    """What is sampled to see how training goes. Nothing of it changes the training."""

    validation_prompts: tuple[str, ...] = option(
        (), "Prompts to sample before, during and after training, into OUTPUT/samples. Repeatable.", group="Validation",
        parse=as_texts, prose=True,
    )  # fmt: skip
    validation_steps: int | None = option(
        None, "Steps between samples and held-out losses; before and after training only when left out.",
        group="Validation", rule=_count(),
    )  # fmt: skip
    num_validation_samples: int = option(
        1, "Samples of every prompt, with seeds seed, seed+1, ...", group="Validation", rule=_count(10_000)
    )
    validation_seed: int = option(0, "Of the samples.", group="Validation", rule=Rule(low=0, high=2**63 - 1))
    validation_num_inference_steps: int | None = option(
        None, "Denoising steps of a sample; the model's own when left out.", group="Validation", rule=_count(1_000_000)
    )
    validation_guidance_scale: float | None = option(
        None, "Guidance of a sample; the model's own when left out.", group="Validation", rule=Rule(low=0, high=10_000)
    )
    validation_negative_prompt: str | None = option(
        None, "Negative prompt of the samples.", group="Validation", prose=True
    )
    validation_resolution: str | None = option(
        None, "Height x width of a sample, such as 480x832; the largest that is trained when left out.",
        group="Validation", parse=lambda value, what: _one_size(value, what),
    )  # fmt: skip
    validation_num_frames: int | None = option(
        None, "Frames of a sample; the most that are trained when left out.", group="Validation", rule=_count(1_000_000)
    )
    validation_images: tuple[str, ...] = option(
        (), "Pictures for models that need one, a file for every prompt. Repeatable.", group="Validation",
        parse=as_texts,
    )  # fmt: skip


@dataclass(frozen=True)
class MethodWeightsSettings(AttentionSettings):
    """Attention in the loop."""

    attention: str | None = option(
        None, "Attention method in the loop, by name (see genkit methods); 'none' for the model's own.",
        group="Attention",
    )  # fmt: skip
    train_attention_weights: bool = option(
        False, "Train the method's own weights too (agent, cross_modal_context, shared_cross_attention, ...); saved "
        "beside the LoRA.",
        group="Attention",
    )  # fmt: skip


def _one_size(value: Any, what: str) -> str:
    sizes = as_sizes(value, what)
    if len(sizes) != 1 or isinstance(value, Mapping):
        raise UsageError(explain(what, value, "one size, such as 480x832 (height x width)"))
    return sizes[0]
