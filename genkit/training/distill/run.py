"""Distilling a model into few steps: from settings to ``OUTPUT/pytorch_lora_weights.safetensors``."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genkit.errors import UnsupportedError, UsageError, explain
from genkit.families.facts import FLOW
from genkit.families.lookup import family_of
from genkit.families.training.base import AUDIO, Media, Tensors, Training
from genkit.families.training.lookup import training_of
from genkit.families.training.objectives import objective_of
from genkit.families.training.parts import facts
from genkit.lora.facts import Facts, Sampling
from genkit.lora.files import NAMED
from genkit.media.atomic import Files, check_writable
from genkit.models import locate
from genkit.pipelines.kinds import IMAGE
from genkit.pipelines.load import load, resolve_dtype
from genkit.pipelines.model import Model
from genkit.pipelines.record import PACKAGES, version
from genkit.reading.files import place, user_path
from genkit.training.distill.grid import Grid, grid_of, sampler_of
from genkit.training.distill.prompts import Prompts, Texts, prompts_of
from genkit.training.distill.settings import DistillSettings
from genkit.training.distill.task import DistillTask, Teaching
from genkit.training.engine.keep import Export, Numbered
from genkit.training.engine.loop import LoopConfig, process_rank, train, wait_for_all
from genkit.training.engine.optimizers import check_optimizer, optimizer_of
from genkit.training.lora.adapter import Adapter
from genkit.training.lora.attention import put_in
from genkit.training.lora.build import adapter_config, loop_config
from genkit.training.lora.checks import check_finished, check_login
from genkit.training.lora.chosen import attention_of, component_of, device_of, precision_of
from genkit.training.lora.data import slots_of_model
from genkit.training.lora.files import lora_files

#: Names of a guidance scale that acts by a second call, among a pipeline's settings.
_TRUE = "true_cfg_scale"


def distill(settings: DistillSettings, told: Callable[[str], None] = warnings.warn) -> Path:
    """Train a few-step student of a model as a LoRA.

    Costs a step: for every sample ``substeps`` calls of the denoiser, two each with guidance, and one call with its
    backward pass. Memory: as for a LoRA; with an attention method in the student a second denoiser besides.

    Args:
        settings: of the run.
        told: called with what the user should know, one line each.

    Returns:
        ``OUTPUT/pytorch_lora_weights.safetensors``; ``genkit generate --lora`` takes steps, guidance and sampler from
        it, in stock Diffusers they are set by hand.

    Raises:
        UsageError: settings that mean nothing for this model.
        UnsupportedError: a model, method or package that cannot do it.
        ArtifactError: files that cannot be read or written, or a loss that is no number.
        Stopped: Ctrl-C; the state was saved.

    Example:
        >>> distill(DistillSettings(model="toy-video", prompts="world", output="runs/fast", max_train_steps=600))
        ... # doctest: +SKIP
    """
    return Plan.of(settings).open(told).go()


@dataclass(frozen=True, eq=False)
class Plan:
    """Settings that passed every check that needs no weights.

    Args:
        settings: of the run.
        model: without weights.
        device, dtype, precision: where and in what the run computes.
        component: the denoiser.
        prompts: what is asked for.
        size: frames, height and width of a sample.
        guidance: of the teacher.
        attention: what is in the student; None for the model's own.
        loop: how long and how fast.
    """

    settings: DistillSettings
    model: Model
    device: torch.device
    dtype: torch.dtype
    precision: str
    component: str
    prompts: Prompts
    size: tuple[int, int, int]
    guidance: float
    attention: Any
    loop: LoopConfig

    @classmethod
    def of(cls, settings: DistillSettings) -> Plan:
        """Check settings against the model; a hub id is downloaded."""
        check_optimizer(settings.optimizer, settings.optimizer_args)
        check_login(settings)
        user_path(settings.output, "--output")
        output = Path(settings.output)
        if output.exists() and not output.is_dir():
            raise UsageError(f"--output {place(output)} is a file; give a folder")
        if process_rank() == 0:
            check_writable(output, "--output")
        check_finished(output, NAMED, settings.resume_from_checkpoint)
        location = locate(settings.model, files=True)
        device = device_of(settings)
        dtype = resolve_dtype(settings.dtype, device)
        precision = precision_of(settings, dtype, device)
        model = Model.at(location, settings.model, settings.parts_from)
        component = component_of(model, None)
        if "transformer_2" in model.parts:
            raise UnsupportedError(f"{model.class_name} with two denoisers is not distilled: each sees half the levels")
        prompts = prompts_of(settings.prompts, model.kind)
        size = _size(settings, model)
        attention = attention_of(settings, model, device, dtype)
        loop = loop_config(settings, settings.max_train_steps, precision)
        return cls(
            settings, model, device, dtype, precision, component, prompts, size, _guidance(settings, model), attention,
            loop,
        )  # fmt: skip

    def open(self, told: Callable[[str], None]) -> Run:
        """Load the model and put the adapter in."""
        settings = self.settings
        if settings.threads:
            torch.set_num_threads(settings.threads)
        place, parts_from = self.model.source
        pipeline = load(place, self.dtype, self.device, parts_from=parts_from)
        training = training_of(pipeline, self.model.sidecar.sound)
        _check_family(training, self.model)
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        network = getattr(pipeline, self.component)
        # Outside of the student's method, which is in the network itself.
        teacher = deepcopy(network) if self.attention is not None else None
        adapter = Adapter(network, adapter_config(settings), facts(pipeline).lora_targets, settings.seed)
        handle = None
        if self.attention is not None:
            handle, _, lines = put_in(network, self.attention, False)
            for line in lines:
                told(line)
        teaching, sampling = self._teaching(pipeline, training)
        return Run(
            self, pipeline, adapter, DistillTask(pipeline, training, adapter, teaching, teacher), sampling, handle
        )

    def _teaching(self, pipeline: Any, training: Training) -> tuple[Teaching, Sampling]:
        settings = self.settings
        objective = objective_of(facts(pipeline).objective, pipeline.scheduler)
        fps = None if self.model.kind is IMAGE else float(self.model.sidecar.defaults.get("fps") or self.model.fps)
        latents, media = _blank(pipeline, training, self.size, fps)
        shape = tuple(latents.shape)
        shift = 1.0 if training.shift is None else training.shift(pipeline, {training.streams[0]: shape})
        sampler = sampler_of(pipeline.scheduler, objective, shift)
        slots = settings.max_sequence_length or slots_of_model(self.model) or training.slots
        teaching = Teaching(
            grid=grid_of(sampler, objective, settings.steps, settings.substeps),
            objective=objective,
            prompts=self.prompts,
            texts=Texts(pipeline, training, slots),
            shape=shape,
            media=media,
            batch=settings.train_batch_size,
            seed=settings.seed,
            guidance=self.guidance,
            embedded=bool(getattr(pipeline, self.component).config.get("guidance_embeds")),
            negative=settings.negative_prompt,
            own_path=settings.own_path,
            fps=fps,
        )
        told = 1.0 if not teaching.embedded else self.guidance
        flow = facts(pipeline).objective.of(pipeline.scheduler) == FLOW
        return teaching, Sampling(settings.steps, told, type(sampler).__name__, shift if flow else None)


@dataclass
class Run:
    """A run that is ready to train.

    Args:
        plan: what was checked.
        pipeline: with weights.
        adapter: on its denoiser.
        task: the loss.
        sampling: how the student is sampled, for the file.
        handle: of the patch; None for the model's own attention.
    """

    plan: Plan
    pipeline: Any
    adapter: Adapter
    task: DistillTask
    sampling: Sampling
    handle: Any = None

    @property
    def grid(self) -> Grid:
        """The noise levels."""
        return self.task.teaching.grid

    def go(self) -> Path:
        """Train until the budget is used up, and write the result."""
        settings, output = self.plan.settings, Path(self.plan.settings.output)
        named = [(name, value) for name, value in self.task.named_parameters() if value.requires_grad]
        optimizer = optimizer_of(
            settings.optimizer, named, settings.learning_rate, settings.weight_decay, settings.optimizer_args
        )
        keep = Numbered(
            output,
            settings.resume_from_checkpoint,
            settings.checkpoints_total_limit,
            self.export,
            self.fingerprint(),
            told=warnings.warn,
        )

        def loss_at(wrapped: nn.Module, number: int, progress: float) -> tuple[torch.Tensor, dict[str, float]]:
            return wrapped(number, process_rank())

        train(self.task, optimizer, loss_at, self.plan.loop, None, title="distill", keep=keep)
        if process_rank() == 0:
            assert keep.last is not None, "the loop ends with a checkpoint"
            with Files() as files:
                shutil.copyfile(keep.last / NAMED, files.new(output / NAMED))
        wait_for_all()
        return output / NAMED

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """What must be the same when the run goes on from a checkpoint."""
        told = self.plan.settings.to_dict()
        base = {
            "model": self.plan.model.class_name,
            "model_fingerprint": self.plan.model.fingerprint(),
            "prompts": self.plan.prompts.digest,
        }
        free = ("max_train_steps", "minutes", "prompts", "model", "parts_from")
        return {"base": base, "settings": {name: value for name, value in told.items() if name not in free}}

    def export(self, step: int) -> Export:
        """What writes the present weights."""
        return lora_files(self.plan.component, self.adapter, self.facts(step))

    def facts(self, step: int) -> Facts:
        """What the file says about itself."""
        settings, model = self.plan.settings, self.plan.model
        return Facts(
            made_by="distill",
            family=family_of(self.adapter.model).name,
            pipeline=model.class_name,
            base_model=model.name,
            base_fingerprint=model.fingerprint(),
            component=self.plan.component,
            adapter=self.adapter.config.kind,
            rank=settings.rank,
            alpha=settings.rank if settings.lora_alpha is None else settings.lora_alpha,
            attention=settings.attention,
            attention_args=settings.attention_args,
            schedule=settings.schedule,
            recipe=settings.recipe,
            steps=step,
            sampling=self.sampling,
            title=f"{self.grid.steps} steps without guidance",
            settings=settings.to_dict(),
            versions={package: version(package) for package in (*PACKAGES, "peft", "genkit")},
        )


def _size(settings: DistillSettings, model: Model) -> tuple[int, int, int]:
    """Frames, height and width of a sample: what was asked for, else the model's own."""
    defaults, known = model.sidecar.defaults, model.accepted
    if model.rule is None:
        raise UnsupportedError(f"{model.class_name} cannot be distilled: genkit does not know which sizes it takes")
    if model.kind is IMAGE and settings.num_frames not in (None, 1):
        raise UsageError(f"--num-frames: {model.class_name} makes pictures; leave it out")
    found = {}
    for name in ("height", "width", "num_frames"):
        own = defaults.get(name) or (known[name].default if name in known else None)
        found[name] = getattr(settings, name) or own
    frames = 1 if model.kind is IMAGE else int(found["num_frames"] or 0)
    missing = [name for name, value in (("height", found["height"]), ("width", found["width"])) if not value]
    if missing or not frames:
        name = (*missing, "num_frames")[0]
        raise UsageError(f"--{name.replace('_', '-')}: {model.class_name} has no size of its own; give one")
    height, width = int(found["height"] or 0), int(found["width"] or 0)
    model.rule.check(height, width, None if model.kind is IMAGE else frames)
    model.check_size(height, width, None if model.kind is IMAGE else frames)
    return frames, height, width


