"""What is given, as the arguments of a pipeline's call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from genkit.errors import UsageError, counted, explain
from genkit.families.inputs import CLIPS, LOOKED, REPLACES, SCALES
from genkit.media.canvas import THRESHOLD, read_mask
from genkit.pipelines.kinds import IMAGE
from genkit.pipelines.request import flag
from genkit.pipelines.tasks.inputs.files import GivenFile
from genkit.pipelines.tasks.inputs.fit import fitted
from genkit.pipelines.tasks.inputs.pictures import as_masks, as_pictures
from genkit.pipelines.tasks.inputs.plan import AREA, Plan
from genkit.pipelines.tasks.inputs.shapes import conditions_of, timeline_of
from genkit.reading.files import place

if TYPE_CHECKING:
    from genkit.pipelines.resolve import Draft


def arguments_of(plan: Plan, draft: Draft) -> dict[str, Any]:
    """The arguments of the call that hold what is given, as Pillow pictures and lists of them.

    Raises:
        UsageError: a clip where a picture belongs, a frame that the video does not have, a mask of another size.
        ArtifactError: a file that cannot be decoded.
    """
    return Arguments(plan, draft).made()


class Arguments:
    """The arguments in the making.

    Args:
        plan: of the run.
        draft: its request; notes are added to it.
    """

    def __init__(self, plan: Plan, draft: Draft):
        self.plan, self.draft, self.model = plan, draft, draft.model
        self.values: dict[str, Any] = {}

    def made(self) -> dict[str, Any]:
        """All of them."""
        taken = self.plan.taken
        self._check_places()
        conditions = [kind for kind, names in taken.arguments.items() if "conditions" in names]
        timed = ("source_video", "control", "last_image", "keyframe", "mask") if taken.told.timeline else ()
        for kind in ("image", "last_image", "source_video", "control", "image_prompt"):
            if kind not in conditions and kind not in timed:
                self._add(kind)
        if any(self.plan.files.of(kind) for kind in conditions):
            self.values["conditions"] = conditions_of(self, conditions)
        if any(self.plan.files.of(kind) for kind in timed):
            self.values |= timeline_of(self)
        elif self.plan.files.of("mask"):
            self._add_mask()
        if taken.told.follows and AREA in self.model.accepted:  # the size that is asked for is the one that is made
            self.values[AREA] = self.draft.settings.height * self.draft.settings.width
        if "strength" in taken.arguments and self.draft.settings.strength is not None:
            self.values[taken.arguments["strength"][0]] = self.draft.settings.strength
        for name, value in REPLACES.items():
            if "background_video" in self.values and name in self.model.accepted:
                self.values[name] = value
        return self.values

    def _check_places(self) -> None:
        """Refuse two pictures for one frame: one of them would be passed over."""
        files, frames = self.plan.files, self.plan.frames
        if frames is None or self.model.kind is IMAGE:
            return
        begins = files.of("image") if not self.plan.taken.told.looks and "image" in self.plan.taken.arguments else ()
        placed = [(0, each) for each in begins[:1]]
        placed += [(self.number(each), each) for each in files.of("keyframe")]
        placed += [(frames - 1, each) for each in files.of("last_image")]
        found: dict[int, GivenFile] = {}
        for number, each in placed:
            if number in found:
                both = " and ".join(f"{flag(one.setting)} {place(one.path.name)}" for one in (found[number], each))
                raise UsageError(f"{both} are both frame {number} of {frames}; leave one out, or move it")
            found[number] = each

    def _add(self, kind: str) -> None:
        """The usual form: a picture, a list of pictures, or a list of frames under one argument."""
        files, names = self.plan.files.of(kind), self.plan.taken.arguments.get(kind, ())
        if not files:
            return
        if len(names) > 1:
            return self._add_named(files, names)
        name = names[0]
        self._no_names(files)
        if name in CLIPS:
            if len(files) > 1:
                raise UsageError(
                    f"{flag(kind)}: got {counted(len(files), 'file')}, {self.model.class_name} takes one clip"
                )
            self.values[name] = as_pictures(self.clip(files[0]))
        else:
            pictures = [as_pictures(self.picture(each))[0] for each in files]
            single = len(pictures) == 1 and name not in ("images", "input_images")
            several = [pictures] if kind == "image_prompt" else pictures  # several pictures of one adapter
            self.values[name] = pictures[0] if single else several
        self._add_scale(files)

    def _add_named(self, files: tuple[GivenFile, ...], names: tuple[str, ...]) -> None:
        """Several kinds of clips, each by its name: pose=FILE."""
        short = {name.partition("_")[0]: name for name in names}
        for each in files:
            if each.name not in short:
                raise UsageError(
                    f"{flag(each.setting)}: {self.model.class_name} takes several kinds; write "
                    f"{' and '.join(f'{name}=FILE' for name in short)}"
                )
            # A face is looked at, at a size of the pipeline's own; the others lie under what is made.
            looks = short[each.name] in LOOKED
            frames = self._frames(each) if looks else self.clip(each)
            self.values[short[each.name]] = as_pictures(frames)
        missing = [name for name in short if short[name] not in self.values]
        if missing:
            raise UsageError(f"{flag(files[0].setting)} {missing[0]}=FILE is missing: {self.model.class_name} needs it")

    def _no_names(self, files: tuple[GivenFile, ...]) -> None:
        named = next((each for each in files if each.name), None)
        if named is not None:
            raise UsageError(
                f"{flag(named.setting)} {named.name}=: {self.model.class_name} takes one kind; leave the name out"
            )

    def _add_scale(self, files: tuple[GivenFile, ...]) -> None:
        """Strengths of controls; nothing else has one here."""
        weighed = [each.strength for each in files]
        if all(strength == 1 for strength in weighed):
            return
        name = next((name for name in SCALES if name in self.model.accepted), None)
        if name is None or files[0].setting != "control":
            raise UsageError(
                f"{flag(files[0].setting)} ...@{weighed[0]:g}: {self.model.class_name} takes no strength there; leave "
                "it out"
            )
        self.values[name] = weighed[0] if len(weighed) == 1 else weighed

    def picture(self, each: GivenFile) -> np.ndarray:
        """A picture, uint8 (1, H, W, 3), at the size of the run unless it is only looked at."""
        if each.moving:
            raise UsageError(f"{_said(each)} is a clip; {self.model.class_name} takes a picture")
        frames = each.still()[None]
        looks = each.setting == "image_prompt" or (each.setting == "image" and self.plan.taken.told.looks)
        return frames if looks else self._fitted(frames, each)

    def clip(self, each: GivenFile, most: int | None = None) -> np.ndarray:
        """The frames of a clip, uint8 (T, H, W, 3), as many as the run has, at its size."""
        if not each.moving:
            raise UsageError(f"{_said(each)} is a picture; {self.model.class_name} takes a clip")
        return self._fitted(self._frames(each, most), each)

    def whole(self, each: GivenFile, last: int | None = None) -> np.ndarray:
        """All frames of a clip that is continued, uint8 (T, H, W, 3), at the rate and size of the run.

        Args:
            last: only so many, from its end.

        Raises:
            UsageError: a picture, or more than fits in memory.
        """
        if not each.moving:
            raise UsageError(
                f"{_said(each)} is a picture; give a clip to continue, or the picture as --image to begin with it"
            )
        count = self._count(each)
        kept = count if last is None else min(last, count)
        height, width = each.size
        if 3 * height * width * kept > _MOST_BYTES:
            raise UsageError(
                f"{_said(each)} has {counted(count, 'frame')} of {width}x{height}, too many to be put before "
                "the new ones; "
                "take --only-new, or a shorter clip"
            )
        return self._fitted(each.clip(self.plan.fps, count, count - kept), each)

    def _count(self, each: GivenFile) -> int:
        return each.count if self.plan.fps is None else each.frames_at(self.plan.fps)

    def _frames(self, each: GivenFile, most: int | None = None) -> np.ndarray:
        return each.clip(self.plan.fps, most or self.plan.frames or each.count)

    def _fitted(self, frames: np.ndarray, each: GivenFile) -> np.ndarray:
        if self.plan.size is None:
            return frames
        made, told = fitted(frames, self.plan.size, each.path.name)
        self.draft.notes += [line for line in told if line not in self.draft.notes]
        return made

    def _add_mask(self) -> None:
        name = self.plan.taken.arguments["mask"][0]
        count = self.plan.frames if name in CLIPS else 1
        masks = as_masks(self.mask(self.plan.files.of("mask")[0], count or 1))
        self.values[name] = masks if name in CLIPS else masks[0]

    def mask(self, each: GivenFile, count: int) -> np.ndarray:
        """What is made anew, bool (T, H, W); one picture stands for all frames."""
        shown = next((other for other in self.plan.files.all if other.setting in ("image", "source_video")), None)
        if shown is None:
            raise UsageError("--mask says which part of a picture or clip is made anew; give --image or --source-video")
        if each.moving:
            if self.model.kind is IMAGE:
                raise UsageError(f"--mask {each.path.name} is a clip; {self.model.class_name} takes a picture")
            if each.size != shown.size:
                raise UsageError(_other_size(each, shown))
            frames = self.clip(each, count)
            if len(frames) < count:
                raise UsageError(f"--mask {each.path.name} has {counted(len(frames), 'frame')}, the video has {count}")
            return frames.max(axis=-1) >= THRESHOLD
        mask = read_mask(each.path, shown.size, what="--mask")
        self.draft.notes += [line for line in mask.told if line not in self.draft.notes]
        layer = np.repeat(mask.inside[None, ..., None], 3, axis=-1).astype(np.uint8) * 255
        made = layer if self.plan.size is None else fitted(layer, self.plan.size, each.path.name)[0]
        return np.repeat(made[..., 0] >= THRESHOLD, count, axis=0)

    def number(self, each: GivenFile) -> int:
        """The frame that a keyframe is, counted from the front."""
        frames = self.plan.frames or 1
        number = int(each.name)
        counted = number + frames if number < 0 else number
        if not 0 <= counted < frames:
            raise UsageError(
                explain("--keyframe", f"{each.name}={each.path.name}", f"frames 0 to {frames - 1}, or -{frames} to -1")
            )
        return counted


#: Bytes of the frames of a clip that is continued, at most.
_MOST_BYTES = 1 << 32


def _said(each: GivenFile) -> str:
    return f"{flag(each.setting)} {each.path.name}"


def _other_size(each: GivenFile, shown: GivenFile) -> str:
    (height, width), (rows, columns) = each.size, shown.size
    return f"--mask {each.path.name} has {width}x{height} pixels, {shown.path.name} has {columns}x{rows}"
