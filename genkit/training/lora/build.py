"""Settings as what they mean to adapter, loss and loop; nothing here reads a file or a weight."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from genkit.errors import UsageError, counted, explain, shown
from genkit.families.facts import FLOW
from genkit.pipelines.request import flag
from genkit.schema import number, read
from genkit.training.data.batch import Samples
from genkit.training.engine.loop import LoopConfig
from genkit.training.lora.adapter import DORA, AdapterConfig
from genkit.training.lora.groups import LARGEST_RANK, LOGIT_NORMAL, LORA, UNIFORM
from genkit.training.lora.levels import Levels
from genkit.training.lora.settings import LoraSettings
from genkit.training.lora.task import LossOptions

#: A loss of more than a thousand times the usual one is no accident of a noise level.
_EXPLOSION = 1000.0


def adapter_config(settings: Any) -> AdapterConfig:
    """What is trained."""
    kind = DORA if settings.adapter == LORA and settings.use_dora else settings.adapter
    return AdapterConfig(
        kind=kind,
        rank=settings.rank,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        rslora=settings.use_rslora,
        init=settings.init_lora_weights,
        targets=settings.target_modules,
        excluded=settings.exclude_modules,
        ranks={name: _rank(name, value) for name, value in settings.rank_pattern.items()},
        alphas={name: _number("alpha_pattern", name, value, float) for name, value in settings.alpha_pattern.items()},
        factor=settings.lokr_factor,
    )


def _rank(name: str, value: Any) -> int:
    found = _number("rank_pattern", name, value, int)
    if found > LARGEST_RANK:
        raise UsageError(explain(f"--rank-pattern of {shown(name)}", found, f"at most {LARGEST_RANK}"))
    return found


def _number(setting: str, name: str, value: Any, kind: type) -> Any:
    """A number of a pattern, which flags write as text."""
    what = f"{flag(setting)} of {shown(name)}"
    return number(value, kind, what) if isinstance(value, str) else read(kind, value, what)


def loss_options(settings: LoraSettings, objective: str, seen: tuple[float, float] = (0.0, 1.0)) -> LossOptions:
    """How errors count.

    Args:
        settings: of the run.
        objective: one of :data:`genkit.families.facts.OBJECTIVES`.
        seen: noise levels that the trained denoiser sees, of a model with several.

    Raises:
        UsageError: bounds outside of what the denoiser sees.
    """
    low, high = max(settings.min_level, seen[0]), min(settings.max_level, seen[1])
    if low >= high:
        raise UsageError(
            f"--min-level {settings.min_level:g} and --max-level {settings.max_level:g} leave nothing of the levels "
            f"{seen[0]:g} to {seen[1]:g} that --component {settings.component} sees"
        )
    sampling = settings.timestep_sampling or (LOGIT_NORMAL if objective == FLOW else UNIFORM)
    return LossOptions(
        levels=Levels(sampling, settings.logit_mean, settings.logit_std, settings.mode_scale, low=low, high=high),
        shift=settings.flow_shift,
        weighting=settings.loss_weighting,
        snr_gamma=settings.snr_gamma,
        kind=settings.loss_type,
        delta=settings.huber_delta,
        noise_offset=settings.noise_offset,
        guidance=settings.guidance,
        audio_weight=settings.audio_weight,
        condition_dropout=settings.condition_dropout,
        condition_noise=settings.condition_noise,
    )


def steps_of(settings: LoraSettings, samples: Samples) -> int | None:
    """Optimizer steps of the run; None where minutes are its budget."""
    if settings.num_train_epochs is None:
        return settings.max_train_steps
    batches = settings.num_train_epochs * samples.per_epoch
    return max(1, math.ceil(batches / settings.gradient_accumulation_steps))


def loop_config(
    settings: Any, steps: int | None, precision: str | None, validation_steps: int | None = None
) -> LoopConfig:
    """How long and how fast: rates as Diffusers has them, falling from the end of the warm-up on.

    Args:
        settings: of the run: the groups of optimization and of checkpoints.
        steps: its budget, see :func:`steps_of`.
        precision: of the products; None is the launcher's.
        validation_steps: between looks at what was learned; None for none on the way.
    """
    warmup = settings.lr_warmup_steps
    if steps is not None and warmup >= steps:
        raise UsageError(f"--lr-warmup-steps {warmup} must be below the {counted(steps, 'step')} of the run")
    return LoopConfig(
        folder=Path(settings.output),
        lr=settings.learning_rate,
        steps=steps,
        seconds=None if settings.minutes is None else 60 * settings.minutes,
        warmup=warmup,
        lr_scheduler=settings.lr_scheduler,
        cycles=settings.lr_num_cycles,
        power=settings.lr_power,
        final=0.0,
        decay_from=0.0 if steps is None else warmup / steps,
        max_grad_norm=settings.max_grad_norm,
        ema_decay=settings.ema_decay if settings.use_ema else 0.0,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        mixed_precision=precision,
        gradient_checkpointing=settings.gradient_checkpointing,
        checkpoint_seconds=math.inf,
        checkpoint_steps=settings.checkpointing_steps,
        validation_steps=validation_steps or 0,
        validation_ends=True,
        log_steps=1,
        tracker=None if settings.report_to == "none" else settings.report_to,
        explosion=_EXPLOSION,
    )


#: Settings that decide what every step does. A run goes on with other values of the rest: a longer budget, other
#: samples, other pauses between checkpoints.
_DECIDING = (
    "component", "dtype", "quantization", "quantization_args", "adapter", "rank", "lora_alpha", "lora_dropout",
    "use_rslora", "use_dora", "lokr_factor", "target_modules", "exclude_modules", "rank_pattern",
    "alpha_pattern", "init_lora_weights", "init_lora", "resolution",
    "num_frames", "fps", "frame_extraction", "frame_stride", "frame_samples", "aspect_buckets", "caption_dropout",
    "max_sequence_length", "unmasked_weight", "missing_audio", "learning_rate", "train_batch_size",
    "gradient_accumulation_steps", "optimizer", "optimizer_args", "weight_decay", "max_grad_norm", "lr_scheduler",
    "lr_warmup_steps", "lr_num_cycles", "lr_power", "use_ema", "ema_decay", "seed", "mixed_precision",
    "timestep_sampling", "logit_mean", "logit_std", "mode_scale", "flow_shift", "min_level", "max_level",
    "loss_weighting", "loss_type", "huber_delta", "snr_gamma", "noise_offset", "guidance", "audio_weight", "tasks",
    "condition_dropout", "condition_noise", "route",
    "attention", "attention_args", "schedule", "backend", "recipe", "train_attention_weights", "mix", "mix_balance",
    "mix_certainty",
)  # fmt: skip
#: The same of a run that learns words.
_DECIDING_WORDS = (
    "learn_words", "word_sampling", "word_learning_rate", "attention_loss_weight",
    "attention_threshold", "mask_update_steps", "mask_ssim_threshold", "prior_prompts", "num_prior_images",
    "prior_weight",
)  # fmt: skip


def deciding(settings: LoraSettings) -> dict[str, object]:
    """The settings that must be the same when a run goes on, as plain values."""
    told = settings.to_dict()
    names = (*_DECIDING, *_DECIDING_WORDS) if settings.learn_words else _DECIDING
    return {name: told[name] for name in names if name in told}
