"""What pipelines make and which sizes they accept; nothing here knows a particular model, see genkit.families."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import TypeVar

from genkit.errors import ArtifactError, escaped, shortened, shown
from genkit.families.inputs import CLIPS
from genkit.families.lookup import facts_of
from genkit.families.sizes import ReadConfig, Size, SizeRule, grid_of

# setting -> the pipeline's names for it
ARGUMENTS = {
    "negative_prompt": ("negative_prompt",),
    "steps": ("num_inference_steps",),
    "guidance_scale": ("guidance_scale", "max_guidance_scale"),
    "height": ("height",),
    "width": ("width",),
    "num_frames": ("num_frames", "video_length", "frames"),
    "fps": ("frame_rate", "fps"),
    "max_sequence_length": ("max_sequence_length",),
    "guidance_scale_2": ("guidance_scale_2",),
}


@dataclass(frozen=True)
class Kind:
    """A kind of output.

    Args:
        name: ``"video"``, ``"image"`` or ``"audio-video"``.
        fields: the attributes of the pipeline's output that carry it.
        also: another name that outputs have for the first of them; it holds one video, or the pictures of a batch.
        suffix: of the default output file.
    """

    name: str
    fields: tuple[str, ...]
    suffix: str
    also: str


AUDIO_VIDEO = Kind("audio-video", ("frames", "audio"), ".mp4", "video")
VIDEO = Kind("video", ("frames",), ".mp4", "video")
IMAGE = Kind("image", ("images",), ".png", "image")

_INPUTS = re.compile(
    r"(control_|mask_|pose_|face_|source_|original_|input_|reference_)?(image|images|video|mask|audio)"
)

# Frames per second for files of pipelines that no record covers.
DEFAULT_FPS = "16"
# Pixels or frames along one side of what a latent or token stands for; a configuration that asks for more is a slip.
LARGEST_STEP = 65_536
Told = TypeVar("Told")


def token_size(class_name: str, config: ReadConfig) -> Size | None:
    """Frames and pixels (t, h, w) behind a token of a pipeline class, or None where no record of a family tells it."""
    facts = facts_of(class_name)
    if facts is None or facts.token is None:
        return None
    return _told(class_name, config, facts.token, lambda told: tuple(told))


def token_grid(class_name: str, config: ReadConfig, frames: int, height: int, width: int) -> Size | None:
    """The (T, H, W) token grid of a size in pixels, or None where no record of a family tells it."""
    token = token_size(class_name, config)
    return None if token is None else grid_of(token, frames, height, width)


def size_rule(class_name: str, config: ReadConfig) -> SizeRule | None:
    """The size rule of a pipeline class, or None when only the pipeline itself knows. ``config(part)`` returns a
    part's configuration."""
    facts = facts_of(class_name)
    if facts is None or facts.sizes is None:
        return None
    return _told(class_name, config, facts.sizes, lambda told: (told.multiple, told.frames_multiple))


def _told(
    class_name: str, config: ReadConfig, rule: Callable[[ReadConfig], Told], numbers: Callable[[Told], tuple]
) -> Told:
    """What a family's rule makes of a model's configurations, which may hold anything.

    Raises:
        ArtifactError: values that the rule cannot compute with, or that come to no size.
    """
    used: dict[str, dict] = {}

    def reader(part: str) -> dict:
        used[part] = config(part)
        return used[part]

    try:
        told = rule(reader)
        found = numbers(told)
        why = f"they come to {shown(found)}"
        right = all(type(each) is int and 1 <= each <= LARGEST_STEP for each in found)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, MemoryError) as error:
        right, why = False, f"{type(error).__name__}: {error}"
    if right:
        return told
    values = {
        f"{part}/{name}": value
        for part, read in used.items()
        for name, value in read.items()
        if name.startswith(("patch_size", "scale_factor", "spatial_", "temporal_", "block_out"))
    }
    raise ArtifactError(
        f"the configurations tell no sizes for {class_name}: got {shown(values)}, allowed: whole numbers from 1 to "
        f"{LARGEST_STEP}, or lists of them ({shortened(escaped(why))}); get the folder again"
    )


def native_fps(class_name: str) -> str:
    """Frames per second that suit a pipeline class; 16 for unlisted ones."""
    facts = facts_of(class_name)
    return DEFAULT_FPS if facts is None or facts.fps is None else facts.fps


def accepted(pipeline_class: type) -> dict[str, inspect.Parameter]:
    """The arguments of a pipeline's call, by name."""
    parameters = dict(inspect.signature(pipeline_class.__call__).parameters)
    parameters.pop("self", None)
    return parameters


def demanded(pipeline_class: type) -> list[str]:
    """The arguments without which a pipeline cannot do its work: those without a default, and the optional pictures,
    videos, masks and sounds of one that changes or continues something.

    That it does is said by its family's record, or else seen by the other arguments of its call: how far to change
    what is given (``strength``), or what to follow (``control_image``, ``control_video``).
    """
    arguments = accepted(pipeline_class)
    facts = facts_of(pipeline_class.__name__)
    if facts is None or facts.needs_input is None:
        works_on = any(name == "strength" or name.startswith("control_") for name in arguments)
    else:
        works_on = re.fullmatch(facts.needs_input, pipeline_class.__name__) is not None
    return [
        name
        for name, argument in arguments.items()
        if (argument.default is argument.empty and argument.kind not in (argument.VAR_KEYWORD, argument.VAR_POSITIONAL))
        or (works_on and _INPUTS.fullmatch(name))
    ]


def kind_of(pipeline_class: type) -> Kind:
    """What a pipeline class makes, read from its call's arguments: a number of frames or given clips mean video, with
    sound both."""
    arguments = accepted(pipeline_class)
    if not any(name in arguments for name in (*ARGUMENTS["num_frames"], *CLIPS)):
        return IMAGE
    return AUDIO_VIDEO if any(name.startswith("audio") for name in arguments) else VIDEO


def makes_nothing(pipeline_class: type) -> str | None:
    """What a pipeline class returns in place of pictures and videos; None where it makes these, or does not tell.

    Told by the fields of the output that its call is annotated with.
    """
    try:
        told = inspect.signature(pipeline_class.__call__, eval_str=True).return_annotation
    except (TypeError, NameError):  # annotations that cannot be evaluated
        return None
    names = [each.name for kind in (typing.get_args(told) or (told,)) if is_dataclass(kind) for each in fields(kind)]
    if not names or any(name in (*kind.fields, kind.also) for kind in (VIDEO, IMAGE) for name in names):
        return None
    return "sound alone" if names == ["audios"] else ", ".join(names)
