"""Training context tokens: what a frozen audio-video model reads where the other modality has nothing to say."""

from __future__ import annotations

import argparse
from copy import deepcopy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from genkit.attention.cross_modal_context import CrossModalContext
from genkit.attention.cross_modal_context.route import BOTH, TASKS, ContextRoute, draw_tasks
from genkit.reading import number, whole
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

    def rows(self, chosen: torch.Tensor) -> Routed:
        """Some samples, by a bool (B,)."""
        names = tuple(name for name, is_in in zip(self.tasks, chosen.tolist(), strict=True) if is_in)
        drawn = {name: value[chosen] for name, value in self.drawn.items()}
        return Routed(names, drawn, self.ids[chosen], self.mask[chosen])


#: First logit bias of the tokens. Higher than the method's own default, which is right for a model that must not change
#: at first: at -5 the tokens have hardly a share, and as small a gradient.
BETA = -2.0
#: First spread of their keys; queries are normalised, so this is the spread of the logits.
KEYS = 0.5
#: Tasks in which a half that is made reads the other one: there the model without a patch tells what to answer.
IMITATED = frozenset(
    name
    for name, task in TASKS.items()
    if (task.noise[0] and task.to_video == BOTH) or (task.noise[1] and task.to_audio == BOTH)
)
#: Weight of the distance to that answer beside the error of what context tokens alone answer. It is the far smaller of
#: the two: nobody can predict the noise of a clip, but what the model answers to it is known.
IMITATION = 10.0


class ContextTask(PatchTask):
    """Context tokens on both cross-modal attentions, every sample routed by the task that was drawn for it.

    A task says which halves are noised, who reads whom, and whose error counts. Where a made half reads the other one,
    the patched model learns what the model without windows answers; where context tokens stand in for the other half,
    it learns from the clip itself. A tenth of the samples that make both halves read context tokens alone, which gives
    guidance its unconditional side.

    Args:
        pipeline: an ``LTX2Pipeline``.
        pool: see :class:`PatchTask`.
        method: with context tokens.
        stages: sizes over the budget.
    """

    def __init__(
        self,
        pipeline: Any,
        pool: SoundPool,
        method: CrossModalContext,
        stages: tuple[Stage, ...] = STAGES,
    ):
        pipeline.tokenizer.padding_side = "left"
        # A copy made before the patch: it stays as it is. Kept in a tuple, so that it is no part of the module.
        transformer = deepcopy(pipeline.transformer).requires_grad_(False).eval()
        dense = SimpleNamespace(
            text_encoder=pipeline.text_encoder, connectors=pipeline.connectors, transformer=transformer
        )
        super().__init__(pipeline, method, pool, stages)
        self.dense = (dense,)
        self.routes = ContextRoute.of(self.patch.cache)
        if method.space == "keys":
            self._spread()

    @torch.no_grad()
    def _spread(self) -> None:
        """Keys so far apart that queries tell them apart: tokens that all weigh the same learn the same."""
        layers: Any = self.weights.layers.values()
        for tokens in layers:
            tokens.keys.mul_(KEYS / tokens.keys.std())

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

    def _velocities(self, parts: Any, batch: Routed) -> tuple[torch.Tensor, torch.Tensor]:
        noisy = (batch.drawn[name] for name in ("video", "sound", "sigma", "sound_sigma"))
        return av_velocity(parts, *noisy, batch.ids, batch.mask)

    def forward(self, batch: Routed) -> torch.Tensor:
        """Errors of what each sample makes, see the class."""
        self.routes.set(batch.tasks)
        answers = self._velocities(self.pipeline, batch)
        imitated = torch.tensor([name in IMITATED for name in batch.tasks], device=answers[0].device)
        total = answers[0].new_zeros(())
        if not imitated.all():
            total = total + self._error(answers, batch, ~imitated)
        if imitated.any():
            with torch.no_grad():
                wanted = self._velocities(self.dense[0], batch.rows(imitated))
            total = total + IMITATION * self._error(answers, batch, imitated, wanted)
        return self.connected(total)

    def _error(
        self,
        answers: tuple[torch.Tensor, torch.Tensor],
        batch: Routed,
        rows: torch.Tensor,
        wanted: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The loss of some rows, as their share of the batch; ``wanted``: of these rows, None = the clips' own."""
        drawn = batch.rows(rows).drawn
        if wanted is not None:
            drawn = drawn | {"velocity": wanted[0], "sound_velocity": wanted[1]}
        return rows.float().mean() * pair_loss(answers[0][rows], answers[1][rows], drawn)[0]


def build(options: Options, pipeline: Any, rng: np.random.Generator) -> ContextTask:
    """The task for the options of the command."""
    method = CrossModalContext(
        window=options.window,
        frames=options.frames,
        whole_layers=options.whole_layers,
        tokens=options.context_tokens,
        space=options.space,
        beta=BETA,
    )
    pool = SoundPool(pipeline.vae, rng, fresh=0.1, audio_vae=pipeline.audio_vae)
    return ContextTask(pipeline, pool, method)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The task's own options."""
    parser.add_argument("--context-tokens", type=whole(1), default=8, help="per layer and direction (default 8)")
    parser.add_argument("--space", choices=("keys", "source"), default="keys", help="where they live (default keys)")
    parser.add_argument(
        "--window", type=number(0, above=True), default=3.0, help="sound a frame hears, in frames (default 3)"
    )
    parser.add_argument("--frames", type=whole(1), default=3, help="frames a sound token sees, odd (default 3)")
    parser.add_argument("--whole-layers", type=whole(0), default=3, help="first layers without windows (default 3)")


KIND = TaskKind(
    "cross_modal_context", minutes=25, tokens=3600, lr=3e-3, muon=False, build=build, more=add_arguments, model="toy-av"
)
