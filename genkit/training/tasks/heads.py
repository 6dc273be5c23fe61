"""Gates that learn which heads need full attention, thresholded into a recipe (DuoAttention)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genkit.attention import registry
from genkit.attention.method import Method
from genkit.errors import UsageError, explain
from genkit.pipelines.text import parse_pairs
from genkit.reading import number
from genkit.training.data.world.clips import LatentPool
from genkit.training.engine.curriculum import Stage
from genkit.training.engine.stages import Options
from genkit.training.routing.gates import GatedHeads
from genkit.training.routing.table import full_heads, head_parts, write_recipe
from genkit.training.tasks.agent import STAGES, AgentTask
from genkit.training.tasks.base import Noised
from genkit.training.tasks.kind import TaskKind

PENALTY = 0.05


class HeadsTask(AgentTask):
    """Gates between full and sparse attention imitate the dense model while a penalty closes them.

    The loss is the squared distance to the dense model's answer over its variance, and ``penalty`` times the mean gate.
    A head alone keeps a gate above one half when closing it costs more than ``penalty`` over the number of all gates.

    Args:
        sparse: what heads with closed gates get.
        sparsity: share of all heads that are sparse in the recipe.
        Others: see :class:`AgentTask`.
    """

    def __init__(
        self,
        pipeline: Any,
        pool: LatentPool,
        sparse: Method,
        sparsity: float = 0.5,
        penalty: float = PENALTY,
        layers: str | None = None,
        stages: tuple[Stage, ...] = STAGES,
    ):
        if not 0 <= penalty < float("inf"):
            raise UsageError(explain("penalty", penalty, "a number >= 0"))
        full_heads({}, sparsity)
        super().__init__(pipeline, pool, layers, stages, GatedHeads(sparse))
        self.sparse, self.sparsity, self.penalty = sparse, sparsity, penalty

    def gates(self) -> dict[int, list[float]]:
        """Layer -> its gates, within 0 and 1."""
        found: Any = self.weights.layers.values()
        ordered = sorted(found, key=lambda each: each.layer)
        return {each.layer: each.gate.detach().clamp(0, 1).tolist() for each in ordered}

    def forward(self, batch: Noised) -> torch.Tensor:
        """See the class; gates are kept within 0 and 1 between steps."""
        gates: list[torch.Tensor] = list(self.weights.parameters())
        with torch.no_grad():
            for gate in gates:
                gate.clamp_(0, 1)
            wanted = self.predict(batch, self.dense[0])
        error = (self.predict(batch) - wanted).square().mean() / wanted.var()
        return self.connected(error + self.penalty * torch.cat(gates).abs().mean())

    def probe(self) -> dict[str, float]:
        """The mean gate."""
        return {"gate": float(torch.cat(list(self.weights.parameters())).clamp(0, 1).mean())}

    def save(self, path: Path) -> Path:
        """The gates, and beside them the recipe: ``heads.yaml``."""
        found = super().save(path)
        gates = self.gates()
        table = full_heads(gates, self.sparsity)
        heads = max(len(row) for row in gates.values())
        about = f"{self.sparse.name} in {self.sparsity:.0%} of the heads, chosen by gates that were trained"
        rounded = {layer: [round(gate, 4) for gate in row] for layer, row in gates.items()}
        target = write_recipe(
            path.with_suffix(".yaml"), self.sparse, head_parts(table, heads), self.denoiser.module, about,
            {"gates": rounded},
        )  # fmt: skip
        print(f"written: {target}")
        return found


def build(options: Options, pipeline: Any, rng: np.random.Generator) -> HeadsTask:
    """The task for the options of the command."""
    sparse = registry.build(options.attention, parse_pairs(options.attention_args, "--attention-args"))
    pool = LatentPool(pipeline.vae, rng, fresh=0.1)
    return HeadsTask(pipeline, pool, sparse, options.sparsity, options.penalty)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The task's own options."""
    parser.add_argument("--attention", default="neighborhood", help="the method of the sparse heads")
    parser.add_argument("--attention-args", default="size=3x5x5", help="its settings")
    parser.add_argument(
        "--sparsity", type=number(0, 1, above=True), default=0.5, help="share of all heads that become sparse"
    )
    parser.add_argument("--penalty", type=number(0), default=PENALTY, help="weight of the mean gate in the loss")


KIND = TaskKind(
    "heads", minutes=10, tokens=3600, lr=2e-2, muon=False, build=build, more=add_arguments, record="train_agent"
)
