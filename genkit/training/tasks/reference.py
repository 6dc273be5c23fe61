"""Training reference attention: the caption keeps silent about the object, a picture shows it."""

from __future__ import annotations

import argparse
from typing import Any, Literal

import numpy as np
import torch

from genkit.attention.reference import Reference
from genkit.attention.reference.masks import reweighted_loss
from genkit.attention.reference.store import References
from genkit.errors import UsageError
from genkit.evaluation.toy import ClipRequest
from genkit.evaluation.toy_picture import PictureRequest
from genkit.evaluation.toy_reference import draw_cases, generate_cases, judge_cases
from genkit.families.lookup import family_of
from genkit.pipelines.tasks.references.record import empty_text, record_latents
from genkit.reading import number, whole
from genkit.training.data.pool import Sample
from genkit.training.data.world.boxes import SubjectPool
from genkit.training.data.world.pictures import squares
from genkit.training.data.world.references import ReferenceClips, ReferencePictures, ReferencePool, references_of
from genkit.training.engine.curriculum import Stage
from genkit.training.engine.stages import Options
from genkit.training.tasks.base import CaptionedTask, Noised
from genkit.training.tasks.denoiser import SLOTS, Denoiser
from genkit.training.tasks.kind import TaskKind
from genkit.training.tasks.subject import TAUGHT, SubjectTask, motion_module
from genkit.training.toys.video.model import sizes

CLIP_STAGES = (
    Stage(0.0, sizes((1, 96, 96, 0.3), (5, 96, 96, 0.4), (9, 96, 96, 0.3))),
    Stage(0.4, sizes((9, 96, 96, 0.5), (1, 96, 96, 0.1), (17, 96, 96, 0.2), (17, 128, 128, 0.2))),
)
PICTURE_STAGES = (
    Stage(0.0, squares((64, 0.7), (96, 0.3))),
    Stage(0.4, squares((96, 0.4), (64, 0.3), (128, 0.3))),
)
# Colour and outline are decided where there is much noise, so there is more of it than in the models' own training. The
# same share of signal belongs to a lower level in a UNet's table of betas than on straight paths.
CLIP_SHIFT, PICTURE_SHIFT = 8.0, 3.0
CLIP_PROBE = ClipRequest(9, 96, 96, steps=12, batch=8, max_sequence_length=SLOTS)


class ReferenceTask(CaptionedTask):
    """Masked reference attention on a frozen pipeline for videos or pictures.

    The reference passes through the model in every step, with gradients; half of the samples tell the patch their
    boxes, so that the weights serve with and without. The loss weighs the inside of the boxes more.

    Args:
        pipeline, pool: see :class:`genkit.training.tasks.base.PatchTask`.
        stages: sizes over the budget.
        probe: size and sampling of what :meth:`probe` makes.
        rank: of the changes on the reference's side.
        boxed: share of the samples whose boxes are told.
        inside: weight of the loss inside the boxes (DreamVideo-2: 2).
        shift: of the noise levels.
    """

    def __init__(
        self,
        pipeline: Any,
        pool: ReferencePool,
        stages: tuple[Stage, ...] = CLIP_STAGES,
        probe: ClipRequest | PictureRequest = CLIP_PROBE,
        rank: int | Literal["full"] = 32,
        boxed: float = 0.5,
        inside: float = 2.0,
        shift: float = CLIP_SHIFT,
    ):
        super().__init__(pipeline, Reference(form="residual", rank=rank), pool, stages, shift=shift)
        self.boxed = boxed
        self.inside = inside
        self.request = probe
        self.references = References.of(self.patch.cache)

    def caption_of(self, sample: Sample, rng: np.random.Generator) -> str:
        """A caption without the object."""
        return self.pool.caption(sample, rng)

    def forward(self, batch: Noised) -> torch.Tensor:
        """The reweighted loss, the reference recorded anew."""
        self.record(batch)
        boxes = torch.stack([sample.boxes for sample in batch.samples]).to(batch.noisy)
        boxes = boxes.view(len(boxes), 1, *batch.noisy.shape[2:])
        loss = reweighted_loss(self.predict(batch), batch.target, boxes, self.inside)
        return self.connected(loss)

    def probe(self) -> dict[str, float]:
        """Share of eight samples that follow prompt and picture, by the judge, without boxes."""
        cases = draw_cases("train", 8, self.request, seed=11)
        samples, _ = generate_cases(self.pipeline, cases, self.request, 11, self.patch)
        return judge_cases(cases, samples).right

    def record(self, batch: Noised) -> None:
        """Make the samples' pictures the patch's reference, and tell the boxes of the chosen share of them."""
        samples = batch.samples
        pictures = references_of(samples).to(batch.noisy)
        record_latents(self.patch, self.pipeline, pictures, empty_text(self.pipeline, len(samples), SLOTS))
        boxes = torch.stack([sample.boxes for sample in samples])
        told = round(self.boxed * len(samples))
        boxes[told:] = 1
        self.references.set_boxes(boxes.to(batch.noisy))


def build(options: Options, pipeline: Any, rng: np.random.Generator) -> CaptionedTask:
    """The task for the options of the command, on clips or on pictures."""
    if family_of(Denoiser(pipeline).module).video:
        module = motion_module(options.model, options.boxes_weights)
        if module is not None:
            shown = SubjectPool(pipeline.vae, rng, fresh=0.15)
            taught = TAUGHT if options.taught is None else options.taught
            return SubjectTask(pipeline, shown, module, rank=options.rank, taught=taught)
        if options.taught is not None:
            raise UsageError(f"--taught goes with a motion module, and {options.model} has none; leave it out")
        return ReferenceTask(pipeline, ReferenceClips(pipeline.vae, rng, fresh=0.15), rank=options.rank)
    if options.boxes_weights not in (None, "none") or options.taught is not None:
        raise UsageError(f"--boxes-weights and --taught are for models of video, and {options.model} makes pictures")
    pool = ReferencePictures(pipeline.vae, rng, fresh=0.15)
    probe = PictureRequest.of_model(options.model, 64, 64, steps=12)
    return ReferenceTask(pipeline, pool, PICTURE_STAGES, probe, options.rank, shift=PICTURE_SHIFT)


def _rank(given: str) -> int | str:
    return given if given == "full" else whole(1)(given)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The task's own options."""
    text = "rank of the changes of q, k, v on the reference's side, or full (default 32)"
    parser.add_argument("--rank", type=_rank, default=32, help=text)
    text = "motion module to train beside: a file, or none (default: that in the model's folder, where there is one)"
    parser.add_argument("--boxes-weights", help=text)
    text = "share of the target that is the model's answer to the caption with the object, beside a motion module"
    parser.add_argument("--taught", type=number(0, 1), help=f"{text} (default {TAUGHT})")


KIND = TaskKind("reference", minutes=25, tokens=1500, lr=2e-3, muon=True, build=build, more=add_arguments)
