"""Training something small on a frozen model; what the single tasks have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from genkit.attention.method import Method
from genkit.errors import UsageError
from genkit.patching import Schedule, patch
from genkit.training.data.pool import Pool, Sample
from genkit.training.engine.curriculum import Size, Stage, batch_for, draw_size
from genkit.training.engine.loop import LossAt, process_rank
from genkit.training.tasks.denoiser import Denoiser


@dataclass
class Noised:
    """A batch of clips or pictures at their noise levels.

    Args:
        samples: what was drawn.
        noisy, target: (B, C, T, h, w) or (B, C, h, w), what the model sees, and what it should answer.
        level: (B,) noise levels in 0..1.
        text: (B, slots, width) states of the captions.
    """

    samples: Sequence[Sample]
    noisy: torch.Tensor
    target: torch.Tensor
    level: torch.Tensor
    text: torch.Tensor


class Task(nn.Module, ABC):
    """Something that is trained on a frozen pipeline; as a module it holds what is trained.

    Args:
        pipeline: its parts are frozen.
    """

    def __init__(self, pipeline: Any):
        super().__init__()
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        self.pipeline = pipeline  # no module: its weights stay out of the state dict and the optimiser

    @abstractmethod
    def forward(self, batch: Any) -> torch.Tensor:
        """The loss of a batch, a mean over its samples."""

    @abstractmethod
    def loss(self, seed: int, tokens: int) -> LossAt:
        """The loss function handed to the training loop.

        Args:
            seed: of everything drawn.
            tokens: latent tokens per micro-batch.
        """

    @abstractmethod
    def validation_loss(self, samples: int, tokens: int, seed: int) -> float:
        """The loss on about ``samples`` samples that follow from the seed and are never trained on."""

    @abstractmethod
    def save(self, path: Path) -> Path:
        """Write what was trained as it is used later; returns the file."""

    def take(self, path: Path) -> None:
        """Begin with what :meth:`save` once wrote, such as a model's own file after the model was trained further.

        A task that does not say how begins with checkpoints only.

        Raises:
            ArtifactError: a file that does not fit.
            UsageError: the task takes checkpoints only.
        """
        raise UsageError(f"--start-from: got {path}, allowed: a checkpoint.pt of an earlier run of this task")

    @property
    @abstractmethod
    def measured(self) -> Size:
        """Size of the samples of :meth:`validation_loss`."""

    def networks(self) -> tuple[nn.Module, ...]:
        """Frozen networks that gradients flow through, for gradient checkpointing."""
        found = (getattr(self.pipeline, name, None) for name in ("transformer", "transformer_2", "unet"))
        return tuple(part for part in found if isinstance(part, nn.Module))

    def probe(self) -> dict[str, float]:
        """Figures for ``probe.jsonl`` besides the loss; called while the averaged weights are in."""
        return {}


class PatchTask(Task):
    """A frozen pipeline with a patch; as a module it holds the patch's weights and nothing else.

    Args:
        pipeline: its parts are frozen.
        method: with trainable weights.
        pool: where samples come from.
        stages: sizes over the budget; the first one of the last stage is what is measured.
        schedule: layers the method is on.
        shift: of the noise levels, as the model was trained.
        empty: share of samples without a caption, for guidance.
    """

    def __init__(
        self,
        pipeline: Any,
        method: Method,
        pool: Pool,
        stages: tuple[Stage, ...],
        schedule: Schedule | None = None,
        shift: float = 4.0,
        empty: float = 0.1,
    ):
        super().__init__(pipeline)
        self.pool = pool
        self.stages = stages
        self.shift = shift
        self.empty = empty
        self.patch = patch(pipeline, method, schedule=schedule)
        self.weights = self.patch.weights

    @abstractmethod
    def draw(self, size: Any, count: int, rng: np.random.Generator) -> Any:
        """A batch of one size, with fresh noise and captions."""

    @property
    def measured(self) -> Size:
        """See :meth:`Task.measured`: the first size of the last stage."""
        return self.stages[-1].mix[0][0]

    def save(self, path: Path) -> Path:
        """See :meth:`Task.save`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return self.weights.save(path)

    def take(self, path: Path) -> None:
        """See :meth:`Task.take`."""
        for method in self.weights.settings_of(path):
            self.weights.load(path, method)

    def loss(self, seed: int, tokens: int) -> LossAt:
        """See :meth:`Task.loss`: sizes by the stages."""

        def loss_at(wrapped: nn.Module, number: int, progress: float):
            # All processes of a distributed run draw the same size, and everything else for themselves.
            size = draw_size(self.stages, progress, np.random.default_rng((seed, number)))
            rng = np.random.default_rng((seed, number, process_rank()))
            return wrapped(self.draw(size, batch_for(size, tokens), rng)), {}

        return loss_at

    def validation_loss(self, samples: int, tokens: int, seed: int) -> float:
        """See :meth:`Task.validation_loss`: all newly made."""
        count = min(samples, batch_for(self.measured, tokens))
        return mean_loss(self, self.measured, max(1, samples // count), count, seed)

    def connected(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss, with every weight taking part: distributed training waits for the gradient of each of them."""
        return loss + 0.0 * sum(parameter.sum() for parameter in self.weights.parameters())


class CaptionedTask(PatchTask):
    """A patch task on a pipeline that makes clips or pictures of captions; further arguments: :class:`PatchTask`.

    Args:
        pipeline: one that :class:`genkit.training.tasks.denoiser.Denoiser` knows.
    """

    def __init__(self, pipeline: Any, *args: Any, **kwargs: Any):
        super().__init__(pipeline, *args, **kwargs)
        self.denoiser = Denoiser(pipeline)

    @abstractmethod
    def caption_of(self, sample: Sample, rng: np.random.Generator) -> str:
        """The caption that a sample is trained with."""

    def draw(self, size: Any, count: int, rng: np.random.Generator) -> Noised:
        """See :meth:`PatchTask.draw`."""
        samples = self.pool.draw(size, count)
        device = self.denoiser.module.device
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        clean = torch.stack([sample.latents for sample in samples]).to(device).float()
        objective = self.denoiser.objective
        level = objective.levels(count, self.shift, generator).to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        texts = ["" if rng.random() < self.empty else self.caption_of(sample, rng) for sample in samples]
        return Noised(samples, *objective.noised(clean, noise, level), level, self.denoiser.encode(texts))

    def predict(self, batch: Noised, module: nn.Module | None = None) -> torch.Tensor:
        """The answer of the pipeline's denoiser, or of another network."""
        return self.denoiser.predict(batch.noisy, batch.level, batch.text, module)


@torch.no_grad()
def mean_loss(task: PatchTask, size: Any, batches: int, count: int, seed: int) -> float:
    """The loss over ``batches`` batches of ``count`` samples that follow from a seed, all newly made."""
    kept = task.pool
    task.pool = kept.afresh(seed)
    try:
        return float(np.mean([task(task.draw(size, count, np.random.default_rng((seed, i)))) for i in range(batches)]))
    finally:
        task.pool = kept
