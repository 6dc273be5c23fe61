"""Encoded clips of the moving world: latents and what is known of every position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from genkit.families.wan import FAMILY
from genkit.training.data.pixels import as_tensor, use_onednn
from genkit.training.data.pool import Pool, Sample
from genkit.training.data.world.features import scene_features
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
class LatentPool(Pool):
    """Encoded clips of the moving world.

    Args:
        two_share: share of scenes with two objects, where the canvas holds them.
        backgrounds: names to draw backgrounds from.
        ends: give every clip ``extra``, its last frame encoded alone, (C, 1, h, w).
    """

    two_share: float = 0.5
    backgrounds: Sequence[str] = FIRST_BACKGROUNDS
    ends: bool = False

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
        last: Sequence[torch.Tensor | None] = [None] * count
        if self.ends and size.frames > 1:
            last = list(encode_clips(self.vae, np.stack([clip[-1:] for clip in clips])))
        return [Sample(*row) for row in zip(latents, scenes, features, last, strict=True)]


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


def encode_clips(vae: Any, clips: np.ndarray) -> torch.Tensor:
    """Normalised latents (B, C, T, h, w), float16, of uint8 clips (B, F, H, W, 3)."""
    return FAMILY.facts.codec.encode(vae, as_tensor(clips)).half().cpu()
