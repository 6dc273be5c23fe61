"""The other door: standard Diffusers attention processors that wrap the model's own and go through the same gate."""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from genkit.attention.method import Method
from genkit.errors import UnsupportedError, UsageError, explain
from genkit.families.lookup import unwrap
from genkit.patching import interception
from genkit.patching.handle import PatchHandle
from genkit.patching.interception import RunningModule
from genkit.patching.parts import Part, as_parts, check_recipe
from genkit.patching.patched_layer import PatchedLayer
from genkit.patching.schedule import Schedule

# What Diffusers sets on a processor has to reach the one that reads it.
_FORWARDED = ("_attention_backend", "_parallel_config")


class _Keeper:
    """Held by all processors of one call and by nothing else: when the last one goes, so does the patch."""

    def __init__(self, handle: PatchHandle):
        self.handle = handle
        weakref.finalize(self, handle.remove).atexit = False


class GateProcessor:
    """An attention processor that runs the model's own one with its attention calls led through the gate."""

    def __init__(self, inner: Any, layer: PatchedLayer, keeper: _Keeper):
        for name, value in (("_inner", inner), ("_layer", layer), ("_keeper", keeper)):
            object.__setattr__(self, name, value)
        layer.expect(self)

    @property
    def handle(self) -> PatchHandle:
        """The patch behind this processor: ``describe()`` and ``report()`` tell what it does."""
        return self._keeper.handle

    def __call__(self, attn: Any, *args: Any, **kwargs: Any) -> Any:
        # No local variable for the frame: it would keep itself alive.
        running = RunningModule(self._layer, None if torch.compiler.is_compiling() else sys._getframe(0))
        interception.push(running)
        try:
            output = self._inner(attn, *args, **kwargs)
        finally:
            interception.pop(self._layer)
        if running.calls == 0 and not torch.compiler.is_compiling():
            self._layer.nothing_came(attn, self._inner)
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_inner"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FORWARDED:
            setattr(self._inner, name, value)
        else:
            object.__setattr__(self, name, value)


def attn_processors(
    model: Any,
    method: Method | Part | Sequence[Method | Part] | Any,
    schedule: Schedule | None = None,
    *,
    roles: str | Iterable[str] | None = None,
    backend: str = "auto",
    total_steps: int | None = None,
) -> dict[str, Any]:
    """Processors for ``model.set_attn_processor(...)`` that let a method compute the attention.

    They wrap the model's present processors and do what :func:`genkit.patch` does, with the same arguments. Setting
    other processors ends it: when the last of these processors is gone, the model is as before.

    Returns:
        processor name -> processor, for every attention layer of the model; layers the method is not put on keep
        their own processor. Any of the wrapped ones has ``handle`` for ``describe()`` and ``report()``.

    Raises:
        UnsupportedError: as :func:`genkit.patch`, and for models whose attention takes no processors (Mochi) or has
            processors with weights (image prompt adapters), where :func:`genkit.patch` works.
    """
    model = unwrap(model)
    own = getattr(model, "attn_processors", None)
    if not isinstance(own, dict) or not own:
        raise UnsupportedError(
            f"{type(model).__name__} has no attention processors that could be set; use genkit.patch instead"
        )
    check_recipe(method, model)
    parts = as_parts(method, schedule, roles)
    handle = PatchHandle(model, parts, backend=backend, total_steps=total_steps, hook=False)
    try:
        keeper = _Keeper(handle)
        wrapped = {}
        for path, layer in handle.layers.items():
            name = f"{path}.processor"
            _refuse(name, own)
            wrapped[name] = _gate_processor(own[name], layer, keeper)
    except BaseException:
        handle.remove()
        raise
    return {**own, **wrapped}


def put_back(model: Any, handle: PatchHandle) -> None:
    """Give a model back its own processors where those of a patch stand before them."""
    for module in model.modules():
        processor = getattr(module, "processor", None)
        if isinstance(processor, GateProcessor) and processor.handle is handle:
            module.set_processor(processor._inner)


def _refuse(name: str, own: dict[str, Any]) -> None:
    inner = own.get(name)
    if inner is None:
        raise UnsupportedError(f"{name} cannot be set on this model; use genkit.patch instead")
    if isinstance(inner, GateProcessor):
        raise UsageError(explain(name, inner, "the model's own processor: set these back first"))
    if isinstance(inner, torch.nn.Module):
        raise UnsupportedError(
            f"{name} is {type(inner).__name__}, a processor with weights, which wrapping would take out of the model; "
            f"use genkit.patch instead"
        )


def _gate_processor(inner: Any, layer: PatchedLayer, keeper: _Keeper) -> GateProcessor:
    """A processor whose call has the signature of the wrapped one: Diffusers passes only arguments it finds there."""

    def call(self: GateProcessor, attn: Any, *args: Any, **kwargs: Any) -> Any:
        return GateProcessor.__call__(self, attn, *args, **kwargs)

    call.__signature__ = inspect.signature(type(inner).__call__)
    kind = type("GateProcessor", (GateProcessor,), {"__call__": call, "__doc__": GateProcessor.__doc__})
    return kind(inner, layer, keeper)
