"""Whether training calls a denoiser as its stock pipeline does: what the pipeline hands in, and the same rebuilt."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from genkit.families.facts import FLOW
from genkit.families.lookup import diffusers_class, facts_of
from genkit.families.training.base import Call, Training
from genkit.families.training.objectives import objective_of

CAPTIONS = ("a red circle moves right", "blue")
#: Arguments that carry nothing of a training step.
_ASIDE = ("attention_kwargs", "joint_attention_kwargs", "cross_attention_kwargs", "return_dict", "self")


def spied(pipeline: Any, component: str, step: int, swapped: torch.Tensor | None = None, **call: Any) -> dict[str, Any]:
    """Arguments of a denoiser's forward, by name, in one step of a run of its pipeline.

    Args:
        pipeline: called with ``call``; two steps of one call each.
        component: name of the denoiser.
        step: 0 or 1.
        swapped: latents that the pipeline's loop goes on with after its first step.
    """
    model, seen = getattr(pipeline, component), []
    signature, forward = inspect.signature(type(model).forward), model.forward

    def look(*args: Any, **kwargs: Any) -> Any:
        seen.append(dict(signature.bind(model, *args, **kwargs).arguments))
        return forward(*args, **kwargs)

    def swap(pipe: Any, number: int, timestep: Any, found: dict[str, Any]) -> dict[str, Any]:
        return found if swapped is None else {"latents": swapped.to(found["latents"].dtype)}

    model.forward = look
    pipeline.set_progress_bar_config(disable=True)
    try:
        pipeline(num_inference_steps=2, output_type="latent", callback_on_step_end=swap, **call)
    finally:
        del model.forward
    return {name: value for name, value in seen[step].items() if name not in _ASIDE}


def level_of(pipeline: Any, step: int) -> float:
    """The noise level of a step that the pipeline has just run."""
    told = facts_of(diffusers_class(pipeline)).objective
    scheduler = pipeline.scheduler
    if told.of(scheduler) == FLOW:
        return float(scheduler.sigmas[step])
    return (float(scheduler.timesteps[step]) + 0.5) / scheduler.config.num_train_timesteps


def rebuilt(
    pipeline: Any,
    component: str,
    training: Training,
    noisy: Mapping[str, torch.Tensor],
    level: float,
    slots: int,
    media: Mapping[str, torch.Tensor] | None = None,
    captions: Sequence[str] = CAPTIONS,
    **more: Any,
) -> tuple[dict[str, Any], Call]:
    """The arguments that training makes of noisy latents at a level for two captions, and the call."""
    text = training.text(pipeline, list(captions), slots)
    levels = torch.full((len(captions),), level)
    objective = objective_of(facts_of(diffusers_class(pipeline)).objective, pipeline.scheduler)
    call = Call(
        pipeline, getattr(pipeline, component), dict(noisy), levels, objective.timesteps(levels), dict(media or {}),
        {name: torch.stack([row[name] for row in text]) for name in text[0]}, **more,
    )  # fmt: skip
    arguments = training.arguments(call)
    return {name: value for name, value in arguments.items() if name not in _ASIDE}, call


def assert_same(found: Mapping[str, Any], expected: Mapping[str, Any], scalar_timestep: bool = False) -> None:
    """Equal tensors, dtypes and shapes under equal names; what is None counts as not given.

    Args:
        scalar_timestep: the pipeline gives one timestep for all samples.
    """
    found, expected = ({n: v for n, v in side.items() if v is not None} for side in (found, expected))
    assert set(found) == set(expected)
    for name, value in expected.items():
        if scalar_timestep and name == "timestep":
            value = value.expand(len(found[name]))
        same(found[name], value, name)


def same(found: Any, expected: Any, name: str) -> None:
    """Equality of tensors, and of what holds them."""
    if isinstance(expected, torch.Tensor):
        told = (found.dtype, expected.dtype, tuple(found.shape), tuple(expected.shape))
        assert found.dtype == expected.dtype and found.shape == expected.shape, (name, *told)
        assert torch.equal(found, expected), (name, float((found.float() - expected.float()).abs().max()))
    elif isinstance(expected, dict):
        assert set(found) == set(expected), name
        for key in expected:
            same(found[key], expected[key], f"{name}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), name
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            same(one, other, f"{name}[{index}]")
    else:
        assert found == expected, (name, found, expected)
