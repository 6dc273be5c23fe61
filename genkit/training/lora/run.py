"""Training a LoRA: from settings to ``OUTPUT/pytorch_lora_weights.safetensors``."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genkit.attention.weights import PatchWeights
from genkit.errors import ArtifactError, said
from genkit.families.lookup import family_of
from genkit.families.training.base import Training
from genkit.families.training.lookup import training_of
from genkit.lora.facts import Facts
from genkit.lora.words import WORDS, name_of
from genkit.media.atomic import Files
from genkit.patching import PatchHandle
from genkit.pipelines.load import load
from genkit.pipelines.model import Model
from genkit.pipelines.record import PACKAGES, version
from genkit.reading.files import place
from genkit.training.data.batch import Samples
from genkit.training.data.folder.samples import FolderSamples
from genkit.training.engine.journal import counting
from genkit.training.engine.keep import Export, Numbered
from genkit.training.engine.loop import LossAt, Validate, process_rank, train, wait_for_all
from genkit.training.lora.attention import put_in
from genkit.training.lora.checks import named_file
from genkit.training.lora.data import samples_of
from genkit.training.lora.files import ATTENTION, lora_files
from genkit.training.lora.groups import ACTIVATIONS
from genkit.training.lora.joint import joint_draw
from genkit.training.lora.plan import CHECKPOINT_BYTES, LoraPlan, adapter_on, optimizer_for, starting_pairs
from genkit.training.lora.quantise import check_quantised, quantisation
from genkit.training.lora.route import Route
from genkit.training.lora.router import RouterTask, router_files
from genkit.training.lora.samples import ValidationSamples
from genkit.training.lora.settings import LoraSettings
from genkit.training.lora.task import LoraTask, to_device
from genkit.training.lora.token_route import TokenRoute
from genkit.training.lora.words.build import made_before, put_words, word_task
from genkit.training.lora.words.task import WordTask


def train_lora(settings: LoraSettings, told: Callable[[str], None] = warnings.warn) -> Path:
    """Train a LoRA as settings say.

    Args:
        settings: of the run.
        told: called with what the user should know, one line each.

    Returns:
        ``OUTPUT/pytorch_lora_weights.safetensors``, which ``pipeline.load_lora_weights(OUTPUT)`` loads.

    Raises:
        UsageError: settings that mean nothing for this model or data.
        UnsupportedError: a model, method or package that cannot do it.
        ArtifactError: files that cannot be read or written, or a loss that is no number.
        Stopped: Ctrl-C; the state was saved.

    Example:
        >>> train_lora(LoraSettings(model="toy-video", data="clips", output="runs/lora", max_train_steps=300))
        ... # doctest: +SKIP
    """
    return Run.open(settings, told).go()


@dataclass
class Run:
    """A run that is ready to train: the model is loaded, the adapter and the attention are in.

    Args:
        settings: of the run.
        plan: what was checked before the weights were read.
        model: without weights.
        pipeline: with weights.
        training: the record of its family.
        component: part of the pipeline that is trained.
        adapter: on it, or the mixture whose router is trained.
        samples: what it is trained on.
        task: the loss.
        weights: of attention methods, when they are trained.
        handle: of the patch; None for the model's own attention.
        views: what is sampled on the way; None for nothing.
    """

    settings: LoraSettings
    plan: LoraPlan
    model: Model
    pipeline: Any
    training: Training
    component: str
    adapter: Any
    samples: Samples
    task: LoraTask
    weights: PatchWeights | None = None
    handle: PatchHandle | None = None
    views: ValidationSamples | None = None

    @classmethod
    def open(
        cls, settings: LoraSettings, told: Callable[[str], None] = warnings.warn, plan: LoraPlan | None = None
    ) -> Run:
        """Load and check everything; see :func:`train_lora`. ``plan``: made of the same settings before."""
        if settings.threads:
            torch.set_num_threads(settings.threads)
        plan = plan or LoraPlan.of(settings)
        for line in plan.notes():
            told(line)
        model, component, attention = plan.model, plan.component, plan.attention
        pipeline = _loaded(plan)
        training = training_of(pipeline, model.sidecar.sound)
        samples = _encoded(settings, samples_of(settings, plan.data, model, pipeline, training))
        views = prior = table = None
        if plan.subjects is not None:
            prior = made_before(plan, pipeline)
            table = put_words(plan, pipeline)
        if settings.validation_prompts and process_rank() == 0:
            views = ValidationSamples(settings, model, pipeline, plan.data.every, told, live=table is not None)
            views.encode()
        network = getattr(pipeline, component)
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        adapter = adapter_on(pipeline, component, settings)
        if settings.init_lora is not None:
            adapter.begin_with(*starting_pairs(pipeline, component, settings.init_lora))
        handle = weights = None
        if attention is not None:
            handle, weights, lines = put_in(network, attention, settings.train_attention_weights)
            for line in lines:
                told(line)
        tasks = joint_draw(plan.tasks, training, model.sidecar.call, handle)
        offload = settings.offload == ACTIVATIONS
        route = None if settings.route is None else TokenRoute(network, Route.parse(settings.route))
        given = (pipeline, training, adapter, plan.options, settings.seed, weights, offload, tasks, route)
        task = LoraTask(*given)
        if settings.mix:
            steps = plan.loop.steps
            batches = None if steps is None else steps * settings.gradient_accumulation_steps
            task = RouterTask(*given, balance=settings.mix_balance, certainty=settings.mix_certainty, steps=batches)
        if table is not None:
            task = word_task(plan, pipeline, adapter, table, prior)
        if settings.compile:
            _compile(network)
        if views is None:
            _let_go(pipeline, component, encoders=table is None)
        elif settings.offload != "none":
            _wait_in_main_memory(pipeline, component, plan.device)
        return cls(settings, plan, model, pipeline, training, component, adapter, samples, task, weights, handle, views)

    def go(self) -> Path:
        """Train until the budget is used up, and write the result."""
        settings, output = self.settings, Path(self.settings.output)
        named = [(name, value) for name, value in self.task.named_parameters() if value.requires_grad]
        optimizer = optimizer_for(settings, named)
        keep = Numbered(
            output,
            settings.resume_from_checkpoint,
            settings.checkpoints_total_limit,
            self.export,
            self.fingerprint(),
            told=lambda line: None,  # the plan's notes told it
        )
        if process_rank() == 0:
            keep.check_space(CHECKPOINT_BYTES * sum(value.numel() for _, value in named))
        train(self.task, optimizer, self.loss(), self.plan.loop, self.look(), title="lora", keep=keep)
        if process_rank() == 0:
            self.publish(keep.last)
            if settings.push_to_hub:
                self.push()
        wait_for_all()
        return output / named_file(settings)

    def publish(self, checkpoint: Path | None) -> None:
        """What the last checkpoint exported, as the run's result."""
        assert checkpoint is not None, "the loop ends with a checkpoint"
        output = Path(self.settings.output)
        with Files() as files:
            for name in self.made:
                shutil.copyfile(checkpoint / name, files.new(output / name))

    @property
    def made(self) -> list[str]:
        """The files of the result, from its folder."""
        words = [] if self.plan.subjects is None else [f"{WORDS}/{name_of(word)}" for word in self.plan.subjects.words]
        return [named_file(self.settings), *([ATTENTION] if self.weights is not None else []), *words]

    def push(self) -> None:
        """Upload the result to the Hugging Face hub; checkpoints, samples and caches stay here."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        output, hub = Path(self.settings.output), HfApi()
        try:
            name = self.settings.hub_model_id or f"{hub.whoami()['name']}/{output.resolve().name}"
            hub.create_repo(name, exist_ok=True)
            hub.upload_folder(
                repo_id=name, folder_path=output, allow_patterns=self.made,
                commit_message=f"LoRA of {self.model.name}",
            )  # fmt: skip
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise ArtifactError(
                f"{place(output / named_file(self.settings))} is written, but the hub did not take it: {said(error)}"
            ) from error

    def look(self) -> Validate | None:
        """What is measured on the way; None for nothing."""
        held, views = self.samples.held_out(), self.views
        if not held and not self.settings.validation_prompts:
            return None

        def validate(task: Any, step: int) -> dict[str, Any]:
            found: dict[str, Any] = dict(task.held_out(held))
            return found if views is None else found | views.show(step, task, self.handle)

        return validate

    def loss(self) -> LossAt:
        """The loss handed to the loop."""
        count, rank = self.settings.gradient_accumulation_steps, process_rank()

        def loss_at(wrapped: nn.Module, number: int, progress: float) -> tuple[torch.Tensor, dict[str, float]]:
            loss, figures = wrapped(to_device(self.samples.batch(number, rank), self.task.device), number, rank)
            if count > 1:
                # Micro-batches of several sizes: each counts by its samples, as in one batch of all of them.
                first = number - number % count
                sizes = [self.samples.count(each) for each in range(first, first + count)]
                loss = loss * (count * sizes[number % count] / sum(sizes))
            return loss, figures

        return loss_at

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """What must be the same when the run goes on from a checkpoint."""
        return {**self.plan.fingerprint(), "data": {"data": self.samples.digest}}

    def export(self, step: int) -> Export:
        """What writes the present weights; see :func:`genkit.training.lora.files.lora_files`."""
        if self.settings.mix:
            home = Path(self.settings.output)
            return router_files(self.adapter, home, component=self.component, base_model=self.model.name, steps=step)
        words = {}
        if isinstance(self.task, WordTask):
            words = self.task.table.embeddings(self.task.taught.subjects.words)
        return lora_files(self.component, self.adapter, self.facts(step), self.weights, words)

    def facts(self, step: int) -> Facts:
        """What the file says about itself."""
        settings = self.settings
        return Facts(
            made_by="train",
            family=family_of(self.adapter.model).name,
            pipeline=self.model.class_name,
            base_model=self.model.name,
            base_fingerprint=self.model.fingerprint(),
            component=self.component,
            adapter=self.adapter.config.kind,
            rank=settings.rank,
            alpha=settings.rank if settings.lora_alpha is None else settings.lora_alpha,
            attention=settings.attention,
            attention_args=settings.attention_args,
            schedule=settings.schedule,
            recipe=settings.recipe,
            attention_weights=None if self.weights is None else ATTENTION,
            steps=step,
            dataset=self.samples.digest,
            trigger_word=settings.trigger_word,
            new_words=self.plan.new_words,
            words=self.plan.words,
            settings=settings.to_dict(),
            versions={package: version(package) for package in (*PACKAGES, "peft", "genkit")},
        )


def _loaded(plan: LoraPlan) -> Any:
    """The pipeline with its weights."""
    settings = plan.settings
    place, parts_from = plan.model.source
    if settings.quantization is None:
        return load(place, plan.dtype, plan.device, parts_from=parts_from)
    config = quantisation(plan.component, settings.quantization, settings.quantization_args, plan.dtype)
    pipeline = load(place, plan.dtype, plan.device, quantization=config)
    check_quantised(settings.quantization, getattr(pipeline, plan.component))
    return pipeline


def _encoded(settings: LoraSettings, samples: FolderSamples) -> FolderSamples:
    """Samples whose latents and texts are on disk."""
    shown = counting("genkit: encoding media and captions:", process_rank() == 0)
    samples.prepare(process_rank(), shown, release=not settings.validation_prompts)
    wait_for_all()
    return samples


def _let_go(pipeline: Any, component: str, encoders: bool = True) -> None:
    """Take out what training needs no more: text encoders if asked, and denoisers that are not trained."""
    for name, part in pipeline.components.items():
        kept = name == component or (name.startswith("text_encoder") and not encoders)
        if isinstance(part, nn.Module) and not kept:
            setattr(pipeline, name, None)


def _wait_in_main_memory(pipeline: Any, component: str, device: torch.device) -> None:
    """Move every other part to main memory; each comes back when it is called, in place of the one before."""
    from accelerate import cpu_offload_with_hook

    hook = None
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module) and name != component:
            _, hook = cpu_offload_with_hook(part, device, prev_module_hook=hook)


def _compile(network: Any) -> None:
    """Compile the blocks that repeat, as Diffusers names them, else the whole denoiser."""
    if getattr(network, "_repeated_blocks", None):
        network.compile_repeated_blocks()
    else:
        network.compile()
