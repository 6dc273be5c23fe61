"""What a distillation's settings come to, checked before any weights are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genkit.errors import UnsupportedError, UsageError, explain
from genkit.families.training.base import AUDIO, Training
from genkit.families.training.lookup import training_of
from genkit.families.training.parts import facts
from genkit.lora.files import NAMED, parse_lora
from genkit.media.atomic import check_writable
from genkit.models import locate
from genkit.pipelines.attention import Attention
from genkit.pipelines.few_steps import FewSteps, few_steps_of
from genkit.pipelines.kinds import IMAGE
from genkit.pipelines.load import resolve_dtype
from genkit.pipelines.model import Model
from genkit.pipelines.resolve import Draft, Request
from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.skeleton import skeleton
from genkit.reading.files import place, user_path
from genkit.training.data.folder.buckets import Bucket
from genkit.training.distill.chunked import Chunked
from genkit.training.distill.outputs import watched_layers
from genkit.training.distill.prompts import Prompts, prompts_of
from genkit.training.distill.settings import CHUNKED, FEATURES, MATCHED, DistillSettings
from genkit.training.engine.journal import check_tracker
from genkit.training.engine.loop import LoopConfig, process_count, process_rank
from genkit.training.engine.optimizers import check_optimizer
from genkit.training.lora.adapter import Adapter
from genkit.training.lora.attention import put_in
from genkit.training.lora.build import adapter_config, loop_config
from genkit.training.lora.checks import check_finished, check_login
from genkit.training.lora.chosen import attention_of, component_of, device_of, precision_of
from genkit.training.lora.data import slots_of_model
from genkit.training.lora.estimate import Estimate, Memory, Subject, call_bytes, estimate
from genkit.training.lora.plan import starting_pairs
from genkit.training.lora.task import LoraTask

#: Names of a guidance scale that acts by a second call, among a pipeline's settings.
_TRUE = "true_cfg_scale"


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
        trainable: number of the student's trainable numbers.
        layers: attention modules whose outputs are compared, of kind ``features``.
        samples: how the samples of kind ``features`` are made; None for others.
        chunked: the stream that is learned; None for kinds that learn none.
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
    attention: Attention | None
    loop: LoopConfig
    trainable: int = 0
    layers: tuple[str, ...] = ()
    samples: Request | None = None
    chunked: Chunked | None = None

    @classmethod
    def of(cls, settings: DistillSettings) -> Plan:
        """Check settings against the model; a hub id is downloaded.

        Raises:
            UsageError: settings that mean nothing for this model.
            UnsupportedError: a model, method or package that cannot do it.
            ArtifactError: files that cannot be read.
        """
        check_optimizer(settings.optimizer, settings.optimizer_args)
        check_tracker(None if settings.report_to == "none" else settings.report_to)
        check_login(settings)
        user_path(settings.output, "--output")
        output = Path(settings.output)
        if output.exists() and not output.is_dir():
            raise UsageError(f"--output {place(output)} is a file; give a folder")
        if process_rank() == 0:
            check_writable(output, "--output")
        check_finished(output, NAMED, settings.resume_from_checkpoint)
        if settings.init_lora is not None:
            parse_lora(settings.init_lora)
        few = None
        if settings.teacher_lora is not None:
            few = few_steps_of([parse_lora(settings.teacher_lora)])
        if settings.kind in MATCHED and process_count() > 1:
            raise UnsupportedError(
                f"--kind {settings.kind} runs in one process: student and fake scores are updated "
                "in turns, and every "
                "process would wait for the gradients of both; --gradient-accumulation-steps makes a larger batch"
            )
        location = locate(settings.model, files=True)
        device = device_of(settings)
        dtype = resolve_dtype(settings.dtype, device)
        precision = precision_of(settings, dtype, device)
        model = Model.at(location, settings.model, settings.parts_from)
        component = component_of(model, None)
        if "transformer_2" in model.parts:
            raise UnsupportedError(f"{model.class_name} with two denoisers is not distilled: each sees half the levels")
        prompts = prompts_of(settings.prompts, model.kind)
        chunked = Chunked.of(settings, model, settings.num_frames) if settings.kind in CHUNKED else None
        if chunked is not None and (settings.chunks or chunked.chunks) < chunked.chunks:
            raise UsageError(
                explain(
                    "--chunks", settings.chunks, f"at least {chunked.chunks}, those of a clip, whose last are judged"
                )
            )
        asked = settings.num_frames or (None if chunked is None else chunked.pixel_frames)
        size = _size(settings.replace(num_frames=asked), model)
        attention = attention_of(settings, model, device, dtype)
        plan = cls(
            settings, model, device, dtype, precision, component, prompts, size, _guidance(settings, model, few),
            attention, loop_config(settings, settings.max_train_steps, precision), chunked=chunked,
        )  # fmt: skip
        return plan._fitted()

    def _fitted(self) -> Plan:
        """The plan, with what a model without weights tells: adapter, method and start fit."""
        settings = self.settings
        pipeline, network = self._without_weights()
        layers: tuple[str, ...] = ()
        if settings.kind == FEATURES and settings.feature_weight:
            layers = watched_layers(network, settings.feature_every)
        adapter = Adapter(network, adapter_config(settings), facts(pipeline).lora_targets, settings.seed)
        if settings.init_lora is not None:
            adapter.check_start(*starting_pairs(pipeline, self.component, settings.init_lora))
        if settings.teacher_lora is not None:
            starting_pairs(pipeline, self.component, settings.teacher_lora, "--teacher-lora")
        optimizer_for_student(settings, list(adapter.parameters.items()))
        if self.attention is not None:
            put_in(network, self.attention, settings.train_attention_weights)[0].remove()
        samples = self._samples() if settings.kind == FEATURES else None
        return replace(self, trainable=adapter.count, layers=layers, samples=samples)

    def _without_weights(self) -> tuple[Any, Any]:
        """The pipeline and its denoiser on the meta device, frozen."""
        pipeline = skeleton(self.model, self.dtype)
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        check_family(training_of(pipeline, self.model.sidecar.sound), self.model)
        return pipeline, getattr(pipeline, self.component)

    def sample_prompt(self, index: int) -> str:
        """The prompt of a sample that the model makes."""
        return self.prompts.at(self.settings.seed, index, _SAMPLES)

    def _samples(self) -> Request:
        """How samples are made, checked as ``genkit generate`` checks a run."""
        settings, (frames, height, width) = self.settings, self.size
        given = {
            "model": settings.model, "parts_from": settings.parts_from, "prompt": self.sample_prompt(0),
            "height": height, "width": width, "device": str(self.device), "dtype": settings.dtype,
            "seed": settings.seed, "guidance_scale": settings.guidance_scale,
            "num_frames": None if self.model.kind is IMAGE else frames,
            "steps": settings.steps,
            "negative_prompt": settings.negative_prompt or None,
            "max_sequence_length": settings.max_sequence_length,
        }  # fmt: skip
        told = {name: value for name, value in given.items() if value is not None}
        draft = Draft(GenerateSettings.from_mappings(("samples of the model", told)))
        draft.fill()
        return draft.close()

    @property
    def fps(self) -> float | None:
        """Frames per second of clips."""
        if self.model.kind is IMAGE:
            return None
        return float(self.model.sidecar.defaults.get("fps") or self.model.fps)

    @property
    def copies(self) -> int:
        """Denoisers in memory besides the student's."""
        settings = self.settings
        if settings.kind in MATCHED:
            return 1 + int(settings.fake_attention)
        return int(self.attention is not None or settings.teacher_lora is not None)

    def estimate(self) -> Estimate:
        """Memory of the run and arithmetic of a student's forward and backward pass; takes seconds.

        Raises:
            UnsupportedError: a model that cannot be run without values.
        """
        settings = self.settings
        pipeline, network = self._without_weights()
        training = training_of(pipeline, self.model.sidecar.sound)
        adapter = Adapter(network, adapter_config(settings), facts(pipeline).lora_targets, settings.seed)
        handle = weights = None
        if self.attention is not None:
            handle, weights, _ = put_in(network, self.attention, settings.train_attention_weights)
        try:
            subject = Subject(
                pipeline=pipeline,
                training=training,
                task=LoraTask(pipeline, training, adapter, seed=settings.seed, attention=weights),
                size=Bucket(*self.size),
                count=settings.train_batch_size,
                fps=self.fps,
                slots=settings.max_sequence_length or slots_of_model(self.model) or training.slots,
                precision=self.precision,
                methods=() if handle is None else handle.methods,
                optimizer=lambda named: optimizer_for_student(settings, named),
                device=self.device.type,
                encoders_stay=True,
                checkpointing=settings.gradient_checkpointing,
            )
            found = estimate(subject)
            beside = 0.0
            if settings.kind in MATCHED:  # fake scores and teacher are called while the student's graph is kept
                beside = call_bytes(subject, settings.train_batch_size * (2 if self.guidance != 1 else 1))
        finally:
            if handle is not None:
                handle.remove()
        return replace(found, memory=self._with_copies(found.memory, beside))

    def _with_copies(self, memory: Memory, beside: float) -> Memory:
        """The memory of a student with that of the denoisers beside it, and of their calls."""
        fake = 2.0 if self.settings.kind in MATCHED else 1.0
        return replace(
            memory, weights=(1 + self.copies) * memory.weights, adapter=fake * memory.adapter,
            activations=memory.activations + beside,
        )  # fmt: skip


