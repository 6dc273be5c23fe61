"""Attention in the loop: the method that a LoRA is trained through, at every noise level."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from genkit.attention import registry
from genkit.attention.weights import PatchWeights
from genkit.errors import UnsupportedError, UsageError
from genkit.patching import PatchHandle, patch
from genkit.patching.parts import Part
from genkit.pipelines.attention import Attention


def check_trainable(attention: Attention) -> None:
    """Refuse methods that nothing can be trained through; UnsupportedError with the reason."""
    for part in attention.parts:
        name = part.method.name
        if part.method.own_task:
            raise UnsupportedError(f"attention {name} is not for training a LoRA: {part.method.own_task}")
        if not type(part.method).trainable:
            kinds = {name: registry.method_class(name) for name in registry.usable()}
            able = ", ".join(sorted(name for name, kind in kinds.items() if kind.trainable and not kind.own_task))
            raise UnsupportedError(
                f"attention {name} cannot be trained through: it has no gradients of what it computes; allowed: {able}"
            )


def timeless(attention: Attention) -> tuple[tuple[Part, ...], list[str]]:
    """The parts of an attention without steps and branches, which training has none of, and what was left out.

    In training every sample has a noise level of its own, so a method is on at all of them; layers and heads stay.
    """
    parts, told = [], []
    for part in attention.parts:
        schedule = part.schedule
        if schedule is not None and (schedule.steps is not None or schedule.branches):
            named = [name for name in ("steps", "branches") if getattr(schedule, name)]
            told.append(
                f"attention: {part.method.name} is trained at all noise levels; {' and '.join(named)} of its schedule "
                "are for sampling alone"
            )
            schedule = dataclasses.replace(schedule, steps=None, branches=None)
        parts.append(dataclasses.replace(part, schedule=schedule))
    return tuple(parts), list(dict.fromkeys(told))


def put_in(model: Any, attention: Attention, train_weights: bool) -> tuple[PatchHandle, PatchWeights | None, list[str]]:
    """Patch a denoiser for training.

    Args:
        model: the denoiser.
        attention: resolved, with ``recommended`` schedules settled.
        train_weights: whether the methods' own weights are trained.

    Returns:
        The patch in force, its weights when they are trained, and what the user should know, one line each.

    Raises:
        UnsupportedError: a method that cannot be trained through or does not fit the model.
        UsageError: weights are to be trained and there are none.
    """
    check_trainable(attention)
    parts, told = timeless(attention)
    handle = patch(model, parts, backend=attention.backend)
    weights = handle.weights
    weights.requires_grad_(train_weights)
    if train_weights and not weights.count():
        handle.remove()
        names = ", ".join(dict.fromkeys(part.method.name for part in parts))
        raise UsageError(
            f"train_attention_weights: {names} has no weights of its own with these settings; leave it out"
        )
    silent = [part.method.name for part in parts if part.method.adds and getattr(part.method, "weights", None) is None]
    if silent and not train_weights:
        handle.remove()
        raise UsageError(
            f"attention {silent[0]}: its term starts at zero and would stay there; add --train-attention-weights, or "
            "give trained ones with --attention-args weights=FILE"
        )
    return handle, weights if train_weights else None, told


def frozen(module: nn.Module) -> bool:
    """Whether nothing in a module is trained."""
    return not any(parameter.requires_grad for parameter in module.parameters())
