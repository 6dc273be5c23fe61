"""Routers of heads that learn to answer as all heads do."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from genkit.attention.mixture_of_heads import MixtureOfHeads
from genkit.training.data.world.clips import LatentPool
from genkit.training.engine.stages import Options
from genkit.training.tasks.agent import STAGES, AgentTask
from genkit.training.tasks.kind import TaskKind, method_of


def build(options: Options, pipeline: Any, rng: np.random.Generator) -> AgentTask:
    """The task for the options of the command."""
    method = method_of(options, "mixture_of_heads")
    assert isinstance(method, MixtureOfHeads)
    pool = LatentPool(pipeline.vae, rng, fresh=0.1)
    return AgentTask(pipeline, pool, options.layers, STAGES, method)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The task's own options."""
    parser.add_argument("--attention-args", default="", help="settings of mixture_of_heads")
    parser.add_argument("--layers", default=None, help="layers with routers (default: all)")


KIND = TaskKind(
    "mixture_of_heads", minutes=10, tokens=3600, lr=5e-3, muon=False, build=build, more=add_arguments,
    record="train_agent",
)  # fmt: skip
