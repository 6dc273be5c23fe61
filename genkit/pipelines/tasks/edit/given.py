"""The picture or clip that is edited, read once before any weights."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genkit.errors import ArtifactError, UsageError, counted, explain
from genkit.media import format_of, probe_video, read_image, read_mp4
from genkit.media.canvas import Canvas
from genkit.pipelines.tasks.edit.settings import is_clip
from genkit.reading import file_digest, regular
from genkit.reading.files import user_path

if TYPE_CHECKING:
    from genkit.pipelines.model import Model
    from genkit.pipelines.tasks.edit.settings import EditSettings

#: Pixels of a picture that an image model edits in one piece at most; a model's own limit comes on top.
MOST_PIXELS = 1 << 24


@dataclass(frozen=True)
class Given:
    """What is edited.

    Args:
        frames: uint8 (F, H, W, 3); F is 1 of a picture.
        canvas: its first frame at a size that the model takes.
        source: the file.
        fps: of a clip.
        audio: float32 (S, channels) of a clip with sound; it is kept.
        sample_rate: of it.
        multiple: what height and width of the working size are multiples of.
        size: height, width and frames of the working size.
        source_prompt: what it shows, as the model reads it.
        told: what was chosen in reading it, one line each.
    """

    frames: np.ndarray
    source: Path
    canvas: Canvas
    fps: Fraction | None = None
    audio: np.ndarray | None = None
    sample_rate: int | None = None
    multiple: int = 8
    size: tuple[int, int, int] = (0, 0, 1)
    source_prompt: str = ""
    told: tuple[str, ...] = ()

    @property
    def padded(self) -> np.ndarray:
        """The frames at the working size, uint8 (F, height, width, 3)."""
        return np.moveaxis(self.canvas.pad(np.moveaxis(self.frames, 0, 2)), 2, 0)

    def fingerprint(self) -> str:
        """A short digest of the file."""
        return file_digest(self.source)[:16]


def find(image: str | None) -> Path:
    """The file that is edited.

    Raises:
        UsageError: none is given. ArtifactError: it does not exist or is no ordinary file.
    """
    if image is None:
        raise UsageError("nothing to edit: give a picture or clip, genkit edit IMAGE --source-prompt ... --prompt ...")
    return regular(user_path(image, "IMAGE"), "IMAGE")


def read_given(path: Path, model: Model, video: bool, moving: bool = False) -> Given:
    """Read a picture or clip for a model.

    Args:
        path: from :func:`find`. model: that edits it. video: whether it makes videos. moving: whether the output is a
            clip even of one frame.

    Raises:
        UsageError: a clip for a model of pictures, or more frames than the model makes.
        ArtifactError: a file that cannot be decoded, or is larger than is edited.
    """
    if is_clip(path):
        if not video:
            raise UsageError(
                f"{model.name} edits pictures, and {path.name} is a clip; take --model toy-video or another"
            )
        found = _clip(path, model)
    else:
        picture = read_image(path, None if video else 1, MOST_PIXELS, "IMAGE")
        rate, told_of = picture.fps, list(picture.told)
        if video and rate is None and (len(picture.frames) > 1 or moving):
            rate = Fraction(model.fps)
            told_of.append(f"{path.name} tells no frame rate; {model.fps} of {model.name} was taken")
        found = Given(picture.frames, path, Canvas.of(picture.frames[0], 1), rate, told=tuple(told_of))
    rule = model.rule
    multiple, each = (8, 1) if rule is None else (rule.multiple, rule.frames_multiple)
    limits = model.sidecar.limits
    least = (limits.get("min_height", 1), limits.get("min_width", 1))
    canvas = Canvas.of(found.frames[0], multiple, least=least)
    check_size(path, canvas, model)
    frames = len(found.frames) + (-(len(found.frames) - 1) % each if video else 0)
    told = list(canvas.told)
    if frames > len(found.frames):
        more = frames - len(found.frames)
        told.append(
            f"the clip of {counted(len(found.frames), 'frame')} is worked on with its last one {counted(more, 'time')} "
            "more, cut off"
        )
    values = {
        **vars(found),
        "canvas": canvas,
        "multiple": multiple,
        "size": (*canvas.size, frames),
        "told": (*found.told, *told),
    }
    return Given(**values)


def check_held(settings: EditSettings, given: Given) -> None:
    """Refuse a kind of output that cannot hold what will be made, before it is made.

    Raises:
        UsageError: sound, or an odd size in .mp4.
    """
    still = given.fps is None and len(given.frames) == 1
    form = format_of(settings.output) if settings.output is not None else "png" if still else "mp4"
    name = given.source.name
    if given.audio is not None and form != "mp4":
        raise UsageError(
            f"--output {settings.output}: {name} has sound, which only .mp4 holds; choose a name ending in .mp4"
        )
    height, width = (side * settings.enlarge for side in given.frames.shape[1:3])
    if form == "mp4" and not still and (height % 2 or width % 2):
        raise UsageError(
            explain(
                f"size of {name}", f"{width}x{height}", "even width and height for .mp4",
                "choose an --output ending in .gif or .webp, or --enlarge 2",
            )
        )  # fmt: skip


def check_size(path: Path, canvas: Canvas, model: Model) -> None:
    """Refuse a picture that is larger than a model's own limit; UsageError."""
    for side, name in zip(canvas.size, ("height", "width"), strict=True):
        most = model.sidecar.limits.get(f"max_{name}")
        if most is not None and side > most:
            height, width = canvas.picture.shape[:2]
            raise UsageError(
                f"{path.name} has {width}x{height} pixels, {model.name} goes up to a {name} of {most}; make it "
                "smaller, or take another model"
            )


def _clip(path: Path, model: Model) -> Given:
    video = probe_video(path, "IMAGE")
    most = model.sidecar.limits.get("max_frames")
    count = len(video.starts)
    if most is not None and count > most:
        raise UsageError(f"{path.name} has {counted(count, 'frame')}, {model.name} goes up to {most}; cut it first")
    if video.height * video.width > MOST_PIXELS:
        raise ArtifactError(
            f"{path.name} has {video.width}x{video.height} pixels a frame, allowed: {MOST_PIXELS} in all"
        )
    frames, fps, audio, rate, _ = read_mp4(path, "IMAGE")
    return Given(frames, path, Canvas.of(frames[0], 1), fps, audio, rate, told=video.told)


def stored_prompt(path: Path) -> str | None:
    """The prompt of a picture or clip that genkit made, from the record inside; None for any other file."""
    from genkit.pipelines.record import read_record

    try:
        settings: dict[str, Any] = read_record(path).settings
    except (ArtifactError, UsageError):
        return None
    prompt = settings.get("prompt")
    return prompt if isinstance(prompt, str) else None
