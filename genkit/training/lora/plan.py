"""A LoRA run before it starts: settings as objects, and everything checked that can be without the model's weights."""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genkit.errors import ArtifactError, UnsupportedError, UsageError, explain
from genkit.families.training.base import AUDIO, Training
from genkit.families.training.lookup import training_of
from genkit.families.training.parts import facts
from genkit.lora.files import NAMED, parse_lora
from genkit.lora.mixture.files import ROUTER
from genkit.media.atomic import check_writable
from genkit.models import locate
from genkit.pipelines.attention import Attention
from genkit.pipelines.load import fetch, resolve_device, resolve_dtype
from genkit.pipelines.model import Model
from genkit.pipelines.request import flag
from genkit.pipelines.skeleton import skeleton
from genkit.reading.files import place, user_path
from genkit.training.data.batch import Batch
from genkit.training.data.folder.batches import Batches
from genkit.training.data.folder.buckets import Bucket
from genkit.training.data.folder.data import FolderData
from genkit.training.data.folder.summary import Summary, summarise
from genkit.training.engine.journal import LOG, check_tracker
from genkit.training.engine.keep import LATEST, Numbered
from genkit.training.engine.loop import LoopConfig, process_count, process_rank
from genkit.training.engine.optimizers import check_optimizer, optimizer_of
from genkit.training.lora.adapter import Adapter
from genkit.training.lora.attention import check_trainable, put_in
from genkit.training.lora.build import adapter_config, loop_config, loss_options, steps_of
from genkit.training.lora.data import CACHE, read_data, slots_of
from genkit.training.lora.estimate import Estimate, Subject, encoded, estimate
from genkit.training.lora.quantise import check_backend, quantisation
from genkit.training.lora.router import RouterAdapter
from genkit.training.lora.samples import SAMPLES, ask
from genkit.training.lora.settings import LoraSettings
from genkit.training.lora.task import LoraTask, LossOptions

