"""What a checkpoint must hold, so that a file of something else is told and not stumbled over later."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from genkit.errors import ArtifactError, shown
from genkit.reading.files import place

_GENERATORS = {"python", "numpy", "torch", "cuda"}


def check_state(state: Mapping[str, Any], path: Path) -> None:
    """Refuse values that no run wrote.

    Args:
        state: what a checkpoint holds; names that it lacks are passed over.
        path: where it came from, for the message.

    Raises:
        ArtifactError: a value of another kind, with its name.
    """
    for name, (fits, words) in _WANTED.items():
        if name in state and not fits(state[name]):
            raise ArtifactError(
                f"{place(path)} is no checkpoint of a training run: its {name} is {shown(_outline(state[name]))}, "
                f"allowed: {words}"
            )


def _outline(value: object) -> object:
    """A value without the numbers of its tensors."""
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, dict):
        return {name: _outline(part) for name, part in list(value.items())[:3]}
    return [_outline(part) for part in value[:3]] if isinstance(value, list | tuple) else value


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _seconds(value: Any) -> bool:
    return _number(value) and math.isfinite(value) and value >= 0


def _named(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, dict) and all(isinstance(name, str) and fits(part) for name, part in value.items())
    )


def _tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _usual(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and _whole(value[0]) and _number(value[1])


def _generators(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) and _GENERATORS <= each.keys() for each in value)


def _optimizer(value: Any) -> bool:
    """Whether the numbers of the parameters are told, each once, and values only for these."""
    if not isinstance(value, dict) or not {"state", "param_groups"} <= value.keys():
        return False
    rows, kept = value["param_groups"], value["state"]
    if not isinstance(rows, list) or not isinstance(kept, dict):
        return False
    if not all(isinstance(row, dict) and isinstance(row.get("params"), list) for row in rows):
        return False
    numbers = [number for row in rows for number in row["params"]]
    return (
        all(map(_whole, numbers))
        and len(set(numbers)) == len(numbers)
        and kept.keys() <= set(numbers)
        and all(isinstance(part, dict) for part in kept.values())
    )


_WANTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "module": (_named(_tensor), "tensors by name"),
    "ema": (_named(_tensor), "tensors by name"),
    "count": (_whole, "a whole number"),
    "optimizer": (_optimizer, "the state of an optimizer"),
    "step": (_whole, "a whole number"),
    "seconds": (_seconds, "a number of seconds"),
    "earlier_seconds": (_seconds, "a number of seconds"),
    "random": (_generators, f"a list of the generators' states ({', '.join(sorted(_GENERATORS))})"),
    "smooth": (_named(_number), "numbers by name"),
    "usual": (_usual, "a count and a mean"),
    "fingerprint": (_named(lambda group: isinstance(group, dict)), "settings by group and name"),
}
