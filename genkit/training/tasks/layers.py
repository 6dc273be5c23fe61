"""Gates that learn which layers need full attention, as a recipe (Flux Attention's layer router)."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from genkit.attention import registry
from genkit.attention.method import Method
from genkit.attention.straight_through import Draws
from genkit.errors import UsageError, explain
from genkit.pipelines.text import parse_pairs
from genkit.reading import number
from genkit.training.data.world.clips import LatentPool
from genkit.training.engine.curriculum import Stage
from genkit.training.engine.loop import LossAt, process_rank
from genkit.training.engine.stages import Options
from genkit.training.routing.gates import GatedLayers
from genkit.training.routing.table import dense_layers, write_recipe
from genkit.training.tasks.agent import STAGES, AgentTask
from genkit.training.tasks.base import Noised
from genkit.training.tasks.kind import TaskKind

SPARSITY = 0.45
#: Temperatures of the soft decision: first, last, and the share of the steps by which the last is reached.
HOT, COLD, COOLED = 1.5, 1.0, 0.6


def temperature(progress: float) -> float:
    """From 1.5 to 1 along a cosine over the first 60 % of a training."""
    done = min(1.0, progress / COOLED)
    return COLD + (HOT - COLD) * (1 + math.cos(math.pi * done)) / 2


class ShareTask(AgentTask):
    """Layers decide between full and sparse attention; the share of sparse decisions is led to a target.

    The loss is the squared distance to the dense model's answer over its variance, plus ``a |s - s*| + b (s - s*)^2``
    for the share s of sparse decisions; a and b grow as long as s is off (gradient ascent). Subclasses give
    :attr:`draws`, :meth:`drawn` and :meth:`full_share`.

    Args:
        method: whose weights decide.
        sparsity: s*.
        Others: see :class:`AgentTask`.
    """

    def __init__(
        self,
        pipeline: Any,
        pool: LatentPool,
        method: Method,
        sparsity: float = SPARSITY,
        layers: str | None = None,
        stages: tuple[Stage, ...] = STAGES,
    ):
        if isinstance(sparsity, bool) or not 0 < sparsity <= 1:
            raise UsageError(explain("--sparsity", sparsity, "a number > 0 and <= 1"))
        super().__init__(pipeline, pool, layers, stages, method)
        self.sparsity = sparsity
        self.push = nn.Parameter(torch.ones(2))
        self.seed = 0

    @property
    def draws(self) -> Draws:
        """Temperature and noise of the decisions."""
        raise TypeError(f"{type(self).__name__} defines no draws")

    def drawn(self) -> list[int | str]:
        """What noise is drawn for: layers, in order."""
        raise TypeError(f"{type(self).__name__} defines no drawn()")

    def full_share(self, count: int) -> torch.Tensor:
        """The share of full decisions about ``count`` samples after a call of the model, with its gradient."""
        raise TypeError(f"{type(self).__name__} defines no full_share()")

    def loss(self, seed: int, tokens: int) -> LossAt:
        """See :meth:`Task.loss`; decisions follow from the seed, the step and the process."""
        inner = super().loss(seed, tokens)

        def loss_at(wrapped: nn.Module, number: int, progress: float):
            self.draws.temperature = temperature(progress)
            self.seed = hash((seed, number, process_rank()))
            return inner(wrapped, number, progress)

        return loss_at

    def forward(self, batch: Noised) -> torch.Tensor:
        """See the class; without gradients the larger logit decides."""
        draws, count = self.draws, len(batch.noisy)
        draws.noise = {}
        if torch.is_grad_enabled():
            generator = torch.Generator().manual_seed(self.seed % 2**63)
            draws.draw(self.drawn(), count, generator)
        with torch.no_grad():
            wanted = self.predict(batch, self.dense[0])
        error = (self.predict(batch) - wanted).square().mean() / wanted.var()
        off = 1 - self.full_share(count) - self.sparsity
        costs = torch.stack([off.abs(), off.square()])
        push = self.push.to(costs)
        # the value is push * costs; the gradient of push has the other sign, so that the optimiser raises it
        penalty = (push.detach() * costs + (push.detach() - push) * costs.detach()).sum()
        return self.connected(error + penalty)


class LayersTask(ShareTask):
    """A gate per layer, open or closed, learns where sparse attention costs least while a share of layers is closed.

    Args:
        sparse: what layers with closed gates get.
        sparsity: the share of the layers that is sparse; in the recipe exactly, as far as layers go.
        Others: see :class:`ShareTask`.
    """

    def __init__(
        self,
        pipeline: Any,
        pool: LatentPool,
        sparse: Method,
        sparsity: float = SPARSITY,
        layers: str | None = None,
        stages: tuple[Stage, ...] = STAGES,
    ):
        self.gated, self.sparse = GatedLayers(sparse), sparse
        super().__init__(pipeline, pool, self.gated, sparsity, layers, stages)

    @property
    def draws(self) -> Draws:
        """See :attr:`ShareTask.draws`."""
        return self.gated.draws

    def gates(self) -> list[Any]:
        """The gates of all layers."""
        return list(self.weights.layers.values())

    def drawn(self) -> list[int | str]:
        """See :meth:`ShareTask.drawn`."""
        return [each.layer for each in self.gates()]

    def full_share(self, count: int) -> torch.Tensor:
        """See :meth:`ShareTask.full_share`."""
        return torch.stack([self.gated.decided(each, count) for each in self.gates()]).mean()

    def logits(self) -> dict[int, float]:
        """Layer -> its gate's logit, in order."""
        return {each.layer: float(each.logit.detach()) for each in sorted(self.gates(), key=lambda each: each.layer)}

    def probe(self) -> dict[str, float]:
        """The share of closed gates, and the mean logit."""
        logits = list(self.logits().values())
        return {"closed": sum(each <= 0 for each in logits) / len(logits), "logit": sum(logits) / len(logits)}

    def full(self) -> tuple[int, ...]:
        """The layers that keep full attention: those with the largest logits, as many as the share leaves."""
        logits = self.logits()
        names = list(logits)
        count = len(names) - round(self.sparsity * len(names))
        return tuple(names[place] for place in dense_layers(list(logits.values()), count))

    def save(self, path: Path) -> Path:
        """The gates, and beside them the recipe: ``layers.yaml``."""
        found = super().save(path)
        logits, full = self.logits(), self.full()
        rest = [str(layer) for layer in logits if layer not in full]
        about = f"{self.sparse.name} in {len(rest)} of {len(logits)} layers, chosen by gates that were trained"
        rounded = {layer: round(logit, 4) for layer, logit in logits.items()}
        target = write_recipe(
            path.with_suffix(".yaml"), self.sparse, [{"layers": ",".join(rest)}] if rest else [],
            self.denoiser.module, about, {"logits of full attention": rounded},
        )  # fmt: skip
        print(f"written: {target}")
        return found


def build(options: Options, pipeline: Any, rng: np.random.Generator) -> LayersTask:
    """The task for the options of the command."""
    sparse = registry.build(options.attention, parse_pairs(options.attention_args, "--attention-args"))
    return LayersTask(pipeline, LatentPool(pipeline.vae, rng, fresh=0.1), sparse, options.sparsity, options.layers)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The task's own options."""
    parser.add_argument("--attention", default="neighborhood", help="the method of the sparse layers")
    parser.add_argument("--attention-args", default="size=3x5x5", help="its settings")
    parser.add_argument(
        "--sparsity", type=number(0, 1, above=True), default=SPARSITY, help="share of the layers that become sparse"
    )
    parser.add_argument("--layers", default=None, help="layers with a gate (default: all)")


KIND = TaskKind(
    "layers", minutes=10, tokens=3600, lr=1e-1, muon=False, build=build, more=add_arguments, record="train_agent"
)
