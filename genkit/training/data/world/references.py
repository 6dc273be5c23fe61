"""Encoded clips and pictures of one object, each with a reference picture of it, for training reference attention."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from genkit.attention.reference.masks import box_mask, grid_mask
from genkit.families.unet import FAMILY
from genkit.training.data.pixels import as_tensor
from genkit.training.data.pool import Pool, Sample
from genkit.training.data.world.clips import ClipSize, encode_clips
from genkit.training.data.world.pictures import PictureSize
from genkit.world.picture_render import render_picture
from genkit.world.picture_scene import Picture, draw_picture
from genkit.world.picture_subject import draw_picture_subject, picture_subject_caption
from genkit.world.render import render_clip
from genkit.world.scene import Scene, draw_scene, lay_out
from genkit.world.subject import actor_boxes, draw_subject_picture, subject_caption

Boxes = list[tuple[float, float, float, float]]


@dataclass
class ReferenceSample(Sample):
    """One encoded clip or picture with its reference.

    Args:
        reference: normalised latents of the reference picture, (C, 1, h, w) or (C, h, w), float16.
        boxes: (T, h, w) share of every latent position inside the object's box; T = 1 of a picture.
    """

    reference: torch.Tensor | None = None
    boxes: torch.Tensor | None = None


def references_of(samples: Sequence[Any]) -> torch.Tensor:
    """The samples' reference pictures, (B, C, 1, h, w) or (B, C, h, w) float32. Halves cannot be stacked under autocast
    to bfloat16 on CPUs."""
    return torch.stack([sample.reference.float() for sample in samples])


@dataclass
class ReferencePool(Pool):
    """Encoded samples of one object, each with a picture of it elsewhere.

    Args:
        side: of the reference picture in pixels.
    """

    side: int = 64

    @torch.no_grad()
    def encode(self, size: ClipSize | PictureSize, count: int) -> list[ReferenceSample]:
        """See :meth:`Pool.encode`."""
        scenes, shown, pictures, boxes = zip(*(self.show(size) for _ in range(count)), strict=True)
        latents, references = self.latents(np.stack(shown)), self.latents(np.stack(pictures))
        grid = (1, *latents.shape[2:])[-3:]
        masks = [grid_mask(box_mask(rows, *grid[1:]), grid).view(grid) for rows in boxes]
        return [
            ReferenceSample(made, scene, torch.zeros(0), reference=reference, boxes=mask)
            for made, scene, reference, mask in zip(latents, scenes, references, masks, strict=True)
        ]

    @abstractmethod
    def show(self, size: ClipSize | PictureSize) -> tuple[Scene | Picture, np.ndarray, np.ndarray, Boxes]:
        """A new scene, its pixels at ``size``, pixels of the reference picture, and the object's box per frame."""

    @abstractmethod
    def latents(self, pixels: np.ndarray) -> torch.Tensor:
        """float16 latents of pixels (B, ..., H, W, 3)."""


@dataclass
class ReferenceClips(ReferencePool):
    """Encoded clips of one object, each with a picture of it elsewhere."""

    side: int = 96

    def show(self, size: ClipSize) -> tuple[Scene, np.ndarray, np.ndarray, Boxes]:
        """See :meth:`ReferencePool.show`."""
        scene = draw_scene(self.rng, actors=1, moving=size.frames > 1)
        tracks = lay_out(scene, size.frames, size.height, size.width, self.rng)
        clip = render_clip(scene, tracks, size.height, size.width)
        picture = draw_subject_picture(scene, self.rng, self.side, self.side)[None]
        return scene, clip, picture, actor_boxes(scene, tracks, size.height, size.width)

    def latents(self, pixels: np.ndarray) -> torch.Tensor:
        """float16 (B, C, T, h, w)."""
        return encode_clips(self.vae, pixels)

    @staticmethod
    def caption(sample: Sample, rng: np.random.Generator) -> str:
        """A caption without the object."""
        return subject_caption(sample.scene, rng, picture=sample.latents.shape[1] == 1)


@dataclass
class ReferencePictures(ReferencePool):
    """Encoded pictures of one object, each with another picture of it."""

    def show(self, size: PictureSize) -> tuple[Picture, np.ndarray, np.ndarray, Boxes]:
        """See :meth:`ReferencePool.show`."""
        picture, placement = draw_picture(self.rng, size.height, size.width, actors=1)
        image = render_picture(picture, placement, size.height, size.width)
        subject = draw_picture_subject(picture, self.rng, self.side, self.side)
        return picture, image, subject, actor_boxes(picture, placement.tracks, size.height, size.width)

    def latents(self, pixels: np.ndarray) -> torch.Tensor:
        """float16 (B, C, h, w)."""
        return FAMILY.facts.codec.encode(self.vae, as_tensor(pixels)).half().cpu()

    @staticmethod
    def caption(sample: Sample, rng: np.random.Generator) -> str:
        """A caption without the object."""
        return picture_subject_caption(sample.scene, rng)