#: Number among the arguments of :meth:`Prompts.at` that samples of the model have for themselves.
_SAMPLES = 1_000_003


def optimizer_for_student(settings: DistillSettings, named: Any) -> torch.optim.Optimizer:
    """The optimizer that settings ask for; the fake scores have a learning rate of their own."""
    from genkit.training.engine.optimizers import optimizer_of

    factors = None
    if settings.kind in MATCHED:
        own = settings.fake_learning_rate
        factors = {FAKE: 5.0 if own is None else own / settings.learning_rate}
        factors = factors if any(FAKE in name for name, _ in named) else None
    return optimizer_of(
        settings.optimizer, named, settings.learning_rate, settings.weight_decay, settings.optimizer_args, factors
    )


#: Part of the names of the fake scores' parameters.
FAKE = "scores."


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


def _guidance(settings: DistillSettings, model: Model, few: FewSteps | None) -> float:
    """Guidance of the teacher: what was asked for, what its LoRA was made for, or what a run of the model has."""
    if settings.guidance_scale is not None:
        return settings.guidance_scale
    if few is not None:
        return few.sampling.guidance_scale
    sidecar = model.sidecar
    own = sidecar.defaults.get("guidance_scale") or sidecar.call.get(_TRUE)
    if own is None and "guidance_scale" in model.accepted:
        own = model.accepted["guidance_scale"].default
    return float(own or 1.0)


def check_family(training: Training, model: Model) -> None:
    """Refuse models that ask for more than a prompt, or make more than one stream."""
    if training.needs:
        needed = ", ".join(training.needs)
        raise UnsupportedError(f"{model.class_name} needs {needed} beside a prompt; distillation has prompts alone")
    if AUDIO in training.streams or len(training.streams) > 1:
        streams = " and ".join(training.streams)
        raise UnsupportedError(explain("--model", model.class_name, f"one that makes one stream, not {streams}"))
