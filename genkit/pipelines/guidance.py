"""Models without a guidance input: their pipelines ignore ``guidance_scale`` and guide by a second, negative call.

Pipelines such as FluxPipeline hand ``guidance_scale`` to models distilled with it. For a model without that input
(``guidance_embeds`` false in its configuration) it would be dropped without a word; there the settings' guidance scale
becomes the pipeline's ``true_cfg_scale``, which needs a negative prompt to act.
"""

from __future__ import annotations

from genkit.families.sizes import ReadConfig
from genkit.models import Sidecar
from genkit.pipelines.kinds import ARGUMENTS, accepted
from genkit.pipelines.settings import GenerateSettings

GUIDANCE, TRUE = "guidance_scale", "true_cfg_scale"
_DISTILLED = "this model takes its guidance scale as an input and is called once per step"


def true_guidance(pipeline_class: type, config: ReadConfig) -> bool:
    """Whether a guidance scale acts as ``true_cfg_scale`` only. ``config(part)`` returns a part's configuration."""
    both = {GUIDANCE, TRUE} <= set(accepted(pipeline_class))
    return both and config("transformer").get("guidance_embeds") is False


def argument_names(pipeline_class: type, config: ReadConfig) -> dict[str, tuple[str, ...]]:
    """:data:`genkit.pipelines.kinds.ARGUMENTS` with the guidance scale under the name by which it acts."""
    return {**ARGUMENTS, GUIDANCE: (TRUE,)} if true_guidance(pipeline_class, config) else ARGUMENTS


def settle(
    filled: GenerateSettings, given: GenerateSettings, sidecar: Sidecar, pipeline_class: type, config: ReadConfig
) -> tuple[GenerateSettings, tuple[str, ...]]:
    """Settings that say what will happen, and what the user should know, one line each; for other models the latter.

    A scale above 1 that somebody asked for gets the empty negative prompt when there is none. A scale nobody asked for
    is 1 then: the pipeline's default does nothing without a negative prompt.
    """
    if not true_guidance(pipeline_class, config):
        known = accepted(pipeline_class)
        idle = GUIDANCE in known and TRUE in known and (sidecar.call.get(TRUE) or known[TRUE].default or 1) <= 1
        return filled, (f"the negative prompt has no effect: {_DISTILLED}",) if idle and given.negative_prompt else ()
    # A repeated run is given what the model's own sidecar had filled in.
    asked = given.guidance_scale not in (None, sidecar.call.get(TRUE))
    if filled.negative_prompt is None:
        if not asked and GUIDANCE not in sidecar.defaults and TRUE not in sidecar.call:
            return filled.replace(guidance_scale=1.0), ()
        if (filled.guidance_scale or 0) > 1:
            filled = filled.replace(negative_prompt="")
    guided = (filled.guidance_scale or 0) > 1
    if asked and guided:
        against = f"{filled.negative_prompt!r}" if filled.negative_prompt else "the empty negative prompt"
        return filled, (
            f"this model has no guidance input: guidance scale {filled.guidance_scale:g} acts as {TRUE} against "
            f"{against}, with a second model call per step",
        )
    if given.negative_prompt and not guided:
        return filled, ("the negative prompt has no effect: it needs a guidance scale above 1",)
    return filled, ()
