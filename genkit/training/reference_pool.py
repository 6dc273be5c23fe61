"""Encoded clips and pictures of one object, each with a reference picture of it, for training reference attention."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from genkit.attention.reference_masks import box_mask, grid_mask
from genkit.pipelines.reference_picture import scaled_latents
from genkit.training.autoencoder import as_tensor
from genkit.training.latent_pool import ClipSize, Pool, Sample, encode_clips
from genkit.training.picture_pool import PictureSize
from genkit.world.picture_render import render_picture
from genkit.world.picture_scene import draw_picture
from genkit.world.picture_subject import draw_picture_subject, picture_subject_caption
from genkit.world.render import render_clip
from genkit.world.scene import draw_scene, lay_out
from genkit.world.subject import actor_boxes, draw_subject_picture, subject_caption


@dataclass
class ReferenceSample(Sample):
    """One encoded clip or picture with its reference.

    Args:
        reference: normalised latents of the reference picture, (C, 1, h, w) or (C, h, w), float16.
        boxes: (T, h, w) share of every latent position inside the object's box; T = 1 of a picture.
    """

    reference: torch.Tensor | None = None
    boxes: torch.Tensor | None = None


@dataclass
class ReferenceClips(Pool):
    """Encoded clips of one object, each with a picture of it elsewhere.

    Args:
        side: of the reference picture in pixels.
    """

    side: int = 96

    @torch.no_grad()
    def encode(self, size: ClipSize, count: int) -> list[ReferenceSample]:
        """See :meth:`Pool.encode`."""
        scenes, clips, pictures, boxes = [], [], [], []
        for _ in range(count):
            scene = draw_scene(self.rng, actors=1, moving=size.frames > 1)
            tracks = lay_out(scene, size.frames, size.height, size.width, self.rng)
            scenes.append(scene)
            clips.append(render_clip(scene, tracks, size.height, size.width))
            pictures.append(draw_subject_picture(scene, self.rng, self.side, self.side)[None])
            boxes.append(actor_boxes(scene, tracks, size.height, size.width))
        latents = encode_clips(self.vae, np.stack(clips))
        references = encode_clips(self.vae, np.stack(pictures))
        return _samples(latents, scenes, references, boxes, tuple(latents.shape[2:]))

    @staticmethod
    def caption(sample: Sample, rng: np.random.Generator) -> str:
        """A caption without the object."""
        return subject_caption(sample.scene, rng, picture=sample.latents.shape[1] == 1)


@dataclass
class ReferencePictures(Pool):
    """Encoded pictures of one object, each with another picture of it.

    Args:
        side: of the reference picture in pixels.
    """

    side: int = 64

    @torch.no_grad()
    def encode(self, size: PictureSize, count: int) -> list[ReferenceSample]:
        """See :meth:`Pool.encode`."""
        scenes, images, pictures, boxes = [], [], [], []
        for _ in range(count):
            picture, placement = draw_picture(self.rng, size.height, size.width, actors=1)
            scenes.append(picture)
            images.append(render_picture(picture, placement, size.height, size.width))
            pictures.append(draw_picture_subject(picture, self.rng, self.side, self.side))
            boxes.append(actor_boxes(picture, placement.tracks, size.height, size.width))
        latents, references = (
            scaled_latents(self.vae, as_tensor(np.stack(rows))).half().cpu() for rows in (images, pictures)
        )
        return _samples(latents, scenes, references, boxes, (1, *latents.shape[2:]))

    @staticmethod
    def caption(sample: Sample, rng: np.random.Generator) -> str:
        """A caption without the object."""
        return picture_subject_caption(sample.scene, rng)


def _samples(latents, scenes, references, boxes, grid: tuple[int, int, int]) -> list[ReferenceSample]:
    masks = [grid_mask(box_mask(rows, *grid[1:]), grid).view(grid) for rows in boxes]
    return [
        ReferenceSample(made, scene, torch.zeros(0), reference=reference, boxes=mask)
        for made, scene, reference, mask in zip(latents, scenes, references, masks, strict=True)
    ]
