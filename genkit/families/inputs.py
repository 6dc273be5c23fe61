"""Pictures and videos that pipelines take beside a prompt: which argument of a pipeline's call each kind of them is.

The usual names are read from the signature of the call; what they do not tell is said in the records of families
(:attr:`genkit.families.facts.PipelineFacts.inputs`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field

from genkit.families.sizes import ReadConfig

#: Kind of input -> the names that calls have for it, the usual one first.
USUAL: dict[str, tuple[str, ...]] = {
    "image": ("image", "images", "input_images", "cond_image"),
    "last_image": ("last_image",),
    "keyframe": ("conditions",),
    "source_video": ("video",),
    "control": ("control_image", "control_video", "conditioning_frames"),
    "image_prompt": ("ip_adapter_image",),
    "mask": ("mask_image", "mask_video", "control_mask", "mask"),
    "strength": ("strength",),
}
#: Arguments by which calls take the strength of a control.
SCALES = ("controlnet_conditioning_scale", "adapter_conditioning_scale", "conditioning_scale")
#: Clips that pipelines bring to sizes of their own.
LOOKED = ("face_video",)
#: Arguments that a given background goes with.
REPLACES = {"mode": "replace"}
#: Argument that holds how a video begins: a clip that is given there is continued.
BEGINNING = "beginning"
#: Arguments that hold a clip; the others hold pictures.
CLIPS = (
    "video", "control_video", "conditioning_frames", "mask_video", "pose_video", "face_video", "background_video",
    BEGINNING,
)  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """What the signature of a pipeline's call does not tell of its inputs.

    Args:
        takes: kind of input -> its arguments, in place of the usual ones; no argument = it takes none of that kind.
        needs: kinds without which the pipeline does nothing sensible; None when its call tells.
        several: whether more than one picture can be given.
        looks: whether the pipeline looks at the pictures rather than draws over them: it brings them to sizes of its
            own, and they say nothing about the size of what is made.
        follows: of those that look, whether the size of what is made follows the picture where nobody says it; a
            pipeline that works that out by itself leaves it to it.
        unless: kind of input -> why a folder's weights do not take it though their class does, by its configurations;
            None where they do.
        timeline: whether frames of a clip can be given one by one, with a mask that says which are to be made.
    """

    takes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    needs: tuple[str, ...] | None = None
    several: bool = False
    looks: bool = False
    follows: bool = False
    timeline: bool = False
    unless: Mapping[str, Callable[[ReadConfig], str | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Other:
    """Another pipeline class of Diffusers that runs with the parts of a folder as they are.

    Args:
        name: of the class.
        when: whether a folder's weights are made for it, by its configurations; None = always.
        controlnet: whether it needs a ControlNet beside the folder's parts.
    """

    name: str
    when: Callable[[ReadConfig], bool] | None = None
    controlnet: bool = False


def inputs_of(told: Mapping[str, Inputs], class_name: str) -> Inputs:
    """The record of a class among those of its family; an empty one where there is none."""
    return next((found for pattern, found in told.items() if re.fullmatch(pattern, class_name)), Inputs())


def takes(told: Inputs, arguments: Container[str]) -> dict[str, tuple[str, ...]]:
    """Kind of input -> the arguments of a call that take it.

    Args:
        told: what the family's record says.
        arguments: of the call, by name.
    """
    found = {}
    for kind, names in USUAL.items():
        own = told.takes.get(kind)
        if own is None:
            own = tuple(name for name in names if name in arguments)[:1]
        if own:
            found[kind] = own
    return found
