"""Checkpoints: trainable parameters, their average, the optimizer and the random generators, whole or not at all.

Frozen weights are in no checkpoint. Shards (FSDP2) are gathered, so a file is the same whatever wrote it: it may be
resumed by one process or by several. The files hold tensors and plain values only.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genkit.errors import ArtifactError, escaped, shortened
from genkit.training.engine.ema import EMA, put, trainable
from genkit.training.engine.shards import gathered, like


def atomic_save(value: object, path: Path) -> None:
    """``torch.save`` to a temporary name in the same folder, then rename: a kill leaves the old file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    try:
        with open(temporary, "wb") as file:
            torch.save(value, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, tensors and plain values only.

    Returns:
        ``module`` and ``ema`` (name -> tensor), ``count`` (updates of the average), ``optimizer``, ``step``,
        ``seconds``, ``earlier_seconds``, ``random`` (one state per process; empty where the file has none), ``smooth``
        (figures as the log shows them), ``usual`` (count and mean of the losses).

    Raises:
        ArtifactError: no file of that kind.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        text = str(error).strip().splitlines()
        why = f"{type(error).__name__}: {shortened(escaped(text[0]))}" if text else type(error).__name__
        raise ArtifactError(f"{path} is not a readable checkpoint ({why}); delete it to start afresh") from error
    state = dict(state) if isinstance(state, dict) else {}
    if "average" in state:  # as earlier versions wrote it, frozen weights and buffers included
        state["ema"] = state.pop("average")
    missing = {"module", "ema", "count", "optimizer", "step", "seconds"} - state.keys()
    if missing:
        raise ArtifactError(f"{path} is no checkpoint of a training run: it lacks {', '.join(sorted(missing))}")
    return {"random": [], "earlier_seconds": 0.0, "smooth": {}, "usual": [0, 0.0], **state}


def capture(module: nn.Module, optimizer: torch.optim.Optimizer, ema: EMA) -> dict[str, Any]:
    """What a checkpoint says of weights and optimizer; every process must call it, for shards are gathered.

    Returns:
        ``module``, ``ema``, ``count`` and ``optimizer`` as :func:`load_checkpoint` gives them, on the CPU.
    """
    return {
        "module": {name: whole(value) for name, value in {**trainable(module), **_buffers(module)}.items()},
        "optimizer": _whole_tree(optimizer.state_dict()),
        "ema": {name: whole(value) for name, value in ema.shadow.items()},
        "count": ema.count,
    }


def restore(
    state: dict[str, Any], path: Path, module: nn.Module, optimizer: torch.optim.Optimizer | None, ema: EMA | None
) -> None:
    """Put a checkpoint's weights, optimizer state and average into place.

    Args:
        state: from :func:`load_checkpoint`.
        path: where it came from, for messages.
        module, optimizer, ema: what is filled; sharded ones take their shards.

    Raises:
        ArtifactError: the checkpoint is of another model, or of other trainable parameters.
    """
    load_weights(module, state["module"], path)
    if ema is not None:
        _check(trainable(module), state["ema"], path)
        ema.count = state["count"]
        ema.shadow = {name: like(state["ema"][name], value) for name, value in ema.shadow.items()}
    if optimizer is not None:
        _load_optimizer(optimizer, state["optimizer"], path)


@torch.no_grad()
def load_weights(module: nn.Module, values: dict[str, torch.Tensor], path: Path) -> None:
    """Copy stored weights into a module's trainable parameters and buffers.

    Args:
        module: to be filled.
        values: name -> whole tensor; frozen parameters of the module may be among them and are passed over.
        path: for messages.

    Raises:
        ArtifactError: a trainable parameter is missing or has another shape, or a name is unknown to the module.
    """
    wanted = trainable(module)
    _check(wanted, values, path)
    unknown = sorted(values.keys() - module.state_dict().keys())
    if unknown:
        raise ArtifactError(f"{path} holds {len(unknown)} tensors that this model does not have, such as {unknown[0]}")
    put(module, {name: like(values[name], parameter) for name, parameter in wanted.items()})
    for name, buffer in _buffers(module).items():
        if name in values:
            buffer.copy_(values[name])


def load_ema(module: nn.Module, path: Path) -> dict[str, Any]:
    """Fill a module with the averaged weights of a checkpoint.

    Returns:
        The checkpoint.
    """
    state = load_checkpoint(path)
    load_weights(module, {**state["module"], **state["ema"]}, path)
    return state


def whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor gathered from its shards, on the CPU; a collective operation for sharded ones."""
    value = gathered(value.detach())
    return value.cpu().clone() if value.device.type == "cpu" else value.cpu()


def _buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that a state dict has: counts and running means, which change without being trained."""
    kept = module.state_dict().keys()
    return {name: buffer for name, buffer in module.named_buffers() if name in kept}


def _whole_tree(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return whole(value)
    if isinstance(value, dict):
        return {key: _whole_tree(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_whole_tree(part) for part in value)
    return value


def _check(wanted: dict[str, nn.Parameter], given: dict[str, torch.Tensor], path: Path) -> None:
    for name, parameter in wanted.items():
        if name not in given:
            raise ArtifactError(f"{path} lacks {name}, which is trained here: it is of a run with other settings")
        if given[name].shape != parameter.shape:
            sizes = f"{tuple(given[name].shape)} in {path}, {tuple(parameter.shape)} here"
            raise ArtifactError(f"{name} has the shape {sizes}: resume with the same settings, or in a new folder")


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], path: Path) -> None:
    """An optimizer's state dict, its tensors cut into shards where the parameters are."""
    groups = optimizer.param_groups
    counts = [[len(group["params"]) for group in rows] for rows in (state["param_groups"], groups)]
    if counts[0] != counts[1]:
        raise ArtifactError(
            f"{path} has an optimizer of {counts[0]} parameters, this run one of {counts[1]}: resume with the same "
            "settings, or in a new folder"
        )
    parameters = [parameter for group in groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parts = dict(state["state"])
    for number, parameter in zip(numbers, parameters, strict=True):
        if number in parts:
            parts[number] = {
                name: like(value, parameter)
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape
                else value
                for name, value in parts[number].items()
            }
    # What a group is told in this run stays as it is told, but for what older files do not have.
    rows = [{**own, **given} for own, given in zip(groups, state["param_groups"], strict=True)]
    optimizer.load_state_dict({"state": parts, "param_groups": rows})