#: Denoisers as pipelines name them, the one that is trained when nobody says first.
DENOISERS = ("transformer", "unet", "transformer_2")
#: Bytes a trained number takes in a checkpoint: itself, its average, two moments, and the exported file.
CHECKPOINT_BYTES = 20
#: What a run writes into its folder besides checkpoints.
_OURS = (CACHE, LOG, SAMPLES, NAMED, ROUTER)
_AUTOCAST = {torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True, eq=False)
class LoraPlan:
    """A run that passed every check that needs no weights.

    Args:
        settings: of the run.
        model: its folder.
        pipeline: its parts without values, see :func:`genkit.pipelines.skeleton.skeleton`.
        training: the record of its family.
        component: part of the pipeline that is trained.
        device, dtype: where the run computes, and the type of the frozen weights.
        precision: type of the products: "no", "bf16" or "fp16".
        attention: what is patched in; None for the model's own.
        data: the folders as read.
        targets: paths of the layers that get an adapter.
        trainable: number of trainable numbers, those of attention methods not among them.
        options: how errors count.
        loop: how long and how fast.
    """

    settings: LoraSettings
    model: Model
    pipeline: Any
    training: Training
    component: str
    device: torch.device
    dtype: torch.dtype
    precision: str
    attention: Attention | None
    data: FolderData
    targets: tuple[str, ...]
    trainable: int
    options: LossOptions
    loop: LoopConfig

    @classmethod
    def of(cls, settings: LoraSettings) -> LoraPlan:
        """Check settings against model, data and machine; weights are not read. A hub id is downloaded.

        Raises:
            UsageError: settings that mean nothing for this model or data.
            UnsupportedError: a model, method or package that cannot do it.
            ArtifactError: files that cannot be read, or no room for those to be written.
        """
        check_optimizer(settings.optimizer, settings.optimizer_args)
        check_tracker(None if settings.report_to == "none" else settings.report_to)
        _check_output(settings)
        _check_login(settings)
        if settings.init_lora is not None:
            parse_lora(settings.init_lora)
        location = locate(settings.model)
        device = _device(settings)
        dtype = resolve_dtype(settings.dtype, device)
        precision = _precision(settings, dtype, device)
        folder = fetch(location)
        model = Model.of(folder, str(folder.resolve()) if location.kind == "folder" else settings.model)
        component = _component(model, settings.component)
        if settings.quantization is not None:
            check_backend(settings.quantization, device)
            quantisation(component, settings.quantization, settings.quantization_args, dtype)
        pipeline = skeleton(model, dtype)
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        training = training_of(pipeline, model.sidecar.sound)
        _check_effects(settings, model, training)
        seen = training.experts(pipeline) if training.experts is not None else {}
        options = loss_options(
            settings, facts(pipeline).objective.of(pipeline.scheduler), seen.get(component, (0.0, 1.0))
        )
        attention = _attention(settings, model, device, dtype)
        with _adapted(pipeline, component, settings) as adapter:
            LoraTask(pipeline, training, adapter, options, settings.seed)
            optimizer_for(settings, list(adapter.parameters.items()))
            targets, trainable = tuple(getattr(adapter, "targets", ())), adapter.count
        if attention is not None:
            put_in(getattr(pipeline, component), attention, settings.train_attention_weights)[0].remove()
        data = read_data(settings, model, training)
        if settings.validation_prompts:
            ask(settings, model, device, data.every)
        batches = data.batches(settings.train_batch_size, settings.seed, process_count())
        loop = loop_config(settings, steps_of(settings, batches), precision)
        plan = cls(
            settings, model, pipeline, training, component, device, dtype, precision, attention, data, targets,
            trainable, options, loop,
        )  # fmt: skip
        _check_resume(settings)
        plan._check_room()
        return plan

    @cached_property
    def batches(self) -> Batches:
        """The order of the samples."""
        return self.data.batches(self.settings.train_batch_size, self.settings.seed, process_count())

    @property
    def epochs(self) -> float | None:
        """How often every sample comes; None where minutes are the budget."""
        if self.loop.steps is None:
            return None
        return self.loop.steps * self.settings.gradient_accumulation_steps / self.batches.per_epoch

    @property
    def largest(self) -> Bucket:
        """The bucket with the most pixels."""
        cuts = (*self.data.cuts, *self.data.held_out)
        return max((cut.bucket for cut in cuts), key=lambda each: (each.frames * each.height * each.width, each))

    def buckets(self) -> dict[str, int]:
        """Samples by size."""
        return dict(Counter(cut.shelf for cut in self.data.cuts))

    def estimate(self) -> Estimate:
        """Memory and arithmetic of the run; takes seconds."""
        with self._subject() as subject:
            return estimate(subject)

    def shapes(self) -> Batch:
        """A batch of the largest size, without values."""
        with self._subject() as subject:
            return encoded(subject)[1]

    @contextmanager
    def _subject(self) -> Iterator[Subject]:
        """What is estimated, adapter and attention in, for the time of the block."""
        settings = self.settings
        shelf = next(cut for cut in (*self.data.cuts, *self.data.held_out) if cut.bucket == self.largest)
        with _adapted(self.pipeline, self.component, settings) as adapter:
            handle = weights = None
            if self.attention is not None:
                handle, weights, _ = put_in(adapter.model, self.attention, settings.train_attention_weights)
            try:
                yield Subject(
                    pipeline=self.pipeline,
                    training=self.training,
                    task=LoraTask(self.pipeline, self.training, adapter, self.options, settings.seed, weights),
                    size=self.largest,
                    count=min(settings.train_batch_size, max(self.batches.shelves.values())),
                    fps=None if shelf.fps is None else float(shelf.fps),
                    slots=slots_of(settings, self.model) or self.training.slots,
                    precision=self.precision,
                    methods=() if handle is None else handle.methods,
                    optimizer=lambda named: optimizer_for(settings, named),
                    device=self.device.type,
                    quantization=settings.quantization,
                    encoders_stay=bool(settings.validation_prompts) and settings.offload == "none",
                    checkpointing=settings.gradient_checkpointing,
                )
            finally:
                if handle is not None:
                    handle.remove()

    def notes(self) -> list[str]:
        """What a user should know before the run, one line each."""
        settings, lines = self.settings, []
        if settings.resume_from_checkpoint == LATEST and not Numbered(Path(settings.output)).all():
            lines.append(
                f"--resume-from-checkpoint {LATEST}: {place(settings.output)} holds no checkpoint; this run begins at 0"
            )
        return lines + self.summary().notes()

    def summary(self) -> Summary:
        """What the folders come to, with the lengths of captions and the state of the cache."""
        settings, parts = self.settings, self.pipeline.components.items()
        tokenizers = [part for name, part in parts if name.startswith("tokenizer") and part is not None]
        cache = Path(settings.cache_dir or Path(settings.output) / CACHE).expanduser()
        slots = slots_of(settings, self.model) or self.training.slots
        return summarise(self.data, settings.train_batch_size, process_count(), tokenizers, slots, cache)

    def _check_room(self) -> None:
        """Refuse a disk that has no room for what a run of this length leaves: checkpoints and result."""
        settings = self.settings
        count = 1
        if self.loop.steps is not None:
            count = max(1, math.ceil(self.loop.steps / settings.checkpointing_steps))
        kept = min(count, settings.checkpoints_total_limit or count)
        needed = CHECKPOINT_BYTES * self.trainable * kept
        free = shutil.disk_usage(_existing(Path(settings.output))).free
        if free < needed:
            raise ArtifactError(
                f"--output {place(settings.output)}: {kept} checkpoints need {needed / 1e6:.0f} MB, and "
                f"{free / 1e6:.0f} MB are free; make room, or keep fewer with --checkpoints-total-limit"
            )


