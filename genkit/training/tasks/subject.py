"""Training reference attention beside a motion module: a picture shows the object, boxes say where it goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from genkit.attention.motion_boxes import BoxTrack, MotionBoxes
from genkit.attention.reference import Reference
from genkit.attention.reference.masks import box_mask, grid_mask, reweighted_loss
from genkit.attention.reference.store import References
from genkit.attention.registry import trained
from genkit.errors import ArtifactError
from genkit.evaluation.toy import ClipRequest
from genkit.evaluation.toy_boxes import draw_box_cases, generate_box_cases, judge_box_cases
from genkit.models import locate
from genkit.patching import Schedule
from genkit.pipelines.tasks.boxes.given import WEIGHTS
from genkit.pipelines.tasks.references.record import empty_text, record_latents
from genkit.reading.files import place
from genkit.training.data.pool import Sample
from genkit.training.data.world.boxes import SubjectPool
from genkit.training.data.world.references import references_of
from genkit.training.engine.curriculum import Stage
from genkit.training.tasks.base import CaptionedTask, Noised
from genkit.training.tasks.denoiser import SLOTS
from genkit.training.toys.video.model import sizes

# What the object is, is learned on small canvases, at a tenth of a large clip's tokens; the rest is for size.
STAGES = (
    Stage(0.0, sizes((1, 64, 64, 0.2), (5, 64, 64, 0.4), (5, 96, 96, 0.2), (9, 96, 96, 0.2))),
    Stage(0.4, sizes((5, 96, 96, 0.3), (9, 96, 96, 0.4), (17, 128, 128, 0.3))),
    Stage(0.75, sizes((17, 128, 128, 0.6), (9, 96, 96, 0.4))),
)
# Colour and outline are decided where there is much noise.
SHIFT = 8.0
#: Share of the target that is the answer of the model itself to the caption that names the object.
TAUGHT = 0.8
PROBE = ClipRequest(9, 96, 96, steps=12, batch=8, max_sequence_length=SLOTS)
_REFERENCE = "reference"


@dataclass
class Shown(Noised):
    """Noised clips of objects that pictures show.

    Args:
        named: (B, slots, width) states of captions that name the object, beside ``text`` of those that do not.
        told: the boxes are told to the motion module, and mask the reference.
    """

    named: torch.Tensor
    told: bool


class SubjectTask(CaptionedTask):
    """Masked reference attention on a frozen video pipeline with its frozen motion module.

    The picture passes through the model in every step, with gradients. Of most batches the boxes are told: the motion
    module follows them, and they mask the reference (DreamVideo-2); the others tell none, so that the weights serve
    without. The loss weighs the inside of the boxes more.

    Its target is the clip, blended with what the frozen model answers to the caption that names the object. On average
    over clips both say the same of the object, but an answer has none of the clip's chance, and far fewer steps are
    needed. Negative halves of guidance do not read references, so no caption is left empty.

    Args:
        pipeline, pool: see :class:`genkit.training.tasks.base.PatchTask`.
        module: the trained motion module, which stays as it is.
        stages: sizes over the budget.
        rank: of the changes on the reference's side.
        taught: share of the target that is the frozen model's answer; 0 = the clip alone, as published.
        boxed: share of the batches whose boxes are told.
        inside: weight of the loss inside the boxes (DreamVideo-2: 2).
        shift: of the noise levels.
    """

    def __init__(
        self,
        pipeline: Any,
        pool: SubjectPool,
        module: MotionBoxes,
        stages: tuple[Stage, ...] = STAGES,
        rank: int | Literal["full"] = 32,
        taught: float = TAUGHT,
        boxed: float = 0.75,
        inside: float = 2.0,
        shift: float = SHIFT,
    ):
        parts: Any = [Reference(form="residual", rank=rank), module]
        super().__init__(pipeline, parts, pool, stages, shift=shift, empty=0.0)
        self.taught = taught
        self.boxed = boxed
        self.inside = inside
        self.references, self.track = References.of(self.patch.cache), BoxTrack.of(self.patch.cache)
        for name, parameter in self.weights.named_weights().items():
            parameter.requires_grad_(name.startswith(f"{_REFERENCE}/"))

    def caption_of(self, sample: Sample, rng: np.random.Generator) -> str:
        """A caption without the object."""
        return SubjectPool.mute_caption(sample, rng)

    def draw(self, size: Any, count: int, rng: np.random.Generator) -> Shown:
        """See :meth:`PatchTask.draw`."""
        batch = super().draw(size, count, rng)
        named = self.denoiser.encode([SubjectPool.caption(sample, rng) for sample in batch.samples])
        return Shown(**vars(batch), named=named, told=bool(rng.random() < self.boxed))

    def forward(self, batch: Any) -> torch.Tensor:
        """The reweighted loss, the reference recorded anew."""
        samples, shape = batch.samples, batch.noisy.shape[2:]
        boxes = torch.stack([sample.boxes for sample in samples])
        masks = torch.stack([box_mask(rows, *shape[1:]) for rows in boxes.tolist()]).to(batch.noisy)
        self.track.set(boxes if batch.told else None)
        self.references.set_boxes(masks if batch.told else None)
        target = torch.lerp(batch.target, self.answers(batch), self.taught) if self.taught else batch.target
        pictures = references_of(samples).to(batch.noisy)
        record_latents(self.patch, self.pipeline, pictures, empty_text(self.pipeline, len(samples), SLOTS))
        weights = grid_mask(masks, tuple(shape)).view(-1, 1, *shape)
        return self.connected(reweighted_loss(self.predict(batch), target, weights, self.inside))

    @torch.no_grad()
    def answers(self, batch: Shown) -> torch.Tensor:
        """What the model without references answers to the captions that name the object."""
        with self.references.paused():
            return self.denoiser.predict(batch.noisy, batch.level, batch.named)

    def probe(self) -> dict[str, float]:
        """Overlap with the boxes, and shares of eight clips whose object is the picture's, by the judge."""
        cases = draw_box_cases("train", 8, PROBE, seed=11)
        with self.patch.scheduled([Schedule(branches="cond"), Schedule()]):
            clips, _ = generate_box_cases(self.pipeline, cases, PROBE, 11, self.patch, subject=True)
        scores = judge_box_cases(cases, clips)
        shares = {name: float(np.mean([score.right[name] for score in scores])) for name in scores[0].right}
        return {"overlap": float(np.mean([score.overlap for score in scores]))} | shares

    def save(self, path: Path) -> Path:
        """See :meth:`Task.save`: the reference's weights alone, as float16."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return self.weights.save(path, torch.float16, _REFERENCE)


def motion_module(model: str, given: str | None) -> MotionBoxes | None:
    """The trained motion module to train beside: a file, that in a model's folder, or none.

    Args:
        model: name or folder of the model.
        given: the file, ``"none"``, or None for the model's own.

    Raises:
        ArtifactError: the file does not exist or is none.
    """
    if given == "none":
        return None
    home = locate(model).path
    path = Path(home or "") / WEIGHTS if given is None else Path(given).expanduser()
    if not path.is_file():
        if given is None:
            return None
        raise ArtifactError(f"--boxes-weights: {place(path)} does not exist")
    print(f"beside the motion module {place(path)}")
    found: Any = trained("motion_boxes", path.resolve())
    return found
