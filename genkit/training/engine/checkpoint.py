"""Checkpoints: trainable parameters, their average, the optimizer and the random generators, whole or not at all.

Frozen weights are in no checkpoint. Shards (FSDP2) are gathered, so a file is the same whatever wrote it: it may be
resumed by one process or by several. The files hold tensors and plain values only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genkit.errors import ArtifactError, counted, escaped, shortened, shown
from genkit.media.atomic import Files
from genkit.training.engine.ema import EMA, put, trainable
from genkit.training.engine.shards import gathered, like
from genkit.training.engine.state import check_state


def atomic_save(value: object, path: Path) -> None:
    """``torch.save`` to a temporary name in the same folder, then rename: a kill leaves the old file whole.

    Raises:
        ArtifactError: it cannot be written, with the system's reason.
    """
    with Files() as files:
        save(value, files.new(path))


def save(value: object, path: Path) -> None:
    """``torch.save``; OSError with the system's reason where the file cannot be written."""
    # Through Python's file: torch's own writer tells nothing but its position when the disk is full.
    with told_as_os_error(), open(path, "wb") as file:
        torch.save(value, file)


@contextmanager
def told_as_os_error() -> Iterator[None]:
    """What torch and safetensors raise when a file cannot be written, as the OSError that it is."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        text = str(error)
        if not any(word in text for word in ("inline_container", "PytorchStreamWriter", "Error while serializing")):
            raise
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        raise (OSError(text.strip().splitlines()[0][:200]) if cause is None else OSError(*cause.args)) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, tensors and plain values only.

    Returns:
        ``module`` and ``ema`` (name -> tensor), ``count`` (updates of the average), ``optimizer``, ``step``,
        ``seconds``, ``earlier_seconds``, ``random`` (one state per process; empty where the file has none), ``smooth``
        (figures as the log shows them), ``usual`` (count and mean of the losses).

    Raises:
        ArtifactError: no file of that kind, or values in it that no run wrote.
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
    check_state(state, path)
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
    check_weights(module, values, path)
    put(module, {name: like(values[name], parameter) for name, parameter in trainable(module).items()})
    for name, buffer in _buffers(module).items():
        if name in values:
            buffer.copy_(values[name])


def check_weights(module: nn.Module, values: dict[str, torch.Tensor], path: Path) -> None:
    """Refuse weights that :func:`load_weights` could not load; the module may be one without values.

    Raises:
        ArtifactError: as :func:`load_weights`.
    """
    _check(trainable(module), values, path)
    unknown = sorted(values.keys() - module.state_dict().keys())
    if unknown:
        raise ArtifactError(
            f"{path} holds {counted(len(unknown), 'tensor')} that this model does not have, such as {unknown[0]}"
        )
    _check(_buffers(module), {**_buffers(module), **values}, path)


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


def _check(wanted: Mapping[str, torch.Tensor], given: dict[str, torch.Tensor], path: Path) -> None:
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
            f"{path} has an optimizer of {counted(counts[0], 'parameter')}, this run one of {counts[1]}: "
            "resume with the same "
            "settings, or in a new folder"
        )
    parameters = [parameter for group in groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parts = dict(state["state"])
    for number, parameter in zip(numbers, parameters, strict=True):
        if number in parts:
            _check_moments(parts[number], parameter, path)
            parts[number] = {
                name: like(value, parameter)
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape
                else value
                for name, value in parts[number].items()
            }
    # What a group is told in this run stays as it is told, but for what older files do not have.
    rows = [{**own, **given} for own, given in zip(groups, state["param_groups"], strict=True)]
    try:
        optimizer.load_state_dict({"state": parts, "param_groups": rows})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"{path} has the state of another optimizer than {type(optimizer).__name__}; resume with the same "
            "settings, or in a new folder"
        ) from error


def _check_moments(moments: dict[str, Any], parameter: torch.Tensor, path: Path) -> None:
    """Refuse what is kept of a matrix of another size; optimizers also keep vectors and numbers, of any size, and
    Adafactor's rows and columns, of length 1 along what they sum over."""
    for name, value in moments.items():
        if not isinstance(value, torch.Tensor) or not value.ndim == parameter.ndim > 1:
            continue
        if any(kept not in (1, size) for kept, size in zip(value.shape, parameter.shape, strict=True)):
            raise ArtifactError(
                f"{path}: the optimizer's {shown(name)} is {tuple(value.shape)} for weights {tuple(parameter.shape)}: "
                "it is of a run with other settings"
            )
