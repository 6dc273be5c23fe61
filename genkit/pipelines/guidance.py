"""Models without a guidance input: their pipelines ignore ``guidance_scale`` and guide by a second, negative call.

Pipelines such as FluxPipeline hand ``guidance_scale`` to models distilled with it. For a model without that input
(``guidance_embeds`` false in its configuration) it would be dropped without a word; there the settings' guidance scale
becomes the pipeline's ``true_cfg_scale``, which needs a negative prompt to act.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from genkit.errors import UsageError
from genkit.pipelines.kinds import ARGUMENTS

if TYPE_CHECKING:
    from genkit.pipelines.model import Model
    from genkit.pipelines.settings import GenerationSettings

GUIDANCE, TRUE, AUDIO = "guidance_scale", "true_cfg_scale", "audio_guidance_scale"
_DISTILLED = (
    "the negative prompt has no effect: this model takes its guidance scale as an input and is called once per step"
)


def true_guidance(model: Model) -> bool:
    """Whether a guidance scale acts as ``true_cfg_scale`` only."""
    return {GUIDANCE, TRUE} <= set(model.accepted) and model.config("transformer").get("guidance_embeds") is False


def argument_names(model: Model) -> dict[str, tuple[str, ...]]:
    """:data:`genkit.pipelines.kinds.ARGUMENTS` with the guidance scale under the name by which it acts."""
    return {**ARGUMENTS, GUIDANCE: (TRUE,)} if true_guidance(model) else ARGUMENTS


def guided(settings: GenerationSettings, model: Model) -> bool:
    """Whether a run calls the model for the negative prompt too."""
    if _distilled(model):
        return _scale_of(model, TRUE) > 1 and settings.negative_prompt is not None
    if true_guidance(model):
        return (settings.guidance_scale or 0) > 1 and settings.negative_prompt is not None
    return max(settings.guidance_scale or 0, _scale_of(model, AUDIO)) > 1


def _scale_of(model: Model, name: str) -> float:
    """A scale that settings do not name, as the run will have it; 0 where the pipeline has none."""
    if name not in model.accepted:
        return 0
    return model.sidecar.call.get(name, model.accepted[name].default) or 0


def _distilled(model: Model) -> bool:
    """Whether the guidance scale is an input of the model: no second half is computed for it."""
    if {GUIDANCE, TRUE} <= set(model.accepted):
        return not true_guidance(model)
    return model.config("unet").get("time_cond_proj_dim") is not None


def check_experts(settings: Any, model: Model) -> None:
    """Refuse a scale of the second expert where there is none; UsageError."""
    scale = getattr(settings, "guidance_scale_2", None)
    if scale is not None and model.config("model_index").get("boundary_ratio") is None:
        raise UsageError(
            f"--guidance-scale-2: {model.name} has no second expert (no boundary_ratio in its model_index.json); "
            "leave it out"
        )


def settle(filled: GenerationSettings, given: GenerationSettings, model: Model) -> tuple[Any, tuple[str, ...]]:
    """Settings that say what will happen, and what the user should know, one line each.

    A negative prompt without guidance does nothing, which is said. Where guidance acts as ``true_cfg_scale`` only, a
    scale above 1 that somebody asked for gets the empty negative prompt when there is none, and a scale nobody asked
    for is 1: the pipeline's default does nothing without a negative prompt.
    """
    if not true_guidance(model):
        if not given.negative_prompt or GUIDANCE not in model.accepted or guided(filled, model):
            return filled, ()
        return filled, (_DISTILLED if _distilled(model) else _idle(filled, given),)
    sidecar = model.sidecar
    # A repeated run is given what the model's own sidecar had filled in.
    asked = given.guidance_scale not in (None, sidecar.call.get(TRUE))
    if filled.negative_prompt is None:
        if not asked and GUIDANCE not in sidecar.defaults and TRUE not in sidecar.call:
            return filled.replace(guidance_scale=1.0), ()
        if (filled.guidance_scale or 0) > 1:
            filled = filled.replace(negative_prompt="")
    acts = (filled.guidance_scale or 0) > 1
    if asked and acts:
        against = f"{filled.negative_prompt!r}" if filled.negative_prompt else "the empty negative prompt"
        return filled, (
            f"this model has no guidance input: guidance scale {filled.guidance_scale:g} acts as {TRUE} against "
            f"{against}, with a second model call per step",
        )
    if given.negative_prompt and not acts:
        return filled, (_idle(filled, given),)
    return filled, ()


def _idle(filled: GenerationSettings, given: GenerationSettings) -> str:
    """What to say of a negative prompt without guidance.

    Raises:
        UsageError: the user wrote both now, which contradict each other.
    """
    scale = f"{filled.guidance_scale or 0:g}"
    if given.asked("negative_prompt", "guidance_scale"):
        raise UsageError(
            f"--negative-prompt needs guidance, and --guidance-scale {scale} switches it off; take a scale above 1, or "
            "leave out --negative-prompt"
        )
    return (
        f"the negative prompt has no effect: it needs a guidance scale above 1, and this run's is {scale}; see "
        "--guidance-scale"
    )
