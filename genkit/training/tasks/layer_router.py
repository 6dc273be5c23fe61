"""Networks that learn by layer, sample and noise level whether attention is full or sparse."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

from genkit.attention.layer_router import LayerRouter
from genkit.attention.straight_through import Draws
from genkit.reading import number
from genkit.training.data.world.clips import LatentPool
from genkit.training.engine.curriculum import Stage
from genkit.training.engine.stages import Options
from genkit.training.tasks.agent import STAGES
from genkit.training.tasks.kind import TaskKind, method_of
from genkit.training.tasks.layers import SPARSITY, ShareTask


class RouterTask(ShareTask):
    """Networks of :class:`LayerRouter` learn which calls can be sparse while a share of the decisions is.

    Args:
        method: with ``untrained``.
        sparsity: the share of sparse decisions that training leads to; what comes of it is for the networks.
        Others: see :class:`ShareTask`.
    """

    def __init__(
        self,
        pipeline: Any,
        pool: LatentPool,
        method: LayerRouter,
        sparsity: float = SPARSITY,
        layers: str | None = None,
        stages: tuple[Stage, ...] = STAGES,
    ):
        super().__init__(pipeline, pool, method, sparsity, layers, stages)

    @property
    def draws(self) -> Draws:
        """See :attr:`ShareTask.draws`."""
        return LayerRouter.draws(self.patch.cache)

    def drawn(self) -> list[int | str]:
        """See :meth:`ShareTask.drawn`."""
        routers: Any = self.weights.layers.values()
        return [each.site for each in routers]

    def full_share(self, count: int) -> torch.Tensor:
        """See :meth:`ShareTask.full_share`: of the decisions that were made in the call."""
        return torch.stack(list(self.draws.decided.values())).mean()

    def probe(self) -> dict[str, float]:
        """The share of sparse decisions in the last call."""
        decided = list(self.draws.decided.values())
        return {"sparse": 1 - float(torch.stack(decided).detach().mean())} if decided else {}


def build(options: Options, pipeline: Any, rng: np.random.Generator) -> RouterTask:
    """The task for the options of the command."""
    method = method_of(options, "layer_router")
    assert isinstance(method, LayerRouter)
    pool = LatentPool(pipeline.vae, rng, fresh=0.1)
    return RouterTask(pipeline, pool, method, options.sparsity, options.layers)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The task's own options."""
    parser.add_argument("--attention-args", default="", help="settings of layer_router, such as 'sparse=radial'")
    parser.add_argument(
        "--sparsity", type=number(0, 1, above=True), default=SPARSITY, help="share of the decisions that become sparse"
    )
    parser.add_argument("--layers", default=None, help="layers with networks (default: all)")


KIND = TaskKind(
    "layer_router", minutes=10, tokens=3600, lr=2e-3, muon=False, build=build, more=add_arguments, record="train_agent"
)
