"""Encoded still pictures for training: latents, alignment features and, for inpainting, masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from genkit.training.data.pixels import as_tensor
from genkit.training.data.pool import Pool, Sample
from genkit.training.data.world.features import known_words, nearest_features
from genkit.training.engine.curriculum import Stage
from genkit.world.picture_render import render_picture
from genkit.world.picture_scene import TEXTURES, Picture, Placement, draw_picture
from genkit.world.vocabulary import FIRST_BACKGROUNDS, SHAPES, SIZES

#: Pictures of one, two and three objects. What is rare stays wrong: pairs were 4 in 10 of the large canvases only.
SHARES = (0.25, 0.35, 0.4)
#: Pixels per token of the denoisers: 4 by the autoencoder, 2 by the UNet's first halving or Flux's packing.
CELL = 8
FEATURES = 4 + 3 + 3 + len(SHAPES) + len(SIZES) + len(TEXTURES)


@dataclass(frozen=True)
class PictureSize:
    """Canvas of a picture; latents are (4, height / 4, width / 4)."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @property
    def tokens(self) -> int:
        """Tokens of the grid on which most attention layers work."""
        return (self.height // CELL) * (self.width // CELL)


def squares(*rows: tuple[int, float]) -> tuple[tuple[PictureSize, float], ...]:
    """Rows of (side, share) as a stage's mix."""
    return tuple((PictureSize(side, side), share) for side, share in rows)


# Share of the budget, canvases. Outlines and textures are learned where one object fills the canvas, at a quarter of a
# large picture's tokens; relations need room for two and three.
STAGES = (
    Stage(0.0, squares((64, 0.6), (96, 0.4))),
    Stage(0.3, squares((64, 0.25), (96, 0.4), (128, 0.35))),
    Stage(0.65, squares((64, 0.12), (96, 0.23), (128, 0.65))),
    Stage(
        0.9,
        (*squares((64, 0.08), (96, 0.12), (128, 0.6), (192, 0.1)), (PictureSize(96, 128), 0.1)),
    ),
)


def picture_features(picture: Picture, placement: Placement, height: int, width: int) -> np.ndarray:
    """Ground truth of the nearest object for every cell, float16 (1, H, W, FEATURES)."""
    constant = np.stack(
        [
            known_words(
                actor.colour,
                picture.background,
                ((SHAPES, actor.shape), (SIZES, actor.size), (TEXTURES, actor.texture)),
            )
            for actor in picture.actors
        ]
    )
    spot = (column[:, None] for column in (placement.x, placement.y, placement.radius))
    return nearest_features(*spot, constant, height, width, CELL)


def draw_mask(rng: np.random.Generator, placement: Placement, height: int, width: int) -> np.ndarray:
    """What is to be painted anew, float32 (height, width) of 0 and 1: a box around an object, any box, or all."""
    mask = np.zeros((height, width), dtype=np.float32)
    kind = rng.random()
    if kind < 0.15:
        mask[:] = 1.0
        return mask
    if kind < 0.65:
        actor = int(rng.integers(len(placement.x)))
        centre = np.array([placement.y[actor], placement.x[actor]])
        half = placement.radius[actor] * rng.uniform(1.3, 2.0, 2)
    else:
        centre = rng.uniform(0.2, 0.8, 2) * (height, width)
        half = rng.uniform(0.12, 0.4, 2) * (height, width)
    (top, left), (bottom, right) = (np.clip(np.round(centre + sign * half), 0, (height, width)) for sign in (-1, 1))
    mask[int(top) : int(bottom), int(left) : int(right)] = 1.0
    return mask


@dataclass
class PicturePool(Pool):
    """Encoded pictures.

    Args:
        inpaint: give every sample ``extra`` of five channels, in the order that Diffusers' inpainting pipeline has: the
            mask at the latents' size, and the latents of the picture with the masked part in gray.
        shares: of pictures with one, two and three objects, where the canvas holds them.
        backgrounds: names to draw backgrounds from.
    """

    inpaint: bool = False
    shares: tuple[float, float, float] = SHARES
    backgrounds: Sequence[str] = FIRST_BACKGROUNDS

    @torch.no_grad()
    def encode(self, size: PictureSize, count: int) -> list[Sample]:
        """``count`` new pictures of one size."""
        pictures, images, features, masks = [], [], [], []
        for _ in range(count):
            picture, placement = draw_picture(
                self.rng, size.height, size.width, shares=self.shares, backgrounds=self.backgrounds
            )
            pictures.append(picture)
            images.append(render_picture(picture, placement, size.height, size.width))
            features.append(torch.from_numpy(picture_features(picture, placement, size.height, size.width)))
            if self.inpaint:
                masks.append(draw_mask(self.rng, placement, size.height, size.width))
        pixels = as_tensor(np.stack(images)).to(next(self.vae.parameters()).device)
        latents = self._latents(pixels)
        extra: list[torch.Tensor | None] = [None] * count
        if self.inpaint:
            mask = torch.from_numpy(np.stack(masks))[:, None]
            kept = self._latents(pixels * (mask < 0.5).to(pixels))
            small = torch.nn.functional.interpolate(mask, size=kept.shape[-2:])
            extra = list(torch.cat([small.half(), kept], 1))
        return [Sample(*row) for row in zip(latents, pictures, features, extra, strict=True)]

    def _latents(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.vae.encode(pixels).latent_dist.mode().half().cpu()
