"""A growing pool of encoded clips, so that rendering and encoding cost a small part of the training time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from genkit.families.wan import FAMILY
from genkit.training.data.pixels import as_tensor, use_onednn
from genkit.training.engine.alignment import scene_features
from genkit.training.engine.curriculum import Size
from genkit.world.picture_scene import Picture
from genkit.world.render import render_clip
from genkit.world.scene import Scene, Tracks, actor_gap, draw_scene, lay_out
from genkit.world.vocabulary import FIRST_BACKGROUNDS


@dataclass(frozen=True)
class ClipSize:
    """Frames and canvas of a clip; latents are (1 + (frames - 1) / 4, height / 16, width / 16)."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"

    @property
    def tokens(self) -> int:
        """Tokens of the latent grid."""
        return (1 + (self.frames - 1) // 4) * (self.height // 16) * (self.width // 16)

    @property
    def room_for_two(self) -> bool:
        """Whether the canvas holds two objects that stay apart."""
        return min(self.height, self.width) >= 96


@dataclass
class Sample:
    """One encoded clip or picture.

    Args:
        latents: normalised, (C, T, H, W) of a clip or (C, H, W) of a picture, float16.
        scene: what it shows.
        features: for the alignment read-out.
        extra: further input of the denoiser, such as a mask and what it leaves, (channels, H, W).
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

    vae: nn.Module
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


@dataclass
class LatentPool(Pool):
    """Encoded clips of the moving world.

    Args:
        two_share: share of scenes with two objects, where the canvas holds them.
        backgrounds: names to draw backgrounds from.
    """

    two_share: float = 0.5
    backgrounds: Sequence[str] = FIRST_BACKGROUNDS

    def __post_init__(self):
        use_onednn(self.vae)

    @torch.no_grad()
    def encode(self, size: ClipSize, count: int) -> list[Sample]:
        scenes, clips, features = [], [], []
        for _ in range(count):
            scene, tracks = draw_apart(self.rng, size, self.two_share, self.backgrounds)
            scenes.append(scene)
            clips.append(render_clip(scene, tracks, size.height, size.width))
            features.append(torch.from_numpy(scene_features(scene, tracks, size.height, size.width)))
        latents = encode_clips(self.vae, np.stack(clips))
        return [Sample(*row) for row in zip(latents, scenes, features, strict=True)]


def draw_apart(
    rng: np.random.Generator, size: ClipSize, two_share: float, backgrounds: Sequence[str] = FIRST_BACKGROUNDS
) -> tuple[Scene, Tracks]:
    """A scene and its tracks; two objects that would touch are drawn again, so the caption tells what can be seen."""
    two = rng.random() < two_share and size.room_for_two
    while True:
        scene = draw_scene(rng, actors=2 if two else 1, moving=size.frames > 1, backgrounds=backgrounds)
        tracks = lay_out(scene, size.frames, size.height, size.width, rng)
        if actor_gap(tracks) > 0:
            return scene, tracks


def encode_clips(vae: nn.Module, clips: np.ndarray) -> torch.Tensor:
    """Normalised latents (B, C, T, h, w), float16, of uint8 clips (B, F, H, W, 3)."""
    return FAMILY.facts.codec.encode(vae, as_tensor(clips)).half().cpu()