def _guidance(settings: DistillSettings, model: Model) -> float:
    """Guidance of the teacher: what was asked for, else what a run of the model has."""
    if settings.guidance_scale is not None:
        return settings.guidance_scale
    sidecar = model.sidecar
    own = sidecar.defaults.get("guidance_scale") or sidecar.call.get(_TRUE)
    if own is None and "guidance_scale" in model.accepted:
        own = model.accepted["guidance_scale"].default
    return float(own or 1.0)


def _check_family(training: Training, model: Model) -> None:
    """Refuse models that ask for more than a prompt, or make more than one stream."""
    if training.needs:
        needed = ", ".join(training.needs)
        raise UnsupportedError(f"{model.class_name} needs {needed} beside a prompt; distillation has prompts alone")
    if AUDIO in training.streams or len(training.streams) > 1:
        streams = " and ".join(training.streams)
        raise UnsupportedError(explain("--model", model.class_name, f"one that makes one stream, not {streams}"))


@torch.no_grad()
def _blank(
    pipeline: Any, training: Training, size: tuple[int, int, int], fps: float | None
) -> tuple[torch.Tensor, Tensors]:
    """Latents of an empty sample, for their shape, and what the denoiser is told of its size."""
    frames, height, width = size
    device = pipeline._execution_device
    media = Media(torch.zeros(3, frames, height, width, device=device), fps=fps, original=(height, width))
    made = training.encode(pipeline, media, torch.Generator(device).manual_seed(0))
    latents = made.pop(training.streams[0])
    return latents, made
