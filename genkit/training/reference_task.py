"""Training reference attention: the caption keeps silent about the object, a picture shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from genkit.attention.reference import Reference
from genkit.attention.reference_masks import box_mask, grid_mask, reweighted_loss
from genkit.attention.reference_store import References
from genkit.evaluation.toy import ClipRequest
from genkit.evaluation.toy_reference import draw_cases, generate_cases, judge_cases
from genkit.pipelines.reference_picture import empty_text, record_latents
from genkit.training.curriculum import Stage
from genkit.training.latent_pool import ClipSize, Pool, Sample, encode_clips
from genkit.training.patch_task import SLOTS, Noised, WanTask
from genkit.training.toy_video import sizes
from genkit.world.render import render_clip
from genkit.world.scene import draw_scene, lay_out
from genkit.world.subject import actor_boxes, draw_subject_picture, subject_caption

#: Side of the reference picture in pixels.
SIDE = 96
STAGES = (
    Stage(0.0, sizes((1, 96, 96, 0.3), (5, 96, 96, 0.4), (9, 96, 96, 0.3))),
    Stage(0.4, sizes((1, 96, 96, 0.1), (9, 96, 96, 0.5), (17, 96, 96, 0.2), (17, 128, 128, 0.2))),
)


@dataclass
class ReferenceSample(Sample):
    """One encoded clip with its reference.

    Args:
        reference: normalised latents (C, 1, h, w) of the reference picture, float16.
        boxes: (T, h, w) share of every latent position inside the object's box.
    """

    reference: torch.Tensor | None = None
    boxes: torch.Tensor | None = None


@dataclass
class ReferencePool(Pool):
    """Encoded clips of one object, each with a picture of it elsewhere.

    Args:
        side: of the reference picture in pixels.
    """

    side: int = SIDE

    @torch.no_grad()
    def encode(self, size: ClipSize, count: int) -> list[ReferenceSample]:
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
        grid = tuple(latents.shape[2:])
        masks = [grid_mask(box_mask(rows, *grid[1:]), grid).view(grid) for rows in boxes]
        return [
            ReferenceSample(clip, scene, torch.zeros(0), reference=reference, boxes=mask)
            for clip, scene, reference, mask in zip(latents, scenes, references, masks, strict=True)
        ]


class ReferenceTask(WanTask):
    """Masked reference attention on a frozen text-to-video model.

    The reference passes through the model in every step, with gradients; half of the samples tell the patch their
    boxes, so that the weights serve with and without. The loss weighs the inside of the boxes more.

    Args:
        pipeline, pool: see :class:`genkit.training.patch_task.PatchTask`.
        rank: of the changes on the reference's side.
        boxed: share of the samples whose boxes are told.
        inside: weight of the loss inside the boxes (DreamVideo-2: 2).
        stages: sizes over the budget.
        shift: of the noise levels; higher than the model's own training had, because colour and outline are decided
            where there is most noise.
    """

    def __init__(
        self,
        pipeline: Any,
        pool: ReferencePool,
        rank: int | str = 32,
        boxed: float = 0.5,
        inside: float = 2.0,
        stages: tuple[Stage, ...] = STAGES,
        shift: float = 8.0,
    ):
        super().__init__(pipeline, Reference(form="residual", rank=rank), pool, stages, shift=shift)
        self.boxed = boxed
        self.inside = inside
        self.references = References.of(self.patch.cache)

    def caption_of(self, sample: Sample, rng: np.random.Generator) -> str:
        """A caption without the object."""
        return subject_caption(sample.scene, rng, picture=sample.latents.shape[1] == 1)

    def forward(self, batch: Noised) -> torch.Tensor:
        """The reweighted loss, the reference recorded anew."""
        self.record(batch)
        boxes = torch.stack([sample.boxes for sample in batch.samples])[:, None].to(batch.noisy)
        loss = reweighted_loss(self.predict(batch), batch.velocity, boxes, self.inside)
        return self.connected(loss)

    def probe(self) -> dict[str, float]:
        """Share of eight clips that follow prompt and picture, by the judge, without boxes."""
        request = ClipRequest(9, 96, 96, steps=12, batch=8, max_sequence_length=SLOTS)
        cases = draw_cases("train", 8, request, seed=11)
        clips, _ = generate_cases(self.pipeline, cases, request, 11, self.patch)
        return judge_cases(cases, clips).right

    def record(self, batch: Noised) -> None:
        """Make the samples' pictures the patch's reference, and tell the boxes of the chosen share of them."""
        samples = batch.samples
        pictures = torch.stack([sample.reference for sample in samples]).to(batch.noisy)
        record_latents(self.patch, self.pipeline, pictures, empty_text(self.pipeline, len(samples), SLOTS))
        boxes = torch.stack([sample.boxes for sample in samples])
        told = round(self.boxed * len(samples))
        boxes[told:] = 1
        self.references.set_boxes(boxes.to(batch.noisy))
