"""Distilling dense attention into a method with a learned bias."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from genkit.attention import registry
from genkit.attention.scored import WithBias
from genkit.errors import UsageError, explain
from genkit.pipelines.text import parse_pairs
from genkit.training.data.world.clips import LatentPool
from genkit.training.engine.stages import Options
from genkit.training.tasks.agent import STAGES, AgentTask
from genkit.training.tasks.kind import TaskKind


def method_of(name: str, args: str) -> WithBias:
    """The method whose bias is trained, from the command's text.

    Raises:
        UsageError: a method that takes no bias, or a bias in which nothing is learned.
    """
    takers = [each for each in registry.names() if getattr(registry.method_class(each), "takes_bias", False)]
    if name not in takers:
        raise UsageError(explain("--attention", name, takers))
    method = registry.build(name, parse_pairs(args, "--attention-args"))
    assert isinstance(method, WithBias)
    if not method.learns:
        raise UsageError(
            f"--attention-args: {method.describe()} has no bias with weights; give one such as bias=table:t=4:h=8:w=8"
        )
    return method


def build(options: Options, pipeline: Any, rng: np.random.Generator) -> AgentTask:
    """The task for the options of the command."""
    method = method_of(options.attention, options.attention_args)
    pool = LatentPool(pipeline.vae, rng, fresh=0.1)
    return AgentTask(pipeline, pool, options.layers, STAGES, method)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The task's own options."""
    parser.add_argument("--attention", default="neighborhood", help="the method that gets the bias")
    parser.add_argument(
        "--attention-args", default="bias=table:t=4:h=8:w=8", help="its settings, with a bias that has weights"
    )
    parser.add_argument("--layers", default=None, help="layers with the method (default: all)")


KIND = TaskKind(
    "bias", minutes=10, tokens=3600, lr=2e-2, muon=False, build=build, more=add_arguments, record="train_agent"
)
