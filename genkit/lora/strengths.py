"""Strengths by layer and by step: one number a module, and one a sampling step, without compiling anew."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from genkit.errors import UsageError, explain
from genkit.lora.keys import short
from genkit.patching.schedule import Span, parse_spans, resolve
from genkit.patching.step_tracker import StepTracker

_FORM = "ranges of steps with a factor each, such as 0:10 (on there, off elsewhere) or 0:10=1,10:=0.3"
#: Factors of a strength; the strength itself has its bounds too.
_MOST = 100.0


@dataclass(frozen=True)
class StepFactors:
    """Factors of a LoRA's strength by sampling step; 0 in steps that no range names.

    Args:
        parts: (range, factor), as the progress bar counts; negative ends count from the end.
    """

    parts: tuple[tuple[Span, float], ...]
    what: str = field(default="--lora-steps", compare=False)

    @classmethod
    def parse(cls, text: str, what: str = "--lora-steps") -> StepFactors:
        """``"0:10"`` or ``"0:10=1,10:=0.3"``.

        Raises:
            UsageError: no ranges, one that ends before it begins, or a factor that is no number from -100 to 100.
        """
        if not isinstance(text, str):
            raise UsageError(explain(what, text, _FORM))
        parts = []
        for piece in text.split(","):
            ranges, sign, factor = piece.partition("=")
            spans = parse_spans(what, ranges.strip())
            value = _factor(factor.strip(), what, text) if sign else 1.0
            if not spans:
                raise UsageError(explain(what, text, _FORM))
            for span in spans:
                if span.backward:
                    raise UsageError(explain(what, text, _FORM, f"{span} ends before it begins"))
            parts += [(span, value) for span in spans]
        return cls(tuple(parts), what)

    def at(self, steps: int) -> list[float]:
        """The factor of every step of a run.

        Raises:
            UsageError: a range that does not fit the number of steps, or two that meet.
        """
        found = [0.0] * steps
        taken: set[int] = set()
        for span, factor in self.parts:
            covered = resolve("steps", (span,), steps)
            if covered & taken:
                raise UsageError(f"{self.what}: two ranges hold step {min(covered & taken)} of {steps}")
            taken |= covered
            for step in covered:
                found[step] = factor
        return found


def _factor(text: str, what: str, given: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not -_MOST <= value <= _MOST:
        raise UsageError(explain(what, given, _FORM))
    return value


def check_factor(what: str, value: Any, most: float) -> None:
    """UsageError unless a strength or factor is a number (not a bool) from ``-most`` to ``most``."""
    good = isinstance(value, Real) and not isinstance(value, bool)
    if not (good and -most <= value <= most):
        raise UsageError(explain(what, value, f"a number from {-most:g} to {most:g}"))


def layer_factors(
    modules: Iterable[str], factors: Mapping[str, float], what: str = "--lora-layers"
) -> dict[str, float]:
    """The factor of every module; 1 for those that no name means.

    A name means the modules whose path holds it as whole components: ``blocks.1`` is not ``blocks.10``. Of several
    names that mean a module the longest counts, of equally long ones the last.

    Args:
        modules: paths with their part before: ``transformer.blocks.1.attn1.to_q``.
        factors: name -> factor.
        what: where the names were given.

    Raises:
        UsageError: a name that means no module, or a factor beyond -100 to 100.
    """
    paths = list(modules)
    found = dict.fromkeys(paths, 1.0)
    length = dict.fromkeys(paths, 0)
    for name, factor in factors.items():
        if not isinstance(name, str):
            raise UsageError(explain(what, name, "names of layers, such as blocks.1"))
        check_factor(f"{what} {short(name)}", factor, _MOST)
        meant = [path for path in paths if f".{name}." in f".{path}."]
        if not meant:
            parts = dict.fromkeys(".".join(path.split(".")[1:3]) for path in paths)
            raise UsageError(explain(what, short(name), [*parts][:12], "names are whole: blocks.1 is not blocks.10"))
        count = name.count(".") + 1
        for path in meant:
            if count >= length[path]:
                found[path], length[path] = float(factor), count
    return found


class StepStrengths:
    """Sets the scales of LoRA layers at the beginning of every call of a denoiser.

    The scales are tensors without axes that are written where they lie, so a compiled model is not compiled anew.
    Outside of a sampling loop, as in training, they are what they were.

    Args:
        pipeline: whose loop is followed; several denoisers of it share one count of steps.
    """

    def __init__(self, pipeline: Any):
        self._tracker = StepTracker(pipeline)
        self._layers: list[tuple[Any, str, float, Any, StepFactors]] = []
        self._hooks: list[Any] = []
        self._lists: dict[tuple[StepFactors, int], list[float]] = {}

    def follow(self, model: Any, name: str, factors: StepFactors) -> None:
        """Let the layers of an adapter in a model follow the steps."""
        import torch

        layers = [module for module in model.modules() if hasattr(module, "lora_A") and name in module.scaling]
        for layer in layers:
            base = float(layer.scaling[name])
            device = layer.lora_A[name].weight.device
            scale = torch.tensor(base, dtype=torch.float32, device=device)
            layer.scaling[name] = scale
            self._layers.append((weakref.ref(layer), name, base, scale, factors))
        if layers and not any(hook[0]() is model for hook in self._hooks):
            names = tuple(inspect.signature(model.forward).parameters)
            hook = model.register_forward_pre_hook(_Before(self, names), with_kwargs=True)
            self._hooks.append((weakref.ref(model), hook))

    def begin(self, model: Any, timestep: Any) -> None:
        """Set the scales of the step that a call of a model belongs to."""
        import torch

        moment = self._tracker.tick(None, timestep, model.training and torch.is_grad_enabled(), model)
        for layer, name, base, scale, factors in self._layers:
            if layer() is None or layer().scaling.get(name) is not scale:
                continue  # unloaded, or set by somebody else since
            if moment.step is None or moment.steps is None:
                scale.fill_(base)
                continue
            key = (factors, moment.steps)
            if key not in self._lists:
                self._lists[key] = factors.at(moment.steps)
            scale.fill_(base * self._lists[key][min(moment.step, moment.steps - 1)])

    def remove(self) -> None:
        """Give the layers their numbers back and leave the models as they were."""
        for layer, name, base, scale, _ in self._layers:
            if layer() is not None and layer().scaling.get(name) is scale:
                layer().scaling[name] = base
        for _, hook in self._hooks:
            hook.remove()
        self._layers, self._hooks = [], []


class _Before:
    """Forward pre-hook of a denoiser; never traced by torch.compile."""

    def __init__(self, strengths: StepStrengths, names: tuple[str, ...]):
        import torch

        self._begin = torch.compiler.disable(strengths.begin)
        self._names = names

    def __call__(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(zip(self._names, args, strict=False)) | kwargs
        self._begin(model, given.get("timestep"))
