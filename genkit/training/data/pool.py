"""A growing pool of encoded samples, so that making and encoding them cost a small part of the training time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from genkit.training.engine.curriculum import Size
from genkit.world.picture_scene import Picture
from genkit.world.scene import Scene


@dataclass
class Sample:
    """One encoded clip or picture.

    Args:
        latents: normalised, (C, T, H, W) of a clip or (C, H, W) of a picture, float16.
        scene: what it shows.
        features: for the alignment read-out.
        extra: further input of the denoiser: of a picture a mask and what it leaves, (channels, H, W); of a clip its
            last frame, encoded alone, (C, 1, H, W).
    """

    latents: torch.Tensor
    scene: Scene | Picture
    features: torch.Tensor
    extra: torch.Tensor | None = None


@dataclass
class Pool(ABC):
    """Draws batches of encoded samples, a share of them new, the rest from what was encoded before.

    Args:
        vae: frozen autoencoder with its latent statistics set.
        rng: source of randomness; the pool's content follows from it.
        fresh: share of new samples in a batch once the pool holds two batches.
        capacity: samples kept per size.
    """

    vae: Any
    rng: np.random.Generator
    fresh: float = 0.25
    capacity: int = 6000
    stored: dict[Size, list[Sample]] = field(default_factory=dict)

    def draw(self, size: Size, count: int) -> list[Sample]:
        """``count`` samples of one size."""
        shelf = self.stored.setdefault(size, [])
        # Rounded at random, so that the share also holds for batches of two or three.
        new = count if len(shelf) < 2 * count else min(count, int(self.fresh * count + self.rng.random()))
        made = self.encode(size, new) if new else []
        old = [shelf[i] for i in self.rng.integers(len(shelf), size=count - new)] if count > new else []
        for sample in made:
            if len(shelf) < self.capacity:
                shelf.append(sample)
            else:
                shelf[int(self.rng.integers(self.capacity))] = sample
        return made + old

    def afresh(self, seed: int) -> Pool:
        """An empty pool of the same kind, whose content follows from a seed."""
        return replace(self, rng=np.random.default_rng(seed), stored={})

    @abstractmethod
    def encode(self, size: Size, count: int) -> list[Sample]:
        """``count`` new samples of one size."""