def adapter_on(pipeline: Any, component: str, settings: LoraSettings) -> Any:
    """The adapter that settings ask for, put on a denoiser: a LoRA of some kind, or a router over finished ones."""
    if settings.mix:
        return RouterAdapter(pipeline, component, [parse_lora(text) for text in settings.mix])
    default = facts(pipeline).lora_targets
    return Adapter(getattr(pipeline, component), adapter_config(settings), default, settings.seed)


def named_file(settings: LoraSettings) -> str:
    """Name of the file that a run makes."""
    return ROUTER if settings.mix else NAMED


@contextmanager
def _adapted(pipeline: Any, component: str, settings: LoraSettings) -> Iterator[Any]:
    """The adapter on a denoiser without values, for the time of the block."""
    adapter = adapter_on(pipeline, component, settings)
    try:
        yield adapter
    finally:
        adapter.remove()


def optimizer_for(settings: LoraSettings, named: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
    """The optimizer that settings ask for, of named parameters."""
    return optimizer_of(
        settings.optimizer, named, settings.learning_rate, settings.weight_decay, settings.optimizer_args
    )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.expanduser().absolute()
    return next(each for each in (folder, *folder.parents) if each.exists())


def _check_output(settings: LoraSettings) -> None:
    """Refuse an output folder that cannot be written, holds a finished LoRA, or other files than a run leaves."""
    user_path(settings.output, "--output")  # tells of names that no folder can have
    output = Path(settings.output)
    cache = None if settings.cache_dir is None else Path(settings.cache_dir)
    for name, folder in (("--output", output), ("--cache-dir", cache)):
        if folder is None:
            continue
        _check_apart(name, folder, settings)
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{name} {place(folder)} is a file; give a folder")
        if process_rank() == 0:
            check_writable(folder, name)
    if not output.is_dir():
        return
    if settings.resume_from_checkpoint is None and (output / named_file(settings)).exists():
        raise UsageError(
            f"--output {place(output)} holds {named_file(settings)} already; give another folder, or go on with "
            f"--resume-from-checkpoint {LATEST}"
        )
    earlier = Numbered(output).all()
    if settings.resume_from_checkpoint is None and earlier:
        raise UsageError(
            f"--output {place(output)} holds {earlier[-1].name} of an earlier run; --resume-from-checkpoint {LATEST} "
            "goes on with it, another folder begins afresh"
        )
    names = {path.name for path in output.iterdir()}
    if names and not _begun(output):
        shown = ", ".join(sorted(names)[:3])
        raise UsageError(
            f"--output {place(output)} holds other files ({place(shown)}) and nothing of a LoRA run; give an empty or "
            "a new folder"
        )


def _begun(output: Path) -> bool:
    """Whether a folder holds anything that a run leaves, one that was killed before its first checkpoint too."""
    return any((output / name).exists() for name in _OURS) or bool(Numbered(output).all())


def _check_effects(settings: LoraSettings, model: Model, training: Training) -> None:
    """Refuse settings that have no effect on this model."""
    if AUDIO not in training.streams:
        for name in ("audio_weight", "missing_audio"):
            if settings.asked(name) and getattr(settings, name) != type(settings).__dataclass_fields__[name].default:
                raise UsageError(f"{flag(name)} has no effect: {model.class_name} makes no sound; leave it out")


def _check_login(settings: LoraSettings) -> None:
    if not settings.push_to_hub:
        return
    import huggingface_hub

    if huggingface_hub.get_token() is None:
        raise UsageError("--push-to-hub needs an account: log in with 'hf auth login', or leave it out")


def _check_apart(name: str, folder: Path, settings: LoraSettings) -> None:
    """Refuse a folder inside the data: what a run writes there would be data of the next one."""
    for source in settings.data:
        data, given = Path(source.path).expanduser().resolve(), folder.resolve()
        if not data.is_dir() or not given.is_relative_to(data):
            continue
        # Hidden folders are passed over when the data is read.
        if not any(part.startswith(".") for part in given.relative_to(data).parts):
            raise UsageError(
                f"{name} {place(folder)} is in the data folder {place(source.path)}, whose files are trained on; give "
                "a folder beside it"
            )


def _check_resume(settings: LoraSettings) -> None:
    """Refuse to go on from what is not there; whether it is of this run is seen with the weights."""
    if settings.resume_from_checkpoint not in (None, LATEST):
        keep = Numbered(Path(settings.output), settings.resume_from_checkpoint)
        keep.asked(Path(settings.resume_from_checkpoint).expanduser())


def _attention(settings: LoraSettings, model: Model, device: torch.device, dtype: torch.dtype) -> Attention | None:
    """What is patched in, checked as far as it goes without weights."""
    attention = Attention.of(settings, model.folder)
    if attention is None:
        return None
    check_trainable(attention)
    attention.check_recipe(model)
    attention = attention.settled(model, None)
    attention.check(model, None, True, (device, dtype))
    return attention


def _device(settings: LoraSettings) -> torch.device:
    """Where this process computes."""
    from accelerate import PartialState

    here = PartialState(cpu=not torch.accelerator.is_available()).device
    wanted = resolve_device(settings.device)
    if settings.device != "auto" and wanted.type != here.type:
        raise UnsupportedError(
            f"--device {settings.device}: accelerate trains on {here.type} on this machine; "
            "ACCELERATE_USE_CPU=1 in the environment makes it take the CPU"
        )
    if here.type == "cpu" and settings.offload != "none":
        raise UnsupportedError(f"--offload {settings.offload} needs a GPU, and the device is the CPU; leave it out")
    return here


def _component(model: Model, wanted: str | None) -> str:
    """The part that is trained."""
    there = [name for name in DENOISERS if name in model.parts]
    if wanted is not None and wanted not in there:
        raise UsageError(explain("--component", wanted, there))
    if not there:
        raise UnsupportedError(
            f"{model.class_name} has no denoiser that genkit can train: none of {', '.join(DENOISERS)}"
        )
    return wanted or there[0]


def _precision(settings: LoraSettings, dtype: torch.dtype, device: torch.device) -> str:
    """Type of the products: what was asked for, else the launcher's, else that of the frozen weights."""
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION")
    found = settings.mixed_precision or launcher or _AUTOCAST.get(dtype, "no")
    if found == "fp16" and device.type == "cpu":
        where = "--mixed-precision" if settings.mixed_precision else "the launcher's mixed precision"
        raise UnsupportedError(f"{where} fp16 needs a GPU, and the device is the CPU; allowed here: no, bf16")
    return found
