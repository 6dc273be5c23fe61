"""The task of each kind of student, from a plan and a loaded pipeline."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from genkit.attention.weights import PatchWeights
from genkit.errors import counted
from genkit.families.facts import FLOW
from genkit.families.training.base import Media, Tensors, Training
from genkit.families.training.objectives import objective_of
from genkit.families.training.parts import facts
from genkit.lora.facts import Sampling
from genkit.lora.fold import changed
from genkit.lora.pair import Pair
from genkit.training.data.cache import Cache
from genkit.training.distill.causal import CausalTask
from genkit.training.distill.chunked import Rollout
from genkit.training.distill.features import FeatureLoss, FeaturesTask
from genkit.training.distill.forcing import ForcingTask, options_of
from genkit.training.distill.grid import grid_of, sampler_of
from genkit.training.distill.plan import Plan
from genkit.training.distill.prompts import Texts
from genkit.training.distill.settings import FEATURES, MATCHED
from genkit.training.distill.student import Parts, Student, Teaching
from genkit.training.distill.task import DistillTask
from genkit.training.distill.tdm import TdmOptions, TdmTask
from genkit.training.engine.journal import counting
from genkit.training.engine.loop import process_rank, wait_for_all
from genkit.training.lora.adapter import Adapter
from genkit.training.lora.attention import put_in
from genkit.training.lora.build import adapter_config
from genkit.training.lora.data import CACHE, slots_of_model
from genkit.training.lora.made import MadeSamples, make_samples
from genkit.training.lora.plan import starting_pairs


@dataclass
class Built:
    """What a plan comes to with weights.

    Args:
        task: the loss.
        adapter: the student.
        sampling: how it is sampled, for its file; None for as the model always is.
        title: what it is, in words.
        handle: of the patch; None for the model's own attention.
        weights: of attention methods, when they are trained.
    """

    task: Student
    adapter: Adapter
    sampling: Sampling | None
    title: str
    handle: Any = None
    weights: PatchWeights | None = None


def build(plan: Plan, pipeline: Any, training: Training, told: Callable[[str], None]) -> Built:
    """Put adapter and attention on a pipeline's denoiser, and make the task.

    Args:
        plan: of the run.
        pipeline: with weights, frozen.
        training: the family's record.
        told: called with what the user should know, one line each.
    """
    settings, network = plan.settings, getattr(pipeline, plan.component)
    samples = _samples(plan, pipeline, training) if settings.kind == FEATURES else None
    # Copies before anything is put on the student's denoiser.
    copies = [deepcopy(network) for _ in range(plan.copies)]
    if settings.teacher_lora is not None:
        _put_lora_in(copies[0], *starting_pairs(pipeline, plan.component, settings.teacher_lora, "--teacher-lora"))
    adapter = Adapter(network, adapter_config(settings), facts(pipeline).lora_targets, settings.seed)
    if settings.init_lora is not None:
        adapter.begin_with(*starting_pairs(pipeline, plan.component, settings.init_lora))
    handle = weights = None
    if plan.attention is not None:
        handle, weights, lines = put_in(network, plan.attention, settings.train_attention_weights)
        for line in lines:
            told(line)
    if settings.kind in MATCHED:
        return _tdm(plan, pipeline, training, adapter, copies, handle, weights)
    parts = Parts(pipeline, training, adapter, copies[0] if copies else None, weights)
    teaching, sampler, shift = _teaching(plan, pipeline, training)
    if samples is not None:
        layers = FeatureLoss(
            settings.answer_weight, settings.feature_weight, plan.layers, settings.caption_dropout
        )  # fmt: skip
        task: Student = FeaturesTask(parts, teaching, layers, samples)
        return Built(task, adapter, None, "the dense model's answers under sparse attention", handle, weights)
    grid = grid_of(sampler, teaching.objective, settings.student_steps, settings.substeps)
    if plan.chunked is not None:
        task = CausalTask(parts, teaching, grid, Rollout(network, plan.chunked))
    else:
        task = DistillTask(parts, teaching, grid, settings.own_path)
    return Built(task, adapter, _sampling(plan, pipeline, teaching, sampler, shift), _few(plan), handle, weights)


def _tdm(
    plan: Plan, pipeline: Any, training: Training, adapter: Adapter, copies: list[Any], handle: Any, weights: Any
) -> Built:
    settings = plan.settings
    scores = copies[0]
    # Another seed than the student's; it begins as the teacher, whatever the student begins as.
    fake = Adapter(scores, adapter_config(settings), facts(pipeline).lora_targets, settings.seed + 1)
    teacher = None
    if settings.fake_attention and plan.attention is not None:
        put_in(scores, plan.attention, False)
        teacher = copies[1]
    teaching, sampler, shift = _teaching(plan, pipeline, training)
    grid = grid_of(sampler, teaching.objective, settings.student_steps, settings.substeps)
    options = TdmOptions(
        settings.fake_updates, settings.renoise, settings.regularization, settings.gradient_accumulation_steps
    )
    parts = Parts(pipeline, training, adapter, teacher, weights)
    if plan.chunked is not None:
        rollout = Rollout(adapter.model, plan.chunked)
        forcing = options_of(settings, plan.chunked.chunks, shift)
        task: TdmTask = ForcingTask(parts, teaching, grid, fake, options, rollout, forcing)
    else:
        task = TdmTask(parts, teaching, grid, fake, options)
    return Built(task, adapter, _sampling(plan, pipeline, teaching, sampler, shift), _few(plan), handle, weights)


@torch.no_grad()
def _put_lora_in(network: Any, pairs: dict[str, Pair], name: str) -> None:
    """Add a LoRA to a denoiser's weights, for good."""
    for path, pair in pairs.items():
        layer, whole = network.get_submodule(path), pair.folded()
        layer.weight.copy_(changed(layer.weight, whole, 1.0, f"{name}: {path}"))
        if whole.bias is not None:
            layer.bias.add_(whole.bias.to(layer.bias))


