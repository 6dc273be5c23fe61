"""Size, length and steps of a run that follows what it is given."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from genkit.editing.hd_painter.place import native_side
from genkit.errors import UsageError, counted
from genkit.pipelines.guidance import argument_names
from genkit.pipelines.kinds import IMAGE
from genkit.pipelines.request import flag
from genkit.pipelines.tasks.high_resolution.sizes import kept_steps
from genkit.pipelines.tasks.inputs.files import Files, GivenFile
from genkit.pipelines.tasks.inputs.fit import size_for
from genkit.pipelines.tasks.inputs.serving import Taken, taken_by

if TYPE_CHECKING:
    from genkit.pipelines.resolve import Draft

#: Argument of calls that bring every size to an area.
AREA = "max_area"
#: Settings that this task fills in by what is given.
SIZES = ("height", "width", "num_frames")


@dataclass(frozen=True)
class Plan:
    """What a run is made of.

    Args:
        files: what is given.
        taken: what the pipeline class takes.
        size: height and width of what is given is brought to; None = nothing is.
        frames: of the video; None for a picture, or where only the pipeline knows.
        fps: of the video.
        steps: that a schedule can name.
    """

    files: Files
    taken: Taken
    size: tuple[int, int] | None
    frames: int | None
    fps: Fraction | None
    steps: int | None


def plan(files: Files, draft: Draft) -> Plan:
    """Fill in what the settings leave open by what is given.

    Raises:
        UsageError: sizes or lengths that do not go together.
    """
    taken, model = taken_by(draft.model.pipeline_class, draft.model.config), draft.model
    for each in files.all:
        draft.notes += each.told
    size = _size(files, draft, taken)
    steps = _steps(draft, taken)
    if model.kind is IMAGE:
        return Plan(files, taken, size, None, None, steps)
    clip = next((each for each in files.all if each.setting in ("source_video", "control") and each.moving), None)
    if clip is not None and taken.continues:  # how long it becomes is the chain's matter
        _rate(clip, draft)
    elif clip is not None:
        _length(clip, draft, taken)
    frames = draft.settings.num_frames
    fps = None if draft.settings.fps is None else Fraction(draft.settings.fps)
    return Plan(files, taken, size, frames, fps, steps)


def _leads(each: GivenFile, taken: Taken) -> bool:
    return each.setting not in ("mask", "image_prompt") and not (each.setting == "image" and taken.told.looks)


def _size(files: Files, draft: Draft, taken: Taken) -> tuple[int, int] | None:
    """Height and width, which the first file that is not only looked at decides where they are open."""
    given, filled, model = draft.given, draft.settings, draft.model
    lead = next((each for each in files.all if _leads(each, taken)), None)
    if lead is None and taken.told.follows:
        _follow(files.all[0], draft)
    if lead is None:
        for name in ("height", "width"):
            if getattr(given, name) is not None and not _accepts(draft, name):
                raise UsageError(f"{flag(name)}: {model.class_name} chooses the size by the picture; leave it out")
        return None
    defaults = model.sidecar.defaults
    rows, columns = filled.height or defaults.get("height"), filled.width or defaults.get("width")
    side = native_side(model.config)
    area = rows * columns if rows and columns else side and side * side
    height, width = size_for(lead.size, model, (given.height, given.width), area, model.kind is not IMAGE)
    _take(draft, (height, width), lead)
    if given.height is None or given.width is None:
        draft.notes.append(f"the size {width}x{height} follows {lead.path.name} ({lead.size[1]}x{lead.size[0]})")
    return height, width


def _follow(seen: GivenFile, draft: Draft) -> None:
    """The size of a pipeline that looks at a picture and makes one of its proportions, of a usual area."""
    given, model = draft.given, draft.model
    area = model.sidecar.call.get(AREA, model.accepted[AREA].default)
    _take(draft, size_for(seen.size, model, (given.height, given.width), area, True), seen)


def _take(draft: Draft, size: tuple[int, int], lead: GivenFile) -> None:
    """Make a size that of the run. One that nobody wrote is told as what it is: that of the file which it follows."""
    try:
        draft.set(height=size[0], width=size[1])
        draft.check_sizes()
        if (
            lead.setting in ("source_video", "control") or not lead.moving
        ):  # a clip in a picture's place is told as that
            draft.model.check_size(*size, None)
    except UsageError as error:
        # What somebody wrote is told as theirs, and a size that both numbers of were written follows nothing.
        sizes = ("height", "width")
        written = [flag(name) for name in (*sizes, "num_frames") if getattr(draft.given, name) is not None]
        whole = all(getattr(draft.given, name) is not None for name in sizes)
        if whole or any(str(error).startswith(name) for name in written):
            raise
        rows, columns = lead.size
        raise UsageError(
            f"{lead.path.name} has {columns}x{rows} pixels, and the size that follows it, {size[1]}x{size[0]}, cannot "
            f"be made ({error}); cut it to other proportions, or give --height and --width"
        ) from error


def _length(clip: GivenFile, draft: Draft, taken: Taken) -> None:
    """Frames and rate of a run that follows a clip."""
    given, model, name = draft.given, draft.model, clip.path.name
    rate, has = _rate(clip, draft)
    each = 1 if model.rule is None else model.rule.frames_multiple
    if given.num_frames is None:
        usual = draft.settings.num_frames or has
        most = min(has, model.sidecar.limits.get("max_frames", max(usual, has) if _free(draft) else usual))
        count = 1 + (most - 1) // each * each
        draft.set(num_frames=count)
        if count != has:
            draft.notes.append(
                f"{name} has {counted(has, 'frame')}; the first {count} are used (--num-frames for others)"
            )
    elif given.num_frames > has and not (taken.told.timeline or "keyframe" in taken.arguments):
        raise UsageError(
            f"--num-frames: got {given.num_frames}, {name} has {counted(has, 'frame')} at {rate} fps; take "
            f"{has} or fewer"
        )


def _rate(clip: GivenFile, draft: Draft) -> tuple[Fraction, int]:
    """The rate of the run, the clip's where nobody says one, and the frames that the clip has at it."""
    if draft.given.fps is None and clip.fps is not None:
        draft.set(fps=str(clip.fps))
    rate = Fraction(draft.settings.fps)
    has = clip.frames_at(rate)
    if clip.fps not in (None, rate):
        draft.notes.append(
            f"{clip.path.name} has {clip.fps} frames per second; at {rate} fps it lasts {counted(has, 'frame')}"
        )
    return rate, has


def _free(draft: Draft) -> bool:
    """Whether the pipeline makes as many frames as it is given."""
    return not _accepts(draft, "num_frames")


def _accepts(draft: Draft, name: str) -> bool:
    return any(target in draft.model.accepted for target in argument_names(draft.model)[name])


def _steps(draft: Draft, taken: Taken) -> int | None:
    """How many steps are made: a share of them where what is given is noised only so far."""
    steps: Any = draft.settings.steps
    name = next(iter(taken.arguments.get("strength", ())), None)
    if name is None or steps is None:
        return steps
    strength = draft.settings.strength
    if strength is None:
        own = draft.model.sidecar.call.get(name, draft.model.accepted[name].default)
        if not isinstance(own, (int, float)):
            return steps
        strength = float(own)
        draft.set(strength=strength)
    return kept_steps(steps, strength)
