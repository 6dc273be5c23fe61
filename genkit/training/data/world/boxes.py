"""Encoded clips of one object with the boxes it goes along, for training motion by boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from genkit.training.data.pool import Pool, Sample
from genkit.training.data.world.clips import ClipSize, encode_clips
from genkit.world.caption import caption
from genkit.world.render import render_clip
from genkit.world.scene import DIRECTIONS, Scene, draw_scene, lay_out, pick
from genkit.world.subject import actor_boxes, draw_subject_picture, subject_caption
from genkit.world.track import direction_of, draw_track, with_motion

# Shares of what the caption says of a free path: its direction, nothing, any direction (so that boxes count more).
_TRUE, _SILENT = 0.5, 0.35


@dataclass
class BoxSample(Sample):
    """One encoded clip with its boxes.

    Args:
        boxes: (frames, 4) float32 of the object, (left, top, right, bottom) as shares of the canvas.
        silent: the caption says no motion.
    """

    boxes: torch.Tensor | None = None
    silent: bool = False


@dataclass
class SubjectSample(BoxSample):
    """One encoded clip with its boxes and a picture of its object.

    Args:
        reference: normalised latents of the picture, (C, 1, h, w), float16.
    """

    reference: torch.Tensor | None = None


@dataclass
class BoxPool(Pool):
    """Encoded clips of one object that goes along boxes.

    Args:
        free: share of clips with a free path; the others move as the world's captions say.
    """

    free: float = 0.7

    @torch.no_grad()
    def encode(self, size: Any, count: int) -> list[Any]:
        """See :meth:`Pool.encode`."""
        rows = [self._show(size) for _ in range(count)]
        latents = encode_clips(self.vae, np.stack([row[1] for row in rows]))
        empty = torch.zeros(0)
        return [
            BoxSample(made, scene, empty, boxes=torch.tensor(boxes, dtype=torch.float32), silent=silent)
            for made, (scene, _, boxes, silent) in zip(latents, rows, strict=True)
        ]

    def _show(self, size: ClipSize) -> tuple[Scene, np.ndarray, list[tuple[float, float, float, float]], bool]:
        """A new scene, its pixels, the object's box in every frame, and whether the caption says no motion."""
        free = self.rng.random() < self.free or size.frames == 1
        scene = draw_scene(self.rng, actors=1, moving=not free)
        area = (size.frames, size.height, size.width)
        if not free:
            tracks, silent = lay_out(scene, *area, self.rng), self.rng.random() < _SILENT
            return scene, render_clip(scene, tracks, *area[1:]), actor_boxes(scene, tracks, *area[1:]), silent
        tracks = draw_track(scene, *area, self.rng)
        clip, boxes = render_clip(scene, tracks, *area[1:]), actor_boxes(scene, tracks, *area[1:])
        said = self.rng.random()
        motion = direction_of(tracks) if said < _TRUE + _SILENT else pick(self.rng, tuple(DIRECTIONS))
        return with_motion(scene, motion), clip, boxes, _TRUE <= said < _TRUE + _SILENT

    @staticmethod
    def caption(sample: Any, rng: np.random.Generator) -> str:
        """A caption that says the object, and its motion unless the sample is silent about it."""
        return caption(sample.scene, rng, picture=sample.silent or sample.latents.shape[1] == 1)


@dataclass
class SubjectPool(BoxPool):
    """Encoded clips of one object that goes along boxes, each with a picture of it elsewhere.

    Args:
        side: of the picture in pixels.
    """

    side: int = 96

    @torch.no_grad()
    def encode(self, size: Any, count: int) -> list[Any]:
        """See :meth:`Pool.encode`."""
        made = super().encode(size, count)
        pictures = [draw_subject_picture(sample.scene, self.rng, self.side, self.side)[None] for sample in made]
        references = encode_clips(self.vae, np.stack(pictures))
        return [
            SubjectSample(**vars(sample), reference=reference)
            for sample, reference in zip(made, references, strict=True)
        ]

    @staticmethod
    def mute_caption(sample: Any, rng: np.random.Generator) -> str:
        """A caption that does not say the object, and its motion unless the sample is silent about it."""
        return subject_caption(sample.scene, rng, picture=sample.silent or sample.latents.shape[1] == 1)
