"""Training the weights of a patch on a frozen model; what the single tasks have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from genkit.attention.method import Method
from genkit.patching import Schedule, patch
from genkit.training.data.world.clips import Pool, Sample
from genkit.training.engine.curriculum import Size, Stage, batch_for, draw_size
from genkit.training.engine.loop import process_rank
from genkit.training.tasks.denoisers import denoiser_of


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


class PatchTask(nn.Module, ABC):
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
        super().__init__()
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        self.pipeline = pipeline  # no module: its weights stay out of the state dict and the optimiser
        self.pool = pool
        self.stages = stages
        self.shift = shift
        self.empty = empty
        self.patch = patch(pipeline, method, schedule=schedule)
        self.weights = self.patch.weights

    @abstractmethod
    def draw(self, size: Any, count: int, rng: np.random.Generator) -> Any:
        """A batch of one size, with fresh noise and captions."""

    @abstractmethod
    def forward(self, batch: Any) -> torch.Tensor:
        """The loss of a batch."""

    @property
    def measured(self) -> Size:
        """Size of the samples on which the loss before and after training is told."""
        return self.stages[-1].mix[0][0]

    def probe(self) -> dict[str, float]:
        """Figures for ``probe.jsonl`` besides the loss; called while the averaged weights are in."""
        return {}

    def connected(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss, with every weight taking part: distributed training waits for the gradient of each of them."""
        return loss + 0.0 * sum(parameter.sum() for parameter in self.weights.parameters())


class CaptionedTask(PatchTask):
    """A patch task on a pipeline that makes clips or pictures of captions; further arguments: :class:`PatchTask`.

    Args:
        pipeline: one that :func:`genkit.training.tasks.denoisers.denoiser_of` knows.
    """

    def __init__(self, pipeline: Any, *args: Any, **kwargs: Any):
        super().__init__(pipeline, *args, **kwargs)
        self.denoiser = denoiser_of(pipeline)

    @abstractmethod
    def caption_of(self, sample: Sample, rng: np.random.Generator) -> str:
        """The caption that a sample is trained with."""

    def draw(self, size: Any, count: int, rng: np.random.Generator) -> Noised:
        """See :meth:`PatchTask.draw`."""
        samples = self.pool.draw(size, count)
        device = self.denoiser.module.device
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        clean = torch.stack([sample.latents for sample in samples]).to(device).float()
        level = self.denoiser.levels(count, self.shift, generator).to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        texts = ["" if rng.random() < self.empty else self.caption_of(sample, rng) for sample in samples]
        return Noised(samples, *self.denoiser.noised(clean, noise, level), level, self.denoiser.encode(texts))

    def predict(self, batch: Noised, module: nn.Module | None = None) -> torch.Tensor:
        """The answer of the pipeline's denoiser, or of another network."""
        return self.denoiser.predict(batch.noisy, batch.level, batch.text, module)


def patch_loss(task: PatchTask, seed: int, tokens: int) -> Callable[[nn.Module, int, float], tuple]:
    """The loss function handed to the training loop.

    Args:
        task: the unwrapped module.
        seed: of sizes, captions and noise.
        tokens: latent tokens per step.
    """

    def loss_at(wrapped: nn.Module, step: int, progress: float):
        # All processes of a distributed run draw the same size, and everything else for themselves.
        size = draw_size(task.stages, progress, np.random.default_rng((seed, step)))
        rng = np.random.default_rng((seed, step, process_rank()))
        return wrapped(task.draw(size, batch_for(size, tokens), rng)), {}

    return loss_at


@torch.no_grad()
def mean_loss(task: PatchTask, size: Any, batches: int, count: int, seed: int) -> float:
    """The loss over ``batches`` batches of ``count`` samples that follow from a seed, all newly made."""
    kept = task.pool
    task.pool = kept.afresh(seed)
    try:
        return float(np.mean([task(task.draw(size, count, np.random.default_rng((seed, i)))) for i in range(batches)]))
    finally:
        task.pool = kept
