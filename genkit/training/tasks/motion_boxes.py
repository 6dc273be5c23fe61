"""Training motion by boxes: an object goes along boxes that the model is told, drawn as the caption says."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genkit.attention.motion_boxes import BoxTrack, MotionBoxes
from genkit.attention.reference.masks import box_mask, grid_mask, reweighted_loss
from genkit.reading import whole
from genkit.training.data.pool import Sample
from genkit.training.data.world.boxes import BoxPool
from genkit.training.engine.curriculum import Stage
from genkit.training.engine.stages import Options
from genkit.training.tasks.base import CaptionedTask, Noised
from genkit.training.tasks.kind import TaskKind
from genkit.training.toys.video.model import sizes

# Where the object goes is learned on small canvases, at a tenth of a large clip's tokens; the rest is for size.
STAGES = (
    Stage(0.0, sizes((5, 64, 64, 0.4), (5, 96, 96, 0.3), (9, 96, 96, 0.3))),
    Stage(0.35, sizes((9, 96, 96, 0.5), (17, 96, 96, 0.3), (17, 128, 128, 0.2))),
    Stage(0.75, sizes((17, 128, 128, 0.5), (25, 128, 128, 0.2), (17, 96, 96, 0.3))),
)
# Places are decided where there is much noise.
SHIFT = 6.0


class BoxTask(CaptionedTask):
    """The motion module on a frozen video pipeline, with the loss that weighs the inside of the boxes more.

    Args:
        pipeline, pool: see :class:`genkit.training.tasks.base.PatchTask`.
        stages: sizes over the budget.
        method: whose weights are trained.
        inside: weight of the loss inside the boxes (DreamVideo-2: 2).
        shift: of the noise levels.
    """

    def __init__(
        self,
        pipeline: Any,
        pool: BoxPool,
        stages: tuple[Stage, ...] = STAGES,
        method: MotionBoxes | None = None,
        inside: float = 2.0,
        shift: float = SHIFT,
    ):
        super().__init__(pipeline, method or MotionBoxes(), pool, stages, shift=shift)
        self.inside = inside
        self.track = BoxTrack.of(self.patch.cache)

    def caption_of(self, sample: Sample, rng: np.random.Generator) -> str:
        """A caption with the object, of many also with its motion."""
        return BoxPool.caption(sample, rng)

    def forward(self, batch: Noised) -> torch.Tensor:
        """The reweighted loss with the boxes told."""
        samples: Sequence[Any] = batch.samples
        boxes = torch.stack([sample.boxes for sample in samples])
        self.track.set(boxes)
        frames, height, width = batch.noisy.shape[2:]
        masks = torch.stack([box_mask(rows, height, width) for rows in boxes.tolist()])
        masks = grid_mask(masks, (frames, height, width)).view(-1, 1, frames, height, width)
        return self.connected(reweighted_loss(self.predict(batch), batch.target, masks.to(batch.noisy), self.inside))

    def save(self, path: Path) -> Path:
        """See :meth:`Task.save`: as float16, whose error is far below what training leaves open."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return self.weights.save(path, torch.float16)


def build(options: Options, pipeline: Any, rng: np.random.Generator) -> BoxTask:
    """The task for the options of the command."""
    method = MotionBoxes(width=options.width, rank=options.rank)
    return BoxTask(pipeline, BoxPool(pipeline.vae, rng, fresh=0.15), method=method)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The task's own options."""
    own = MotionBoxes()
    parser.add_argument("--width", type=whole(1), default=own.width, help=f"features per token (default {own.width})")
    parser.add_argument(
        "--rank", type=whole(1), default=own.rank, help=f"width of a layer's network (default {own.rank})"
    )


KIND = TaskKind(
    "motion_boxes", minutes=30, tokens=700, lr=4e-3, muon=True, build=build, more=add_arguments, record="boxes"
)
