"""What a LoRA is trained to do: answer the noise of encoded samples, through whatever attention is patched in.

Whatever is drawn (noise, level, dropout) follows from a seed, the number of the micro-batch and the sample's place in
it alone: a resumed run repeats an unbroken one, previews disturb nothing, and two processes draw what one with the
batch of both does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from genkit.errors import UsageError, explain
from genkit.families.training.base import AUDIO, Call, Training
from genkit.families.training.objectives import Flow, objective_of
from genkit.families.training.parts import facts
from genkit.training.data.batch import Batch
from genkit.training.lora.adapter import Adapter
from genkit.training.lora.joint import Given, JointDraw, task_figures, with_clean
from genkit.training.lora.levels import LOWEST, Levels, weight_of
from genkit.training.lora.token_route import TokenRoute

MSE, HUBER = "mse", "huber"
#: Place of what all samples of a batch draw together.
_SHARED = 2**32 - 1
#: Upper ends of the ranges of levels that figures tell the loss of.
RANGES = (0.25, 0.5, 0.75, 1.0)
#: Levels of the loss on held-out samples.
HELD_OUT_LEVELS = (0.2, 0.4, 0.6, 0.8, 0.95)
#: What a generator is for, so that no two draw the same.
_TRAINING, _HELD_OUT, _DROPOUT, _CONDITION, _TASK, _HELD_OUT_TASK, _ROUTE = 0, 1, 2, 3, 4, 5, 6


@dataclass(frozen=True)
class LossOptions:
    """How errors count.

    Args:
        levels: which noise levels are trained; their shift is filled in from the family where it is None.
        shift: of flow levels; None = the family's.
        weighting: see :func:`genkit.training.lora.levels.weight_of`.
        snr_gamma: the same.
        kind: ``mse``, or ``huber``, which is ``mse`` for errors below ``delta`` and grows linearly above.
        delta: of ``huber``.
        noise_offset: strength of noise that is the same in all places of a channel, for epsilon and v.
        guidance: told to models with an embedded guidance scale; None = the family's.
        audio_weight: of the sound's loss beside the main stream's.
        condition_dropout: share of samples whose told pictures are emptied; None = the family's.
        condition_noise: middle strength of noise on told pictures, in their latents' units. Each sample's own is drawn
            around it: its logarithm is normal, with a deviation of 0.5. None for none.
    """

    levels: Levels = field(default_factory=Levels)
    shift: float | None = None
    weighting: str = "none"
    snr_gamma: float | None = None
    kind: str = MSE
    delta: float = 0.1
    noise_offset: float = 0.0
    guidance: float | None = None
    audio_weight: float = 1.0
    condition_dropout: float | None = None
    condition_noise: float | None = None

    def __post_init__(self):
        if self.kind not in (MSE, HUBER):
            raise UsageError(explain("loss_type", self.kind, (MSE, HUBER)))


class LoraTask(nn.Module):
    """A frozen denoiser with an adapter, and with the weights of attention methods when they are trained.

    Args:
        pipeline: whose denoiser carries the adapter.
        training: the family's record.
        adapter: what is trained.
        options: how errors count.
        seed: of everything drawn.
        attention: weights of a patch that train too; None for none.
        offload: keep in main memory what the backward pass needs: less memory of a GPU, slower.
        tasks: what is drawn for every sample of a model of video and sound; None = all of both is made.
        route: on the denoiser, by which tokens skip blocks in :meth:`forward`; None = none does.

    Raises:
        UsageError: options that mean nothing for the model's objective.
    """

    def __init__(
        self,
        pipeline: Any,
        training: Training,
        adapter: Adapter,
        options: LossOptions | None = None,
        seed: int = 0,
        attention: nn.Module | None = None,
        offload: bool = False,
        tasks: JointDraw | None = None,
        route: TokenRoute | None = None,
    ):
        super().__init__()
        self.pipeline = pipeline
        self.training_record = training
        self.adapter = adapter
        self.options = options or LossOptions()
        self.seed = seed
        self.network = adapter.model.eval()
        self.attention = attention
        self.offload = offload
        self.tasks = tasks
        self.route = route
        self.objective = objective_of(facts(pipeline).objective, pipeline.scheduler)
        self._weight = weight_of(self.objective, self.options.weighting, self.options.snr_gamma)
        self._check()
        for name, module in self.network.named_modules():
            if "lora_dropout" in name.split("."):
                module.train()

    def _check(self) -> None:
        options, flow = self.options, isinstance(self.objective, Flow)
        if flow and options.noise_offset:
            raise UsageError("noise_offset is for epsilon and v prediction; this is a flow model: leave it out")
        if options.shift is not None and self.training_record.shift is None:
            raise UsageError("flow_shift: the levels of this family are not shifted; leave it out")
        if (options.condition_noise or options.condition_dropout) and not self.training_record.conditions:
            raise UsageError("condition_noise and condition_dropout: this model is told no picture that takes them")

    def forward(self, batch: Batch, number: int, rank: int = 0) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a micro-batch: a mean over its samples.

        Args:
            batch: encoded samples, on the denoiser's device.
            number: of the micro-batch.
            rank: index of the process; every process has a batch of the same number of samples.

        Returns:
            The loss, and figures: the error of each stream where there are several, and of each range of levels that
            the batch has samples of.
        """
        levels = self.levels(batch)
        count = len(next(iter(batch.latents.values())))
        generators = [self.generator(_TRAINING, number, rank * count + index) for index in range(count)]
        level = torch.cat([levels.draw(1, generator) for generator in generators])
        batch = self._conditions(batch, number, rank * count)
        given = None
        if self.tasks is not None:
            own = [self.generator(_TASK, number, rank * count + index) for index in range(count)]
            names = self.tasks.draw(self.generator(_TASK, number, _SHARED), own)
            given = self.tasks.given(names, batch.latents, self.pipeline, batch.fps, own)
        if self.route is not None:
            self.route.next(self.generator(_ROUTE, number, _SHARED))
        with self._dropout(number, rank), self._kept():
            errors = self.errors(batch, level, generators, given)
        loss, figures = self._loss(errors, level)
        if given is not None:
            figures |= task_figures(given.names, {name: error.detach().cpu() for name, error in errors.items()})
        return loss, figures

    def _conditions(self, batch: Batch, number: int, first: int) -> Batch:
        """The batch with told pictures emptied in a share of the samples, and with noise on the others.

        Args:
            batch: as it was encoded.
            number: of the micro-batch.
            first: place of its first sample in the batch of all processes.
        """
        record, options = self.training_record, self.options
        share = record.condition_dropout if options.condition_dropout is None else options.condition_dropout
        names = [name for name in record.conditions if name in batch.media]
        if not names or not (share or options.condition_noise):
            return batch
        changed = {name: batch.media[name].clone() for name in names}
        for index in range(len(changed[names[0]])):
            generator = self.generator(_CONDITION, number, first + index)
            empty = float(torch.rand((), generator=generator)) < share
            strength = (options.condition_noise or 0.0) * math.exp(0.5 * float(torch.randn((), generator=generator)))
            for told in (changed[name][index] for name in names):
                noise = torch.randn(told.shape, generator=generator).to(told)
                there = told.any(0, keepdim=True)
                told.mul_(0.0) if empty else told.add_(strength * noise * there)
        return replace(batch, media={**batch.media, **changed})

    def levels(self, batch: Batch) -> Levels:
        """The distribution of levels for samples of a batch's size."""
        options, record = self.options, self.training_record
        if not isinstance(self.objective, Flow):
            return options.levels
        shift = options.shift
        if shift is None and record.shift is not None:
            shift = record.shift(self.pipeline, {name: tuple(value.shape[1:]) for name, value in batch.latents.items()})
        low = max(options.levels.low, LOWEST)
        return replace(options.levels, shift=1.0 if shift is None else shift, low=low)

    def check_shift(self, batch: Batch) -> None:
        """Refuse a shift of noise levels that the family cannot train at with samples of a batch's size; UsageError.

        Only sizes are looked at, so that it is told before weights are read.
        """
        self.levels(batch)

    def errors(
        self,
        batch: Batch,
        level: torch.Tensor,
        generators: Sequence[torch.Generator],
        given: Given | None = None,
    ) -> dict[str, torch.Tensor]:
        """The error (B,) of every stream's answer at given levels, a mean over the parts that count.

        Args:
            batch: encoded samples.
            level: (B,) noise levels.
            generators: the noise of each sample is drawn from one, on the CPU: it is the same on every device.
            given: what of the samples is given by their tasks; None = nothing.
        """
        device = next(iter(batch.latents.values())).device
        level = level.to(device)
        noisy, target = {}, {}
        for stream, clean in batch.latents.items():
            noise = torch.stack([self._noise(clean.shape[1:], generator) for generator in generators]).to(device)
            noisy[stream], target[stream] = self.objective.noised(clean.float(), noise, level)
        told: dict[str, Any] = {}
        if given is not None and self.tasks is not None:
            noisy = with_clean(noisy, batch.latents, given)
            told = {"clean": given.clean, "apart": given.apart, "cross_levels": self.tasks.cross_levels}
        call = Call(
            pipeline=self.pipeline,
            model=self.network,
            noisy=noisy,
            level=level,
            timestep=self.objective.timesteps(level),
            media=batch.media,
            text=batch.text,
            guidance=self.training_record.guidance if self.options.guidance is None else self.options.guidance,
            fps=batch.fps,
            **told,
        )
        with nullcontext() if given is None or self.tasks is None else self.tasks.routed(given.names):
            answers = self.training_record.answers(self.network(**self.training_record.arguments(call)), call)
        weights = {} if self.training_record.weights is None else self.training_record.weights(call)
        counts = {} if given is None else given.counts
        return {
            stream: self._error(
                answers[stream], wanted, batch.masks.get(stream), weights.get(stream), counts.get(stream)
            )
            for stream, wanted in target.items()
        }

    def _noise(self, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
        noise = torch.randn(shape, generator=generator)
        if self.options.noise_offset:
            flat = (shape[0], *[1] * (len(shape) - 1))
            noise = noise + self.options.noise_offset * torch.randn(flat, generator=generator)
        return noise

    def _error(self, answer: torch.Tensor, target: torch.Tensor, *weights: torch.Tensor | None) -> torch.Tensor:
        """(B,) a weighted mean over each sample; 0 of one that counts nowhere."""
        wide = torch.promote_types(answer.dtype, torch.float32)
        wrong = answer.to(wide) - target.to(wide)
        if self.options.kind == MSE:
            wrong = wrong.square()
        else:
            # The square below delta, as mse; beyond it a line with the same slope there.
            size, delta = wrong.abs(), self.options.delta
            wrong = torch.where(size < delta, size.square(), delta * (2 * size - delta))
        axes = tuple(range(1, wrong.ndim))
        present = [weight for weight in weights if weight is not None]
        if not present:
            return wrong.mean(axes)
        weight = present[0].to(wrong)
        for more in present[1:]:
            weight = weight * more.to(wrong)
        weight = weight.expand_as(wrong)
        total = weight.sum(axes)
        return (weight * wrong).sum(axes) / torch.where(total > 0, total, 1.0)

    def _loss(self, errors: Mapping[str, torch.Tensor], level: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss, and figures of errors (B,) at levels (B,) on the CPU."""
        weight = self._weight(level)
        told = torch.stack([error.detach() for error in errors.values()]).cpu()
        parts = [self._share(name) * (weight.to(error) * error).mean() for name, error in errors.items()]
        loss = torch.stack(parts).sum()
        figures = {f"loss {name}": float(row.mean()) for name, row in zip(errors, told, strict=True) if len(errors) > 1}
        main, low = told[list(errors).index(self.training_record.streams[0])], 0.0
        for high in RANGES:
            inside = (level >= low) & ((level < high) if high < 1 else (level <= high))
            if inside.any():
                figures[f"loss {low:g}-{high:g}"] = float(main[inside].mean())
            low = high
        return loss + self._all_of_them(loss), figures

    def _all_of_them(self, loss: torch.Tensor) -> torch.Tensor:
        """Zero, with every weight taking part: DDP waits for the gradient of each of them, FSDP2 does not."""
        trained = [value for value in self.parameters() if value.requires_grad]
        alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        if alone or any(hasattr(value, "full_tensor") for value in trained):
            return loss.new_zeros(())
        return 0.0 * torch.stack([value.sum() for value in trained]).sum()

    def _share(self, stream: str) -> float:
        main = self.training_record.streams[0]
        return self.options.audio_weight if stream == AUDIO and stream != main else 1.0

    @torch.no_grad()
    def held_out(self, batches: Mapping[str, Batch]) -> dict[str, float]:
        """The loss on samples that are never trained on, always with the same noise at the same levels.

        Args:
            batches: from :meth:`genkit.training.data.batch.Samples.held_out`.

        Returns:
            ``held-out loss``: the mean over all samples and :data:`HELD_OUT_LEVELS`, without their weights, and of all
            tasks by their shares; empty without samples.
        """
        total, count = 0.0, 0
        shares: dict[str | None, float] = {None: 1.0} if self.tasks is None else {**self.tasks.shares}
        for number, (_, batch) in enumerate(sorted(batches.items())):
            batch = to_device(batch, self.device)
            size = len(next(iter(batch.latents.values())))
            for index, level in enumerate(HELD_OUT_LEVELS):
                for task, share in shares.items():
                    generators = [self.generator(_HELD_OUT, number, index * size + each) for each in range(size)]
                    given = None if task is None else self._all_of(task, batch, number, size)
                    errors = self.errors(batch, torch.full((size,), level), generators, given)
                    told = sum(self._share(stream) * error.sum() for stream, error in errors.items())
                    total += share * float(told)
                count += size
        return {"held-out loss": total / count} if count else {}

    def _all_of(self, task: str, batch: Batch, number: int, size: int) -> Given:
        """What a task gives when all samples of a held-out batch do it."""
        assert self.tasks is not None
        own = [self.generator(_HELD_OUT_TASK, number, place) for place in range(size)]
        return self.tasks.given((task,) * size, batch.latents, self.pipeline, batch.fps, own)

    def generator(self, purpose: int, number: int, place: int) -> torch.Generator:
        """The source of what is drawn for a sample; on the CPU."""
        state = np.random.SeedSequence((self.seed, purpose, number, place)).generate_state(2, np.uint32)
        return torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))

    @contextmanager
    def _dropout(self, number: int, rank: int) -> Iterator[None]:
        """What the adapter's dropout draws follows from the number, too."""
        if not self.adapter.config.dropout:
            yield
            return
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.generator(_DROPOUT, number, rank).initial_seed())
            yield

    def _kept(self) -> AbstractContextManager:
        """Where the forward pass keeps what the backward pass needs."""
        if not self.offload:
            return nullcontext()
        return torch.autograd.graph.save_on_cpu(pin_memory=self.device.type == "cuda")

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(self.network.parameters()).device

    @property
    def _no_split_modules(self) -> list[str]:
        """Blocks that accelerate shards apart (FSDP2), as the denoiser names them."""
        return list(getattr(self.network, "_no_split_modules", None) or [])


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch on a device."""
    moved: dict[str, Any] = {
        name: {key: value.to(device, non_blocking=True) for key, value in getattr(batch, name).items()}
        for name in ("latents", "media", "text", "masks")
    }
    return replace(batch, **moved)
