"""Training context tokens: what a frozen audio-video model reads where the other modality has nothing to say."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from genkit.attention.cross_modal_context import CrossModalContext
from genkit.attention.cross_modal_context.route import TASKS, ContextRoute, draw_tasks
from genkit.training.engine.curriculum import Stage
from genkit.training.engine.stages import Options
from genkit.training.tasks.base import PatchTask
from genkit.training.tasks.kind import TaskKind
from genkit.training.toys.av.model import av_captions, av_velocity, clean_pair, noisy_pair, pair_loss, read_texts
from genkit.training.toys.av.pool import SoundPool
from genkit.training.toys.video.model import sizes

STAGES = (
    Stage(0.0, sizes((9, 96, 96, 0.2), (17, 96, 96, 0.8))),
    Stage(0.5, sizes((17, 96, 96, 0.4), (17, 128, 128, 0.3), (25, 128, 128, 0.3))),
)


@dataclass
class Routed:
    """A batch of clips with sound.

    Args:
        tasks: one per sample, see :data:`genkit.attention.cross_modal_context.route.TASKS`.
        drawn: noised halves, levels and targets, as :func:`genkit.training.toys.av.model.noisy_pair` gives them.
        ids, mask: (B, slots) of the captions.
    """

    tasks: tuple[str, ...]
    drawn: dict[str, torch.Tensor]
    ids: torch.Tensor
    mask: torch.Tensor


class ContextTask(PatchTask):
    """Context tokens on both cross-modal attentions, every sample routed by the task that was drawn for it.

    A task says which halves are noised, who reads whom, and whose error counts. A tenth of the samples that make both
    halves read context tokens alone, which gives guidance its unconditional side.

    Args:
        pipeline: an ``LTX2Pipeline``.
        pool: see :class:`PatchTask`.
        tokens: context tokens per layer and direction.
        space: where they live, see :class:`CrossModalContext`.
        beta: their logit bias at the start. Higher than the method's own default, which is right for a model that must
            not change at first: at -5 the tokens have hardly a share, and as small a gradient.
        stages: sizes over the budget.
    """

    def __init__(
        self,
        pipeline: Any,
        pool: SoundPool,
        tokens: int = 8,
        space: str = "keys",
        beta: float = -2.0,
        stages: tuple[Stage, ...] = STAGES,
    ):
        super().__init__(pipeline, CrossModalContext(tokens=tokens, space=space, beta=beta), pool, stages)
        self.routes = ContextRoute.of(self.patch.cache)
        pipeline.tokenizer.padding_side = "left"

    def draw(self, size: Any, count: int, rng: np.random.Generator) -> Routed:
        """See :meth:`PatchTask.draw`."""
        samples = self.pool.draw(size, count)
        device = self.pipeline.transformer.device
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        tasks = draw_tasks(count, generator)
        made = torch.tensor([TASKS[name].noise for name in tasks])
        drawn = noisy_pair(*clean_pair(samples, device), self.shift, (~made[:, 1], ~made[:, 0]), generator)
        texts = av_captions(samples, rng, self.empty)
        return Routed(tasks, drawn, *read_texts(self.pipeline.tokenizer, texts, device))

    def forward(self, batch: Routed) -> torch.Tensor:
        """Errors of what each sample makes."""
        self.routes.set(batch.tasks)
        drawn = batch.drawn
        noisy = (drawn[name] for name in ("video", "sound", "sigma", "sound_sigma"))
        velocity, sound_velocity = av_velocity(self.pipeline, *noisy, batch.ids, batch.mask)
        return self.connected(pair_loss(velocity, sound_velocity, drawn)[0])


def build(options: Options, pipeline: Any, rng: np.random.Generator) -> ContextTask:
    """The task for the options of the command."""
    pool = SoundPool(pipeline.vae, rng, fresh=0.1, audio_vae=pipeline.audio_vae)
    return ContextTask(pipeline, pool, options.context_tokens, options.space)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The task's own options."""
    parser.add_argument("--context-tokens", type=int, default=8, help="per layer and direction (default 8)")
    parser.add_argument("--space", choices=("keys", "source"), default="keys", help="where they live (default keys)")


KIND = TaskKind(
    "cross_modal_context", minutes=25, tokens=3600, lr=3e-3, muon=False, build=build, more=add_arguments, model="toy-av"
)
