"""Weights that choose keys for ``block_select(score=keys)``, learned on a frozen model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genkit.attention.block_select import BlockSelect
from genkit.errors import UsageError, explain
from genkit.reading import number
from genkit.training.data.world.clips import LatentPool
from genkit.training.engine.curriculum import Stage
from genkit.training.engine.stages import Options
from genkit.training.routing.keys import ChosenKeys
from genkit.training.tasks.agent import STAGES, AgentTask
from genkit.training.tasks.base import Noised
from genkit.training.tasks.kind import TaskKind, method_of

FACTOR = 1.0
LEAST = 1e-3


class KeysTask(AgentTask):
    """Two losses: the squared distance to the dense model's answer over its variance, which the bias of the chosen keys
    lowers, and how far the choice of every layer is from the attention that keys really get.

    Args:
        method: block_select with ``score="keys"`` and ``untrained``.
        factor: of the second loss, the sum over layers of means over rows and heads.
        Others: see :class:`AgentTask`.
    """

    def __init__(
        self,
        pipeline: Any,
        pool: LatentPool,
        method: BlockSelect,
        factor: float = FACTOR,
        layers: str | None = None,
        stages: tuple[Stage, ...] = STAGES,
    ):
        if not 0 <= factor < float("inf"):
            raise UsageError(explain("--mass", factor, "a number >= 0"))
        chosen = ChosenKeys(method, factor)
        super().__init__(pipeline, pool, layers, stages, chosen)
        self.chosen, self.sharpness = (chosen,), chosen.sharpness

    def forward(self, batch: Noised) -> torch.Tensor:
        """See the class; the second loss is added in the backward pass and not in the value. Amplitudes stay positive:
        with the other sign the order of the keys, which the second loss teaches, would be turned round."""
        self.keep_order()
        with torch.no_grad():
            wanted = self.predict(batch, self.dense[0])
        error = (self.predict(batch) - wanted).square().mean() / wanted.var()
        return self.connected(error) + 0.0 * sum(each.sum() for each in self.sharpness.values())

    def keep_order(self) -> None:
        """Amplitudes above zero, also after the last step and in averages of the weights."""
        layers: Any = self.weights.layers.values()
        with torch.no_grad():
            for each in layers:
                each.amplitude.clamp_(min=LEAST)

    def save(self, path: Path) -> Path:
        """See :meth:`Task.save`."""
        self.keep_order()
        return super().save(path)

    def probe(self) -> dict[str, float]:
        """The second loss of the last batch, a mean over layers."""
        errors = list(self.chosen[0].errors.values())
        return {"choice": float(torch.stack(errors).mean())} if errors else {}


def build(options: Options, pipeline: Any, rng: np.random.Generator) -> KeysTask:
    """The task for the options of the command."""
    method = method_of(options, "block_select", score="keys")
    assert isinstance(method, BlockSelect)
    return KeysTask(pipeline, LatentPool(pipeline.vae, rng, fresh=0.1), method, options.mass, options.layers)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The task's own options."""
    parser.add_argument("--attention-args", default="", help="settings of block_select, such as keep=0.25")
    parser.add_argument("--layers", default=None, help="layers with the method (default: all)")
    parser.add_argument("--mass", type=number(0), default=FACTOR, help="weight of the loss of the choice")


KIND = TaskKind(
    "keys", minutes=10, tokens=3600, lr=1e-2, muon=False, build=build, more=add_arguments, record="train_agent"
)
