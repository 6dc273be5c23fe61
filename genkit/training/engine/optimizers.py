"""Optimizers by name: the usual ones of LoRA training, and any class of torch's."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from genkit.errors import UnsupportedError, UsageError, explain, shown
from genkit.training.engine.optim import muon_adamw

Named = Sequence[tuple[str, nn.Parameter]]
#: Names beside those of torch's classes.
NAMES = ("adamw", "adamw_8bit", "prodigy", "muon")
_TORCH = "torch.optim."
#: What is given by settings of its own.
_OWN = ("params", "lr", "weight_decay", "foreach", "fused", "capturable", "differentiable", "maximize")


def optimizer_of(
    name: str,
    named: Named,
    lr: float,
    weight_decay: float = 0.0,
    arguments: Mapping[str, Any] | None = None,
    factors: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """An optimizer over parameters.

    Args:
        name: one of :data:`NAMES`, or a class of torch such as ``SGD`` or ``torch.optim.SGD``.
        named: pairs as from ``module.named_parameters()``, of those that are trained.
        lr: peak learning rate; prodigy finds its own and takes 1 as its measure.
        weight_decay: decoupled, as far as the class has it.
        arguments: further ones; texts are read as Python writes numbers, tuples, truth values and None.
        factors: part of a parameter's name -> multiple of the learning rate that the loop gives it.

    Raises:
        UsageError: an unknown name or argument, or a value that the class refuses.
        UnsupportedError: a package that is not here.
    """
    given = {key: _value(value) for key, value in (arguments or {}).items()}
    make = check_optimizer(name, given)
    known = inspect.signature(make).parameters
    more: dict[str, Any] = {"weight_decay": weight_decay} if name == "muon" or "weight_decay" in known else {}
    if weight_decay and not more:
        raise UsageError(f"weight_decay: {name} has none; set it to 0")
    try:
        if name == "muon":
            return muon_adamw(named, lr=lr, factors=factors, **more, **given)
        return make(_groups(named, factors or {}), lr=lr, **more, **given)
    except (TypeError, ValueError) as error:
        raise UsageError(f"optimizer_args: {name} refuses them: {shown(str(error))}") from error


def _groups(named: Named, factors: Mapping[str, float]) -> list[Any]:
    """The parameters, or groups of them where some have a factor."""
    own = {part: [value for name, value in named if part in name] for part in factors}
    taken = {id(value) for values in own.values() for value in values}
    rest = [value for _, value in named if id(value) not in taken]
    if not taken:
        return rest
    return [{"params": rest}, *({"params": values, "factor": factors[part]} for part, values in own.items() if values)]


def check_optimizer(name: str, arguments: Mapping[str, Any]) -> Callable[..., torch.optim.Optimizer]:
    """The class of a name, after its arguments are known to it; raises as :func:`optimizer_of`."""
    make = _class_of(name)
    allowed = [key for key in inspect.signature(make).parameters if key not in _OWN]
    if name == "muon":
        allowed = ["momentum", "betas"]
    for key in arguments:
        if key not in allowed:
            raise UsageError(explain(f"optimizer_args of {name}", key, allowed))
    return make


def _class_of(name: str) -> Callable[..., torch.optim.Optimizer]:
    if name == "adamw":
        return torch.optim.AdamW
    if name == "muon":
        return muon_adamw
    if name == "adamw_8bit":
        _need("bitsandbytes", name)
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit
    if name == "prodigy":
        _need("prodigyopt", name)
        import prodigyopt

        return prodigyopt.Prodigy
    found = getattr(torch.optim, name.removeprefix(_TORCH), None)
    if not (inspect.isclass(found) and issubclass(found, torch.optim.Optimizer) and found is not torch.optim.Optimizer):
        classes = [key for key, value in vars(torch.optim).items() if inspect.isclass(value) and key[0].isupper()]
        raise UsageError(explain("optimizer", name, [*NAMES, *(key for key in classes if key != "Optimizer")]))
    if found is torch.optim.LBFGS:
        raise UnsupportedError("optimizer: LBFGS asks for the loss several times a step, which this loop does not do")
    return found


def _need(package: str, name: str) -> None:
    if find_spec(package) is None:
        raise UnsupportedError(f"optimizer {name} needs the package {package}; pip install {package}")


def _value(given: Any) -> Any:
    """A text as the number, tuple or truth value that it writes; a word as it is."""
    if not isinstance(given, str):
        return tuple(given) if isinstance(given, list) else given
    if given.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[given.lower()]
    try:
        return ast.literal_eval(given)
    except (ValueError, SyntaxError):
        return given
