"""Distilling a model: from settings to ``OUTPUT/pytorch_lora_weights.safetensors``."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genkit.families.lookup import family_of
from genkit.families.training.lookup import training_of
from genkit.lora.facts import Facts
from genkit.lora.files import NAMED
from genkit.media.atomic import Files
from genkit.pipelines.load import load
from genkit.pipelines.record import PACKAGES, version
from genkit.training.distill.kinds import Built, build
from genkit.training.distill.plan import Plan, check_family, optimizer_for_student
from genkit.training.distill.settings import DistillSettings
from genkit.training.distill.student import Student
from genkit.training.engine.keep import Export, Numbered
from genkit.training.engine.loop import process_rank, train, wait_for_all
from genkit.training.lora.files import ATTENTION, STATE, lora_files


def distill(settings: DistillSettings, told: Callable[[str], None] = warnings.warn) -> Path:
    """Train a student of a model as a LoRA: one of few steps, or one that answers under sparse attention.

    Costs a step, for every sample: of kind ``steps`` ``substeps`` calls of the denoiser, two each with guidance, and
    one call with its backward pass; of ``features`` one call of the teacher and one with its backward pass; of ``tdm``
    ``steps`` calls a round, two to three more calls an update and one with its backward pass. Memory:
    :meth:`~genkit.training.distill.plan.Plan.estimate`; as for a LoRA, with one to two denoisers besides.

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
    return Run.open(Plan.of(settings), told).go()


@dataclass
class Run:
    """A run that is ready to train.

    Args:
        plan: what was checked.
        pipeline: with weights.
        built: the student, its task and how it is sampled.
    """

    plan: Plan
    pipeline: Any
    built: Built

    @classmethod
    def open(cls, plan: Plan, told: Callable[[str], None]) -> Run:
        """Load the model and put everything in."""
        if plan.settings.threads:
            torch.set_num_threads(plan.settings.threads)
        place, parts_from = plan.model.source
        pipeline = load(place, plan.dtype, plan.device, parts_from=parts_from)
        training = training_of(pipeline, plan.model.sidecar.sound)
        check_family(training, plan.model)
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        return cls(plan, pipeline, build(plan, pipeline, training, told))

    @property
    def task(self) -> Student:
        """The loss."""
        return self.built.task

    @property
    def sampling(self) -> Any:
        """How the student is sampled."""
        return self.built.sampling

    @property
    def handle(self) -> Any:
        """Of the patch in the student; None for the model's own attention."""
        return self.built.handle

    def go(self) -> Path:
        """Train until the budget is used up, and write the result."""
        settings, output = self.plan.settings, Path(self.plan.settings.output)
        named = [(name, value) for name, value in self.task.named_parameters() if value.requires_grad]
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

        optimizer = optimizer_for_student(settings, named)
        train(self.task, optimizer, loss_at, self.plan.loop, None, title="distill", keep=keep)
        if process_rank() == 0:
            assert keep.last is not None, "the loop ends with a checkpoint"
            with Files() as files:
                beside = {ATTENTION: self.built.weights, STATE: self.task.state}
                for name in (NAMED, *(name for name, trained in beside.items() if trained is not None)):
                    shutil.copyfile(keep.last / name, files.new(output / name))
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
        state = None if self.task.state is None else self.task.state.weights
        return lora_files(self.plan.component, self.built.adapter, self.facts(step), self.built.weights, state=state)

    def facts(self, step: int) -> Facts:
        """What the file says about itself."""
        settings, model, adapter = self.plan.settings, self.plan.model, self.built.adapter
        return Facts(
            made_by="distill",
            family=family_of(adapter.model).name,
            pipeline=model.class_name,
            base_model=model.name,
            base_fingerprint=model.fingerprint(),
            component=self.plan.component,
            adapter=adapter.config.kind,
            rank=settings.rank,
            alpha=settings.rank if settings.lora_alpha is None else settings.lora_alpha,
            attention=settings.attention,
            attention_args=settings.attention_args,
            schedule=settings.schedule,
            recipe=settings.recipe,
            attention_weights=None if self.built.weights is None else ATTENTION,
            steps=step,
            sampling=self.built.sampling,
            title=self.built.title,
            settings=settings.to_dict(),
            versions={package: version(package) for package in (*PACKAGES, "peft", "genkit")},
        )