def _few(plan: Plan) -> str:
    streamed = ", chunk by chunk" if plan.chunked is not None else ""
    return f"{counted(plan.settings.student_steps, 'step')} without guidance{streamed}"


def _sampling(plan: Plan, pipeline: Any, teaching: Teaching, sampler: Any, shift: float) -> Sampling:
    """How a few-step student is sampled."""
    told = 1.0 if not teaching.embedded else plan.guidance
    flow = facts(pipeline).objective.of(pipeline.scheduler) == FLOW
    stream = {} if plan.chunked is None else plan.chunked.arguments
    return Sampling(plan.settings.student_steps, told, type(sampler).__name__, shift if flow else None, stream)


def _teaching(plan: Plan, pipeline: Any, training: Training) -> tuple[Teaching, Any, float]:
    """What is taught, the sampler of few-step students, and the shift of its levels."""
    settings = plan.settings
    objective = objective_of(facts(pipeline).objective, pipeline.scheduler)
    latents, media = _blank(pipeline, training, plan.size, plan.fps)
    shape = tuple(latents.shape)
    shift = 1.0 if training.shift is None else training.shift(pipeline, {training.streams[0]: shape})
    teaching = Teaching(
        objective=objective,
        prompts=plan.prompts,
        texts=Texts(pipeline, training, settings.max_sequence_length or slots_of_model(plan.model) or training.slots),
        shape=shape,
        media=media,
        batch=settings.train_batch_size,
        seed=settings.seed,
        guidance=plan.guidance,
        embedded=bool(getattr(pipeline, plan.component).config.get("guidance_embeds")),
        negative=settings.negative_prompt,
        fps=plan.fps,
    )
    return teaching, sampler_of(pipeline.scheduler, objective, shift), shift


def _samples(plan: Plan, pipeline: Any, training: Training) -> MadeSamples:
    """What the model makes before it is trained; a stopped run finds it in the cache."""
    assert plan.samples is not None, "a plan of this kind knows how samples are made"
    prompts = [plan.sample_prompt(index) for index in range(plan.settings.num_samples)]
    store = Cache(Path(plan.settings.output).expanduser() / CACHE)
    first = process_rank() == 0
    shown = counting("genkit: the model makes samples to learn on:", first)
    if not first:
        wait_for_all()
    found = make_samples(plan.samples, prompts, pipeline, training, store, "distill", plan.fps, shown)
    if first:
        wait_for_all()
    return found


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
