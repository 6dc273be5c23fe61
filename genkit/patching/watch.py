"""What is known about the running call of one denoiser: token layouts, step, branch, masks already read."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.method import Method
from genkit.errors import UnsupportedError
from genkit.families.base import Family
from genkit.layout import TokenLayout
from genkit.patching import compiled
from genkit.patching.clock import Clock, Moment
from genkit.patching.masks import MaskView, view_mask
from genkit.patching.slot import Slot

if TYPE_CHECKING:
    from torch import nn


class Watch:
    """Follows one denoiser while at least one patch is on it; all its patches share it.

    A forward pre-hook on the model reads the arguments of every call. What it finds stays until the next call, so that
    activation checkpointing finds it again when it recomputes during backward, on whatever thread.
    """

    def __init__(self, model: nn.Module, family: Family, clock: Clock):
        self.family = family
        self.clock = clock
        self.streams: dict[str, TokenLayout] = {}
        self.slots: dict[str, Slot] = {}
        self.listeners: list[Callable[[Watch], None]] = []
        self.methods: list[tuple[Method, PatchCache]] = []
        self.forwards = 0
        self.context: Any = None
        self._moment: Moment | None = None
        self._masks: dict[Any, MaskView] = {}
        self._masks_before: dict[Any, MaskView] = {}
        self.model = weakref.ref(model)
        self.names = tuple(inspect.signature(model.forward).parameters)
        self._hook = model.register_forward_pre_hook(self.before, with_kwargs=True)
        self.number = compiled.enroll(self)
        self._contexts = _follow_contexts(self, model)

    @staticmethod
    def of(model: nn.Module) -> Watch | None:
        """The watch of a model that is patched, or None."""
        for hook in model._forward_pre_hooks.values():
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, Watch):
                return owner
        return None

    def close(self) -> None:
        """Leave the model as it was found."""
        self._hook.remove()
        model = self.model()
        if self._contexts is not None and model is not None and model.__dict__.get("cache_context") is self._contexts:
            del model.__dict__["cache_context"]

    @property
    def moment(self) -> Moment:
        """Step and branch of the running call."""
        if self._moment is None:
            raise UnsupportedError(
                f"an attention layer of the patched {self.family.name} model was called outside of the model's "
                f"forward, so its token layout is unknown; call the whole model or remove the patch"
            )
        return self._moment

    @property
    def last_moment(self) -> Moment | None:
        """Step and branch of the latest call, None before the first."""
        return self._moment

    def before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Forward pre-hook of the model."""
        given = dict(zip(self.names, args, strict=False)) | kwargs
        training = model.training and torch.is_grad_enabled()
        if torch.compiler.is_compiling():
            args, kwargs = compiled.observe(self, given, args, kwargs, training)
        else:
            self.observe(given, training)
        changes: dict[str, Any] = {}
        for method, _ in self.methods:
            changes.update(method.arguments(given))
        if not changes:
            return (args, kwargs) if torch.compiler.is_compiling() else None
        names = self.names[: len(args)]
        args = tuple(changes.pop(name, value) for name, value in zip(names, args, strict=True))
        return args, {**kwargs, **changes}

    def observe(self, given: Mapping[str, Any], training: bool) -> None:
        """Take in the arguments of one call."""
        self.forwards += 1
        self._masks.clear()
        if any(cache.aside for _, cache in self.methods):
            self._moment = Moment(aside=True)
        else:
            self._moment = self.clock.tick(self.context, given.get("timestep"), training)
        self.streams = self.family.streams(self.model(), given)
        for listener in self.listeners:
            listener(self)
        for method, cache in self.methods:
            method.observe(given, cache)

    @property
    def finest(self) -> tuple[int, int, int] | None:
        """The largest token grid of the running call; None when no stream has one."""
        return max((layout.grid for layout in self.streams.values() if layout.has_grid), key=prod, default=None)

    def mask(self, role: str, mask: torch.Tensor | None, q: torch.Tensor, k: torch.Tensor) -> MaskView:
        """The attention mask as methods see it. Every layer of a role gets the same one, so it is read once a call."""
        if mask is None:
            return MaskView()
        key = (role, tuple(mask.shape), mask.dtype, q.shape[0], q.shape[1], k.shape[1])
        if key not in self._masks:
            view = view_mask(mask, q.shape[0], q.shape[1], k.shape[1])
            before = self._masks_before.get(key)
            if before is not None and view.keys is not None and before.keys is not None:
                # The same prompt again: the same tensor, so that plans kept per mask are found at once.
                view = before if torch.equal(view.keys, before.keys) else view
            self._masks[key] = self._masks_before[key] = view
        return self._masks[key]

    def __deepcopy__(self, memo: Any) -> Watch:
        raise UnsupportedError("a patched model cannot be copied: remove the patch, copy the model, patch again")

    def __reduce__(self) -> Any:
        raise UnsupportedError("a patched model cannot be pickled: remove the patch first")


class _ContextFollower:
    """Stands before a model's ``cache_context`` and lets the watch see the context the pipeline opens."""

    def __init__(self, watch: Watch, model: nn.Module):
        self._watch = watch
        self._model = model
        functools.update_wrapper(self, type(model).cache_context)

    def __call__(self, name: str, **facts: Any) -> _Context:
        return _Context(self._watch, type(self._model).cache_context(self._model, name, **facts), name, facts)


class _Context:
    def __init__(self, watch: Watch, inner: Any, name: str, facts: dict[str, Any]):
        self._watch, self._inner = watch, inner
        self.name = name
        self.step_index = facts.get("step_index")
        self.num_inference_steps = facts.get("num_inference_steps")

    def __enter__(self) -> None:
        self._inner.__enter__()
        self._before = self._watch.context
        self._watch.context = self

    def __exit__(self, *error: Any) -> Any:
        self._watch.context = self._before
        return self._inner.__exit__(*error)


def _follow_contexts(watch: Watch, model: nn.Module) -> _ContextFollower | None:
    """Shadow ``model.cache_context`` on the instance; the method itself and the signature stay as they are."""
    if not hasattr(type(model), "cache_context") or "cache_context" in model.__dict__:
        return None
    follower = _ContextFollower(watch, model)
    model.__dict__["cache_context"] = follower
    return follower
