"""Following one denoiser while at least one patch is on it: every call's arguments, and the context it is made in."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.method import Method
from genkit.errors import UnsupportedError
from genkit.families.base import Family
from genkit.patching import compiled
from genkit.patching.call_state import CallState
from genkit.patching.patched_layer import PatchedLayer
from genkit.patching.step_tracker import Moment, StepTracker

if TYPE_CHECKING:
    from torch import nn


class Patch(Protocol):
    """A patch, as the models it is on see it."""

    methods: tuple[Method, ...]
    cache: PatchCache

    def check(self, moment: Moment) -> None:
        """Refuse a schedule that does not fit what the sampling loop turned out to be."""


class PatchedModel:
    """Follows one denoiser; all its patches share it.

    Args:
        model: the denoiser.
        family: its record.
        tracker: counts the steps of its sampling loop; the denoisers of one patch share it.
    """

    def __init__(self, model: nn.Module, family: Family, tracker: StepTracker):
        self.family = family
        self.tracker = tracker
        self.state = CallState(family)
        self.layers: dict[str, PatchedLayer] = {}
        self.patches: list[Patch] = []
        self.context: Any = None
        self.model = weakref.ref(model)
        self.names = tuple(inspect.signature(model.forward).parameters)
        self._hook = model.register_forward_pre_hook(self.before, with_kwargs=True)
        self.number = compiled.enroll(self)
        self._contexts = _follow_contexts(self, model)

    @staticmethod
    def of(model: nn.Module) -> PatchedModel | None:
        """What follows a model that is patched, or None."""
        for hook in model._forward_pre_hooks.values():
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, PatchedModel):
                return owner
        return None

    def drop(self, layer: PatchedLayer) -> None:
        """Leave a layer as it was found when nobody asks anything of it any more."""
        if layer.idle and self.layers.get(layer.path) is layer:
            layer.unhook()
            self.layers.pop(layer.path)

    def close_if_free(self) -> None:
        """Leave the model as it was found when it is neither patched nor watched any more."""
        if not self.patches and not self.layers:
            self.close()

    def close(self) -> None:
        """Leave the model as it was found."""
        self._hook.remove()
        model = self.model()
        if self._contexts is not None and model is not None and model.__dict__.get("cache_context") is self._contexts:
            del model.__dict__["cache_context"]

    def before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Forward pre-hook of the model."""
        given = dict(zip(self.names, args, strict=False)) | kwargs
        training = model.training and torch.is_grad_enabled()
        if torch.compiler.is_compiling():
            args, kwargs = compiled.observe(self, given, args, kwargs, training)
        else:
            self.observe(given, training)
        changes: dict[str, Any] = {}
        for patch in self.patches:
            for method in patch.methods:
                changes.update(method.arguments(given))
        if not changes:
            return (args, kwargs) if torch.compiler.is_compiling() else None
        names = self.names[: len(args)]
        args = tuple(changes.pop(name, value) for name, value in zip(names, args, strict=True))
        return args, {**kwargs, **changes}

    def observe(self, given: Mapping[str, Any], training: bool) -> None:
        """Take in the arguments of one call."""
        model = self.model()
        if any(patch.cache.aside for patch in self.patches):
            moment = Moment(aside=True)
        else:
            moment = self.tracker.tick(self.context, given.get(self.family.timestep), training, model)
        self.state.begin(moment, model, given)
        for patch in self.patches:
            patch.check(moment)
        for patch in self.patches:
            for method in patch.methods:
                method.observe(given, patch.cache)

    def __deepcopy__(self, memo: Any) -> PatchedModel:
        raise UnsupportedError("a patched model cannot be copied: remove the patch, copy the model, patch again")

    def __reduce__(self) -> Any:
        raise UnsupportedError("a patched model cannot be pickled: remove the patch first")


class _ContextFollower:
    """Stands before a model's ``cache_context`` and lets its patches see the context the pipeline opens."""

    def __init__(self, patched: PatchedModel, model: nn.Module):
        self._patched = patched
        self._model = model
        functools.update_wrapper(self, type(model).cache_context)

    def __call__(self, name: str, **facts: Any) -> _Context:
        return _Context(self._patched, type(self._model).cache_context(self._model, name, **facts), name, facts)


class _Context:
    def __init__(self, patched: PatchedModel, inner: Any, name: str, facts: dict[str, Any]):
        self._patched, self._inner = patched, inner
        self.name = name
        self.step_index = facts.get("step_index")
        self.num_inference_steps = facts.get("num_inference_steps")

    def __enter__(self) -> None:
        self._inner.__enter__()
        self._before = self._patched.context
        self._patched.context = self

    def __exit__(self, *error: Any) -> Any:
        self._patched.context = self._before
        return self._inner.__exit__(*error)


def _follow_contexts(patched: PatchedModel, model: nn.Module) -> _ContextFollower | None:
    """Shadow ``model.cache_context`` on the instance; the method itself and the signature stay as they are."""
    if not hasattr(type(model), "cache_context") or "cache_context" in model.__dict__:
        return None
    follower = _ContextFollower(patched, model)
    model.__dict__["cache_context"] = follower
    return follower
