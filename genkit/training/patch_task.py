"""Training the weights of a patch on a frozen model; what the single tasks have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from genkit.attention.base import Method
from genkit.patching import Schedule, patch
from genkit.training.curriculum import Stage, batch_for, draw_sigma, draw_size
from genkit.training.latent_pool import Pool, Sample
from genkit.training.loop import process_rank

#: Text slots, as toy-video's sidecar has them.
SLOTS = 64


@dataclass
class Noised:
    """A batch of clips at their noise levels.

    Args:
        samples: what was drawn.
        noisy, velocity: (B, C, T, h, w), what the model sees, and what it should answer.
        sigma: (B,) noise levels in 0..1.
        text: (B, SLOTS, width) states of the captions.
    """

    samples: Sequence[Sample]
    noisy: torch.Tensor
    velocity: torch.Tensor
    sigma: torch.Tensor
    text: torch.Tensor


class PatchTask(nn.Module, ABC):
    """A frozen pipeline with a patch; as a module it holds the patch's weights and nothing else.

    Args:
        pipeline: its parts are frozen.
        method: with trainable weights.
        pool: where samples come from.
        stages: sizes over the budget.
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

    def probe(self) -> dict[str, float]:
        """Figures for ``probe.jsonl`` besides the loss; called while the averaged weights are in."""
        return {}

    def connected(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss, with every weight taking part: distributed training waits for the gradient of each of them."""
        return loss + 0.0 * sum(parameter.sum() for parameter in self.weights.parameters())


class WanTask(PatchTask):
    """A patch task on a Wan text-to-video pipeline."""

    @abstractmethod
    def caption_of(self, sample: Sample, rng: np.random.Generator) -> str:
        """The caption that a sample is trained with."""

    def draw(self, size: Any, count: int, rng: np.random.Generator) -> Noised:
        """See :meth:`PatchTask.draw`."""
        samples = self.pool.draw(size, count)
        device = self.pipeline.transformer.device
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        clean = torch.stack([sample.latents for sample in samples]).to(device).float()
        sigma = draw_sigma(count, self.shift, generator).to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        level = sigma.view(-1, 1, 1, 1, 1)
        texts = ["" if rng.random() < self.empty else self.caption_of(sample, rng) for sample in samples]
        return Noised(samples, (1 - level) * clean + level * noise, noise - clean, sigma, self.encode(texts))

    @torch.no_grad()
    def encode(self, texts: list[str]) -> torch.Tensor:
        """States of prompts as the pipeline makes them."""
        return self.pipeline.encode_prompt(texts, do_classifier_free_guidance=False, max_sequence_length=SLOTS)[0]

    def predict(self, batch: Noised, model: nn.Module | None = None) -> torch.Tensor:
        """The velocity by the pipeline's denoiser, or by another one."""
        model = self.pipeline.transformer if model is None else model
        return model(batch.noisy, batch.sigma * 1000, batch.text, return_dict=False)[0]


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
