"""A LoRA run before it starts: settings as objects, and everything checked that can be without the model's weights."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genkit.errors import ArtifactError, UsageError, shown
from genkit.families.training.base import Training
from genkit.families.training.lookup import training_of
from genkit.families.training.parts import facts
from genkit.lora.files import parse_lora
from genkit.lora.match import match
from genkit.lora.pair import Pair
from genkit.models import locate
from genkit.pipelines.attention import Attention
from genkit.pipelines.load import resolve_dtype
from genkit.pipelines.model import Model
from genkit.pipelines.prompts import new_words
from genkit.pipelines.skeleton import skeleton
from genkit.reading.files import place
from genkit.training.data.batch import Batch
from genkit.training.data.folder.batches import Batches
from genkit.training.data.folder.buckets import Bucket
from genkit.training.data.folder.data import FolderData
from genkit.training.data.folder.summary import Summary, summarise
from genkit.training.engine.checkpoint import check_weights
from genkit.training.engine.journal import check_tracker
from genkit.training.engine.keep import LATEST, Numbered
from genkit.training.engine.loop import LoopConfig, process_count
from genkit.training.engine.optimizers import check_optimizer, optimizer_of
from genkit.training.lora.adapter import Adapter
from genkit.training.lora.attention import put_in
from genkit.training.lora.build import adapter_config, deciding, loop_config, loss_options, steps_of
from genkit.training.lora.checks import check_effects, check_login, check_output
from genkit.training.lora.chosen import attention_of, component_of, device_of, precision_of
from genkit.training.lora.data import CACHE, read_data, slots_of
from genkit.training.lora.estimate import Estimate, Subject, encoded, estimate
from genkit.training.lora.joint import check_clips, check_joint
from genkit.training.lora.quantise import check_backend, quantisation
from genkit.training.lora.route import Route
from genkit.training.lora.router import RouterAdapter
from genkit.training.lora.samples import ask
from genkit.training.lora.settings import LoraSettings
from genkit.training.lora.task import LoraTask, LossOptions
from genkit.training.lora.token_route import check_route, routed_blocks
from genkit.training.lora.words.build import subjects_of, word_factors, word_task
from genkit.training.lora.words.subjects import Subjects, words_record

#: Bytes a trained number takes in a checkpoint: itself, its average, two moments, and the exported file.
CHECKPOINT_BYTES = 20


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
        subjects: whose words are learned; None for a LoRA alone.
        begins: the checkpoint that the run goes on from; None for a fresh one.
        broken: lines about newer checkpoints that cannot be read.
        tasks: what samples of video and sound are trained to do, with their shares; empty where all make both.
        attention_parameters: number of trainable numbers of the attention methods' own weights.
        routed: paths of the blocks that a share of the tokens skips, of so many ``blocks``; empty without a route.
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
    subjects: Subjects | None = None
    begins: Path | None = None
    broken: tuple[str, ...] = ()
    tasks: dict[str, float] = field(default_factory=dict)
    attention_parameters: int = 0
    routed: tuple[str, ...] = ()
    blocks: int = 0

    @classmethod
    def of(cls, settings: LoraSettings, progress: Callable[[int, int, str], None] | None = None) -> LoraPlan:
        """Check settings against model, data and machine; weights are not read. A hub id is downloaded.

        Args:
            settings: of the run.
            progress: called with (done, all, file) as the data's files are read.

        Raises:
            UsageError: settings that mean nothing for this model or data.
            UnsupportedError: a model, method or package that cannot do it.
            ArtifactError: files that cannot be read, or no room for those to be written.
        """
        check_optimizer(settings.optimizer, settings.optimizer_args)
        check_tracker(None if settings.report_to == "none" else settings.report_to)
        check_output(settings)
        check_login(settings)
        if settings.init_lora is not None:
            parse_lora(settings.init_lora)
        location = locate(settings.model, files=True)
        device = device_of(settings)
        dtype = resolve_dtype(settings.dtype, device)
        precision = precision_of(settings, dtype, device)
        model = Model.at(location, settings.model, settings.parts_from)
        component = component_of(model, settings.component)
        if settings.quantization is not None and model.checkpoint is not None:
            raise UsageError("--quantization with a model in one file: only folders are read that way; leave it out")
        if settings.quantization is not None:
            check_backend(settings.quantization, device)
            quantisation(component, settings.quantization, settings.quantization_args, dtype)
        pipeline = skeleton(model, dtype)
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        training = training_of(pipeline, model.sidecar.sound)
        check_effects(settings, model, training, pipeline, component)
        tasks = check_joint(settings.tasks, training, model.class_name) if settings.tasks else {}
        seen = training.experts(pipeline) if training.experts is not None else {}
        options = loss_options(
            settings, facts(pipeline).objective.of(pipeline.scheduler), seen.get(component, (0.0, 1.0))
        )
        attention = attention_of(settings, model, device, dtype)
        with _adapted(pipeline, component, settings) as adapter:
            LoraTask(pipeline, training, adapter, options, settings.seed)
            if settings.init_lora is not None:
                adapter.check_start(*starting_pairs(pipeline, component, settings.init_lora))
            optimizer_for(settings, list(adapter.parameters.items()))
            targets, trainable = tuple(getattr(adapter, "targets", ())), adapter.count
        network, handle, own, routed, blocks = getattr(pipeline, component), None, 0, tuple[str, ...](), 0
        if attention is not None:
            handle, weights, _ = put_in(network, attention, settings.train_attention_weights)
            own = 0 if weights is None else weights.count()
        try:
            if settings.route is not None:
                route = Route.parse(settings.route)
                check_route(network, route, handle)
                routed, blocks = routed_blocks(network, route)
        finally:
            if handle is not None:
                handle.remove()
        data = read_data(settings, model, training, progress)
        if tasks:
            named = [(place(cut.item.path.name), cut) for cut in data.every]
            silent = dict.fromkeys(name for name, cut in named if not cut.sound)
            check_clips(tasks, [*silent], [*dict.fromkeys(name for name, cut in named if cut.bucket.frames == 1)])
        subjects = subjects_of(settings, model, pipeline, training, data, device)
        if settings.validation_prompts:
            ask(settings, model, device, data.every)
        batches = data.batches(settings.train_batch_size, settings.seed, process_count())
        loop = loop_config(settings, steps_of(settings, batches), precision, settings.validation_steps)
        plan = cls(
            settings, model, pipeline, training, component, device, dtype, precision, attention, data, targets,
            trainable, options, loop, subjects, tasks=tasks, attention_parameters=own, routed=routed, blocks=blocks,
        )  # fmt: skip
        plan._check_room()
        return plan.resumed()

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """What must be the same when the run goes on from a checkpoint, as far as it is known without weights: group ->
        name -> value."""
        base = {"model": self.model.class_name, "model_fingerprint": self.model.fingerprint()}
        return {
            "base": base,
            "files": {"digest of files and captions": self.data.digest()},
            "settings": deciding(self.settings),
        }

    def resumed(self) -> LoraPlan:
        """The plan with the checkpoint that it goes on from.

        Raises:
            UsageError: it is of a run with other settings, another model or other files.
            ArtifactError: it cannot be read, or is not there.
        """
        settings, lines = self.settings, list[str]()
        keep = Numbered(
            Path(settings.output), settings.resume_from_checkpoint, fingerprint=self.fingerprint(), told=lines.append
        )
        if settings.resume_from_checkpoint is None:
            return self
        found = keep.find()
        if found is None:
            return replace(self, broken=tuple(lines))
        state, path = found
        if not settings.mix:  # a router's weights are compared when it is on the model
            with self._subject() as subject:
                task = subject.task if self.subjects is None else word_task(self, self.pipeline, subject.adapter)
                check_weights(task, state["module"], path)
        return replace(self, begins=path, broken=tuple(lines))

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

    @property
    def words(self) -> dict[str, str]:
        """Words whose embeddings are learned, and the text encoder that takes them."""
        if self.subjects is None or self.training.words is None:
            return {}
        return dict.fromkeys(self.subjects.words, self.training.words.part)

    @property
    def word_parameters(self) -> int:
        """Trainable numbers of the words' embeddings."""
        if self.subjects is None or self.training.words is None:
            return 0
        encoder = getattr(self.pipeline, self.training.words.part)
        return len(self.subjects.words) * encoder.get_input_embeddings().weight.shape[1]

    @cached_property
    def new_words(self) -> list[str]:
        """Words of the captions that the model's tokenizers do not know; empty where they can write any word."""
        return new_words(self._tokenizers(), self.data.captions)

    def _tokenizers(self) -> list[Any]:
        parts = self.pipeline.components.items()
        return [part for name, part in parts if name.startswith("tokenizer") and part is not None]

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
                    count=self._rows(),
                    fps=None if shelf.fps is None else float(shelf.fps),
                    slots=slots_of(settings, self.model) or self.training.slots,
                    precision=self.precision,
                    methods=() if handle is None else handle.methods,
                    optimizer=lambda named: optimizer_for(settings, named),
                    device=self.device.type,
                    quantization=settings.quantization,
                    encoders_stay=bool(settings.validation_prompts or settings.learn_words)
                    and settings.offload == "none",
                    checkpointing=settings.gradient_checkpointing,
                )
            finally:
                if handle is not None:
                    handle.remove()

    def _rows(self) -> int:
        """Samples that the denoiser is called with; for words the picture and one of the prior."""
        settings = self.settings
        if self.subjects is not None:
            return 2 if settings.prior_weight else 1
        return min(settings.train_batch_size, max(self.batches.shelves.values()))

    def notes(self) -> list[str]:
        """What a user should know before the run, one line each."""
        settings, lines = self.settings, list(self.broken)
        if settings.resume_from_checkpoint == LATEST and self.begins is None:
            lines.append(
                f"--resume-from-checkpoint {LATEST}: {place(settings.output)} holds no checkpoint; this run begins at 0"
            )
        if settings.route is not None:
            lines.append("--route: memory and operations are told for all tokens; a routed step needs less")
        return lines + self.summary().notes()

    def summary(self) -> Summary:
        """What the folders come to, with the lengths of captions and the state of the cache."""
        settings = self.settings
        cache = Path(settings.cache_dir or Path(settings.output) / CACHE).expanduser()
        slots = slots_of(settings, self.model) or self.training.slots
        return summarise(self.data, settings.train_batch_size, process_count(), self._tokenizers(), slots, cache)

    def _check_room(self) -> None:
        """Refuse a disk that has no room for what a run of this length leaves: checkpoints and result."""
        settings = self.settings
        count = 1
        if self.loop.steps is not None:
            count = max(1, math.ceil(self.loop.steps / settings.checkpointing_steps))
        kept = min(count, settings.checkpoints_total_limit or count)
        needed = CHECKPOINT_BYTES * (self.trainable + self.attention_parameters) * kept
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
    if settings.learn_words:
        default = words_record(training_of(pipeline), type(pipeline).__name__).targets
    return Adapter(getattr(pipeline, component), adapter_config(settings), default, settings.seed)


def starting_pairs(
    pipeline: Any, component: str, text: str, option: str = "--init-lora"
) -> tuple[dict[str, Pair], str]:
    """What a LoRA holds for the part that is trained: layer -> its halves, and the file's name for messages.

    Args:
        pipeline: of the model, with or without values.
        component: the part.
        text: file or folder.
        option: that names it, for messages.

    Raises:
        UsageError: a strength or a part behind the file's name.
        ArtifactError: it cannot be read, or does not fit the model.
    """
    lora = parse_lora(text)
    if lora.strength != 1 or lora.part not in (None, component):
        raise UsageError(f"{option} {shown(text)}: allowed: a file or folder without strength and part")
    groups = match(pipeline, replace(lora, part=component), partial=None).groups
    return {module: pair for group in groups for (_, module), pair in group.pairs.items()}, place(lora.path)


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
        settings.optimizer, named, settings.learning_rate, settings.weight_decay, settings.optimizer_args,
        word_factors(settings),
    )  # fmt: skip


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.expanduser().absolute()
    return next(each for each in (folder, *folder.parents) if each.exists())
