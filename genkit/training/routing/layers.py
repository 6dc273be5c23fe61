"""The error that sparse attention makes in single layers, measured on noised latents: which should stay dense."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from genkit.attention.method import Method
from genkit.patching import Part, Schedule, patch
from genkit.training.data.world.clips import ClipSize, LatentPool
from genkit.training.tasks.base import Noised
from genkit.training.tasks.denoiser import Denoiser
from genkit.world.caption import caption

SHIFT = 4.0  # of the noise levels, as in training


@torch.no_grad()
def calibration(pipeline: Any, size: ClipSize, count: int, seed: int, each: int = 1) -> list[Noised]:
    """Noised latents of clips of the toy world with their captions, in ``count`` batches of ``each``; a seed decides
    them, and they are none of those that training draws."""
    denoiser, pool = Denoiser(pipeline), LatentPool(pipeline.vae, np.random.default_rng(seed)).afresh(seed)
    rng, generator = np.random.default_rng((seed, 1)), torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        samples: Any = pool.draw(size, each)
        clean = torch.stack([sample.latents for sample in samples]).float()
        level = denoiser.objective.levels(each, SHIFT, generator)
        noise = torch.randn(clean.shape, generator=generator)
        text = denoiser.encode([caption(sample.scene, rng) for sample in samples])
        found.append(Noised(samples, *denoiser.objective.noised(clean, noise, level), level, text))
    return found


@torch.no_grad()
def errors_of(denoiser: Denoiser, parts: Sequence[Part], batches: Sequence[Noised]) -> list[float]:
    """Mean squared distance to the dense model's answer over its variance, one number per batch.

    Args:
        parts: the methods with their schedules; none is the dense model.
    """
    found = []
    for batch in batches:
        inputs = batch.noisy, batch.level, batch.text
        dense = denoiser.predict(*inputs)
        if not parts:
            found.append(0.0)
            continue
        with patch(denoiser.module, list(parts)):
            answer = denoiser.predict(*inputs)
        found.append(float((answer - dense).square().mean() / dense.var()))
    return found


def layer_errors(denoiser: Denoiser, method: Method, batches: Sequence[Noised]) -> list[float]:
    """For every layer the error when the method is on that layer alone, the mean over batches.

    Cost: as many denoiser calls per batch as there are layers, and as many dense ones.
    """
    count = layers_of(denoiser.module, method)
    alone = (errors_of(denoiser, [Part(method, Schedule(layers=layer))], batches) for layer in range(count))
    return [sum(each) / len(each) for each in alone]


def layers_of(model: Any, method: Method) -> int:
    """Number of layers of the first role that a method can be put on."""
    with patch(model, method) as handle:
        return max(layer.layers for layer in handle.layers.values())
