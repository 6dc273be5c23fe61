"""Beginning a run where another one ended."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from genkit.errors import ArtifactError
from genkit.training.engine.checkpoint import atomic_save, load_checkpoint
from genkit.training.engine.ema import trainable
from genkit.training.engine.loop import process_rank, wait_for_all


def begin_from(source: Path | None, model: nn.Module, target: Path) -> None:
    """Begin a run with an earlier one; every process must call it. A run that has begun goes on undisturbed.

    Where the models are alike, the whole state of the earlier run is taken, optimizer included, with a fresh budget.
    Where this one reads more input channels, it takes the averaged weights, with zeros for the channels they lack.

    Args:
        source: checkpoint of the earlier run; None for a run from nothing.
        model: what is to be trained.
        target: checkpoint of this run.

    Raises:
        ArtifactError: the earlier run was of another model.
    """
    begun = source is None or target.exists()
    wait_for_all()  # all have looked before the first process writes
    if begun:
        return
    state, own = load_checkpoint(source), trainable(model)
    given = {name: value for name, value in state["ema"].items() if name in own}
    if {name: value.shape for name, value in given.items()} == {name: value.shape for name, value in own.items()}:
        if process_rank() == 0:
            earlier = state["earlier_seconds"] + state["seconds"]
            atomic_save({**state, "seconds": 0.0, "earlier_seconds": earlier, "random": []}, target)
    else:
        _widen(source, given, own)
    wait_for_all()


@torch.no_grad()
def _widen(source: Path, given: dict[str, torch.Tensor], own: dict[str, nn.Parameter]) -> None:
    for name, parameter in own.items():
        value = given.get(name)
        narrower = value is not None and value.ndim == parameter.ndim > 1 and value.shape[1] <= parameter.shape[1]
        if not narrower and (value is None or value.shape != parameter.shape):
            raise ArtifactError(f"{source} is no run of such a model: {name} differs in shape or is missing")
        parameter.zero_()[(slice(None), slice(value.shape[1])) if narrower else ...] = value.to(parameter)
