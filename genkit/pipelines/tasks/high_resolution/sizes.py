"""What a second pass at a larger size needs to be checked before any weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from genkit.errors import UnsupportedError, UsageError, counted, explain
from genkit.families.lookup import able, can, records

if TYPE_CHECKING:
    from genkit.pipelines.attention import Attention
    from genkit.pipelines.model import Model
    from genkit.pipelines.settings import GenerateSettings

#: Name of this task in the records of families.
TASK = "second_pass"
STRENGTH = 0.7
FLOW_SHIFT = 9.0
WINDOWS = "sliding_window"


def refusal(pipeline_class: str) -> str | None:
    """Why a kind of pipeline has no second pass, or None when it has one."""
    if not can(TASK, pipeline_class):
        return (
            f"--upscale denoises a second time at the target size, which is built for {', '.join(able(TASK))}; "
            f"{pipeline_class} is another pipeline. --enlarge enlarges the frames of any model"
        )
    return None


def merged(pipeline_class: str) -> dict[str, Any]:
    """Settings of windows with two paths on a pipeline that computes both branches in one call: what the path with full
    attention lends goes to both, since nothing tells their rows apart."""
    family = next((each for each in records() if pipeline_class in each.pipelines), None)
    return {"override": "both"} if family is not None and "cond_uncond" in family.branches else {}


def target_size(height: int, width: int, upscale: float, multiple: int) -> tuple[int, int]:
    """Height and width times ``upscale``; UsageError unless both are multiples of ``multiple`` and larger."""
    if isinstance(upscale, bool) or not isinstance(upscale, (int, float)) or not 1 < upscale <= 8:
        raise UsageError(explain("upscale", upscale, "a number above 1 and up to 8"))
    sizes = []
    for name, side in (("height", height), ("width", width)):
        size = round(side * upscale)
        if size % multiple:
            low = size // multiple * multiple
            raise UsageError(
                f"upscale {upscale:g} makes the {name} {size}, allowed: multiples of {multiple}; "
                f"{low / side:.6g} gives {low}, {(low + multiple) / side:.6g} gives {low + multiple}"
            )
        sizes.append(size)
    return sizes[0], sizes[1]


def kept_steps(steps: int, strength: float) -> int:
    """How many of ``steps`` are run again; UsageError when the strength is out of range or leaves none."""
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 < strength <= 1:
        raise UsageError(explain("strength", strength, "a number above 0 and up to 1"))
    kept = min(steps, int(steps * strength + 1e-9))
    if kept == 0:
        raise UsageError(
            f"strength {strength:g} of {counted(steps, 'step')} leaves no step to run; take more of either"
        )
    return kept


def check_model(model: Model) -> None:
    """UnsupportedError for a model without a second pass."""
    reason = refusal(model.class_name)
    if reason is not None:
        raise UnsupportedError(reason)


def open_values(settings: GenerateSettings, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Strength and shift where the user left them open: from the model's ``defaults``, else the published ones."""
    own = {"upscale_strength": STRENGTH, "upscale_shift": FLOW_SHIFT}
    return {name: defaults.get(name, value) for name, value in own.items() if getattr(settings, name) is None}


def windows(attention: Attention, settings: GenerateSettings, model: Model) -> Attention:
    """Windows get the base run's token grid and two paths unless the user says otherwise."""
    if getattr(attention.method, "name", None) != WINDOWS:
        return attention
    grid = model.grid(settings.num_frames or 1, settings.height, settings.width)
    found, own = attention.with_defaults(base=(grid[1], grid[2]), dual=True), merged(model.class_name)
    if not own or not found.method.dual:
        return found
    found = found.with_defaults(**own)
    if found.method.override != own["override"]:
        raise UsageError(
            f"--attention-args override={found.method.override}: {model.class_name} computes both branches in one "
            f"call; leave it out (override={own['override']}), or take dual=false"
        )
    return found
