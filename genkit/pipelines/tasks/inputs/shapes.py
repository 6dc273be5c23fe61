"""Given pictures and clips in the forms that only some pipelines have: lists of conditions, and clips with masks."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from genkit.errors import UsageError, counted
from genkit.families.inputs import SCALES
from genkit.pipelines.request import flag
from genkit.pipelines.tasks.inputs.pictures import as_masks, as_pictures

if TYPE_CHECKING:
    from genkit.pipelines.tasks.inputs.arguments import Arguments
    from genkit.pipelines.tasks.inputs.files import GivenFile

#: A colour that says nothing, for frames that nobody gives.
_NOTHING = 128


def conditions_of(making: Arguments, kinds: list[str]) -> list[Any]:
    """Conditions of LTX pipelines: pictures and a clip, each with its frame and strength, in the order of frames."""
    frames = making.plan.frames or 1
    placed: list[tuple[int, Any, float]] = []
    for kind in kinds:
        for each in making.plan.files.of(kind):
            if kind == "source_video":
                placed.append((0, as_pictures(making.clip(each)), each.strength))
                continue
            place = {"image": 0, "last_image": frames - 1}.get(kind)
            place = making.number(each) if place is None else place
            placed.append((place, as_pictures(making.picture(each))[0], each.strength))
    placed.sort(key=lambda each: each[0])
    places = [place for place, _, _ in placed]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise UsageError(f"frame {twice} is given twice; leave one of {', '.join(map(flag, kinds))} out")
    kind = _condition_class(making.model.pipeline_class)
    if "index" in kind.__dataclass_fields__:
        return [_latent_condition(making, kind, *each) for each in placed]
    return [
        kind(**{"video" if isinstance(shown, list) else "image": shown}, frame_index=place, strength=each)
        for place, shown, each in placed
    ]


def _condition_class(pipeline_class: type) -> Any:
    """What a pipeline's module calls a condition."""
    module = sys.modules[pipeline_class.__module__]
    return next(value for name, value in vars(module).items() if name.endswith("VideoCondition"))


def _latent_condition(making: Arguments, kind: Any, place: int, shown: Any, strength: float) -> Any:
    """A condition of LTX-2, whose places are counted in latent frames; the first of them holds one frame."""
    ratio = _ratio(making)
    latent = -(-place // ratio)
    first = max((latent - 1) * ratio + 1, 0)
    if first != place and place != (making.plan.frames or 1) - 1:
        making.draft.notes.append(
            f"--keyframe {place}: {making.model.class_name} counts in steps of {counted(ratio, 'frame')}; it "
            "acts from frame "
            f"{first} on"
        )
    return kind(frames=shown, index=latent, strength=strength)


def _ratio(making: Arguments) -> int:
    """Frames behind a latent frame."""
    rule = making.model.rule
    return 8 if rule is None else rule.frames_multiple


def timeline_of(making: Arguments) -> dict[str, Any]:
    """A clip with a mask of what is made (VACE): given frames stay, grey ones are made, masked parts anew.

    A clip that is given as ``--control`` is followed as a whole. One given as ``--source-video`` is kept but for what
    ``--mask`` marks, and continued where it is shorter than the video.
    """
    files, names = making.plan.files, making.plan.taken.arguments
    frames = making.plan.frames
    if frames is None or making.plan.size is None:
        raise UsageError("--mask says which part of a clip is made anew; give --source-video")
    control, source = files.of("control"), files.of("source_video")
    if control and source:
        raise UsageError(f"--control and --source-video are one clip of {making.model.class_name}; leave one out")
    shown = np.full((frames, *making.plan.size, 3), _NOTHING, np.uint8)
    made = np.ones((frames, *making.plan.size), bool)
    for each in (*control[:1], *source):
        clip = making.clip(each)
        shown[: len(clip)] = clip
        if each.setting == "source_video":
            made[: len(clip)] = False
    if len(control) > 1:
        raise UsageError(f"--control: got {counted(len(control), 'file')}, {making.model.class_name} takes one clip")
    if files.of("mask"):
        if not source:
            raise UsageError("--mask says which part of a clip is made anew; give --source-video")
        inside = making.mask(files.of("mask")[0], frames)
        made |= inside
        shown[inside & (np.arange(frames) < source[0].count)[:, None, None]] = _NOTHING
    for place, each in _pictures(making):
        shown[place], made[place] = making.picture(each)[0], False
    if not made.any():
        raise UsageError(
            "nothing is left to make: give --mask with what is made anew, --num-frames above the clip's to continue "
            "it, or the clip as --control to follow it"
        )
    values: dict[str, Any] = {names["source_video"][0]: as_pictures(shown), names["mask"][0]: as_masks(made)}
    scale = control[0].strength if control else 1.0
    if scale != 1:
        values[next(name for name in SCALES if name in making.model.accepted)] = scale
    return values


def _pictures(making: Arguments) -> list[tuple[int, GivenFile]]:
    files = making.plan.files
    found = [(making.number(each), each) for each in files.of("keyframe")]
    return found + [((making.plan.frames or 1) - 1, each) for each in files.of("last_image")]
